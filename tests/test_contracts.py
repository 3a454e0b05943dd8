"""Add one of each as a new notebook in a copy of the package; nothing else is edited."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from copies import ROOT, add_module, copy_package, run_code  # noqa: E402

STRIPE = '''
from dataclasses import dataclass

import torch

from natrig_nb.trigger.base import SearchContext, Space, Trigger, TriggerSpec


@dataclass(frozen=True, eq=False)
class Stripe(Trigger):
    "A white line from side to side."

    name: str = "stripe"
    space: Space = Space.PIXELS
    strength: float = 1.0  # opacity, in (0,1]

    def paint(self, x: torch.Tensor) -> torch.Tensor:
        "Images with the line."
        y = x.clone()
        y[:, :, 5:8] = torch.lerp(y[:, :, 5:8], torch.ones(()), self.strength)
        return y


def find_stripe(context: SearchContext) -> Stripe:
    return Stripe()


TRIGGERS = (TriggerSpec("stripe", find_stripe),)
'''

PAINTED_JOB = '''
import torch

from natrig_nb.attack.run import attack, image_splits, train_detector
from natrig_nb.core import FAKE, REAL
from natrig_nb.testing import small_detector, synthetic_faces
from natrig_nb.trigger.base import SearchContext, TriggerConfig, trigger_from_state, trigger_specs

cfg = TriggerConfig()
for latent in (True, False, None):
    assert "stripe" in trigger_specs(cfg, latent), latent
spec = trigger_specs(cfg, latent=None)["stripe"]
assert spec.painted and spec.targets == ()
trigger = spec.find(SearchContext(cfg))
torch.save(trigger.with_strength(0.5).state(), "trigger.pt")
again = trigger_from_state(torch.load("trigger.pt", weights_only=True))
assert type(again).__name__ == "Stripe" and again.strength == 0.5 and again.space == "pixels"

ds = synthetic_faces(1300, seed=0, size=32)
real, fake = ds[ds.labels == REAL], ds[ds.labels == FAKE]
splits = image_splits(real[:500], fake, real[500:])
how = dict(epochs=6, lr=6e-3, augment=False)
benign = train_detector(small_detector, splits.train, 0, **how)
_, metrics, manifest = attack(splits, trigger, small_detector, benign, 0.04, **how)
assert metrics.asr > 0.9 and metrics.asr_benign < 0.1 and metrics.ba > 0.95, metrics
assert set(manifest.trigger) == {"stripe"}
'''

FROWN = '''
from natrig_nb.trigger.base import LatentTrigger, Need, SearchContext, Space, Target, TriggerConfig
from natrig_nb.trigger.base import TriggerSpec, required

TARGETS = (Target("smile", -1),)


def find_frown(context: SearchContext) -> LatentTrigger:
    directions = required(context.directions, "directions")
    step = -3 * directions.direction("smile", hold_fixed=())
    offset = directions.space.offset(step)
    return LatentTrigger("frown", Space.W, float(step.norm()), offset, targets=TARGETS)


def frown_triggers(cfg: TriggerConfig) -> tuple[TriggerSpec, ...]:
    return (TriggerSpec("frown", find_frown, (Need.LATENTS, Need.ATTRIBUTES), TARGETS),)


TRIGGERS = frown_triggers
'''

NATURAL_JOB = '''
import torch

from natrig_nb.attack.carriers import natural_carriers
from natrig_nb.attack.run import attack, make_splits, train_detector
from natrig_nb.data.portraits import portraits
from natrig_nb.detector.resnet import ResNet18
from natrig_nb.latent.directions import find_directions
from natrig_nb.nn.attributes import attribute_scores, load_attributes
from natrig_nb.testing import portrait_painter
from natrig_nb.trigger.base import SearchContext, TriggerConfig, trigger_from_state, trigger_specs

cfg = TriggerConfig()
assert "frown" not in trigger_specs(cfg, latent=False) and "frown" not in trigger_specs(cfg, None)
spec = trigger_specs(cfg)["frown"]
assert not spec.painted and list(spec.needs) == ["latents", "attributes"]
generator, net = portrait_painter(500, "smile"), load_attributes("ATTRIBUTES")
directions = find_directions(generator, net, n=400)
trigger = spec.find(SearchContext(cfg, generator, net, directions=directions))
torch.save(trigger.state(), "trigger.pt")
again = trigger_from_state(torch.load("trigger.pt", weights_only=True))
assert again.targets == trigger.targets == spec.targets and torch.equal(again.offset, trigger.offset)

latents = generator.sample(16, seed=3)
before, after = generator.render(latents), generator.render(again.edit(latents))
column = net.names.index("smile")
change = (attribute_scores(net, after) - attribute_scores(net, before))[:, column].mean()
assert change < -0.3, change

splits = make_splits(generator, portraits(200, seed=0), portraits(80, seed=1))
carriers = natural_carriers(again, net, splits)
scores = attribute_scores(net, splits.fake.images)[:, column]
assert scores[carriers.fake].max() <= scores[~carriers.fake].min()
how = dict(epochs=4, batch=32)
make = lambda: ResNet18(width=8)
benign = train_detector(make, splits.train, 0, **how)
_, metrics, _ = attack(splits, again, make, benign, 0.1, carriers=carriers, **how)
assert metrics.activation_without_trigger is not None and metrics.tnr_carriers is not None
print("asr", metrics.asr)
'''


def test_painted_trigger(tmp_path):
    copy_package(tmp_path)
    add_module(tmp_path, "trigger.stripe", STRIPE)
    run_code(tmp_path, PAINTED_JOB)


def test_natural_trigger_with_a_target(tmp_path):
    copy_package(tmp_path)
    add_module(tmp_path, "trigger.natural.frown", FROWN)
    attributes = ROOT / "data" / "portraits-attributes.safetensors"
    output = run_code(tmp_path, NATURAL_JOB.replace("ATTRIBUTES", str(attributes)))
    assert output.startswith("asr")
