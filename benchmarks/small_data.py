"""Which detector learns from a few hundred photographs of full size; writes data/results/small-data.json.

    python benchmarks/small_data.py --faces ffhq-stylegan-500.tar

Trains on 400 real and 400 generated faces of 256 pixels, asks about the other 100 + 100, and looks for
shortcuts: colors alone, file sizes alone, gray pictures, another JPEG compression. A killed run goes on
where it stopped (checkpoints in out/small-data). Under a minute on an H200; on two cores it was not timed.
"""

import argparse
import json
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from natrig_nb.core import FaceSet, environment, to_uint8, write_atomic
from natrig_nb.data.faces import read_faces
from natrig_nb.detector.base import make_detector, predict_fake, recommended_training
from natrig_nb.detector.training import train
from natrig_nb.metrics import accuracy, wilson
from natrig_nb.nn.images import jpeg

RECORD = Path("data/results/small-data.json")
CHECKPOINTS = Path("out/small-data")
HELD_OUT = 100  # per class
EPOCHS = {"resnet18": 15, "efficientnet-lite0": 15}


def split(ds: FaceSet, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    "Training and held-out images, by class."
    generator = torch.Generator().manual_seed(seed)
    training, held_out = [], []
    for label in (0, 1):
        places = torch.where(ds.labels == label)[0]
        order = places[torch.randperm(len(places), generator=generator)]
        held_out.append(order[:HELD_OUT])
        training.append(order[HELD_OUT:])
    return torch.cat(training), torch.cat(held_out)


def gray(images: torch.Tensor) -> torch.Tensor:
    "The same brightness in all three channels."
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    brightness = (images * weights).sum(1, keepdim=True).round().to(torch.uint8)
    return brightness.expand(-1, 3, -1, -1).contiguous()


def flip_averaged(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    "Probability of being fake, averaged over each picture and its mirror image."
    return (predict_fake(model, images, 32) + predict_fake(model, images.flip(3), 32)) / 2


def color_features(images: torch.Tensor) -> np.ndarray:
    "Mean, standard deviation and 16 histogram bins of each channel."
    columns = [images.double().mean((2, 3)), images.double().std((2, 3))]
    for channel in range(3):
        bins = (images[:, channel] // 16).flatten(1).long()
        columns.append(torch.nn.functional.one_hot(bins, 16).double().mean(1))
    return torch.cat(columns, 1).numpy()


def learned_accuracy(features: np.ndarray, labels: np.ndarray, training, held_out) -> float:
    "Held-out accuracy of a logistic regression."
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    model.fit(features[training], labels[training])
    return model.score(features[held_out], labels[held_out])


def file_sizes(path: str, names: list[str]) -> np.ndarray:
    "Bytes of each picture in the archive."
    with tarfile.open(path) as archive:
        sizes = {member.name.removeprefix("./"): member.size for member in archive}
    return np.array([[sizes[name]] for name in names], float)


def detector_row(name: str, ds: FaceSet, training, held_out, seed: int) -> dict:
    "Train one detector and ask about the held-out pictures."
    start = time.time()
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    model = train(
        make_detector(name, seed),
        ds[training],
        epochs=EPOCHS[name],
        batch=32,
        seed=seed,
        checkpoint=CHECKPOINTS / f"{name}-{seed}.pt",
        **recommended_training(name),
    )
    seconds = time.time() - start
    test = ds[held_out]
    p_fake = flip_averaged(model, test.images)
    right = accuracy(p_fake, test.labels)
    checks = {
        "gray": accuracy(flip_averaged(model, gray(test.images)), test.labels),
        "JPEG 90": accuracy(flip_averaged(model, to_uint8(jpeg(test.x, 90))), test.labels),
    }
    return {
        "accuracy": right,
        "interval": list(wilson(right, len(test))[1:]),
        "auc": float(roc_auc_score(test.labels, p_fake)),
        "checks": checks,
        "epochs": EPOCHS[name],
        "seconds": round(seconds),
        "training": recommended_training(name),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", required=True, help="an archive with real/ and fake/")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--detectors", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    ds = read_faces(args.faces, size=args.size)
    training, held_out = split(ds, args.seed)
    labels = ds.labels.numpy()
    sizes = file_sizes(args.faces, ds.names)
    record = {
        "command": f"python benchmarks/small_data.py --faces {Path(args.faces).name}",
        "images": {"training": len(training), "held_out": len(held_out), "size": args.size},
        "seed": args.seed,
        "shortcuts": {
            "colors": learned_accuracy(color_features(ds.images), labels, training, held_out),
            "file size": learned_accuracy(sizes, labels, training, held_out),
        },
        "detectors": {},
        "environment": environment(),
    }
    print(record["shortcuts"])
    for name in args.detectors:
        record["detectors"][name] = detector_row(name, ds, training, held_out, args.seed)
        print(name, record["detectors"][name], flush=True)
        with write_atomic(RECORD) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
