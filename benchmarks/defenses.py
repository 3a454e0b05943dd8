"""Speed of every defense and painted trigger, beside ART, TrojanZoo and BackdoorMBTI, and beside its floor; writes data/results/benchmark-defenses.json.

    OMP_NUM_THREADS=1 python benchmarks/defenses.py --peers FOLDER [--repeats 5] [--only NAME ...] [--note TEXT]

Peers stay outside the environment of this repository, in a virtual environment of the same Python without torch:
    python3.11 -m venv --without-pip /tmp/peers
    uv pip install -p /tmp/peers/bin/python --no-deps adversarial-robustness-toolbox==1.20.1 trojanzoo==2.0.3 backdoormbti==0.2.2 torchvision scikit-image lazy_loader
Same network, images, thread and process for all. Ours, peers and single passes take turns; the fastest of several rounds counts, in processor time."""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import time
import types
import warnings
from copy import deepcopy
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from natrig_nb.core import seeded, to_uint8, write_atomic
from natrig_nb.nn.images import jpeg
from natrig_nb.testing import apply_patch
from natrig_nb.defense.base import defense_specs
from natrig_nb.defense.budget import Budget, watch
from natrig_nb.defense.cutmix import cut_and_paste
from natrig_nb.defense.pruning import mean_activation
from natrig_nb.testing import synthetic_faces
from natrig_nb.detector.resnet import ResNet18
from natrig_nb.detector.training import train
from natrig_nb.trigger.base import SearchContext, TriggerConfig, trigger_specs
from natrig_nb.core import environment
from natrig_nb.trigger.wanet import WaNet

ROOT = Path(__file__).resolve().parent.parent
SIZE, TRAINING, CLEAN, INPUTS, OVERLAYS, STEPS, BATCH, PICTURES = 64, 512, 128, 64, 20, 16, 32, 128
SHORT = dict(epochs=2)
SETTINGS = dict(
    strip=dict(overlays=OVERLAYS),
    cleanse=dict(steps=STEPS, max_idle=STEPS),
    pruning=dict(step=0.1, epochs=2),
    anp=SHORT,
    finetune=SHORT,
    ftsam=SHORT,
    nad=SHORT,
    ibau=dict(rounds=1),
    cutmix=SHORT,
    abl=dict(isolation_epochs=1, epochs=1),
    ebyd=dict(epochs=2, stop=0.501),
)
SAME = {"strip_additive"}  # the code of another row
KIND = dict(
    filter="forward",
    detect="forward",
    inspect="image",
    repair="weights",
    train="weights",
    preprocess="forward",
)  # what a backward pass is taken to
EVALUATED = {
    "anp": "image",
    "ibau": "frozen",
}  # BatchNorm in evaluation mode; ANP moves no convolution


FLOORS = {"copy": "one copy of the pictures", "read": "grid_sample alone", "pillow": "Pillow alone"}


class Case:
    "One network that knows a patch, a training set with the patch, the defender's faces, and inputs to judge."

    def __init__(self):
        self.ds = synthetic_faces(TRAINING, 0, SIZE)
        images = self.ds.images.clone()
        images[1:50:2] = apply_patch(images[1:50:2])
        self.ds = type(self.ds)(
            images, labels=self.ds.labels.clone().index_fill_(0, torch.arange(1, 50, 2), 0)
        )
        self.model = quiet(
            lambda: train(ResNet18(16), self.ds, epochs=3, lr=6e-3, augment=False).eval()
        )
        self.clean, self.inputs = synthetic_faces(CLEAN, 1, SIZE), synthetic_faces(INPUTS, 2, SIZE)
        self.pictures = self.clean.x[:PICTURES].contiguous()
        grid, bytes_ = (
            WaNet().grid(PICTURES, SIZE),
            to_uint8(self.pictures).permute(0, 2, 3, 1).contiguous().numpy(),
        )
        self.floors = {
            "copy": self.pictures.clone,
            "read": lambda: F.grid_sample(self.pictures, grid, align_corners=True),
            "pillow": lambda: [squeeze(b) for b in bytes_],
        }

    def call(self, shape, f, settings):
        "A defense of this kind on this case."
        m = self.model
        if shape == "filter":
            return f(m, self.ds, **settings)
        if shape == "detect":
            return f(m, self.inputs.images, self.clean, **settings)
        if shape == "train":
            return f(self.ds, make=lambda seed: deepcopy(m), **settings)
        return f(m, self.clean, **settings)

    def passes(self, kind):
        "Seconds of one forward pass, and of one forward and backward pass, an image: nothing but the network."
        with torch.no_grad():
            forward = clock(lambda: self.model(self.ds.x[:256])) / 256
        if kind == "forward":
            return forward, None
        x, y = (
            self.ds.x[:BATCH].contiguous(memory_format=torch.channels_last),
            self.ds.labels[:BATCH],
        )
        if kind == "image":
            frozen, x = deepcopy(self.model).requires_grad_(False), x.requires_grad_()
            return forward, clock(
                lambda: [torch.autograd.grad(F.cross_entropy(frozen(x), y), x) for _ in range(8)]
            ) / (8 * BATCH)
        network = deepcopy(self.model).train(kind == "weights")
        step = lambda: (network.zero_grad(), F.cross_entropy(network(x), y).backward())
        return forward, clock(lambda: [step() for _ in range(8)]) / (8 * BATCH)


def squeeze(picture):
    "One JPEG written and read."
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=50)
    return np.array(Image.open(file))


def clock(f):
    "Processor seconds of one call: the honest figure on a busy machine."
    start = time.process_time()
    f()
    return time.process_time() - start


def art_peers(case):
    "What ART has for PyTorch, at the same settings; its Neural Cleanse wants Keras."
    from art.attacks.poisoning import PoisoningAttackBackdoor
    from art.attacks.poisoning.perturbations import add_pattern_bd, insert_image
    from art.defences.detector.poison import ActivationDefence, SpectralSignatureDefense
    from art.defences.preprocessor import CutMixPyTorch, JpegCompression
    from art.defences.transformer.poisoning import STRIP
    from art.estimators.classification import PyTorchClassifier

    make = lambda: PyTorchClassifier(
        deepcopy(case.model),
        torch.nn.CrossEntropyLoss(),
        (3, SIZE, SIZE),
        2,
        clip_values=(-1.0, 1.0),
        device_type="cpu",
    )
    x, y, inputs = case.ds.x.numpy(), case.ds.labels.numpy(), case.inputs.x.numpy()
    guarded = STRIP(make())(num_samples=OVERLAYS)
    guarded.num_samples, guarded.validation_data, guarded.entropy_threshold = (
        OVERLAYS,
        case.clean.x.numpy(),
        0.0,
    )  # as after `mitigate`, whose cost is left out
    classifier, positive = make(), (case.pictures.numpy() + 1) / 2
    picture = Path(tempfile.mkdtemp()) / "pattern.png"
    Image.fromarray((np.random.default_rng(0).random((SIZE, SIZE, 3)) * 255).astype(np.uint8)).save(
        picture
    )
    one_hot = np.eye(2)[np.zeros(PICTURES, int)]
    attack = lambda paint: PoisoningAttackBackdoor(paint)
    patch = attack(partial(add_pattern_bd, channels_first=True))
    blend = attack(
        lambda im: insert_image(
            im, str(picture), channels_first=True, random=False, mode="RGB", blend=0.2
        )
    )
    mixer = CutMixPyTorch(2, probability=1.0, channels_first=True, device_type="cpu")
    return {
        "spectral": lambda: SpectralSignatureDefense(
            classifier, x, y, expected_pp_poison=0.05
        ).detect_poison(),
        "clustering": lambda: ActivationDefence(classifier, x, y).detect_poison(
            nb_clusters=2, nb_dims=10, reduce="PCA"
        ),
        "strip": lambda: guarded.predict(inputs),
        "jpeg": lambda: JpegCompression((0, 1.0), quality=50, channels_first=True)(positive),
        "cutmix a batch": lambda: mixer.forward(case.pictures, case.clean.labels[:PICTURES]),
        "badnets": lambda: patch.poison(positive, one_hot),
        "blended": lambda: blend.poison(positive, one_hot),
    }


def trojanzoo_peers(case):
    "What TrojanZoo has, its methods called on stand-ins for its data sets; it imports torchvision without compiled parts, and an older matplotlib."
    import matplotlib.cm

    sys.modules["torchvision._meta_registrations"] = types.ModuleType(
        "torchvision._meta_registrations"
    )
    matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap
    from sklearn.cluster import KMeans
    from sklearn.decomposition import FastICA
    from torch.utils.data import DataLoader, TensorDataset
    from trojanvision.defenses.backdoor.attack_agnostic.fine_pruning import FinePruning
    from trojanvision.defenses.backdoor.input_filtering.strip import Strip
    from trojanvision.defenses.backdoor.model_inspection.neural_cleanse import NeuralCleanse
    from trojanvision.defenses.backdoor.training_filtering.activation_clustering import (
        ActivationClustering,
    )
    from trojanvision.marks import Watermark

    network = deepcopy(case.model)

    class Model:
        "The few methods of its `ImageModel` that are asked for."

        num_classes, _model = 2, SimpleNamespace(get_final_fm=network.features)
        __call__ = staticmethod(network)
        get_data = staticmethod(lambda data: data)
        get_class = staticmethod(lambda x: network(x).argmax(-1))
        get_fm = staticmethod(lambda x: network.activations(x))
        loss = staticmethod(lambda x, y, _output: F.cross_entropy(_output, y))
        named_modules = staticmethod(network.named_modules)

    def bare(kind, **attributes):
        made = kind.__new__(kind)
        for k, v in attributes.items():
            setattr(made, k, v)
        return made

    batches = lambda ds, size: [
        (ds.x[i : i + size], ds.labels[i : i + size]) for i in range(0, len(ds) - size + 1, size)
    ]
    overlay = [
        (case.clean.x[torch.randperm(CLEAN, generator=seeded(k))[:INPUTS]], None)
        for k in range(OVERLAYS)
    ]
    strip = bare(Strip, strip_alpha=0.5, strip_sample_num=OVERLAYS, loader=overlay, model=Model())
    tensors = TensorDataset(case.ds.x, case.ds.labels)
    loaders = SimpleNamespace(
        num_classes=2, get_dataloader=lambda mode, dataset: DataLoader(dataset, 256)
    )

    def cluster():
        return bare(
            ActivationClustering,
            clean_set=torch.utils.data.Subset(tensors, range(TRAINING // 2)),
            poison_set=torch.utils.data.Subset(tensors, range(TRAINING // 2, TRAINING)),
            dataset=loaders,
            model=Model(),
            nb_clusters=2,
            cluster_analysis="silhouette_score",
            projector=FastICA(n_components=10),
            clusterer=KMeans(2),
        ).get_pred_labels()

    mark = lambda **k: Watermark(data_shape=[3, SIZE, SIZE], **k)
    patch, veil = (
        mark(mark_height=3, mark_width=3, mark_height_offset=60, mark_width_offset=60),
        mark(mark_height=SIZE, mark_width=SIZE, mark_alpha=0.2, mark_random_init=True),
    )

    def search():
        attack = SimpleNamespace(mark=mark(mark_height=SIZE, mark_width=SIZE))
        attack.add_mark, attack.target_class = attack.mark.add_mark, 0
        per_epoch = batches(case.clean, BATCH)
        nc = bare(
            NeuralCleanse,
            attack=attack,
            model=Model(),
            defense_remask_lr=0.1,
            defense_remask_epoch=STEPS // len(per_epoch),
            cost=1e-3,
            init_cost=1e-3,
            nc_patience=10.0,
            cost_multiplier_up=1.5,
            cost_multiplier_down=1.5**1.5,
            nc_asr_threshold=0.99,
            nc_early_stop_threshold=0.99,
            early_stop_patience=1e9,
        )
        for label in (0, 1):
            nc.optimize_mark(label, loader=per_epoch, verbose=False)

    half = case.clean[: CLEAN // 2]
    ranker = bare(
        FinePruning,
        model=Model(),
        dataset=SimpleNamespace(loader={"valid": batches(half, len(half))}),
    )
    channels = case.model.activations(case.pictures[:1]).shape[1]
    return {
        "strip": lambda: no_grad(strip.get_score, case.inputs.x),
        "clustering": lambda: no_grad(cluster),
        "cleanse": search,
        "pruning, ranking": lambda: ranker.prune_step(torch.ones(channels, 1), 1),
        "badnets": lambda: patch.add_mark(case.pictures),
        "blended": lambda: veil.add_mark(case.pictures),
    }


def mbti_peers(case):
    "Triggers of BackdoorMBTI, an image at a time as it paints them; the base class, which wants five more packages, is left out."
    place = Path(importlib.util.find_spec("backdoormbti").origin).parent
    base = types.ModuleType("backdoormbti.attacks.image.base")
    base.ImageBase = object
    sys.modules["torchvision._meta_registrations"] = types.ModuleType(
        "torchvision._meta_registrations"
    )
    sys.modules |= {
        "backdoormbti.attacks": types.ModuleType("attacks"),
        "backdoormbti.attacks.image": types.ModuleType("image"),
        base.__name__: base,
    }

    def load(name, kind):
        spec = importlib.util.spec_from_file_location(
            f"mbti_{name}", place / f"attacks/image/{name}.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made = getattr(module, kind).__new__(getattr(module, kind))
        made.args = SimpleNamespace(
            input_height=SIZE,
            input_width=SIZE,
            k=4,
            s=0.5,
            cross_ratio=2,
            device="cpu",
            attack_target=0,
        )
        made.h, made.w, made.poison_type = SIZE, SIZE, "sin"
        return lambda: torch.stack([made.make_poison_data((x, 1))[0] for x in positive])

    positive = (case.pictures + 1) / 2
    return {"sig": load("sig", "SIG"), "wanet": load("wanet", "WaNet")}


def no_grad(f, *args):
    with torch.no_grad():
        return f(*args)


def load_peers(folder, case):
    "Methods of the peers that can be imported, and why the others cannot."
    found, why = {}, {}
    if folder:
        sys.path += [str(p) for p in Path(folder).glob("lib/python3*/site-packages")]
    for name, make in (
        ("art", art_peers),
        ("trojanzoo", trojanzoo_peers),
        ("backdoormbti", mbti_peers),
    ):
        try:
            found[name] = make(case)
        except (ImportError, AttributeError) as e:
            why[name] = f"{type(e).__name__}: {e}"
    return found, why


def tasks(case):
    "Name, kind of row, what to time, and how its floor is counted."
    for name, spec in defense_specs().items():
        shape, f = str(spec.kind), spec.run
        if name not in SAME:
            yield (
                name,
                shape,
                partial(case.call, shape, f, SETTINGS.get(name, {})),
                EVALUATED.get(name, KIND[shape]),
            )
    half = case.clean[: CLEAN // 2]
    yield (
        "pruning, ranking",
        "repair",
        lambda: mean_activation(case.model, half.images).argsort(),
        "forward",
    )
    yield "jpeg", "image", lambda: jpeg(case.pictures, 50), "pillow"
    rng = seeded(0)
    yield "cutmix a batch", "image", lambda: cut_and_paste(case.pictures, rng), "copy"
    context = SearchContext(TriggerConfig())
    for name, spec in trigger_specs(context.cfg, latent=None).items():
        paint = partial(spec.find(context).paint, case.pictures)
        yield name, "trigger", paint, "read" if name == "wanet" else "copy"


def quiet(f):
    "Call without bars and without what the peers print."
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        return f()


def measure(case, name, shape, ours, kind, peers, repeats):
    "One row: seconds of ours and of each peer, passes, floor and share of it that is reached."
    many = (
        1 if kind in ("forward", "image", "weights", "frozen") else 3 if kind == "pillow" else 30
    )  # short ones are called often
    again = lambda f: lambda: [f() for _ in range(many)]
    with watch(Budget(), case.model) as budget:
        quiet(ours)
    row = dict(name=name, shape=shape, forward=budget.forward, backward=budget.backward)
    times, units = {k: [] for k in ("ours", *peers)}, []
    for f in peers.values():
        quiet(f)
    for _ in range(repeats if many > 1 or budget.forward < 9000 else max(2, repeats // 2)):
        units.append(
            case.passes(kind) if many == 1 else (clock(again(case.floors[kind])) / many, None)
        )
        for k, f in (("ours", ours), *peers.items()):
            times[k].append(quiet(lambda: clock(again(f))) / many)
    best = {k: min(v) for k, v in times.items()}
    forward = min(u[0] for u in units)
    both = min(u[1] for u in units) if units[0][1] else 0.0
    if many > 1:
        floor = forward
    elif budget.forward:
        floor = max(budget.forward - budget.backward, 0) * forward + budget.backward * both
    else:
        floor = None
    rivals = {k: v for k, v in best.items() if k != "ours"}
    fastest = min(rivals, key=rivals.get, default=None)
    return row | dict(
        seconds=best["ours"],
        peers=rivals,
        fastest=fastest,
        times_faster=rivals[fastest] / best["ours"] if fastest else None,
        floor=floor,
        floor_is=FLOORS.get(kind, "passes") if floor else None,
        share_of_floor=floor / best["ours"] if floor else None,
    )


def show(row):
    shown = lambda v, form: "-" if v is None else format(v, form)
    peers = "  ".join(f"{k} {1000 * v:.2f}" for k, v in row["peers"].items())
    print(
        f"{row['name']:18}{row['shape']:8}{1000 * row['seconds']:9.2f} ms {row['forward']:6d} f {row['backward']:6d} b  floor {shown(row['share_of_floor'], '5.0%'):>5}"
        f"  x{shown(row['times_faster'], '.1f'):6} {peers}",
        flush=True,
    )


def main():
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    (
        parse.add_argument("--peers"),
        parse.add_argument("--repeats", type=int, default=5),
        parse.add_argument("--note", default=""),
    )
    (
        parse.add_argument("--only", nargs="*"),
        parse.add_argument(
            "--out", help="the record; with --only none is written unless asked for"
        ),
    )
    asked = parse.parse_args()
    torch.set_num_threads(1), warnings.simplefilter("ignore")
    case = Case()
    peers, why = load_peers(asked.peers, case)
    rows = []
    for name, shape, ours, kind in tasks(case):
        if asked.only and name not in asked.only:
            continue
        rows.append(
            measure(
                case,
                name,
                shape,
                ours,
                kind,
                {k: v[name] for k, v in peers.items() if name in v},
                asked.repeats,
            )
        )
        show(rows[-1])
    packages = {
        "art": "adversarial-robustness-toolbox",
        "trojanzoo": "trojanzoo",
        "backdoormbti": "backdoormbti",
    }
    record = dict(
        environment=environment(),
        load_average=round(os.getloadavg()[0], 1),
        date=time.strftime("%Y-%m-%d"),
        note=asked.note,
        clock="processor seconds, fastest round",
        peers={k: version(packages[k]) for k in peers},
        missing=why,
        case=dict(
            network="resnet18 of width 16",
            size=SIZE,
            training=TRAINING,
            clean=CLEAN,
            inputs=INPUTS,
            overlays=OVERLAYS,
            steps=STEPS,
            pictures=PICTURES,
        ),
        rows=rows,
    )
    if asked.out or not asked.only:
        with write_atomic(
            Path(asked.out or ROOT / "data/results/benchmark-defenses.json")
        ) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
