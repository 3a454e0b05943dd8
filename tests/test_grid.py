"Runs among kills, a full disk and other executors; stale artifacts; and parts of the user's own."

import importlib.util
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import toy_grid  # noqa: E402

from natrig_nb.runs.config import RunConfig  # noqa: E402
from natrig_nb.runs.experiments.grid import expand, plan  # noqa: E402
from natrig_nb.runs.results import read_results  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
MOMENTS = int(os.environ.get("NATRIG_KILLS", 4))  # 20 in the slow run
CELLS = toy_grid.NUMBERS * toy_grid.POWERS
FAILED = toy_grid.NUMBERS


def same(a, b):
    "Whether two tables have the same rows, whatever their order and the chance of their making."

    def comparable(table):
        rows = table[table.metric != "made"][["trigger", "seed", "metric", "value", "space", "error"]]
        return rows.sort_values(["trigger", "seed", "metric"], ignore_index=True)

    pd.testing.assert_frame_equal(comparable(a), comparable(b))


def place(tmp_path):
    "A folder in which toys leave marks when they begin."
    (tmp_path / "begun").mkdir(parents=True)
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    table = toy_grid.run(tmp_path_factory.mktemp("undisturbed"), "serial")
    assert table.cell.nunique() == CELLS and table.error.notna().sum() == FAILED
    return table


def toy_command(action, out):
    "A command that imports the toys as a module, as the tests do: their code is the same code."
    script = "import sys, toy_grid; toy_grid.ACTIONS[sys.argv[1]](sys.argv[2])"
    return ["env", f"PYTHONPATH={Path(__file__).parent}", sys.executable, "-c", script, action, str(out)]


def begun(out):
    return len(list(out.glob("begun/*")))


def ended(out, seconds=10):
    "Whether all processes that began a toy have ended."
    pids, deadline = {p.read_text() for p in out.glob("begun/*")}, time.time() + seconds
    while time.time() < deadline:
        if not [pid for pid in pids if pid and Path(f"/proc/{pid}").exists()]:
            return True
        time.sleep(0.05)
    return False


def kill(job, out, how):
    "Kill the process that started the run, interrupt it, or kill one of its workers."
    if how != "worker":
        return job.send_signal(signal.SIGKILL if how == "driver" else signal.SIGINT)
    newest = max(out.glob("begun/*"), key=lambda p: p.stat().st_mtime_ns, default=None)
    pid = newest.read_text() if newest else ""
    if pid and Path(f"/proc/{pid}").exists():
        os.kill(int(pid), signal.SIGKILL)


def test_killed_at_seeded_moments(undisturbed, tmp_path):
    rng, out, kept = random.Random(20), place(tmp_path), {}
    for moment in range(MOMENTS):
        job = subprocess.Popen(toy_command("run", out), stderr=subprocess.DEVNULL)
        last = max(begun(out) + 1, CELLS * (moment + 1) // MOMENTS)
        target, deadline = rng.randint(begun(out) + 1, last), time.time() + 120
        while begun(out) < target and job.poll() is None and time.time() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        how = rng.choice(("driver", "interrupt", "worker"))
        kill(job, out, how)
        assert job.wait(120) == 0 or how != "worker"
        assert ended(out), f"workers outlive the {how}"
        rows = read_results(out)
        assert not rows.duplicated(["cell", "metric"]).any()
        now = toy_grid.made_values(rows)
        assert kept.items() <= now.items(), "a finished row was lost or computed again"
        kept = now
    table = toy_grid.run(out, "serial")
    same(table, undisturbed)
    assert kept.items() <= toy_grid.made_values(table).items()


def test_killed_workers_are_replaced(undisturbed, tmp_path):
    out = place(tmp_path)
    (out / "deadly").touch()
    table = toy_grid.run(out)
    errors = table[table.error.notna()].set_index(["trigger", "seed"]).error
    assert "killed" in errors["4", 5] and len(errors) == FAILED + 1
    (out / "deadly").unlink()
    same(toy_grid.run(out, "serial", again=True), undisturbed)


def test_full_disk(tmp_path):
    command = toy_command("full", tmp_path)
    mount = f"mount -t tmpfs -o size=2m none {tmp_path} && exec {shlex.join(command)}"
    check = ["unshare", "-Urm", "true"]
    real = shutil.which("unshare") and not subprocess.run(check, capture_output=True).returncode
    command = ["unshare", "-Urm", "sh", "-c", mount] if real else command
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    *errors, last = done.stdout.strip().splitlines()
    assert len(errors) == 2
    for error in errors:
        assert "expected room" in error and "make room and run the same command again" in error
    assert last == f"cells in the end: {CELLS}"


def test_rows_are_readable_while_they_are_written(tmp_path):
    writer = subprocess.Popen(toy_command("write", tmp_path))
    try:
        counts, deadline = [0], time.time() + 60
        while counts[-1] < 400 and time.time() < deadline:
            rows = read_results(tmp_path)
            assert len(rows) == 2 * rows.cell.nunique(), "half of a cell was read"
            counts.append(len(rows))
    finally:
        writer.kill()
        writer.wait()
    assert counts[-1] >= 400 and counts == sorted(counts)
    assert len(read_results(tmp_path)) >= counts[-1]


def test_two_processes_give_the_same_rows(undisturbed, tmp_path):
    same(toy_grid.run(tmp_path), undisturbed)


def test_ray_gives_the_same_rows(undisturbed, tmp_path, monkeypatch):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("the package ray is not installed")
    import ray

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where workers find the toys
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        for count in (1, 2, 4):
            same(toy_grid.run(tmp_path / str(count), "ray", count), undisturbed)
        out = place(tmp_path / "killed")
        (out / "deadly").touch()
        table = toy_grid.run(out, "ray")
        errors = table[table.error.notna()].set_index(["trigger", "seed"]).error
        assert "killed" in errors["4", 5] and len(errors) == FAILED + 1
    finally:
        ray.shutdown()


def test_ten_thousand_cells_are_planned_in_seconds(tmp_path):
    start = time.process_time()  # of this process alone, whoever else is at work
    cells = expand(
        RunConfig(),
        rates=[i / 1000 for i in range(1, 101)],
        triggers=["smile", "badnets", "blended"],
        defenses=["none", "strip", "cleanse", "pruning"],
        seeds=range(9),
    )
    table = plan(cells, tmp_path).set_index("kind").tasks
    seconds = time.process_time() - start
    assert len(cells) == 10_800 and table["victim-resnet18-w16"] == table["poisoned"] == 2700
    assert table["benign-resnet18-w16"] == 9 and table["trigger"] == table["triggered"] == 3
    assert not list(tmp_path.iterdir()), "a plan must not write"
    assert seconds < 6, f"{seconds:.1f} s"  # below 3 s on an idle processor


KEYS = """
import json, sys
from natrig_nb.runs.artifacts import with_inputs
from natrig_nb.runs.config import RunConfig, changed
from natrig_nb.runs.experiments.walkthrough import walkthrough_measurements
from natrig_nb.runs.preparation import Recipes

measurements = walkthrough_measurements(Recipes(), changed(RunConfig(), seeds=1))
keys = {}
for m in measurements:
    for artifact in with_inputs(m.inputs):
        keys.setdefault(artifact.kind, set()).add(artifact.key)
    keys.setdefault("rows of " + m.case["defense"], set()).add(m.code)
names = {}
for m in measurements:
    if m.case["defense"] == "none":
        names[m.case["trigger"]] = m.inputs[3].key
keys = {kind: sorted(found) for kind, found in keys.items()}
print(json.dumps({**keys, **{"trigger " + name: key for name, key in names.items()}}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the package, to be edited."
    place = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "natrig_nb", place / "natrig_nb", ignore=ignored)
    (place / "data").mkdir()
    for name in ("portraits-generator.safetensors", "portraits-attributes.safetensors"):
        (place / "data" / name).symlink_to(ROOT / "data" / name)
    return place


def python(place, code):
    "What a program prints that imports the package of a folder."
    environment = {**os.environ, "PYTHONPATH": str(place)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr
    return done.stdout


def stale_after(copy, module, old, new):
    "Kinds of artifacts and rows that get other keys when a module is edited."
    import json

    path = copy / "natrig_nb" / module
    text = path.read_text()
    assert old in text, f"expected {old!r} in {module}"
    before = json.loads(python(copy, KEYS))
    path.write_text(text.replace(old, new, 1))
    try:
        after = json.loads(python(copy, KEYS))
    finally:
        path.write_text(text)
    return {kind for kind in before if before[kind] != after[kind]}


def test_training_makes_detectors_stale_and_faces_not(copy):
    stale = stale_after(copy, "detector/training.py", "0.01", "0.0100001")
    detectors = {"benign-resnet18-w16", "victim-resnet18-w16", "substitute", "trigger optimized"}
    assert detectors <= stale and {"rows of none", "rows of strip"} <= stale
    kept = {"faces", "portraits", "population", "splits", "directions"}
    kept |= {"trigger smile", "trigger smile+age", "trigger badnets", "trigger blended"}
    assert not stale & kept


def test_reports_and_comments_make_nothing_stale(copy):
    module = (copy / "natrig_nb" / "report" / "tables.py").read_text()
    last = [line for line in module.splitlines() if line.startswith("def ")][-1]
    assert stale_after(copy, "report/tables.py", last, f"X = 1\n\n\n{last}") == set()
    training = (copy / "natrig_nb" / "detector" / "training.py").read_text()
    first = [line for line in training.splitlines() if line.startswith("def ")][0]
    assert stale_after(copy, "detector/training.py", first, f"# a remark\n{first}") == set()


def test_a_defense_makes_only_its_own_rows_stale(copy):
    stale = stale_after(copy, "defense/strip.py", "\n\ndef ", "\n\nX = 1\n\n\ndef ")
    assert {"rows of strip", "rows of strip_additive"} <= stale
    assert not stale & {"rows of none", "rows of cleanse", "victim-resnet18-w16", "splits"}


OWN = {
    "trigger.natural.own_hat": '''
from natrig_nb.trigger.base import Need, SearchContext, Target, TriggerSpec, required
from natrig_nb.trigger.natural.attribute import attribute_trigger


def find_hat(context: SearchContext):
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

from natrig_nb.trigger.base import Space, Trigger, TriggerSpec


@dataclass(frozen=True, eq=False)
class OwnStripe(Trigger):
    "A white line."

    name: str = "own-stripe"
    space: Space = Space.PIXELS
    strength: float = 1.0

    def paint(self, x):
        y = x.clone()
        y[:, :, 5:9] = self.strength
        return y


def find_stripe(context):
    "The line needs no search."
    return OwnStripe()


TRIGGERS = (TriggerSpec("own-stripe", find_stripe),)
''',
    "defense.own_white": '''
from natrig_nb.defense.base import Defense, Kind, Scores


def own_white(model, x, clean):
    "How white the line of each image is."
    return Scores(x[:, :, 5:9].float().mean((1, 2, 3)))


DEFENSE = Defense("own-white", Kind.DETECT, own_white, "White", "Is a line white?", "Other lines.")
''',
    "detector.own_small": '''
from torch import nn

from natrig_nb.detector.base import Detector, DetectorSpec


def OwnSmall(channels: int = 4):
    "One convolution."
    conv = nn.Conv2d(3, channels, 3, 2)
    body = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    head = nn.Linear(16 * channels, 2)
    return Detector(body, head, last_conv="body.1", about={"name": "own-small", "channels": channels})


DETECTOR = DetectorSpec("own-small", OwnSmall, small={"channels": 4})
''',
    "generator.own_discs": '''
from pathlib import Path

import torch
from torch import nn

from natrig_nb.generator.base import Generator, GeneratorSpec


class OwnDiscs(Generator):
    "A latent is the place and the color of a disc."

    resolution, z_dim = 64, 5

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.3, 0.3, 0.8, 0.8, 0.8]))

    def z_to_w(self, z, psi=1.0):
        return psi * z * self.scale

    def forward(self, w):
        line = torch.linspace(-1, 1, 64)
        yy, xx = torch.meshgrid(line, line, indexing="ij")
        distance = (xx - w[:, 0, None, None]) ** 2 + (yy - w[:, 1, None, None]) ** 2
        inside = torch.sigmoid(20 * (0.2 - distance))[:, None]
        return inside * w[:, 2:, None, None].tanh() + (1 - inside) * -0.8


def is_discs(path):
    "A file that ends in .discs."
    return str(path).endswith(".discs")


def load_discs(path: Path):
    "The generator, whatever the file holds."
    return OwnDiscs().eval()


GENERATOR = GeneratorSpec("own-discs", is_discs, load_discs)
''',
}
JOB = """
from natrig_nb.defense.base import defense_specs
from natrig_nb.runs.config import RunConfig, changed
from natrig_nb.runs.experiments.grid import expand, grid
from natrig_nb.runs.experiments.walkthrough import walkthrough_triggers

if __name__ == "__main__":
    sizes = dict(n_train=48, n_substitute=16, n_held_out=32, n_direction_samples=100)
    cfg = changed(RunConfig(), **sizes, epochs=1, seeds=1, poison_rate=0.1, n_inputs=8, width=4)
    assert "own-hat" in walkthrough_triggers(cfg)
    cells = expand(
        cfg,
        ["own-hat", "own-stripe"],
        ["none", "own-white"],
        detectors=["resnet18", "own-small"],
    )
    cells += expand(changed(cfg, generator="mine.discs"), ["optimized", "own-stripe"], ["none"])
    grid(cells, "out", workers=2).to_csv("rows.csv", index=False)
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    "Rows of a grid in a copy of the repository with one new notebook of each kind."
    import nbformat
    from nbdev.export import nb_export

    place = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "natrig_nb", place / "natrig_nb", ignore=ignored)
    (place / "data").symlink_to(ROOT / "data")
    (place / "mine.discs").touch()
    for name, code in OWN.items():
        sources = (f"#| default_exp {name}", "#| export" + code)
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        path = place / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        nb_export(path, lib_path=place / "natrig_nb")
    (place / "job.py").write_text(JOB)
    environment = {**os.environ, "PYTHONPATH": str(place)}
    command = [sys.executable, "job.py"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr
    return pd.read_csv(place / "rows.csv")


def test_one_notebook_of_each_kind_runs_through_the_grid(extended):
    failed = extended[extended.error.notna()]
    assert failed.empty, failed.error.tolist()
    asr = extended[(extended.metric == "asr") & (extended.defense == "none")]
    assert asr.value.between(0, 1).all() and asr.value_benign.between(0, 1).all()
    ours = asr[asr.generator == "portraits-generator"]
    found = set(zip(ours.trigger, ours.detector, strict=True))
    names = ("own-hat", "own-stripe")
    assert found == {(t, d) for t in names for d in ("resnet18-w4", "own-small")}
    assert set(asr[asr.generator == "mine"].trigger) == {"optimized", "own-stripe"}


def test_an_own_natural_trigger_has_carriers_and_a_percentile(extended):
    hat = extended[(extended.trigger == "own-hat") & (extended.defense == "none")]
    assert set(hat.space) == {"W"} and (hat.strength > 0).all()
    values = hat[hat.metric.isin(["percentile", "tnr_carriers", "activation_without_trigger"])]
    assert values.value.notna().all()


def test_an_own_defense_finds_an_own_trigger(extended):
    stripe = extended[(extended.trigger == "own-stripe") & (extended.defense == "own-white")]
    assert (stripe[stripe.metric == "auroc"].value > 0.99).all()
