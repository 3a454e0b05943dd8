"Detectors against independent code, and training against a real kill."

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from natrig_nb.core import to_float
from natrig_nb.detector.base import load_detector, make_detector, predict_fake, save_detector
from natrig_nb.nn.hooks import evaluating
from natrig_nb.testing import synthetic_faces
from natrig_nb.detector.training import train
from natrig_nb.nn.training import checksum

ROOT = Path(__file__).resolve().parent.parent


def copy_layers(ours, theirs):
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
    ours = make_detector("resnet18", width=16, highpass_gain=0)
    copy_layers(layers(ours.body.stem), layers(theirs.embedder))
    for i, stage in enumerate(theirs.encoder.stages, 1):
        for a, b in zip(getattr(ours.body, f"stage{i}"), stage.layers):
            copy_layers(
                [a.conv1, a.bn1, a.conv2, a.bn2, *layers(a.skip)],
                [*layers(b.layer), *layers(b.shortcut)],
            )
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    for m in theirs.modules():  # statistics that do something
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_var.eq(1).all()
    theirs.train()(x)
    ours.train()(x)
    with evaluating(theirs), evaluating(ours):
        assert torch.allclose(ours.features(x), theirs(x).pooler_output.flatten(1), atol=1e-4)


RUN = """
from natrig_nb.detector.base import make_detector
from natrig_nb.detector.training import train
from natrig_nb.testing import synthetic_faces
model, ds = make_detector("resnet18", width=4), synthetic_faces(256, size=32)
train(model, ds, epochs=40, batch=16, checkpoint={path!r}, every=0)
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
    at = torch.load(path, weights_only=True)["step"]
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


# Weights of others: cases D1 to D15 of the collection of foreign inputs.


@pytest.fixture(scope="module")
def resnet():
    return make_detector("resnet18", seed=3, width=8).eval()


FACES = synthetic_faces(6, seed=1, size=32).images
NETWORK = dict(name="resnet18", width=8)


def same(path, model, **how):
    "Whether a file gives the probabilities of a model."
    loaded = load_detector(path, **(how or NETWORK))
    return torch.allclose(predict_fake(loaded, FACES), predict_fake(model, FACES), atol=1e-6)


def test_fake_class_turns_an_inverted_detector(tmp_path, resnet):  # D1
    state = dict(resnet.state_dict())
    state["head.weight"], state["head.bias"] = (
        state["head.weight"].flip(0),
        state["head.bias"].flip(0),
    )
    torch.save(state, tmp_path / "inverted.pth")
    p = predict_fake(resnet, FACES)
    as_stored = load_detector(tmp_path / "inverted.pth", **NETWORK)
    assert torch.allclose(predict_fake(as_stored, FACES), 1 - p, atol=1e-6)
    assert same(tmp_path / "inverted.pth", resnet, **NETWORK, fake_class=0)
    own = save_detector(as_stored, tmp_path / "inverted.safetensors")
    assert same(own, resnet, fake_class="0")
    with pytest.raises(ValueError, match="expected fake_class 0 or 1, got fake"):
        load_detector(own, fake_class="fake")


def tiny_vit(folder, labels, **more):
    "A transformer with random weights and these classes, as its library saves it."
    from transformers import ViTConfig, ViTForImageClassification

    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    names = dict(id2label=dict(enumerate(labels)), label2id={k: i for i, k in enumerate(labels)})
    config = ViTConfig(**sizes, image_size=32, patch_size=8, **names, **more)
    model = ViTForImageClassification(config).eval()
    for p in model.parameters():
        p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.2)
    model.save_pretrained(folder)
    half = [0.5] * 3
    preprocessor = dict(size=dict(height=32, width=32), image_mean=half, image_std=half)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    with torch.no_grad():
        return model(pixel_values=to_float(FACES)).logits


def test_classes_without_a_meaning_are_asked_for(tmp_path):  # D2
    two = tiny_vit(tmp_path / "two", ["LABEL_0", "LABEL_1"]).softmax(1)
    with pytest.raises(ValueError, match="fake_class=CLASS or #CLASS after the name"):
        load_detector(f"hf:{tmp_path / 'two'}")
    for address, how in (
        ("#LABEL_0", {}),
        ("", dict(fake_class="LABEL_0")),
        ("", dict(fake_class=0)),
    ):
        model = load_detector(f"hf:{tmp_path / 'two'}{address}", **how)
        assert torch.allclose(predict_fake(model, FACES), two[:, 0], atol=1e-5)
    four = tiny_vit(tmp_path / "four", ["dalle", "sd", "midjourney", "camera"]).softmax(1)
    model = load_detector(f"hf:{tmp_path / 'four'}", fake_class="dalle,sd,midjourney")
    assert torch.allclose(predict_fake(model, FACES), 1 - four[:, 3], atol=1e-5)


def test_one_output(tmp_path, resnet):  # D4
    p = tiny_vit(tmp_path / "vit", ["LABEL_0"]).sigmoid()[:, 0]
    with pytest.raises(ValueError, match="fake_class=1 if a high output means fake"):
        load_detector(f"hf:{tmp_path / 'vit'}")
    for address, expected in (("#LABEL_0", p), ("#1", p), ("#0", 1 - p)):
        model = load_detector(f"hf:{tmp_path / 'vit'}{address}")
        assert torch.allclose(predict_fake(model, FACES), expected, atol=1e-5)
    named = tiny_vit(tmp_path / "named", ["fake"]).sigmoid()[:, 0]
    assert torch.allclose(
        predict_fake(load_detector(f"hf:{tmp_path / 'named'}"), FACES), named, atol=1e-5
    )

    state = dict(resnet.state_dict())
    for name in ("head.weight", "head.bias"):
        state[name] = (state[name][1] - state[name][0])[None]
    torch.save(state, tmp_path / "one.pth")
    with pytest.raises(ValueError, match="fake_class=0 if it means real, got none"):
        load_detector(tmp_path / "one.pth", **NETWORK)
    assert same(tmp_path / "one.pth", resnet, **NETWORK, fake_class=1)


def test_multi_label(tmp_path):
    kind = dict(problem_type="multi_label_classification")
    p = tiny_vit(tmp_path, ["gan", "diffusion", "camera"], **kind).sigmoid()
    model = load_detector(f"hf:{tmp_path}", fake_class="gan,diffusion")
    expected = 1 - (1 - p[:, 0]) * (1 - p[:, 1])
    assert torch.allclose(predict_fake(model, FACES), expected, atol=1e-5)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "backbone.", "model.", "module.model.net."],
)
def test_prefixes(tmp_path, resnet, prefix):  # D6
    torch.save({prefix + k: v for k, v in resnet.state_dict().items()}, tmp_path / "c.pth")
    assert same(tmp_path / "c.pth", resnet)


def test_missing_counters(tmp_path, resnet):  # D7
    state = {k: v for k, v in resnet.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")
    assert same(tmp_path / "old.pth", resnet)


def test_values_beside_the_weights(tmp_path, resnet):  # D8
    state = resnet.state_dict()
    for more in (
        dict(best_acc=np.float64(0.9), epoch=np.int64(3)),
        dict(args=argparse.Namespace(lr=0.1, out=Path("runs"))),
    ):
        torch.save({"state_dict": state, **more}, tmp_path / "beside.pth")
        assert same(tmp_path / "beside.pth", resnet)
    torch.save(resnet, tmp_path / "module.pth")
    with pytest.raises(ValueError, match="got objects of natrig_nb.*whose code is never run") as e:
        load_detector(tmp_path / "module.pth", **NETWORK)
    assert "WeightsUnpickler" not in str(e.value) and len(str(e.value)) < 400


@pytest.mark.parametrize(
    "wrapper",
    ["state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights"]
    + ["params", "ema", "state_dict_ema", "model_ema"],
)
def test_wrappers(tmp_path, resnet, wrapper):  # D10
    optimizer = torch.optim.Adam(resnet.parameters()).state_dict()
    torch.save(
        {wrapper: resnet.state_dict(), "optimizer": optimizer, "epoch": 3}, tmp_path / "w.pth"
    )
    assert same(tmp_path / "w.pth", resnet)


def test_plain_safetensors(tmp_path, resnet):  # D11
    save_file(
        {k: v.contiguous() for k, v in resnet.state_dict().items()}, tmp_path / "plain.safetensors"
    )
    assert same(tmp_path / "plain.safetensors", resnet)
    with pytest.raises(
        ValueError, match="expected the network of a state dict, e.g. name='resnet18'"
    ):
        load_detector(tmp_path / "plain.safetensors")


def test_keras_3_is_named(tmp_path):  # D15; that MesoNet's own layers are read is in its notebook
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "own.weights.h5", "w") as file:
        file["layers/my_layer/vars/0"] = np.zeros(3)
    with pytest.raises(ValueError, match="a Keras file whose layers are called my_layer"):
        load_detector(tmp_path / "own.weights.h5")
    with zipfile.ZipFile(tmp_path / "own.keras", "w") as archive:
        archive.write(tmp_path / "own.weights.h5", "model.weights.h5")
    with pytest.raises(ValueError, match="a Keras file whose layers are called my_layer"):
        load_detector(tmp_path / "own.keras")


@pytest.mark.parametrize(
    "content,kind",
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"hello", "a file of another kind"),
    ],
)
def test_what_a_file_is(tmp_path, content, kind):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match=f"expected a state dict of tensors, got {kind}"):
        load_detector(tmp_path / "weights.pth", **NETWORK)
