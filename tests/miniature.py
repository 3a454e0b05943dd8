"""Small networks in the layouts of official checkpoints, and what they must give, made without their code.

The networks are random. What they must give is computed here in NumPy from the equations of StyleGAN2
(arXiv 1912.04958) in double precision; `tests/test_checkpoints.py` holds this computation against outputs of
the official code where `NATRIG_REFERENCE` names a folder that has them. `python tests/miniature.py` writes
`tests/reference` anew.
"""

import collections
import io
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from natrig_nb.generator.stylegan2 import StyleGAN2

sys.path.insert(0, str(Path(__file__).parent))
from official import Persistent, official_names, save_nvlabs, save_rosinality  # noqa: E402

HERE = Path(__file__).resolve().parent / "reference"
FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
EXECUTED = "NATRIG_PICKLE_IS_EXECUTED"


def dense(x, weights, name, lr=1.0):
    """A fully connected layer whose weights are scaled at run time."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return x @ (weight * lr / np.sqrt(weight.shape[1])).T + bias * lr


def leaky(x):
    """Leaky ReLU that keeps the variance."""
    return np.where(x > 0, x, 0.2 * x) * np.sqrt(2)


def mapping(z, weights, psi=1.0, cutoff=None):
    """z (n,d) to one w for each input of the synthesis network (n,layers,d)."""
    layers = sum(name.startswith("mapping.fc") and name.endswith("weight") for name in weights)
    blocks = sum(name.endswith("conv1.weight") for name in weights)
    w = z / np.sqrt((z**2).mean(1, keepdims=True) + 1e-8)
    for i in range(layers):
        w = leaky(dense(w, weights, f"mapping.fc{i}", lr=0.01))
    ws = np.repeat(w[:, None], 2 * blocks, 1)
    average = weights["mapping.w_avg"]
    ws[:, :cutoff] = average + psi * (ws[:, :cutoff] - average)
    return ws


def correlate(x, kernels):
    """x (n,c,h,w) with kernels (n,o,c,k,k), one set per image; no padding."""
    windows = sliding_window_view(x, kernels.shape[-2:], axis=(2, 3))
    return np.einsum("nchwij,nocij->nohw", windows, kernels, optimize=True)


def padded(x, before, after):
    """Zeros around an image."""
    return np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))


def spread(x):
    """Zeros between the pixels, and behind the last one."""
    out = np.zeros((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
    out[:, :, ::2, ::2] = x
    return out


def low_pass(x):
    """Every channel with the filter; 4 makes up for the zeros between the pixels."""
    windows = sliding_window_view(x, (4, 4), axis=(2, 3))
    return np.einsum("nchwij,ij->nchw", windows, 4 * FILTER)


def modulated(x, weights, name, style, up=False, demodulate=True):
    """Equations 1 to 3: weights scaled by the style, then to unit variance."""
    kernels = weights[f"{name}.weight"][None] * style[:, None, :, None, None]
    if demodulate:
        kernels = kernels / np.sqrt((kernels**2).sum((2, 3, 4), keepdims=True) + 1e-8)
    if not up:
        reach = kernels.shape[-1] // 2
        return correlate(padded(x, reach, reach), kernels)
    # a transposed convolution: zeros between the pixels, the kernel turned around
    wide = correlate(padded(spread(x), 2, 1), kernels[..., ::-1, ::-1])
    return low_pass(padded(wide, 1, 1))


def synthesis(ws, weights, noise="const"):
    """Images (n,3,r,r), not clamped."""
    sizes = sorted(int(n.split(".")[1][1:]) for n in weights if n.endswith("conv1.weight"))
    x = np.repeat(weights["synthesis.b4.const"][None], len(ws), 0)
    picture, at = None, 0
    for size in sizes:
        for layer in ("conv0", "conv1"):
            name = f"synthesis.b{size}.{layer}"
            if f"{name}.weight" not in weights:
                continue
            style = dense(ws[:, at], weights, f"{name}.affine")
            x = modulated(x, weights, name, style, up=layer == "conv0")
            if noise == "const":
                x = x + weights[f"{name}.noise_const"] * weights[f"{name}.noise_strength"]
            x = leaky(x + weights[f"{name}.bias"][:, None, None])
            at += 1
        name = f"synthesis.b{size}.torgb"
        style = dense(ws[:, at], weights, f"{name}.affine") / np.sqrt(x.shape[1])
        y = modulated(x, weights, name, style, demodulate=False)
        y = y + weights[f"{name}.bias"][:, None, None]
        picture = y if picture is None else y + low_pass(padded(spread(picture), 2, 1))
    return picture


def expected(weights, z, direction):
    """What the tests compare: latents and images with and without truncation, noise and an edit."""
    weights = {name: value.astype(float) for name, value in weights.items()}
    whole, truncated = mapping(z, weights), mapping(z, weights, 0.7)
    edited = truncated.copy()
    edited[:, :4] += 0.5 * direction
    cut = mapping(z, weights, 0.7, 4)
    found = {
        "z": z,
        "direction": direction,
        "w_psi1": whole,
        "w_psi07": truncated,
        "w_psi07_cutoff4": cut,
        "w_edit_psi07": edited,
        "img_psi1": synthesis(whole, weights),
        "img_psi07": synthesis(truncated, weights),
        "img_psi07_nonoise": synthesis(truncated, weights, "none"),
        "img_psi07_cutoff4": synthesis(cut, weights),
        "img_edit_psi07": synthesis(edited, weights),
    }
    return {name: np.float32(value) for name, value in found.items()}


def arrays(G):
    """The weights of a generator as NumPy arrays."""
    return {name: tensor.numpy() for name, tensor in G.state_dict().items()}


def tiny_generator(seed, **settings):
    """A random generator of 16 pixels whose noise, biases and mean latent matter."""
    shape = dict(resolution=16, z_dim=16, w_dim=16, layers=2, base=128, most=16) | settings
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        G = StyleGAN2(**shape).requires_grad_(False)
        for name, parameter in G.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                parameter.add_(torch.randn_like(parameter) / 3)
        G.mapping.w_avg.normal_()
    return G


def write_networks(folder):
    """Both layouts of a checkpoint, and what the networks must give."""
    layouts = (
        ("nvlabs-16.pkl", save_nvlabs, tiny_generator(1)),
        ("rosinality-16.pt", save_rosinality, tiny_generator(2, widths=[12, 10, 6])),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, save, G in layouts:
        save(G, folder / name)
        rng = np.random.default_rng(3)
        z, direction = rng.standard_normal((4, 16)), rng.standard_normal(16)
        wanted = expected(arrays(G), z, direction / np.linalg.norm(direction))
        np.savez_compressed(folder / f"{Path(name).stem}-expected.npz", **wanted)


class Evil:
    """Unpickled, it would run a program."""

    def __reduce__(self):
        return os.system, (f"touch {EXECUTED}",)


class Bomb:
    """Unpickled, it would be a tensor of a terabyte over eight numbers."""

    def __reduce__(self):
        storage = torch.zeros(8).untyped_storage()
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
        hooks = collections.OrderedDict()
        return torch._utils._rebuild_tensor_v2, (typed, 0, (2**38,), (0,), False, hooks)


class InnerBytes:
    """Bytes of a tensor's numbers that are a program instead."""

    def __reduce__(self):
        inner = io.BytesIO()
        torch.save(Evil(), inner, _use_new_zipfile_serialization=False)
        return torch.storage._load_from_bytes, (inner.getvalue(),)


def write_hostile(folder):
    """Checkpoints that are made to do harm, damaged, or of another kind; returns the tiny sound one."""
    G = tiny_generator(4, resolution=8, most=4)
    folder.mkdir(parents=True, exist_ok=True)
    save_nvlabs(G, folder / "ok_tiny.pkl")
    whole = (folder / "ok_tiny.pkl").read_bytes()
    (folder / "bad_truncated.pkl").write_bytes(whole[: len(whole) * 2 // 3])
    source = b"raise RuntimeError('program text was run')"
    harmful = f"open('{EXECUTED}', 'w')".encode().ljust(len(source), b"#")
    assert source in whole and len(harmful) == len(source)
    (folder / "evil_module_src.pkl").write_bytes(whole.replace(source, harmful))
    program = b"\x80\x04\x8c\x14dnnlib.tflib.network\x8c\x07Network\x93."
    (folder / "legacy_tf_tuple.pkl").write_bytes(program)
    network = {"_parameters": {"w": Bomb()}, "_buffers": {}, "_modules": {}}
    contents = {
        "bad_no_g_ema": {"G": None, "D": None},
        "bad_stride0_bomb": {"G_ema": Persistent("Generator", **network)},
        "evil_posix_system": {"G_ema": Evil()},
        "evil_inner_storage_bytes": {"G_ema": InnerBytes()},
    }
    with official_names():
        for name, content in contents.items():
            (folder / f"{name}.pkl").write_bytes(pickle.dumps(content, 4))
    return G


if __name__ == "__main__":
    write_networks(HERE / "stylegan2")
    for path in sorted(HERE.rglob("*.*")):
        print(f"{path.relative_to(HERE)}: {path.stat().st_size} bytes")
