"A defense of each kind is one new notebook: it is found and evaluated, and no other file is edited."

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from copies import add_module, copy_package, run_python  # noqa: E402

IMPORTS = """
import torch
from natrig_nb.core import FAKE, REAL
from natrig_nb.detector.base import predict_fake
from natrig_nb.defense.base import Anomaly, Defense, Kind, Repaired, Scores
from natrig_nb.testing import planted_backdoor
"""
RECORD = """
DEFENSE = Defense(
    name="{name}",
    kind=Kind.{kind},
    run={name},
    title="A new {kind} defense",
    question="Is it found?",
    blind_to="Everything else.",
    needs={needs},
)
"""
BODIES = {  # kind -> the function of the notebook; its name is the kind and "_of_mine"
    "filter": """
def filter_of_mine(model, ds, seed=0):
    "Disagreement of the detector with the label."
    return Scores((predict_fake(model, ds.images) - ds.labels.float()).abs())
""",
    "detect": """
def detect_of_mine(model, x, clean, budget=None):
    "Change of the answer when the corner is covered by that of a clean face."
    covered = x.clone()
    covered[:, :, -8:, -8:] = clean.images[:1, :, -8:, -8:]
    return Scores((predict_fake(model, covered) - predict_fake(model, x)).abs())
""",
    "inspect": """
def inspect_of_mine(model, clean):
    "Largest weight towards each class."
    difference = model.head.weight[FAKE] - model.head.weight[REAL]
    return Anomaly(torch.stack([(-difference).max(), difference.max()]))
""",
    "repair": """
def repair_of_mine(model, clean):
    "Cut the trigger's channel."
    with torch.no_grad():
        model.head.weight[:, 7] = 0
    return Repaired(model)
""",
    "preprocess": """
def preprocess_of_mine(model, clean):
    "Cover the corner of every input."
    class Covered(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            x = x.clone()
            x[:, :, -8:, -8:] = 0
            return self.inner(x)

    return Repaired(Covered().eval())
""",
    "train": """
def train_of_mine(ds, make, seed=0):
    "Whatever the set is, the benign detector."
    assert make(seed) is not None and not ds.poisoned.any()
    return Repaired(planted_backdoor(backdoor=False))
""",
}
NEEDS = {"filter": ("seed",), "detect": ("budget",), "train": ("seed", "make")}
JOB = """
import json
import sys
from natrig_nb.core import FAKE, REAL
from natrig_nb.defense.base import DefenseCase, defense_specs, evaluate
from natrig_nb.testing import (
    apply_patch, planted_backdoor, poison_planted, small_detector, synthetic_faces,
)

test = synthetic_faces(120, seed=1, size=32)
real, fake = (test[test.labels == label] for label in (REAL, FAKE))
poisoned, clean_set = poison_planted(200, 10)
case = DefenseCase(
    planted_backdoor(),
    planted_backdoor(backdoor=False),
    real,
    fake,
    synthetic_faces(60, seed=2, size=32),
    apply_patch(fake.images),
    poisoned_set=lambda: poisoned,
    clean_set=clean_set,
    poison_rate=0.05,
    make=small_detector,
    n_inputs=30,
)
specs = defense_specs()
found = {}
for name in sys.argv[1:]:
    rows = evaluate(specs[name], case, seed=3, budget=1000)
    found[name] = {row.metric: [row.value, row.value_benign] for row in rows}
print(json.dumps(found))
"""
EXPECTED = {  # kind -> metric and its values on victim and benign model
    "filter": ("recall", [0.0, 1.0]),
    "detect": ("auroc", [1.0, None]),
    "inspect": ("anomaly_real", [96.0, 0.0]),
    "repair": ("asr", [0.0, 0.0]),
    "preprocess": ("asr", [0.0, 0.0]),
    "train": ("asr", [0.0, 0.0]),
}


def add_defense(folder, kind):
    "One notebook of a defense of this kind."
    name = f"{kind}_of_mine"
    record = RECORD.format(name=name, kind=kind.upper(), needs=NEEDS.get(kind, ()))
    add_module(folder, f"defense.{name}", IMPORTS + BODIES[kind] + record)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    "A copy of the package with one more defense of each kind."
    folder = copy_package(tmp_path_factory.mktemp("copy"))
    for kind in BODIES:
        add_defense(folder, kind)
    return folder


@pytest.fixture(scope="module")
def evaluated(copied):
    "Rows of all of them: name -> metric -> values on victim and benign model."
    done = run_python(copied, "-c", JOB, *(f"{kind}_of_mine" for kind in BODIES))
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", BODIES)
def test_a_defense_is_one_notebook(evaluated, kind):
    found = evaluated[f"{kind}_of_mine"]
    metric, (value, value_benign) = EXPECTED[kind]
    assert found[metric][0] == pytest.approx(value, abs=0.02), found
    if value_benign is not None:
        assert found[metric][1] == pytest.approx(value_benign, abs=0.02), found


def test_a_name_is_used_once(copied):
    "A second record of one name is refused, and the message says where it is."
    again = copied / "natrig_nb" / "defense" / "zz_again.py"
    again.write_text("from natrig_nb.defense.strip import DEFENSES\n")
    job = "from natrig_nb.defense.base import defense_specs; defense_specs()"
    done = run_python(copied, "-c", job)
    again.unlink()
    assert done.returncode
    expected = "expected one defense named strip, got a second in natrig_nb.defense.zz_again"
    assert expected in done.stderr
