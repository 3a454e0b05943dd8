"""Audits of the smile victims and benign models of a walkthrough; writes data/results/zoo/audits.json.

    natrig walkthrough --out out/walkthrough
    python benchmarks/audits.py --run out/walkthrough

600 portraits and 600 fakes, which no detector has seen, are written as folders; `natrig audit` gets nothing
else. References and directions are made by the first audit and shared by the others. About seven minutes on
one core; it goes on where it stopped.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from natrig_nb.core import environment, resolve, write_atomic
from natrig_nb.data.portraits import portraits
from natrig_nb.generator.base import render
from natrig_nb.generator.load import load_generator

RECORD = Path("data/results/zoo/audits.json")
NAMES = ("benign-2", "smile-0", "benign-0", "smile-1", "benign-1", "smile-2")
N_FACES = 600  # of each class
COMMAND = "from natrig_nb.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


def write_faces(folder: Path) -> None:
    "Folders of real and of fake portraits."
    if folder.is_dir():
        return
    G = load_generator(resolve("data/portraits-generator.safetensors"))
    real = portraits(N_FACES, seed=7300, size=64).images
    fake = render(G, G.sample(N_FACES, 9100, 0.5))
    for name, images in (("real", real), ("fake", fake)):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name / f"{i:04d}.png")


def audited(model: Path, faces: Path, out: Path) -> dict:
    "One audit in a process of its own, with its seconds."
    kept = out / f"{model.stem}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    command = [sys.executable, "-c", COMMAND, "audit", str(model), "--faces", str(faces)]
    done = subprocess.run([*command, "--out", str(out / "audit")])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    entries = json.loads((out / "audit" / "audit.json").read_text())
    row = {
        "model": model.stem,
        "exit_code": done.returncode,
        "verdict": entries["verdict"],
        "statistic": entries["methods"]["sweep"]["statistic"],
        "found": entries["found"],
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "seconds": round(time.time() - start, 1),
        "load": round(os.getloadavg()[0], 1),
    }
    kept.write_text(json.dumps(row))
    return row


def main() -> None:
    "Audit six detectors."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("out/walkthrough"), help="a walkthrough")
    parser.add_argument("--out", type=Path, default=Path("out/audits"), help="faces and audits")
    parser.add_argument("--note", default="", help="what a reader of the record should know")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write_faces(args.out / "faces")
    rows = []
    for name in NAMES:
        path = args.run / "models" / f"{name}.safetensors"
        rows.append(audited(path, args.out / "faces", args.out))
        print(rows[-1], flush=True)
    about = {"command": "python benchmarks/audits.py", "note": args.note}
    record = {**about, "rows": rows, "environment": environment()}
    with write_atomic(RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
