"PGD-20 against its floor of 21 forward and backward passes, one JSON line each.  python benchmarks/adversarial.py [images] [name ...]"

import json
import sys
import time

import torch

from natrig_nb.adversarial.pgd import class_loss, pgd
from natrig_nb.nn.hooks import frozen
from natrig_nb.core import REAL, pick_device, to_float
from natrig_nb.detector.base import make_detector
from natrig_nb.testing import synthetic_faces

NETWORKS = {
    "resnet18-16": ("resnet18", dict(width=16)),
    "resnet18": ("resnet18", {}),
    "meso4-64": ("meso4", dict(size=64)),
}
STEPS, BATCH = 20, 64


def seconds(f):
    "Wall time, and processor time (the honest one on a busy machine)."
    wall, cpu = time.perf_counter(), time.process_time()
    f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return dict(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)


def passes(model, images, count):
    "The floor: forward and backward to the picture with frozen weights, nothing else; the batches are made beforehand."
    target = torch.full((BATCH,), REAL, device=pick_device())
    parts = [
        to_float(part.to(pick_device(), memory_format=torch.channels_last)).requires_grad_(True)
        for part in images.split(BATCH)
    ]

    def run():
        for x in parts:
            for _ in range(count):
                torch.autograd.grad(class_loss(model(x), target[: len(x)]).sum(), [x])

    with frozen(model):
        return seconds(run)


def measure(name, n):
    "The floor, PGD-20 from a random start, and their ratio; floor and attack take turns, the median of three counts."
    maker, settings = NETWORKS[name]
    model, images = (
        make_detector(maker, **settings).to(pick_device()).eval(),
        synthetic_faces(n, size=64).images,
    )

    def attack(images):
        return pgd(model, images, REAL, steps=STEPS, restarts=1, batch=BATCH)

    attack(images[:BATCH])
    passes(model, images[:BATCH], 2)
    pairs = [(passes(model, images, STEPS + 1), seconds(lambda: attack(images))) for _ in range(3)]
    middle = lambda who, clock: sorted(pair[who][clock] for pair in pairs)[1]
    row = dict(
        network=name,
        images=n,
        size=64,
        steps=STEPS,
        batch=BATCH,
        threads=torch.get_num_threads(),
        device=str(pick_device()),
        torch=torch.__version__,
    )
    row |= {
        f"{what}_{clock}": round(middle(who, clock), 2)
        for who, what in enumerate(("floor", "pgd"))
        for clock in ("wall", "cpu")
    }
    return row | dict(pgd_to_floor=round(sorted(b["cpu"] / a["cpu"] for a, b in pairs)[1], 3))


if __name__ == "__main__":
    n, *names = sys.argv[1:] or ["1000"]
    for name in names or NETWORKS:
        print(json.dumps(measure(name, int(n))), flush=True)
