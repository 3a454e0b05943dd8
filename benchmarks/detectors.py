"Speed of the detectors, one JSON line each.  python benchmarks/detectors.py [images] [size] [name ...]"

import json
import sys
import time

import torch
from torch.nn import functional as F

from natrig_nb.core import pick_device
from natrig_nb.detector.base import count_parameters, make_detector, predict_fake
from natrig_nb.testing import synthetic_faces
from natrig_nb.detector.training import train

NETWORKS = {
    "resnet18-16": ("resnet18", dict(width=16)),
    "resnet18": ("resnet18", {}),
    "meso4-64": ("meso4", dict(size=64)),
    "meso4": ("meso4", {}),
    "mesoinception4-64": ("mesoinception4", dict(size=64)),
    "mesoinception4": ("mesoinception4", {}),
    "xception-8": ("xception", dict(width=8, middle=2)),
    "xception": ("xception", {}),
    "efficientnet-b0": ("efficientnet", dict(size="b0")),
    "efficientnet-b4": ("efficientnet", dict(size="b4")),
}


def rate(f, n):
    "Images a second: of wall time, and of processor time (the honest one on a busy machine)."
    wall, cpu = time.perf_counter(), time.process_time()
    f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {
        "wall": round(n / (time.perf_counter() - wall), 1),
        "cpu": round(n / (time.process_time() - cpu), 1),
    }


def passes(model, x, y, steps):
    "The floor of training: forward and backward on one batch that never changes, nothing else."
    model.train()
    for _ in range(steps):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()


def measure(name, images, size, batch=64):
    "Training, its floor and inference; each is run once before it is timed."
    maker, settings = NETWORKS[name]
    model, ds, device = (
        make_detector(maker, **settings).to(pick_device()),
        synthetic_faces(images, size=size),
        pick_device(),
    )
    x, y, steps = ds.x[:batch].to(device), ds.labels[:batch].to(device), images // batch
    run = lambda: train(model, ds, epochs=1, batch=batch)
    warm = synthetic_faces(batch, size=size)
    (
        train(model, warm, epochs=1, batch=batch),
        predict_fake(model, warm.images, batch),
        passes(model, x, y, 1),
    )
    row = dict(
        network=name,
        parameters=count_parameters(model),
        images=images,
        size=size,
        batch=batch,
        threads=torch.get_num_threads(),
        device=str(device),
        torch=torch.__version__,
    )
    row |= dict(floor=rate(lambda: passes(model, x, y, steps), images), train=rate(run, images))
    row |= dict(inference=rate(lambda: predict_fake(model, ds.images, batch), images))
    return row | dict(train_to_floor=round(row["train"]["cpu"] / row["floor"]["cpu"], 2))


if __name__ == "__main__":
    images, size, *names = sys.argv[1:] + ["640", "64"][len(sys.argv[1:]) :]
    for name in names or NETWORKS:
        print(json.dumps(measure(name, int(images), int(size))), flush=True)
