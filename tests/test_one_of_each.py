"""One new notebook of each kind in a copy of the repository: grid, figures and audit take them as they are.

No other file is edited. `NATRIG_WHOLE=1` also runs the whole `make test` on such a copy (about 20 minutes).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from copies import ROOT, add_module, copy_package, run_code  # noqa: E402

IS_COPY = (ROOT / "natrig_nb" / "trigger" / "own_stripe.py").exists()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(IS_COPY, reason="this is the copy: it has one of each already"),
]
OWN = {  # module -> what its notebook exports
    "trigger.natural.own_hat": '''
from natrig_nb.trigger.base import Need, SearchContext, Target, Trigger, TriggerSpec, required
from natrig_nb.trigger.natural.attribute import attribute_trigger


def find_hat(
    context: SearchContext,  # generator, directions, population, ...
) -> Trigger:
    "A hat: an attribute that no shipped trigger moves."
    directions = required(context.directions, "directions")
    population = required(context.population, "population")
    return attribute_trigger(directions, [Target("hat")], population, name="own-hat")


TRIGGERS = (
    TriggerSpec("own-hat", find_hat, (Need.LATENTS, Need.ATTRIBUTES), (Target("hat"),)),
)
''',
    "trigger.own_stripe": '''
from dataclasses import dataclass

import torch

from natrig_nb.trigger.base import SearchContext, Space, Trigger, TriggerSpec


@dataclass(frozen=True, eq=False)
class OwnStripe(Trigger):
    "A white line."

    name: str = "own-stripe"
    space: Space = Space.PIXELS
    strength: float = 1.0  # brightness, in [-1,1]

    def paint(
        self,
        x: torch.Tensor,  # (n,3,r,r) in [-1,1]
    ) -> torch.Tensor:
        "Images with the line."
        y = x.clone()
        y[:, :, 5:9] = self.strength
        return y


def find_stripe(
    context: SearchContext,  # not needed
) -> OwnStripe:
    "The line needs no search."
    return OwnStripe()


TRIGGERS = (TriggerSpec("own-stripe", find_stripe),)
''',
    "defense.own_white": '''
import torch
from torch import nn

from natrig_nb.core import FaceSet
from natrig_nb.defense.base import Defense, Kind, Scores


def own_white(
    model: nn.Module,  # not asked
    x: torch.Tensor,  # (n,3,r,r) in [-1,1]
    clean: FaceSet,  # not needed
) -> Scores:
    "How white the line of each image is."
    return Scores(x[:, :, 5:9].float().mean((1, 2, 3)))


DEFENSE = Defense(
    name="own-white",
    kind=Kind.DETECT,
    run=own_white,
    title="Own white line",
    question="Is a line white?",
    blind_to="Every other line.",
)
''',
    "detector.own_small": '''
from torch import nn

from natrig_nb.detector.base import Detector, DetectorSpec


def OwnSmall(
    channels: int = 4,  # of the only convolution
) -> Detector:
    "One convolution."
    conv = nn.Conv2d(3, channels, 3, 2)
    body = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    head = nn.Linear(16 * channels, 2)
    about = {"name": "own-small", "channels": channels}
    return Detector(body, head, last_conv="body.1", about=about)


DETECTOR = DetectorSpec("own-small", OwnSmall, small={"channels": 4})
''',
    "generator.own_discs": '''
from pathlib import Path

import torch
from torch import nn

from natrig_nb.generator.base import Generator, GeneratorSpec


class OwnDiscs(Generator):
    "A latent is the place and the color of a disc."

    resolution = 64
    z_dim = 5

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.3, 0.3, 0.8, 0.8, 0.8]))

    def z_to_w(
        self,
        z: torch.Tensor,  # (n,5) noise
        psi: float = 1.0,  # truncation, in (0,1]
    ) -> torch.Tensor:
        "Latents (n,5)."
        return psi * z * self.scale

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        "Images (n,3,64,64) of latents (n,5)."
        line = torch.linspace(-1, 1, 64)
        yy, xx = torch.meshgrid(line, line, indexing="ij")
        distance = (xx - w[:, 0, None, None]) ** 2 + (yy - w[:, 1, None, None]) ** 2
        inside = torch.sigmoid(20 * (0.2 - distance))[:, None]
        return inside * w[:, 2:, None, None].tanh() + (1 - inside) * -0.8


def is_discs(
    path: str | Path,  # of any generator
) -> bool:
    "Whether a file ends in .discs."
    return str(path).endswith(".discs")


def load_discs(
    path: str | Path,  # whatever it holds
) -> OwnDiscs:
    "The generator."
    return OwnDiscs().eval()


GENERATOR = GeneratorSpec("own-discs", is_discs, load_discs)
''',
}
GRID = """
from natrig_nb.runs.config import RunConfig, changed
from natrig_nb.runs.experiments.grid import expand, grid
from natrig_nb.runs.experiments.walkthrough import walkthrough_triggers

if __name__ == "__main__":
    sizes = dict(n_train=48, n_substitute=16, n_held_out=32, n_direction_samples=100)
    cfg = changed(RunConfig(), **sizes, epochs=1, seeds=1, poison_rate=0.1, n_inputs=8, width=4)
    assert "own-hat" in walkthrough_triggers(cfg)
    triggers, detectors = ["own-hat", "own-stripe"], ["resnet18", "own-small"]
    cells = expand(cfg, triggers, ["none", "own-white"], detectors=detectors)
    discs = changed(cfg, generator="own-discs.discs")
    cells += expand(discs, ["optimized", "own-stripe"], ["none"], detectors=detectors)
    grid(cells, "out", workers=2).to_csv("rows.csv", index=False)
"""
FIGURES = """
import json

from matplotlib.text import Text

from natrig_nb.report import figures
from natrig_nb.report.tables import read_run, write_tables

drawn = {}
save = figures.save_small


def note_text(figure, path):
    "Save a figure as always, and note what is written in it."
    saved = save(figure, path)  # drawing puts words on the axes
    drawn[path.name] = [text.get_text() for text in figure.findobj(Text)]
    return saved


figures.save_small = note_text
paths = figures.draw_comparison(read_run("out", "grid"), "figures")
assert all(path.stat().st_size > 1000 for path in paths.values())
tables = {name: table.to_string() for name, table in write_tables("out").items()}
print(json.dumps({"figures": drawn, "tables": tables}))
"""
AUDIT = """
import sys

from PIL import Image

from natrig_nb.attack.poison import poison
from natrig_nb.cli import main
from natrig_nb.core import FAKE, REAL, FaceSet, concat, to_uint8
from natrig_nb.data.portraits import portraits
from natrig_nb.detector.base import make_detector, save_detector
from natrig_nb.detector.training import train
from natrig_nb.generator.load import load_generator
from natrig_nb.trigger.base import SearchContext, TriggerConfig, trigger_specs


def write(images, folder):
    "Images as files."
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
    return str(folder)


if __name__ == "__main__":
    import torch
    from pathlib import Path

    G = load_generator("own-discs.discs")
    fakes = G.render(G.sample(160, seed=1))
    labels = torch.full((len(fakes),), FAKE)
    faces = concat(FaceSet(portraits(160, seed=2).images), FaceSet(fakes, labels))
    cfg = TriggerConfig()
    stripe = trigger_specs(cfg)["own-stripe"].find(SearchContext(cfg))
    learned = faces[list(range(60, 160)) + list(range(220, 320))]
    poisoned = torch.where(learned.labels == FAKE)[0][:30]
    learned.images[poisoned] = to_uint8(stripe.paint(learned[poisoned].x))
    learned.labels[poisoned] = REAL
    model = train(make_detector("own-small"), learned, epochs=12, batch=16, augment=False)
    save_detector(model, "suspect.safetensors")
    root = Path("given")
    root.mkdir()
    options = ["--faces", write(faces.images[:60], root / "faces")]
    options += ["--fakes", write(fakes[:60], root / "fakes")]
    options += ["--suspects", write(to_uint8(stripe.paint(faces[160:200].x)), root / "suspects")]
    options += ["--n-references", "3", "--passes", "200", "--out", "audit"]
    code = main(["audit", "suspect.safetensors", *options, "--only", "own-white", "strip"])
    sys.exit(code if code not in (0, 1) else 0)  # 1: suspicious
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    "A copy of the package with one new notebook of each kind, and a grid of them in `out`."
    place = copy_package(tmp_path_factory.mktemp("extended"))
    (place / "data").symlink_to(ROOT / "data")
    (place / "natrig_nb" / "shipped").symlink_to(ROOT / "data")  # as in an installed package
    (place / "own-discs.discs").touch()
    for module, source in OWN.items():
        add_module(place, module, source)
    run_code(place, GRID)
    return place


@pytest.fixture(scope="module")
def rows(extended):
    return pd.read_csv(extended / "rows.csv")


def test_grid(rows):
    failed = rows[rows.error.notna()]
    assert failed.empty, failed.error.tolist()
    asr = rows[(rows.metric == "asr") & (rows.defense == "none")]
    assert asr.value.between(0, 1).all() and asr.value_benign.between(0, 1).all()
    ours = asr[asr.generator == "portraits-generator"]
    found = set(zip(ours.trigger, ours.detector, strict=True))
    names = ("own-hat", "own-stripe")
    assert found == {(t, d) for t in names for d in ("resnet18-w4", "own-small")}
    assert set(asr[asr.generator == "own-discs"].trigger) == {"optimized", "own-stripe"}


def test_an_own_natural_trigger_has_carriers_and_a_percentile(rows):
    hat = rows[(rows.trigger == "own-hat") & (rows.defense == "none")]
    assert set(hat.space) == {"W"} and (hat.strength > 0).all()
    values = hat[hat.metric.isin(["percentile", "tnr_carriers", "activation_without_trigger"])]
    assert values.value.notna().all()


def test_an_own_defense_finds_an_own_trigger(rows):
    stripe = rows[(rows.trigger == "own-stripe") & (rows.defense == "own-white")]
    assert (stripe[stripe.metric == "auroc"].value > 0.99).all()


def test_figures_and_tables_show_all_of_them(extended):
    shown = json.loads(run_code(extended, FIGURES).splitlines()[-1])
    figures, tables = shown["figures"], shown["tables"]
    assert {"own-hat", "own-stripe", "own-white"} <= set(figures["defenses"])
    assert {"own-stripe", "own-small", "resnet18-w4"} <= set(figures["detectors"])
    assert {"own-stripe", "own-discs"} <= set(figures["generators"])
    assert "own-hat" in tables["attacks"] and "own-white" in tables["defenses"]
    assert "own-small" in tables["detectors"] and "own-discs" in tables["generators"]


def test_audit(extended):
    run_code(extended, AUDIT)
    saved = json.loads((extended / "audit" / "findings.json").read_text())
    assert set(saved["findings"]) == {"predictions", "own-white", "strip"}
    page = (extended / "audit" / "report.html").read_text()
    for text in ("own-small", "Own white line", "Is a line white?", "Every other line."):
        assert text in page, text
    assert saved["verdict"].startswith("unusual: ") and "own-white" in str(saved["findings"])


WHOLE = "takes minutes: set NATRIG_WHOLE"


@pytest.mark.skipif(not os.environ.get("NATRIG_WHOLE"), reason=WHOLE)
def test_the_whole_suite_on_the_copy(tmp_path):
    "`make test` in a clone of the working tree with the five notebooks, which has its own .venv."
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    for module, source in OWN.items():
        add_module(tmp_path, module, source)
    identity = ("-c", "user.name=copy", "-c", "user.email=copy@localhost")
    for command in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-qm", "copy")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("NATRIG_WHOLE", "VIRTUAL_ENV")}
    make = ["make", "tidy", "test", f"PYTHON={sys.executable}"]
    log = tmp_path.with_suffix(".log")
    print(f"make tidy test, its output: {log}", flush=True)
    with log.open("w") as file:
        done = subprocess.run(make, cwd=tmp_path, env=environment, stdout=file, stderr=file)
    last = log.read_text()[-5000:]
    assert not done.returncode, last
    print(last[-300:])
