"Detectors against independent code, and training against a real kill."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from natrig_nb.detector.base import make_detector
from natrig_nb.nn.hooks import evaluating
from natrig_nb.testing import synthetic_faces
from natrig_nb.detector.training import checksum, train

ROOT = Path(__file__).resolve().parent.parent


def pour(ours, theirs):
    "Copy what two lists of layers share, in order."
    assert [type(m) for m in ours] == [type(m) for m in theirs]
    for a, b in zip(ours, theirs):
        a.load_state_dict(b.state_dict())


def layers(module):
    return [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]


def test_resnet_is_the_one_of_transformers():
    from transformers import ResNetConfig, ResNetModel

    theirs = ResNetModel(
        ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[2] * 4, layer_type="basic"
        )
    )
    ours = make_detector("resnet18", width=16, detail=0)
    pour(layers(ours.body.stem), layers(theirs.embedder))
    for i, stage in enumerate(theirs.encoder.stages, 1):
        for a, b in zip(getattr(ours.body, f"stage{i}"), stage.layers):
            pour(
                [a.conv1, a.bn1, a.conv2, a.bn2, *layers(a.skip)],
                [*layers(b.layer), *layers(b.shortcut)],
            )
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    for m in theirs.modules():  # statistics that do something
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_var.eq(1).all()
    theirs.train()(x), ours.train()(x)
    with evaluating(theirs), evaluating(ours):
        assert torch.allclose(ours.features(x), theirs(x).pooler_output.flatten(1), atol=1e-4)


RUN = """
from natrig_nb.detector.base import make_detector
from natrig_nb.testing import synthetic_faces
from natrig_nb.detector.training import train
train(make_detector("resnet18", width=4), planted(256, size=32), epochs=40, batch=16, checkpoint={path!r}, every=0)
"""


def test_killed_run_ends_with_the_same_bits(tmp_path):
    path = tmp_path / "run.pt"
    killed = subprocess.Popen(
        [sys.executable, "-c", RUN.format(path=str(path))],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    limit = time.time() + 120
    while not path.exists() and time.time() < limit and killed.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    at = torch.load(path, weights_only=True)["state"]["step"]
    assert 0 < at < 640

    torch.set_num_threads(1)
    settings = dict(epochs=40, batch=16, every=0)
    ds = synthetic_faces(256, size=32)
    resumed = train(make_detector("resnet18", width=4), ds, checkpoint=path, **settings)
    whole = train(make_detector("resnet18", width=4), ds, **settings)
    assert checksum(*resumed.state_dict().values()) == checksum(*whole.state_dict().values())


@pytest.mark.parametrize(
    "name,settings",
    [
        ("meso4", dict(size=64)),
        ("mesoinception4", dict(size=64)),
        ("resnet18", dict(width=8)),
        ("xception", dict(width=4, middle=1)),
        ("efficientnet", dict(size="b0")),
    ],
)
def test_every_detector_honors_the_contract(name, settings):
    model = make_detector(name, seed=1, **settings).eval()
    with torch.no_grad():
        for r in (32, 64, 72):
            x = torch.rand(3, 3, r, r, generator=torch.Generator().manual_seed(r)) * 2 - 1
            f, a = model.features(x), model.activations(x)
            assert f.shape == (3, model.head.in_features) and a.ndim == 4 and len(a) == 3
            assert model(x).shape == (3, 2) and torch.allclose(
                model(x)[1:2], model(x[1:2]), atol=1e-4
            )
    assert make_detector(**model.about).about == model.about
