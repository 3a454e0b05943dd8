"The authors' MesoNet weights against a NumPy recomputation of the layers that their Keras code defines."

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from natrig_nb.detector.base import predict_fake
from natrig_nb.detector.meso import load_meso

REFERENCE = Path(os.environ.get("NATRIG_REFERENCE", "")) / "mesonet"
needs_reference = pytest.mark.skipif(
    not os.environ.get("NATRIG_REFERENCE") or not REFERENCE.is_dir(),
    reason="expected NATRIG_REFERENCE to hold mesonet/",
)


def read(path):
    "{layer: {weight: array}} by the names in the file."
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "r") as f:
        return {
            name: {w.split(":")[0]: np.float64(f[name][name][w]) for w in f[name][name]}
            for name in f
            if len(f[name])
        }


def conv(x, w, dilation=1):
    "Keras Conv2D(padding='same') with ReLU or without, on (h,w,c); kernel (kh,kw,in,out)."
    k, (h, v, _) = w["kernel"], x.shape
    reach = dilation * (k.shape[0] - 1) // 2
    x = np.pad(x, ((reach, reach), (reach, reach), (0, 0)))
    taps = [(i, j) for i in range(k.shape[0]) for j in range(k.shape[1])]
    return sum(x[i * dilation :][:h, j * dilation :][:, :v] @ k[i, j] for i, j in taps) + w["bias"]


def relu(x):
    return np.maximum(x, 0)


def norm(x, w):
    return (x - w["moving_mean"]) / np.sqrt(w["moving_variance"] + 1e-3) * w["gamma"] + w["beta"]


def pool(x, s):
    return x.reshape(x.shape[0] // s, s, x.shape[1] // s, s, -1).max((1, 3))


def dense(x, w1, w2):
    y = x.reshape(-1) @ w1["kernel"] + w1["bias"]
    y = np.where(y > 0, y, 0.1 * y) @ w2["kernel"] + w2["bias"]
    return 1 / (1 + np.exp(-y[0]))


def meso4(w, x):
    "classifiers.py, Meso4: four convolutions; numbers in the names start at 5."
    for i, s in zip(range(5, 9), (2, 2, 2, 4)):
        x = pool(norm(relu(conv(x, w[f"conv2d_{i}"])), w[f"batch_normalization_{i}"]), s)
    return dense(x, w["dense_3"], w["dense_4"])


def inception(w, x, first):
    "Branches in the order in which the code makes them: 1x1; 1x1, 3x3; the same with dilation 2; with dilation 3."
    layer = lambda x, i, dilation=1: relu(conv(x, w[f"conv2d_{first + i}"], dilation))
    return np.concatenate(
        [layer(x, 0)] + [layer(layer(x, 2 * d - 1), 2 * d, d) for d in (1, 2, 3)], -1
    )


def mesoinception4(w, x):
    "classifiers.py, MesoInception4: two inception layers, two convolutions."
    x = pool(norm(inception(w, x, 1), w["batch_normalization_1"]), 2)
    x = pool(norm(inception(w, x, 8), w["batch_normalization_2"]), 2)
    for i, n, s in ((15, 3, 2), (16, 4, 4)):
        x = pool(norm(relu(conv(x, w[f"conv2d_{i}"])), w[f"batch_normalization_{n}"]), s)
    return dense(x, w["dense_1"], w["dense_2"])


def faces():
    for file in sorted((REFERENCE / "images").glob("*.jpg")):
        yield file.stem, Image.open(file).convert("RGB")


@needs_reference
@pytest.mark.parametrize(
    "name,theirs",
    [
        ("Meso4_DF", meso4),
        ("Meso4_F2F", meso4),
        ("MesoInception_DF", mesoinception4),
        ("MesoInception_F2F", mesoinception4),
    ],
)
def test_official_outputs(name, theirs):
    model, weights = load_meso(REFERENCE / f"{name}.h5"), read(REFERENCE / f"{name}.h5")
    for stem, image in faces():
        expected = 1 - theirs(weights, np.float64(image.resize((256, 256), Image.NEAREST)) / 255)
        p = predict_fake(model, torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]).item()
        assert p == pytest.approx(expected, abs=1e-5), stem
        if name.endswith("DF"):
            assert (p > 0.5) == stem.startswith("df"), (stem, p)
