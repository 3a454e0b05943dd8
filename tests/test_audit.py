"`natrig audit` from folders of pictures to a page, its errors, and what is left of a killed one."

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from natrig_nb.cli import main
from natrig_nb.core import FAKE, FaceSet, to_uint8
from natrig_nb.testing import apply_patch
from natrig_nb.detector.base import make_detector, save_detector
from natrig_nb.detector.training import train
from natrig_nb.data.portraits import portraits

LOOKS = ["strip", "frequency", "finetune", "spectral"]


def faces(n, seed, size=32):
    "Portraits, every second one a fake with a checkerboard."
    ds = portraits(n, seed=seed, size=size)
    board = ((torch.arange(size)[:, None] + torch.arange(size)) % 2 * 2.0 - 1) * 0.16
    labels = torch.arange(n) % 2
    return FaceSet(to_uint8(ds.x + labels.view(-1, 1, 1, 1) * board), labels)


def write(images, folder):
    folder.mkdir(parents=True)
    for i, x in enumerate(images):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
    return str(folder)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    "A detector with a backdoor, and folders of trusted, suspect and training images."
    root, ds, learned = tmp_path_factory.mktemp("audit"), faces(160, 1), faces(240, 2)
    bait = torch.where(learned.labels == FAKE)[0][:24]
    learned.images[bait], learned.labels[bait] = apply_patch(learned.images[bait]), 0
    model = train(make_detector("resnet18", width=4), learned, epochs=12, batch=16, augment=False)
    save_detector(model, root / "model.safetensors")
    write(ds.images[::2], root / "faces"), write(ds.images[1::2], root / "fakes")
    write(apply_patch(faces(48, 3).images[1::2]), root / "suspects")
    for label, name in enumerate(("real", "fake")):
        write(learned.images[learned.labels == label], root / "training" / name)
    return root


def command(root, out, *more):
    places = [
        "--faces",
        str(root / "faces"),
        "--fakes",
        str(root / "fakes"),
        "--suspects",
        str(root / "suspects"),
        "--training-set",
        str(root / "training"),
    ]
    return [
        "audit",
        str(root / "model.safetensors"),
        *places,
        "--out",
        str(out),
        "--size",
        "32",
        "--detectors",
        "3",
        "--passes",
        "300",
        "--only",
        *LOOKS,
        *more,
    ]


def looks(out):
    return {p: p.stat().st_mtime_ns for p in out.glob("pieces/*/made.json")}


def test_killed_audit_goes_on(given, capfd):
    out = given / "out"
    killed = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from natrig_nb.cli import main; sys.exit(main(sys.argv[1:]))",
            *command(given, out),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.time() + 300
    while len(looks(out)) < 5 and killed.poll() is None and time.time() < end:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL), killed.wait()
    before = looks(out)
    assert len(before) >= 5
    assert main(command(given, out)) == 0
    assert before.items() <= looks(out).items(), "a finished piece was made again"
    said = capfd.readouterr().out
    assert "[1/5] answers on 4 detectors, done" in said and "report: " in said
    first = (out / "findings.json").read_text()
    assert main(command(given, out)) == 0
    same = [json.loads(text) for text in (first, (out / "findings.json").read_text())]
    assert same[0]["found"] == same[1]["found"]


def test_page(given):
    out = given / "out"
    if not (out / "report.html").exists():
        assert main(command(given, out)) == 0
    page, findings = (
        (out / "report.html").read_text(),
        json.loads((out / "findings.json").read_text()),
    )
    assert set(findings["found"]) == {"answers", *LOOKS}
    assert findings["found"]["answers"]["figures"]["suspects called real"] > 0.5
    assert findings["verdict"].startswith("unusual: ") and "is clean" not in findings["verdict"]
    for text in (
        "Audit of",
        "Nothing here says that a detector is clean",
        "Cannot see:",
        "no band",
        "false alarms",
        "detectors trained for this audit",
        "Not looked",
    ):
        assert text in page, text
    assert page.count("data:image/jpeg") > 20 and "http" not in page and "<script" not in page
    assert findings["found"]["spectral"]["stands"]["top 2 % above the rest"]["state"] == "no band"


def test_bad_input_is_one_sentence(given, tmp_path, capsys):
    model, good = str(given / "model.safetensors"), str(given / "faces")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"\x10" + bytes(7) + b"{nothing of use}")
    small, few = (
        write(faces(4, 5).images[:, :, ::2, ::2], tmp_path / "small"),
        write(faces(4, 5).images, tmp_path / "few"),
    )
    cases = [
        (
            [str(tmp_path / "no.safetensors"), "--faces", good],
            "expected a file written by save_detector",
        ),
        (
            [str(tmp_path / "broken.safetensors"), "--faces", good],
            "expected a detector that can be loaded",
        ),
        (
            [model, "--faces", str(tmp_path / "nowhere")],
            "--faces: expected a folder, .zip or .tar of images, got nothing",
        ),
        ([model, "--faces", str(tmp_path / "empty")], "--faces: expected images in"),
        ([model, "--faces", small, "--size", "32"], "expected at least 32 px, got 16x16"),
        (
            [model, "--faces", few, "--fakes", few, "--size", "32"],
            "expected at least 40 trusted images a class, got 4",
        ),
        (
            [model, "--faces", good, "--training-set", few, "--size", "32"],
            "expected folders real and fake inside",
        ),
        (
            [
                model,
                "--faces",
                good,
                "--benign",
                model,
                "--fakes",
                str(given / "fakes"),
                "--size",
                "32",
                "--only",
                "magic",
            ],
            "expected defenses among",
        ),
    ]
    for arguments, message in cases:
        assert main(["audit", *arguments, "--out", str(tmp_path / "out")]) == 2, arguments
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said, said
