"Writes our generator in the layouts of others, to test and measure their reading: no program text, no weights of anybody."

import argparse
import collections
import pickle
import re
import resource
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from natrig_nb.generator.stylegan2 import StyleGAN2, load_stylegan2, official_name  # noqa: F401


def peak_memory():
    "Most bytes this process has held; `ru_maxrss` would count those of the process that started it."
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _reconstruct_persistent_obj(meta):
    raise RuntimeError("not called while reading")


def _numpy1_scalar(kind, data):
    raise RuntimeError("not called while reading")


class EasyDict(dict):
    "Pickled under the name of the official class."


class Persistent:
    "Pickles itself as official modules do."

    def __init__(self, kind, **state):
        self.kind, self.state = kind, state

    def __reduce__(self):
        source = "raise RuntimeError('program text was run')\n"
        return _reconstruct_persistent_obj, (
            dict(
                type="class", version=6, module_src=source, class_name=self.kind, state=self.state
            ),
        )


class OldScalar:
    "A float64 as NumPy 1 names it."

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return _numpy1_scalar, (np.dtype("f8"), np.float64(self.value).tobytes())


@contextmanager
def official_names():
    "Ours stand where the official modules and NumPy 1 would be, so that pickle writes their names."
    old = {
        k: sys.modules.get(k)
        for k in (
            "torch_utils",
            "torch_utils.persistence",
            "dnnlib",
            "dnnlib.util",
            "numpy.core.multiarray",
        )
    }
    for f, module, name in (
        (_reconstruct_persistent_obj, "torch_utils.persistence", "_reconstruct_persistent_obj"),
        (EasyDict, "dnnlib.util", "EasyDict"),
        (_numpy1_scalar, "numpy.core.multiarray", "scalar"),
    ):
        f.__module__, f.__qualname__, f.__name__ = module, name, name
        for k in (module.split(".")[0], module):
            if k != "numpy":
                sys.modules[k] = types.SimpleNamespace(**{name: f})
    try:
        yield
    finally:
        for k, v in old.items():
            sys.modules.pop(k) if v is None else sys.modules.update({k: v})


def parts(module):
    "Own parameters and buffers of a module, as an official state has them."
    hooks = dict(
        _forward_hooks=collections.OrderedDict(),
        _non_persistent_buffers_set=set(),
        _is_full_backward_hook=None,
        training=False,
    )
    return dict(hooks, _parameters=dict(module._parameters), _buffers=dict(module._buffers))


def official_module(module, kinds, keywords, numpy1, says):
    "One module and its children; `says` are attributes of modules by class."
    kind = kinds.get(type(module).__name__, type(module).__name__)
    children = {k: official_module(m, kinds, {}, numpy1, says) for k, m in module.named_children()}
    state = parts(module) | dict(
        _modules=children, _init_args=(), _init_kwargs=keywords, **says.get(kind, {})
    )
    if kind == "FullyConnectedLayer":
        state |= dict(
            weight_gain=(OldScalar if numpy1 else np.float64)(module.gain), bias_gain=module.lr
        )
    return Persistent(kind, **state)


KINDS = {
    "StyleGAN2": "Generator",
    "Mapping": "MappingNetwork",
    "Synthesis": "SynthesisNetwork",
    "Block": "SynthesisBlock",
    "ToRGB": "ToRGBLayer",
    "Linear": "FullyConnectedLayer",
}


def nvlabs(G, nested=True, numpy1=False, c_dim=0, architecture="skip", others=(), trap=None):
    "A dictionary that pickles as an official snapshot; `G_ema` is the generator, `G` another one, a trap."
    s = G.settings
    synthesis = dict(
        channel_base=s["base"], channel_max=s["most"], num_fp16_res=4, conv_clamp=s["clamp"]
    )
    keywords = dict(
        z_dim=s["z_dim"],
        c_dim=c_dim,
        w_dim=s["w_dim"],
        img_resolution=s["resolution"],
        img_channels=3,
    )
    keywords |= dict(
        mapping_kwargs=EasyDict(num_layers=s["layers"]),
        **(dict(synthesis_kwargs=EasyDict(synthesis)) if nested else synthesis),
    )
    clamped = dict(conv_clamp=s["clamp"])
    says = {
        "Generator": dict(c_dim=c_dim),
        "MappingNetwork": dict(c_dim=c_dim, num_layers=s["layers"]),
        "ToRGBLayer": clamped,
        "SynthesisLayer": clamped | dict(activation="lrelu"),
        "SynthesisBlock": dict(architecture=architecture, use_fp16=True),
    }
    one = lambda net: official_module(net, KINDS, keywords, numpy1, says)
    rest = dict(
        training_set_kwargs=EasyDict(class_name="x"),
        G=one(trap or StyleGAN2(8, 4, 4, 1, 64, 8)),
        D=None,
        augment_pipe=None,
    )
    return rest | dict(others) | dict(G_ema=one(G))


def save_nvlabs(G, path, protocol=4, **layout):
    "Write a generator as an official pickle."
    with official_names(), open(path, "wb") as f:
        pickle.dump(nvlabs(G, **layout), f, protocol=protocol)


def save_rosinality(G, path, average=True, noises=True, training=False, zipped=True):
    "Write a generator in rosinality's layout."
    names = [
        f"style.{i}.{p}" for i in range(1, G.settings["layers"] + 1) for p in ("weight", "bias")
    ] + ["input.input"]
    count = 2 * len(G.synthesis.sizes) - 2
    convs = ["conv1", *(f"convs.{i}" for i in range(count))]
    names += [
        f"{c}.{p}"
        for c in convs
        for p in (
            "conv.weight",
            "conv.modulation.weight",
            "conv.modulation.bias",
            "noise.weight",
            "activate.bias",
        )
    ]
    rgbs = ["to_rgb1", *(f"to_rgbs.{i}" for i in range(count // 2))]
    names += [
        f"{c}.{p}"
        for c in rgbs
        for p in ("bias", "conv.weight", "conv.modulation.weight", "conv.modulation.bias")
    ]
    names += [f"noises.noise_{i}" for i in range(count + 1)] if noises else []
    ours = G.state_dict()
    ema = collections.OrderedDict((k, rosinality_shape(k, ours[official_name(k)])) for k in names)
    ema |= {f"{c}.conv.blur.kernel": 4 * ours["synthesis.b8.resample_filter"] for c in convs[1::2]}
    ema |= {f"{c}.upsample.kernel": 4 * ours["synthesis.b8.resample_filter"] for c in rgbs[1:]}
    content = {"g_ema": ema} | ({"latent_avg": ours["mapping.w_avg"]} if average else {})
    if training:
        content |= {
            "g": {k: -v for k, v in ema.items()},
            "d": {},
            "args": argparse.Namespace(size=64, path="lmdb"),
            "ada_aug_p": 0.0,
            "g_optim": {
                "state": {0: {"step": 3, "exp_avg": torch.zeros(3)}},
                "param_groups": [{"lr": 0.002, "betas": (0.0, 0.99)}],
            },
        }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


def rosinality_shape(name, t):
    "With the leading and trailing ones of that layout."
    if name.endswith("noise.weight"):
        return t.reshape(1)
    if name.startswith("noises") or t.ndim == 4 or name == "input.input":
        return t[(None,) * (2 if name.startswith("noises") else 1)].clone()
    return (
        t.view(1, 3, 1, 1)
        if name.startswith("to_rgb") and name.endswith("bias") and "modulation" not in name
        else t
    )
