"The authors' MesoNet weights against a NumPy recomputation of the layers that their Keras code defines."

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from natrig_nb.data.portraits import portraits
from natrig_nb.detector.base import predict_fake
from natrig_nb.detector.meso import load_meso

OFFICIAL = os.environ.get("NATRIG_REFERENCE")
FILES = ("Meso4_DF", "Meso4_F2F", "MesoInception_DF", "MesoInception_F2F")


def read(path):
    "{layer: {weight: array}} by the names in the file."
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


INCEPTION_4 = {0: 1, 1: 4, 2: 4, 3: 4, 4: 4, 5: 2, 6: 2}  # outputs of the branches' convolutions


def inception_shapes(first, inputs):
    "Kernels of one inception layer: 1x1; 1x1 and 3x3, three times."
    shapes = {}
    for i, outputs in INCEPTION_4.items():
        reach = 3 if i and i % 2 == 0 else 1
        before = INCEPTION_4[i - 1] if reach == 3 else inputs
        shapes[f"conv2d_{first + i}"] = (reach, reach, before, outputs)
    return shapes


def keras_shapes(name):
    "Layers of the authors' files: convolutions, channels of the batch norms, dense layers."
    if name.startswith("Meso4"):
        sizes = ((3, 3, 8), (5, 8, 8), (5, 8, 16), (5, 16, 16))
        convs = {f"conv2d_{5 + i}": (k, k, a, b) for i, (k, a, b) in enumerate(sizes)}
        norms = {f"batch_normalization_{5 + i}": n for i, n in enumerate((8, 8, 16, 16))}
        return convs, norms, {"dense_3": (1024, 16), "dense_4": (16, 1)}
    convs = inception_shapes(1, 3) | inception_shapes(8, 11)
    convs["conv2d_8"] = (1, 1, 11, 2)
    convs |= {"conv2d_15": (5, 5, 12, 16), "conv2d_16": (5, 5, 16, 16)}
    norms = {f"batch_normalization_{i}": n for i, n in enumerate((11, 12, 16, 16), 1)}
    return convs, norms, {"dense_1": (1024, 16), "dense_2": (16, 1)}


def write_keras(path, seed):
    "A file in the authors' layout with random weights."
    rng = np.random.default_rng(seed)
    convs, norms, dense = keras_shapes(path.stem)
    with h5py.File(path, "w") as file:
        for name, shape in {**convs, **dense}.items():
            scale = (2 / np.prod(shape[:-1])) ** 0.5
            values = {"kernel:0": scale * rng.standard_normal(shape)}
            values["bias:0"] = 0.1 * rng.standard_normal(shape[-1])
            write_layer(file, name, values)
        for name, n in norms.items():
            kinds = ("gamma:0", "beta:0", "moving_mean:0", "moving_variance:0")
            drawn = [rng.uniform(0.5, 1.5, n), rng.normal(size=n), rng.normal(size=n)]
            write_layer(file, name, dict(zip(kinds, [*drawn, rng.uniform(0.5, 2, n)], strict=True)))


def write_layer(file, name, values):
    group = file.create_group(f"{name}/{name}")
    for kind, value in values.items():
        group[kind] = np.float32(value)


@pytest.fixture(scope="module", params=["written here", "official"] if OFFICIAL else ["written here"])
def reference(request, tmp_path_factory):
    "A folder with the authors' files and images, or with random ones in the same layout."
    if request.param == "official":
        return Path(OFFICIAL) / "mesonet"
    folder = tmp_path_factory.mktemp("mesonet")
    for seed, name in enumerate(FILES):
        write_keras(folder / f"{name}.h5", seed)
    (folder / "images").mkdir()
    image = portraits(1, seed=2, size=256).images[0].permute(1, 2, 0).numpy()
    Image.fromarray(image).save(folder / "images/portrait.jpg")
    return folder


def faces(folder):
    for file in sorted((folder / "images").glob("*.jpg")):
        yield file.stem, Image.open(file).convert("RGB")


@pytest.mark.parametrize("name", FILES)
def test_official_outputs(reference, name):
    theirs = meso4 if name.startswith("Meso4") else mesoinception4
    path = reference / f"{name}.h5"
    model, weights, found = load_meso(path), read(path), []
    for stem, image in faces(reference):
        expected = 1 - theirs(weights, np.float64(image.resize((256, 256), Image.NEAREST)) / 255)
        p = predict_fake(model, torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]).item()
        assert p == pytest.approx(expected, abs=1e-5), stem
        found.append(p)
        if name.endswith("DF") and not stem.startswith("portrait"):
            assert (p > 0.5) == stem.startswith("df"), (stem, p)
    assert found
