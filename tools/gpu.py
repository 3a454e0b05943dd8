"""Train or resume a generator on one GPU, and say how good it became.

    python tools/gpu.py inputs portraits in/portraits
    python tools/gpu.py inputs photographs in/photographs --faces celeba.tar --attributes celeba.csv
    python tools/gpu.py inputs diffusion in/diffusion
    python tools/gpu.py train portraits in/portraits out/portraits --minutes 5
    python tools/gpu.py measure portraits in/portraits out/portraits/generator.safetensors

`inputs` makes everything a training reads: it paints the portraits on all cores, and trains two
attribute networks. The generator learns from the teacher and is measured by the judge. `train` goes
on where the same folder stopped, and leaves weights, a contact sheet, a log and a quality record.

The StyleGAN2 trainings keep all faces on the GPU, compute in bf16 and replay their steps as CUDA
graphs: a step is some 2,000 small kernels, and starting them one by one takes ten times as long as
running them. Measured on an H200: 24,000 portraits per second in the reconstruction, 8,000 in the
game. On a CPU the same steps run one by one, which is for tests. The diffusion model is trained
step by step, in bf16; that part was run on a CPU only.
"""

import argparse
import copy
import json
import math
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrizations import spectral_norm

from natrig_nb.core import FaceSet, check, contact_sheet, pick_device, to_float, write_atomic
from natrig_nb.data.captions import captions
from natrig_nb.data.faces import read_faces
from natrig_nb.data.portraits import population, population_codes, portraits
from natrig_nb.generator import diffusion_training, stylegan2, stylegan2_training
from natrig_nb.generator.base import Generator, render
from natrig_nb.generator.stylegan2 import StyleGAN2, load_stylegan2, save_generator
from natrig_nb.generator.stylegan2_training import Discriminator, fold_codes
from natrig_nb.metrics import frechet, precision_recall
from natrig_nb.nn.attributes import (
    AttributeNet,
    attribute_features,
    attribute_scores,
    load_attributes,
    save_attributes,
    train_attributes,
)

KINDS = ("portraits", "photographs", "diffusion")
HELD = 4000  # portraits that no training sees
FIRST_SEED = 6000  # of the portraits to learn from, one seed per thousand
HELD_SEED = 77  # of the portraits that no training sees
CAPTIONS = 4  # per portrait, for the diffusion model
READERS = {
    "teacher": (8, 11, 32),
    "judge": (12, 0, 24),
}  # epochs, seed, width of the attribute networks


# --- Inputs: faces, what is known of them, and two networks that read attributes ---


@dataclass
class Block:
    "Some portraits with everything that is known of them."

    images: np.ndarray  # (n,3,r,r) uint8
    codes: np.ndarray  # (n,k) float32, standard normal
    attributes: pd.DataFrame  # n rows
    texts: list  # `CAPTIONS` lists of n captions


def portrait_block(
    seed: int,  # which people
    count: int,  # how many
    size: int,  # pixels a side
) -> Block:
    "Portraits of one seed: the work of one process."
    torch.set_num_threads(1)
    ds, people = portraits(count, seed, size), population(count, seed)
    texts = [captions(people, seed * CAPTIONS + i) for i in range(CAPTIONS)]
    return Block(ds.images.numpy(), population_codes(count, seed).numpy(), ds.attributes, texts)


def paint_portraits(
    count: int,  # how many people
    seed: int,  # of the first thousand; every further thousand has the next seed
    cores: int | None = None,  # processes; all cores unless given
    size: int = 64,  # pixels a side
) -> Block:
    "Portraits painted on all cores."
    sizes = [min(1000, count - i) for i in range(0, count, 1000)]
    seeds = range(seed, seed + len(sizes))
    with ProcessPoolExecutor(cores or os.cpu_count(), get_context("fork")) as pool:
        blocks = list(pool.map(portrait_block, seeds, sizes, [size] * len(sizes)))
    images = np.concatenate([b.images for b in blocks])
    codes = np.concatenate([b.codes for b in blocks])
    attributes = pd.concat([b.attributes for b in blocks], ignore_index=True)
    texts = [sum((b.texts[i] for b in blocks), []) for i in range(CAPTIONS)]
    return Block(images, codes, attributes, texts)


def make_portraits(
    folder: Path,  # where the files go
    count: int,  # portraits to learn from
    held: int = HELD,  # portraits to measure with
    cores: int | None = None,  # processes; all cores unless given
    size: int = 64,  # pixels a side
) -> None:
    "Paint the portraits to learn from and those to measure with."
    for name, n, seed in (("held", held, HELD_SEED), ("faces", count, FIRST_SEED)):
        block = paint_portraits(n, seed, cores, size)
        save_faces(folder, name, block.images, block.attributes)
        np.save(folder / f"{name}-codes.npy", block.codes)
        (folder / f"{name}-captions.json").write_text(json.dumps(block.texts))


def make_photographs(
    folder: Path,  # where the files go
    faces: str,  # folder or archive of photographs
    attributes: str,  # their attribute table
) -> None:
    "Read photographs; the last tenth is held out."
    ds = read_faces(faces, attributes)
    cut = len(ds) * 9 // 10
    for name, part in (("faces", ds[:cut]), ("held", ds[cut:])):
        save_faces(folder, name, part.images.numpy(), part.attributes)


def save_faces(
    folder: Path,  # where the files go
    name: str,  # faces, or held
    images: np.ndarray,  # (n,3,r,r) uint8
    attributes: pd.DataFrame,  # n rows
) -> None:
    "Write one set of faces as an array beside a table."
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", images)
    attributes.to_csv(folder / f"{name}.csv", index=False)


def train_readers(
    folder: Path,  # of the faces; the networks go there too
    mirror: bool,  # faces may be mirrored: photographs, whose attributes have no side
) -> None:
    "Train the attribute networks that are missing: a teacher and a judge of other seed and width."
    ds = FaceSet(read_array(folder / "faces.npy"), attributes=pd.read_csv(folder / "faces.csv"))[
        :16_000
    ]
    for name, (epochs, seed, width) in READERS.items():
        path = folder / f"{name}.safetensors"
        if path.exists():
            continue
        save_attributes(
            train_attributes(ds, epochs=epochs, seed=seed, width=width, flip=mirror), path
        )


@dataclass
class Inputs:
    "What a training reads, on the device."

    images: torch.Tensor  # (n,3,r,r) uint8
    codes: torch.Tensor | None  # (n,k) standard normal, what is known of z
    odds: torch.Tensor  # (n,) cumulative chances of `rare_odds`
    teacher: AttributeNet  # compares feature maps
    judge: AttributeNet  # measures; has no part in the training
    held: FaceSet  # faces that no training saw
    held_codes: torch.Tensor | None  # (m,k)
    texts: list  # lists of n captions; empty for photographs


def read_array(
    path: Path,  # of a .npy file
) -> torch.Tensor | None:  # None where there is no such file
    "An array as a tensor."
    return torch.from_numpy(np.load(path)) if path.exists() else None


def rare_odds(
    attributes: pd.DataFrame,  # n rows
    most: float = 4.0,  # how much more often a rare look comes at most
) -> np.ndarray:  # (n,) cumulative, ends in 1
    "Cumulative chances that show rare looks, other than what most people share, more often."
    weight = np.ones(len(attributes))
    for name in attributes:
        rare = attributes[name] != attributes[name].mode()[0]
        if not 0 < rare.mean() < 0.5:
            continue
        weight[rare] = np.maximum(weight[rare], min(most, 0.5 / rare.mean()))
    return np.cumsum(weight) / weight.sum()


def load_names(
    folder: Path,  # of inputs
) -> list:
    "The attributes that are known of the faces."
    return list(pd.read_csv(folder / "faces.csv", nrows=1))


def load_inputs(
    folder: Path,  # that `inputs` made
) -> Inputs:
    "Read a folder of inputs onto the device."
    check(
        (folder / "faces.npy").exists(),
        f"expected faces.npy in {folder}, got none: run `inputs` first",
    )
    device, words = pick_device(), folder / "faces-captions.json"

    def place(tensor):
        return None if tensor is None else tensor.to(device)

    teacher, judge = (load_attributes(folder / f"{name}.safetensors") for name in READERS)
    return Inputs(
        images=place(read_array(folder / "faces.npy")),
        codes=place(read_array(folder / "faces-codes.npy")),
        odds=place(torch.from_numpy(rare_odds(pd.read_csv(folder / "faces.csv"))).float()),
        teacher=teacher.requires_grad_(False),
        judge=judge.requires_grad_(False),
        held=FaceSet(read_array(folder / "held.npy"), attributes=pd.read_csv(folder / "held.csv")),
        held_codes=place(read_array(folder / "held-codes.npy")),
        texts=json.loads(words.read_text()) if words.exists() else [],
    )


# --- StyleGAN2 with fewer kernels: filters and gains are folded into the convolutions ---


def fold_filter(
    weight: torch.Tensor,  # (o,c,k,k)
    f: torch.Tensor,  # (4,4), symmetric
) -> torch.Tensor:  # (o,c,k+3,k+3)
    "The kernel that does a convolution and the filter before or behind it in one go."
    o, c, k, _ = weight.shape
    wide = F.pad(weight.reshape(o * c, 1, k, k), (3, 3, 3, 3))
    return F.conv2d(wide, f[None, None].to(weight.dtype)).reshape(o, c, k + 3, k + 3)


def folded_layer(
    self: stylegan2.SynthesisLayer,
    x: torch.Tensor,  # (n,c,h,w)
    w: torch.Tensor,  # (n,w_dim)
    noise: str = "const",  # const, random or none
) -> torch.Tensor:  # (n,o,h',w')
    "`SynthesisLayer.forward`, the filter folded into the kernel, the gain into its neighbors."
    style, gain = self.affine(w), math.sqrt(2)
    y = x * style[:, :, None, None].to(x.dtype)
    if self.up:
        kernel = fold_filter(self.weight, self.resample_filter * 4).transpose(0, 1)
        y = F.conv_transpose2d(y, kernel.to(x.dtype), stride=2, padding=2)
    else:
        y = F.conv2d(y, self.weight.to(x.dtype), padding=1)
    length = style.square() @ self.weight.square().sum((2, 3)).T
    sigma = (length + 1e-8).rsqrt() * gain
    offset, strength = (self.bias * gain).to(y.dtype)[:, None, None], self.noise_strength * gain
    if noise == "const":
        offset = offset + (self.noise_const * strength).to(y.dtype)
    if noise == "random":
        offset = offset + torch.randn_like(y[:, :1]) * strength.to(y.dtype)
    y = F.leaky_relu(torch.addcmul(offset, y, sigma[:, :, None, None].to(y.dtype)), 0.2)
    return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)


def folded_upsample(
    x: torch.Tensor,  # (n,3,h,w)
    f: torch.Tensor,  # (4,4)
) -> torch.Tensor:  # (n,3,2h,2w)
    "`stylegan2.upsample` as one dense convolution over the colors."
    own = (f * 4).expand(x.shape[1], 4, 4).permute(1, 2, 0)
    kernel = torch.diag_embed(own).permute(2, 3, 0, 1)
    return F.conv_transpose2d(x, kernel.to(x.dtype), stride=2, padding=1)


def folded_conv(
    self: stylegan2_training.EqualizedConv,
    x: torch.Tensor,  # (n,c,h,w)
) -> torch.Tensor:  # (n,o,h',w')
    "`EqualizedConv.forward` of the discriminator with filter and gain folded into the kernel."
    active, side = self.bias is not None, self.weight.shape[-1]
    gain = math.sqrt(2) if active else 1.0
    w, bias = self.weight * (self.gain * gain), self.bias * gain if active else None
    if self.down:
        x = F.conv2d(x, fold_filter(w, self.resample_filter), bias, 2, (side + 1) // 2)
    else:
        x = F.conv2d(x, w, bias, padding=side // 2)
    return F.leaky_relu(x, 0.2) if active else x


FOLDED = (
    (stylegan2.SynthesisLayer, "forward", folded_layer),
    (stylegan2, "upsample", folded_upsample),
    (stylegan2_training.EqualizedConv, "forward", folded_conv),
)


@contextmanager
def folded():
    "Inside the block, StyleGAN2's networks use the folded kernels; their results do not change."
    before = [getattr(owner, name) for owner, name, _ in FOLDED]
    for owner, name, new in FOLDED:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for (owner, name, _), old in zip(FOLDED, before, strict=True):
            setattr(owner, name, old)


# --- The players of the game ---


class Reader(nn.Module):
    "An attribute network, frozen, with its normalization folded into the convolutions."

    def __init__(
        self,
        net: AttributeNet,  # a trained network
    ):
        super().__init__()
        net = copy.deepcopy(net).eval()
        self.width, self.feature, self.score = net.width, net.feature, net.score
        self.convs = nn.ModuleList(fuse_conv_bn_eval(conv[0], conv[1]) for conv in net.convs)
        self.register_buffer("mean", net.mean)
        self.register_buffer("std", net.std)
        self.requires_grad_(False).eval()

    def forward(self, x):
        "Three feature maps and the features (n,128) of pictures x (n,3,r,r), in one pass."
        maps = []
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            if i in (0, 2, 4):
                maps.append(x)
        return [*maps, self.feature(x)]

    def scores(self, features):
        "Scores (n,k) of features, as `AttributeNet` gives them for pictures."
        return (self.score(features.float()).float() - self.mean) / self.std


class Heads(nn.Module):
    "Small discriminators on the teacher's feature maps, as in Projected GAN (arXiv 2111.01007)."

    def __init__(
        self,
        teacher: Reader,  # its feature maps are what is judged
        width: int = 64,  # channels of each head
    ):
        super().__init__()
        self.maps = nn.ModuleList(self.head(teacher.width * k, width) for k in (1, 2, 4))
        first, second = spectral_norm(nn.Linear(128, width)), spectral_norm(nn.Linear(width, 1))
        self.last = nn.Sequential(first, nn.LeakyReLU(0.2), second)

    def head(self, channels, width):
        "Two convolutions and a judgment at every second place of one feature map."
        first = spectral_norm(nn.Conv2d(channels, width, 4, 2, 1))
        second = spectral_norm(nn.Conv2d(width, width, 3, 1, 1))
        out = spectral_norm(nn.Conv2d(width, 1, 1))
        return nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), out)

    def forward(self, seen):
        "Judgments (n,4) of what a `Reader` saw, one column a head."
        *maps, features = seen
        said = [head(m).flatten(1).mean(1) for head, m in zip(self.maps, maps, strict=True)]
        return torch.stack([*said, self.last(features).flatten()], 1).float()


def shake(
    x: torch.Tensor,  # (n,3,r,r)
    p: torch.Tensor,  # scalar in [0,1], chance of each change
) -> torch.Tensor:  # (n,3,r,r) float32
    "`augment` for a strength that lies on the device: no step waits for its value."
    n = len(x)

    def chance(scale):
        drawn = torch.rand(n, device=x.device) < p
        return torch.randn(n, device=x.device) * scale * drawn

    flip = torch.where(torch.rand(n, device=x.device) < 0.5, -1.0, 1.0)
    angle, zoom = chance(0.1), torch.exp2(chance(0.15))
    top = torch.stack([flip * zoom * angle.cos(), -zoom * angle.sin(), chance(0.08)], 1)
    low = torch.stack([flip * zoom * angle.sin(), zoom * angle.cos(), chance(0.08)], 1)
    grid = F.affine_grid(torch.stack([top, low], 1), list(x.shape), align_corners=False)
    x = F.grid_sample(x.float(), grid, padding_mode="reflection", align_corners=False)
    mean = x.mean((1, 2, 3), keepdim=True)
    contrast, light = torch.exp2(chance(0.3)).view(n, 1, 1, 1), chance(0.15).view(n, 1, 1, 1)
    x = (x - mean) * contrast + mean + light
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * torch.exp2(chance(0.5)).view(n, 1, 1, 1)
    return x.contiguous(memory_format=torch.channels_last)


@dataclass
class Recipe:
    "The numbers of a StyleGAN2 training."

    batch: int = 192  # pictures a step, a multiple of 4
    base: int = 1024  # channels of the generator at resolution r: base / r ...
    most: int = 128  # ... but not more than this
    layers: int = 4  # of the mapping network
    dim: int = 128  # length of z and of w
    judge_base: int = 1024  # `base` of the discriminator, which does not ship
    judge_most: int = 128  # its `most`
    shaken: bool = False  # shift, turn and recolor what the discriminators see: for small sets
    copying: float = 0.5  # share of the training that only reconstructs
    anchor: float = 1.0  # weight of reconstructions during the game
    reading: float = 1.0  # weight of attribute scores in reconstructions
    heads: float = 0.5  # weight of the heads on the teacher's feature maps
    gamma: float = 0.02  # weight of R1
    lr: float = 1e-2  # highest step size of the reconstruction
    game_lr: float = (
        1e-3  # step size of the generator in the game; twice that for the discriminators
    )
    half_life: int = 500  # steps after which the moving average has forgotten half
    beta: float = 2e-4  # weight of the encoder's divergence from N(0,1), per nat


PHOTOGRAPHS = Recipe(
    layers=2,
    shaken=True,
    copying=0.2,
    anchor=0.5,
    reading=0.1,
    base=1536,
    most=192,
    judge_base=1536,
    judge_most=192,
)


@dataclass
class Run:
    "Networks, optimizers and counters of one StyleGAN2 training."

    recipe: Recipe
    data: Inputs
    teacher: Reader  # of the inputs' teacher
    G: StyleGAN2  # the generator that learns
    ema: StyleGAN2  # its moving average, the one that is kept
    D: Discriminator  # sees pixels and their detail
    E: Discriminator  # reads a picture's z, where it is not known
    H: Heads  # sees the teacher's feature maps
    p: torch.Tensor  # strength of the augmentation
    rotation: torch.Tensor  # (dim,dim), spreads known codes over all of z
    optimizers: dict = field(default_factory=dict)  # by network
    step: int = 0  # steps done
    spent: float = 0.0  # seconds, all calls together
    game: bool = False  # the second phase has begun
    game_began: tuple = (0, 0.0)  # step and seconds then
    log: list = field(default_factory=list)  # one dict a save

    NETS = ("G", "ema", "D", "E", "H")
    NUMBERS = ("step", "spent", "game", "game_began", "log")

    @property
    def paired(self):
        "Whether every new face has a real twin: the face of the same codes."
        return self.data.codes is not None and not self.recipe.shaken

    def state(self):
        "Everything `restore` needs, as tensors and numbers."
        nets = {k: getattr(self, k).state_dict() for k in self.NETS}
        numbers = {k: getattr(self, k) for k in self.NUMBERS}
        optimizers = {k: o.state_dict() for k, o in self.optimizers.items()}
        return nets | numbers | {"p": self.p, "optimizers": optimizers}

    def restore(self, state):
        "Continue where `state` was taken."
        for k in self.NETS:
            getattr(self, k).load_state_dict(state[k])
        if state["game"]:
            begin_game(self, fold=False)
        for k, o in self.optimizers.items():
            o.load_state_dict(state["optimizers"][k])
        for k in self.NUMBERS:
            setattr(self, k, state[k])
        self.p.copy_(state["p"])


def adam(
    groups: list,  # networks, or parts of one
    momentum: float,  # beta 1
    device: torch.device,  # where they are
) -> torch.optim.Adam:
    "Adam whose step sizes are tensors, so that a replayed step can have a new one."
    groups = [
        {"params": list(g.parameters()), "lr": torch.tensor(1e-3, device=device)} for g in groups
    ]
    return torch.optim.Adam(
        groups, betas=(momentum, 0.99), fused=True, capturable=device.type == "cuda"
    )


def new_optimizers(
    run: Run,  # its networks
    momentum: float,  # beta 1 of G, D and H
) -> dict:  # by network
    "Fresh optimizers: a phase does not inherit the other's memory."
    device = run.p.device
    return {
        "G": adam([run.G.synthesis, run.G.mapping], momentum, device),
        "D": adam([run.D], momentum, device),
        "H": adam([run.H], momentum, device),
        "E": adam([run.E], 0.9, device),
    }


def new_run(
    data: Inputs,  # faces and networks
    recipe: Recipe,  # sizes and step sizes
    seed: int = 0,  # of the first weights
) -> Run:
    "Fresh networks on the device."
    torch.manual_seed(seed)
    device, r, c = data.images.device, data.images.shape[-1], recipe

    def place(net):
        return net.to(device, memory_format=torch.channels_last)

    G = place(StyleGAN2(r, c.dim, c.dim, c.layers, c.base, c.most))
    D = place(Discriminator(r, base=c.judge_base, most=c.judge_most))
    E = place(Discriminator(r, 2 * c.dim, base=c.base // 2, most=c.most, compare=False))
    ema, teacher = copy.deepcopy(G).requires_grad_(False).eval(), place(Reader(data.teacher))
    p, rotation = torch.zeros((), device=device), stylegan2_training._rotation(c.dim).to(device)
    run = Run(c, data, teacher, G, ema, D, E, place(Heads(teacher)), p, rotation)
    run.optimizers = new_optimizers(run, momentum=0.9)
    return run


# --- The steps: each draws its own faces and changes weights; nothing in them waits for the GPU ---

MIXED = None  # None computes in bf16 on a GPU only; True and False decide otherwise


def bf16(
    device: torch.device,  # where is computed
) -> torch.autocast:
    "Inside the block, convolutions and matrix products run in bf16."
    mixed = device.type == "cuda" if MIXED is None else MIXED
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed)


def draw_faces(
    run: Run,  # its faces
    rare: bool = False,  # rare looks come up more often
) -> tuple:  # x (n,3,r,r), rows (n,)
    "Real faces, mirrored by chance where no code says which way they look."
    data, n = run.data, run.recipe.batch
    u = torch.rand(n, device=run.p.device)
    rows = torch.searchsorted(data.odds, u) if rare else (u * len(data.images)).long()
    rows = rows.clamp(max=len(data.images) - 1)
    x = to_float(data.images[rows])
    if data.codes is None:
        turned = torch.rand(n, 1, 1, 1, device=x.device) < 0.5
        x = torch.where(turned, x.flip(3), x)
    return x.contiguous(memory_format=torch.channels_last), rows


def read_z(
    run: Run,  # its encoder
    x: torch.Tensor,  # (n,3,r,r)
    rows: torch.Tensor,  # (n,) which faces these are
) -> tuple:  # z (n,dim), divergence from N(0,1) in nats
    "What is known of z, completed by noise; the encoder's reading where nothing is known."
    if run.data.codes is None:
        with bf16(x.device):
            return stylegan2_training._encode(run.E, x)
    return complete(run.data.codes[rows], run.rotation), x.new_zeros(())


def complete(
    codes: torch.Tensor,  # (n,k) standard normal
    rotation: torch.Tensor,  # (dim,dim)
) -> torch.Tensor:  # z (n,dim) standard normal
    "Codes beside fresh noise, turned: `known_codes` with all tensors on the device."
    noise = torch.randn(len(codes), len(rotation) - codes.shape[1], device=codes.device)
    return torch.cat([codes, noise], 1) @ rotation


def likeness(
    run: Run,  # its teacher, and the weight of attribute scores
    y: torch.Tensor,  # (n,3,r,r) made
    x: torch.Tensor,  # (n,3,r,r) wanted
    seen_y: list,  # what the teacher saw in y
    seen_x: list,  # and in x
) -> torch.Tensor:  # scalar
    "Absolute error in pixels, in feature maps and in attribute scores."
    far = [F.l1_loss(a, b) / b.abs().mean() for a, b in zip(seen_y[:3], seen_x[:3], strict=True)]
    read, wanted = (run.teacher.scores(seen[3]) for seen in (seen_y, seen_x))
    return (
        F.l1_loss(y.float(), x) + sum(far) / 6 + run.recipe.reading * F.smooth_l1_loss(read, wanted)
    )


def reconstruction(
    run: Run,  # its generator and encoder
) -> torch.Tensor:  # scalar
    "How badly the generator repaints real faces, plus the divergence of their z."
    x, rows = draw_faces(run, rare=True)
    z, divergence = read_z(run, x, rows)
    w = run.G.mapping(z)
    with bf16(x.device):
        y = run.G.synthesis(w, "random")
        with torch.no_grad():
            seen_x = run.teacher(x)
        return likeness(run, y, x, run.teacher(y), seen_x) + run.recipe.beta * divergence


def clear(
    run: Run,  # its optimizers
    *names: str,  # networks
) -> None:
    "Forget the gradients of some networks."
    for k in names:
        run.optimizers[k].zero_grad(set_to_none=True)


def copy_step(
    run: Run,  # G and E change
) -> dict:  # what to log
    "Phase one: repaint real faces."
    clear(run, "G", "E")
    loss = reconstruction(run)
    loss.backward()
    run.optimizers["G"].step()
    if run.data.codes is None:
        run.optimizers["E"].step()
    return {"copy": loss.detach()}


def side_by_side(
    x: torch.Tensor,  # (n,...) real
    y: torch.Tensor,  # (n,...) fake
) -> torch.Tensor:  # (2n,...) real, fake, real, ...
    "One batch in which the discriminator's groups stay purely real or fake."
    return torch.stack([x, y], 1).flatten(0, 1)


def game_step(
    run: Run,  # all but the moving average changes
    anchored: bool = False,  # where faces have no twins: also repaint real faces
    slope: bool = False,  # with R1
) -> dict:  # what to log
    "Phase two: D and H learn to tell real from new faces; G learns to pass with the same ones."
    x, rows = draw_faces(run, rare=run.paired)
    z = torch.randn(len(x), run.recipe.dim, device=x.device)
    if run.paired:
        z, _ = read_z(run, x, rows)
    w = run.G.mapping(z)
    with bf16(x.device):
        y = run.G.synthesis(w, "random").float()
    if run.recipe.shaken:
        x, y = shake(x, run.p), shake(y, run.p)
    with bf16(x.device):
        with torch.no_grad():
            seen_x = run.teacher(x)
        seen_y = run.teacher(y)
        copied = likeness(run, y, x, seen_y, seen_x) if run.paired else None
    said = judge(run, x, y.detach(), seen_x, [m.detach() for m in seen_y], slope)
    return said | paint(run, y, seen_y, copied, anchored)


def judge(
    run: Run,  # D, H and the strength of the augmentation change
    x: torch.Tensor,  # (n,3,r,r) real
    y: torch.Tensor,  # (n,3,r,r) fake
    seen_x: list,  # what the teacher saw in x
    seen_y: list,  # and in y
    slope: bool,  # with R1
    every: int = 16,  # steps between two steps with R1
) -> dict:  # what to log
    "A step of the discriminators."
    clear(run, "D", "H")
    with bf16(x.device):
        both = run.D(side_by_side(x, y)).float().view(-1, 2)
        heads = run.H([side_by_side(a, b) for a, b in zip(seen_x, seen_y, strict=True)]).view(
            len(x), 2, -1
        )
    (real, fake), (head_real, head_fake) = both.unbind(1), heads.unbind(1)
    loss = F.softplus(-real).mean() + F.softplus(fake).mean()
    total = loss + F.relu(1 - head_real).mean() + F.relu(1 + head_fake).mean()
    if slope:
        total = total + run.recipe.gamma / 2 * every * steepness(run.D, x)
    total.backward()
    for k in ("D", "H"):
        run.optimizers[k].step()
    change = (real.detach().sign().mean() - 0.6).sign() * len(x) / 200_000
    run.p.add_(change).clamp_(0, 0.6)
    said = {"D": loss, "real": real.mean(), "fake": fake.mean()}
    said |= {"head_real": head_real.mean(0), "head_fake": head_fake.mean(0)}
    return {k: v.detach() for k, v in said.items()}


def steepness(
    D: nn.Module,  # the discriminator
    x: torch.Tensor,  # (n,3,r,r) real faces, shaken already: a shake has no second derivative
) -> torch.Tensor:  # scalar
    "R1: mean squared gradient of the discriminator at real faces (arXiv 1801.04406)."
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return grad.square().sum((1, 2, 3)).mean()


def paint(
    run: Run,  # G changes, and E where it is needed
    y: torch.Tensor,  # (n,3,r,r) new faces
    seen: list,  # what the teacher saw in them
    copied: torch.Tensor | None,  # how badly they match their twins, where they have some
    anchored: bool,  # else: also repaint real faces
    every: int = 4,  # steps between two steps with this
) -> dict:  # what to log
    "A step of the generator: pass the discriminators without forgetting what z means."
    clear(run, "G", "E")
    for net in (run.D, run.H):
        net.requires_grad_(False)
    with bf16(y.device):
        judged, heads = run.D(y).float(), run.H(seen)
    loss = F.softplus(-judged).mean() - run.recipe.heads * heads.mean()
    if copied is None:
        copied = every * reconstruction(run) if anchored else y.new_zeros(())
    (loss + run.recipe.anchor * copied).backward()
    run.optimizers["G"].step()
    if anchored:
        run.optimizers["E"].step()
    for net in (run.D, run.H):
        net.requires_grad_(True)
    return {"G": loss.detach(), "copy": copied.detach()}


class Replay:
    "A step that a GPU replays as one graph; elsewhere the step itself."

    def __init__(
        self,
        step: Callable,  # a function without arguments that returns a dict of tensors
        graph: bool,  # record it; the steps that warm it up count as training
        warm: int = 3,  # steps before the recording
    ):
        self.step, self.graph = step, None
        if graph:
            self.record(warm)

    def record(self, warm):
        "Warm up on a stream of its own, as CUDA asks for, then record one step."
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.said = self.step()

    def __call__(self):
        if self.graph is None:
            return self.step()
        self.graph.replay()
        return self.said


# --- The training of a StyleGAN2 ---


def begin_game(
    run: Run,  # at the end of phase one
    fold: bool = True,  # move the encoder's codes to N(0,1); off when a run is restored
) -> None:
    "Fold codes that the encoder read, and forget what the optimizers remember."
    if fold and run.data.codes is None:
        fold_codes(run, run.data.images[:4000])
    if fold:
        run.game_began = (run.step, run.spent)
    run.optimizers, run.game = new_optimizers(run, momentum=0.0), True


def set_pace(
    run: Run,  # its optimizers
    share: float,  # of the training that is done, in [0,1]
) -> None:
    "Step sizes: a warm-up and a cosine in phase one; constant, then falling to zero, in phase two."
    c = run.recipe
    if run.game:
        lr = c.game_lr * min(1.0, 5 * (1 - share) + 0.01)
        sizes = {"G": (lr, lr), "D": (2 * lr,), "H": (2 * lr,), "E": (lr,)}
    else:
        done = min(share / max(c.copying, 1e-9), 1.0)
        lr = c.lr * min(1.0, 50 * done + 0.02) * (0.52 + 0.5 * math.cos(math.pi * done))
        sizes = {"G": (lr, 100 * lr), "E": (lr,)}
    for k, each in sizes.items():
        for group, size in zip(run.optimizers[k].param_groups, each, strict=True):
            group["lr"].fill_(size)


def steps_of(
    run: Run,  # in either phase
    graph: bool,  # replay them as CUDA graphs
) -> dict:  # name -> step
    "The steps of the present phase."
    if not run.game:
        return {"copy": Replay(partial(copy_step, run), graph)}
    plain, slope = partial(game_step, run), partial(game_step, run, slope=True)
    steps = {"plain": Replay(plain, graph), "slope": Replay(slope, graph)}
    if run.paired:
        return steps
    return steps | {"anchor": Replay(partial(game_step, run, anchored=True), graph)}


def take_step(
    run: Run,  # one step further afterwards
    steps: dict,  # of `steps_of`
) -> dict:  # what to log
    "One step of the present phase; in the game some measure slopes or repaint real faces."
    kind = "slope" if run.step % 16 == 1 else "plain"
    if run.step % 4 == 0 and "anchor" in steps:
        kind = "anchor"
    said = steps[kind if run.game else "copy"]()
    run.step += 1
    with torch.no_grad():
        follow(run)
    return said


def follow(
    run: Run,  # its moving average changes
) -> None:
    "One step of the moving average."
    decay = min(0.5 ** (1 / run.recipe.half_life), (1 + run.step) / (10 + run.step))
    torch._foreach_lerp_(list(run.ema.parameters()), list(run.G.parameters()), 1 - decay)


def save_run(
    run: Run,  # what is saved
    out: Path,  # folder
    said: dict,  # by the last step
    whole: bool = True,  # also the state to go on from
) -> None:
    "Weights, contact sheet, log and, with `whole`, the state."
    run.ema.mapping.w_avg.copy_(run.ema.sample(4096, seed=1).mean(0))
    about = {"steps": run.step, "images": run.step * run.recipe.batch}
    save_generator(run.ema, out / "generator.safetensors", about)
    with write_atomic(out / "samples.png") as f:
        sheet(run.ema).save(f)
    line = {"step": run.step, "spent": round(run.spent, 1), "p": round(float(run.p), 3)}
    line |= {k: [round(v, 4) for v in t.float().flatten().tolist()] for k, t in said.items()}
    run.log.append(line | {"frechet": round(quick_frechet(run), 2)})
    print(json.dumps(run.log[-1]), flush=True)
    lines = "".join(json.dumps(each) + "\n" for each in run.log)
    with write_atomic(out / "log.jsonl") as f:
        f.write_text(lines)
    if not whole:
        return
    with write_atomic(out / "state.pt") as f:
        torch.save(run.state(), f)


def sheet(
    G: Generator,  # any generator
    n: int = 96,  # faces
):
    "A contact sheet of new faces, the same latents every time."
    return contact_sheet(render(G, G.sample(n, 5)), 16)


def quick_frechet(
    run: Run,  # its moving average and judge
    n: int = 1000,  # faces, few: to watch a training
) -> float:
    "Frechet distance by the judge."
    n = min(n, len(run.data.held))
    fake = render(run.ema, run.ema.sample(n, 7), batch=250)
    one, two = (attribute_features(run.data.judge, x) for x in (run.data.held.images[:n], fake))
    return frechet(one, two)


@dataclass
class Pace:
    "How long a training takes and how often it saves."

    minutes: float = math.inf  # of the whole training, all calls together
    steps: int | None = None  # or how many steps it has
    leave: float = math.inf  # minutes after which this call stops; the next one goes on
    stop: int | None = None  # or the step at which this call stops
    save_every: float = 30  # seconds between two saves
    graph: bool = True  # replay steps as CUDA graphs, where there is a GPU

    def share(self, run):
        "How much of the training is done, in [0,1] and above."
        if self.steps is not None:
            return run.step / self.steps
        return run.spent / (60 * self.minutes)


def train_stylegan(
    data: Inputs,  # faces and networks
    out: Path,  # folder of weights, state, log and contact sheet
    recipe: Recipe,  # sizes and step sizes
    pace: Pace,  # how long
    seed: int = 0,  # of everything random
    start: str | None = None,  # weights of a generator of this shape to begin with
) -> Run:
    "Train a StyleGAN2; the same call on the same folder goes on."
    given = pace.steps is not None or pace.minutes < math.inf
    check(given, "expected minutes or steps, got neither")
    out.mkdir(parents=True, exist_ok=True)
    run, saved = new_run(data, recipe, seed), out / "state.pt"
    if start is not None:
        for net in (run.G, run.ema):
            net.load_state_dict(load_stylegan2(start).state_dict())
    if saved.exists():
        run.restore(torch.load(saved, map_location=run.p.device, weights_only=True))
    torch.manual_seed(seed * 1_000_003 + run.step)
    with folded():
        said = keep_stepping(run, out, pace)
    save_run(run, out, said)
    return run


def keep_stepping(
    run: Run,  # goes on to the end, or as long as this call may last
    out: Path,  # where it is saved on the way
    pace: Pace,  # how long
) -> dict:  # what the last step said
    "Step after step, both phases."
    begun, before, saved, steps, said = time.time(), run.spent, time.time(), None, {}
    graph = pace.graph and run.p.is_cuda
    while pace.share(run) < 1 and time.time() - begun < 60 * pace.leave and run.step != pace.stop:
        if not run.game and pace.share(run) >= run.recipe.copying:
            if said:
                save_run(run, out, said, whole=False)
            begin_game(run)
            steps = None
        steps = steps or steps_of(run, graph)
        if run.step % 20 == 0:
            set_pace(run, pace.share(run))
        said = take_step(run, steps)
        if run.step % 50 == 0 and graph:
            torch.cuda.synchronize()
        run.spent = before + time.time() - begun
        if time.time() - saved < pace.save_every:
            continue
        save_run(run, out, said, whole=False)
        saved = time.time()
    return said


# --- The training of a diffusion model ---


@dataclass
class Task:
    "A network with what it minimizes, for `diffusion_training._fit`."

    net: nn.Module  # on the device
    loss: Callable  # one step's loss
    path: Path  # the state, from which a stopped run goes on
    lr: float  # step size


def steps_within(
    task: Task,  # what is to be trained
    minutes: float,  # how long
    trials: int = 5,  # steps to time
) -> int:
    "How many steps fit; noted beside the state, so that a later call plans the same."
    note = task.path.with_suffix(".json")
    if note.exists():
        return json.loads(note.read_text())["steps"]
    task.loss().backward()
    start = time.time()
    for _ in range(trials):
        task.loss().backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = (time.time() - start) / trials / 0.75  # the optimizer and the average take the rest
    task.net.zero_grad(set_to_none=True)
    steps = max(1, int(60 * minutes / seconds))
    note.write_text(json.dumps({"steps": steps, "seconds_per_step": seconds}))
    return steps


def train_pipeline(
    data: Inputs,  # portraits with captions
    out: Path,  # folder of states and, at the end, of the pipeline
    steps: tuple = (1500, 9000),  # of the autoencoder, of the denoiser
    minutes: float = math.inf,  # or how long, a fifth for the autoencoder
    batch: int = 256,  # pictures a step
    seed: int = 0,  # of everything random
) -> Path:  # the pipeline's folder
    "`train_diffusion` with all pictures on the device and in bf16; a stopped run goes on."
    check(len(data.texts) > 0, "expected captions, got none: make inputs of portraits")
    out.mkdir(parents=True, exist_ok=True)

    def learn(task, plan, share):
        if minutes < math.inf:
            plan = steps_within(task, minutes * share)
        return diffusion_training._fit(
            task.net, task.loss, task.path, len(data.images), plan, batch, task.lr, seed
        )

    vae = learn(autoencoder_task(data, out, batch, seed), steps[0], 0.2)
    latents = diffusion_training.encode(vae, data.images).to(data.images.device)
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    task, tokenizer = denoiser_task(data, vae, latents, out, batch, seed)
    net = learn(task, steps[1], 0.8)
    return diffusion_training.save_pipeline(
        vae, net["text_encoder"], tokenizer, net["unet"], out / "pipeline"
    )


def autoencoder_task(
    data: Inputs,  # portraits and the teacher
    out: Path,  # folder of the state
    batch: int,  # pictures a step
    seed: int,  # of the first weights
) -> Task:
    "The autoencoder between pictures and latents."
    device = data.images.device
    torch.manual_seed(seed)
    vae = diffusion_training.new_autoencoder().to(device)
    axes = diffusion_training.color_axes(data.images[:500].cpu()).to(device)

    def loss(_=None):
        rows = torch.randint(len(data.images), (batch,), device=device)
        x = to_float(data.images[rows])
        with bf16(device):
            return diffusion_training.autoencoder_loss(vae, x, data.teacher, axes)

    return Task(vae, loss, out / "autoencoder.pt", lr=2e-3)


def denoiser_task(
    data: Inputs,  # captions and the teacher
    vae: nn.Module,  # a trained autoencoder
    latents: torch.Tensor,  # (n,c,h,w), not scaled, on the device
    out: Path,  # folder of the state
    batch: int,  # pictures a step
    seed: int,  # of the first weights
    unsaid: float = 0.1,  # share of captions that are left empty, for guidance
) -> tuple:  # the task, the tokenizer
    "U-Net and text encoder."
    device, scheduler = latents.device, diffusion_training.new_scheduler()
    torch.manual_seed(seed)
    tokenizer = diffusion_training.new_tokenizer([t for each in data.texts for t in each])
    unet, reader = diffusion_training.new_unet(), diffusion_training.new_text_encoder(tokenizer)
    net = nn.ModuleDict({"unet": unet, "text_encoder": reader}).to(device)
    ids = torch.stack([diffusion_training._ids(tokenizer, each) for each in data.texts], 1).to(
        device
    )
    empty = diffusion_training._ids(tokenizer, [""]).to(device)
    weight = diffusion_training.importance(vae, data.teacher, latents[:8])
    latents = latents * vae.config["scaling_factor"]

    def loss(_=None):
        rows = torch.randint(len(latents), (batch,), device=device)
        told = ids[rows, torch.randint(ids.shape[1], (batch,), device=device)]
        words = torch.where(torch.rand(batch, 1, device=device) < unsaid, empty, told).long()
        z = latents[rows]
        with bf16(device):
            return diffusion_training.denoising_loss(unet, reader, scheduler, z, words, weight)

    return Task(net, loss, out / "denoiser.pt", lr=1e-3), tokenizer


# --- The quality record ---


def matrix_peak(
    device: torch.device,  # where
    size: int = 8192,  # side of the matrices
    repeats: int = 10,  # products
) -> float:  # operations per second
    "What the machine does at best: products of large bf16 matrices (float32 on a CPU)."
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))

    def multiply(times):
        for _ in range(times):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()

    multiply(2)
    start = time.time()
    multiply(repeats)
    return 2 * size**3 * repeats / (time.time() - start)


def speed(
    run: Run,  # a training that ended in the game; one more step is made
    size: int | None = None,  # side of the matrices that show the peak: 8192, on a CPU 512
) -> dict:
    "Pictures per second of the game, saves included, and its share of the machine's peak."
    from torch.utils.flop_counter import FlopCounterMode

    with folded(), FlopCounterMode(display=False) as counter:
        game_step(run)
    step, spent = run.game_began
    rate = (run.step - step) / max(run.spent - spent, 1e-9)
    size = size or (8192 if run.p.is_cuda else 512)
    work, peak = counter.get_total_flops(), matrix_peak(run.p.device, size)
    return {
        "images_per_second": round(run.recipe.batch * rate, 1),
        "tflop_per_step": work / 1e12,
        "tflop_per_second": work * rate / 1e12,
        "peak_tflop_per_second": peak / 1e12,
        "share_of_peak": work * rate / peak,
    }


def drawn(
    judge: AttributeNet,  # scores attributes
    real: torch.Tensor,  # (n,3,r,r) uint8
    fake: torch.Tensor,  # (n,3,r,r) uint8
    rare: float = 0.05,  # share of real faces that count as rare
) -> dict:  # attribute -> share of the fakes
    "Share of fakes that score above what `rare` of the real faces score; `rare` is ideal."
    a, b = attribute_scores(judge, real), attribute_scores(judge, fake)
    shares = (b > a.quantile(1 - rare, 0)).double().mean(0)
    return {k: round(float(v), 4) for k, v in zip(judge.names, shares, strict=True)}


def obeyed(
    G: StyleGAN2,  # the generator
    data: Inputs,  # held-out faces with codes
    n: int = 2000,  # faces
) -> dict:  # attribute -> correlations
    "Correlation of each true attribute with its score, on real faces and on their fakes."
    codes, truth = data.held_codes[:n], data.held.attributes[:n]
    torch.manual_seed(0)
    with torch.no_grad():
        w = G.z_to_w(complete(codes, stylegan2_training._rotation(G.z_dim).to(codes.device)))
    read = {"real": data.held.images[:n], "fake": render(G, w)}
    read = {k: attribute_scores(data.judge, x).numpy() for k, x in read.items()}

    def agree(scores, i, name):
        if scores[:, i].std() == 0 or truth[name].std() == 0:
            return 0.0
        return round(float(np.corrcoef(scores[:, i], truth[name])[0, 1]), 3)

    names = enumerate(data.judge.names)
    return {name: {k: agree(scores, i, name) for k, scores in read.items()} for i, name in names}


def compare(
    net: AttributeNet,  # its features are the space
    real: torch.Tensor,  # (n,3,r,r) uint8
    half: torch.Tensor,  # (n,3,r,r) uint8, other real faces: the yardstick
    fake: torch.Tensor,  # (n,3,r,r) uint8
) -> dict:
    "Frechet distance, precision and recall of fakes, beside those of other real faces."
    one, two, made = (attribute_features(net, x).numpy() for x in (real, half, fake))
    found = {}
    for end, features in (("", made), ("_real_half", two)):
        precision, recall = precision_recall(one, features)
        found |= {f"frechet{end}": frechet(one, features)}
        found |= {f"precision{end}": precision, f"recall{end}": recall}
    return found


def measure_quality(
    G: Generator,  # the generator
    data: Inputs,  # held-out faces and the two networks
    seed: int = 5,  # of the fakes
    most: int = 2000,  # fakes at most
) -> dict:
    "Frechet distance, precision and recall by judge and teacher, and what is drawn how often."
    n = min(len(data.held) // 2, most)
    real, half = data.held.images[:n], data.held.images[n : 2 * n]
    fake = render(G, G.sample(n, seed))
    found = {"faces": n, "judge": compare(data.judge, real, half, fake)}
    found["teacher"] = compare(data.teacher, real, half, fake)
    found["rare_looks"] = drawn(data.judge, real, fake)
    found["rare_looks_real_half"] = drawn(data.judge, real, half)
    known = data.held_codes is not None and isinstance(G, StyleGAN2)
    if known:
        found["correlation_with_truth"] = obeyed(G, data)
    return found


def about_machine() -> dict:
    "Device and versions."
    device = pick_device()
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    return {"device": name, "cores": os.cpu_count(), "cuda": torch.version.cuda} | versions


def save_record(
    out: Path,  # folder
    record: dict,  # what was found
) -> None:
    "Write the quality record, device and versions beside it, and print it."
    record = record | {"machine": about_machine()}
    with write_atomic(out / "record.json") as f:
        f.write_text(json.dumps(record, indent=1))
    print(json.dumps(record), flush=True)


# --- The commands ---


def inputs_command(a: argparse.Namespace) -> None:
    "Make a folder of inputs."
    folder, real = Path(a.folder), a.kind == "photographs"
    painted = (folder / "faces.npy").exists()
    if real and not painted:
        make_photographs(folder, a.faces, a.attributes)
    if not real and not painted:
        make_portraits(folder, a.count)
    train_readers(folder, mirror=real)


def recipe_of(a: argparse.Namespace) -> Recipe:
    "The recipe of the command line: what it does not name has its default."
    usual = PHOTOGRAPHS if a.kind == "photographs" else Recipe()
    given = {k: getattr(a, k) for k in vars(usual) if getattr(a, k) is not None}
    return replace(usual, **given)


def train_command(a: argparse.Namespace) -> None:
    "Train, then measure."
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if a.kind == "diffusion":
        train_diffusion_command(a)
    else:
        train_stylegan_command(a)


def train_stylegan_command(a: argparse.Namespace) -> None:
    "Train a StyleGAN2, then measure it."
    data, out, recipe = load_inputs(Path(a.folder)), Path(a.out), recipe_of(a)
    pace = Pace(a.minutes, a.steps, a.leave, save_every=a.save_every, graph=not a.eager)
    run = train_stylegan(data, out, recipe, pace, a.seed, a.start)
    record = {"kind": a.kind, "start": a.start, "recipe": vars(recipe), "steps": run.step}
    record |= {"seconds": round(run.spent, 1), "images": run.step * recipe.batch}
    record |= {"parameters": sum(p.numel() for p in run.G.parameters())}
    record |= {"quality": measure_quality(run.ema, data)}
    if run.game:
        record |= {"speed": speed(run)}
    save_record(out, record)


def train_diffusion_command(a: argparse.Namespace) -> None:
    "Train a Stable Diffusion of portraits, then measure it."
    from natrig_nb.generator.diffusion import load_diffusion
    from natrig_nb.trigger.natural.prompt_adherence import prompt_adherence

    data, out, begun = load_inputs(Path(a.folder)), Path(a.out), time.time()
    batch, steps = a.batch or 256, (a.autoencoder_steps, a.steps or 9000)
    G = load_diffusion(train_pipeline(data, out, steps, a.minutes, batch, a.seed))
    record = {
        "kind": a.kind,
        "steps": steps,
        "batch": batch,
        "seconds": round(time.time() - begun, 1),
    }
    record |= {"quality": measure_quality(G, data, most=a.fakes)}
    record |= {
        "prompt_adherence": prompt_adherence(G, data.judge, max(a.fakes // 4, 2)).to_dict("records")
    }
    with write_atomic(out / "samples.png") as f:
        sheet(G, min(96, a.fakes)).save(f)
    save_record(out, record)


def measure_command(a: argparse.Namespace) -> None:
    "Measure weights that are there."
    from natrig_nb.generator.diffusion import load_diffusion

    load = load_diffusion if a.kind == "diffusion" else load_stylegan2
    found = measure_quality(load(a.weights), load_inputs(Path(a.folder)), most=a.fakes)
    print(json.dumps(found, indent=1))


def yes(
    text: str,  # of the command line
) -> bool:
    "Whether a text says yes."
    return text.lower() in ("1", "yes", "true")


def training_options(p: argparse.ArgumentParser) -> None:
    "Options of `train`: how long, where from, and every number of the recipe."
    p.add_argument("--minutes", type=float, default=math.inf, help="of the whole training")
    p.add_argument("--steps", type=int, help="or how many steps it has")
    p.add_argument(
        "--autoencoder-steps", type=int, default=1500, help="steps of the autoencoder (diffusion)"
    )
    p.add_argument(
        "--leave", type=float, default=math.inf, help="minutes after which this call stops"
    )
    p.add_argument("--save-every", type=float, default=30, help="seconds between two saves")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--start", help="weights of a generator of this shape to begin with")
    p.add_argument("--eager", action="store_true", help="no CUDA graphs")
    for name, usual in vars(Recipe()).items():
        kind = yes if isinstance(usual, bool) else type(usual)
        p.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{usual} for portraits")


def make_parser() -> argparse.ArgumentParser:
    "The commands and their options."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def command(name, call, text):
        p = commands.add_parser(name, help=text, description=text)
        p.set_defaults(call=call)
        p.add_argument("kind", choices=KINDS)
        p.add_argument("folder", help="of inputs")
        return p

    p = command("inputs", inputs_command, "make a folder of inputs")
    p.add_argument("--count", type=int, default=64_000, help="portraits to paint")
    p.add_argument("--faces", help="photographs: folder or archive")
    p.add_argument("--attributes", help="photographs: attribute table")
    p = command("train", train_command, "train or go on, then measure")
    p.add_argument("out", help="folder of weights, state and record")
    training_options(p)
    p.add_argument("--fakes", type=int, default=300, help="fakes to measure a diffusion model with")
    p = command("measure", measure_command, "measure a generator's weights")
    p.add_argument("weights", help="a StyleGAN2 file or a pipeline's folder")
    p.add_argument("--fakes", type=int, default=2000, help="fakes at most")
    return parser


def main(
    arguments: list | None = None,  # of the command line; `sys.argv` unless given
) -> None:
    "Run one command."
    a = make_parser().parse_args(arguments)
    a.call(a)


if __name__ == "__main__":
    main()
