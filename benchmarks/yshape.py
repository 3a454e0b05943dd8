"""The Y-shaped detector trained and judged; adds one entry to data/results/yshape.json.

python benchmarks/yshape.py portraits [train [IMAGES EPOCHS [START]]]  judge the shipped weights, or train them first (8000, 10);
                                                                  `start`: weights to go on from, on forgeries they have not seen
python benchmarks/yshape.py faces FILE [START]                    train on self-blended photographs; nothing but figures is kept
"""

import json
import sys
from pathlib import Path

import torch

from natrig_nb.core import write_atomic
from natrig_nb.detector.base import load_detector, save_detector
from natrig_nb.detector.yshape import YShape, measure_segmentation, train_yshape
from natrig_nb.data.faces import read_faces
from natrig_nb.data.forgeries import portrait_forgeries, self_blend
from natrig_nb.core import environment

RECORD, WEIGHTS, SEED = (
    Path("data/results/yshape.json"),
    Path("data/portraits-yshape.safetensors"),
    0,
)


def fit(model, ds, epochs, lr, run):
    "Train in batches of 32; the checkpoint keeps how, and how long it took."
    train_yshape(model, ds, None, epochs, lr, batch=32, seed=SEED, checkpoint=run)


def told(run):
    "Settings and seconds of a finished run, from its checkpoint."
    if not Path(run).exists():
        return None
    state = torch.load(run, map_location="cpu", weights_only=True)
    settings = {k: state["identity"][k] for k in ("n", "steps", "lr", "batch", "seed")}
    return settings | {"seconds": round(state["history"][-1]["seconds"])}


def by(model, test, column):
    "Accuracy and IoU of the forgeries of each kind or region."
    names = sorted(set(test.attributes[column]) - {""})
    metrics = {}
    for n in names:
        of_kind = test[(test.attributes[column] == n).to_numpy()]
        metrics[n] = measure_segmentation(model, of_kind)._asdict()
    return {n: {k: round(f[k], 4) for k in ("accuracy", "iou")} for n, f in metrics.items()}


def write(world, row):
    "Replace one world's entry of the record."
    whole = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    whole[world] = row | {
        "command": "python benchmarks/yshape.py " + world,
        "environment": environment(),
    }
    with write_atomic(RECORD) as t:
        t.write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(whole[world], indent=1))


def portraits(train="", images=8000, epochs=10, start=""):
    "The shipped weights on people who were never seen."
    run, test = "runs/yshape-portraits.pt", portrait_forgeries(1000, seed=1002)
    if train:
        torch.manual_seed(SEED)
        model, fresh = (load_detector(start), 1) if start else (YShape(), 0)
        fit(
            model,
            portrait_forgeries(int(images), seed=SEED + fresh),
            int(epochs),
            2e-3 if start else 4e-3,
            run,
        )
        save_detector(model, WEIGHTS)
    model = load_detector(WEIGHTS)
    row = {k: round(v, 4) for k, v in measure_segmentation(model, test)._asdict().items()}
    write(
        "portraits",
        row
        | dict(
            test_images=len(test),
            test_seed=1002,
            kinds=by(model, test, "kind"),
            regions=by(model, test, "region"),
            training=told(run),
        ),
    )


def faces(path, start=""):
    "Self-blended photographs; of 3,500 names the last 500 are held out. `start`: weights to begin with."
    run, real = "runs/yshape-faces.pt", read_faces(path, attributes=[], limit=3500)
    torch.manual_seed(SEED)
    model = load_detector(start) if start else YShape()
    fit(model, self_blend(real[:3000], seed=SEED), 4, 3e-3, run)
    test = self_blend(real[3000:], seed=1002)
    write(
        "faces",
        {k: round(v, 4) for k, v in measure_segmentation(model, test)._asdict().items()}
        | dict(test_images=len(test), test_seed=1002, pretrained=bool(start), training=told(run)),
    )


if __name__ == "__main__":
    {"portraits": portraits, "faces": faces}[sys.argv[1]](*sys.argv[2:])
