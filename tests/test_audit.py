"""`natrig audit` from folders of pictures to a page, its errors, and what is left of a killed one."""

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
from natrig_nb.core import FAKE, REAL
from natrig_nb.data.portraits import portraits
from natrig_nb.detector.base import load_detector, make_detector, save_detector
from natrig_nb.detector.training import train
from natrig_nb.testing import add_trace, apply_patch

CHOSEN = ["strip", "frequency", "finetune", "spectral"]
RUN = "import sys; from natrig_nb.cli import main; sys.exit(main(sys.argv[1:]))"


def faces(n, seed):
    """Portraits of 32 pixels, every second one a fake with a checkerboard."""
    return add_trace(portraits(n, seed=seed, size=32))


def write(images, folder):
    folder.mkdir(parents=True)
    for i, x in enumerate(images):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
    return str(folder)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A detector with a backdoor, and folders of trusted, suspect and training images."""
    root = tmp_path_factory.mktemp("audit")
    trusted, learned = faces(160, 1), faces(240, 2)
    poisoned = torch.where(learned.labels == FAKE)[0][:24]
    learned.images[poisoned] = apply_patch(learned.images[poisoned])
    learned.labels[poisoned] = REAL
    model = train(make_detector("resnet18", width=4), learned, epochs=12, batch=16, augment=False)
    save_detector(model, root / "model.safetensors")
    write(trusted.images[::2], root / "faces")
    write(trusted.images[1::2], root / "fakes")
    write(apply_patch(faces(48, 3).images[1::2]), root / "suspects")
    for label, name in ((REAL, "real"), (FAKE, "fake")):
        write(learned.images[learned.labels == label], root / "training" / name)
    return root


def command(root, out, *more):
    places = {
        "faces": "faces",
        "fakes": "fakes",
        "suspects": "suspects",
        "training-set": "training",
    }
    options = []
    for option, name in places.items():
        options += [f"--{option}", str(root / name)]
    options += ["--out", str(out), "--resolution", "32", "--n-references", "3", "--passes", "300"]
    return ["audit", str(root / "model.safetensors"), *options, "--only", *CHOSEN, *more]


def artifacts(out):
    return {p: p.stat().st_mtime_ns for p in out.glob("artifacts/*/made.json")}


def read_findings(out):
    return json.loads((out / "findings.json").read_text())


def read_verdict(out):
    return json.loads((out / "audit.json").read_text())


def exit_code_of(out):
    """What the exit code of an audit must be."""
    return {"nothing found": 0, "suspicious": 1, "incompetent": 3}[read_verdict(out)["verdict"]]


def test_killed_audit_continues(given, capfd):
    out = given / "out"
    killed = subprocess.Popen(
        [sys.executable, "-c", RUN, *command(given, out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.time() + 300
    while len(artifacts(out)) < 5 and killed.poll() is None and time.time() < end:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = artifacts(out)
    assert len(before) >= 5
    code = main(command(given, out))
    assert code == exit_code_of(out)
    assert before.items() <= artifacts(out).items(), "a finished artifact was made again"
    said = capfd.readouterr().out
    assert "[1/5] predictions on 4 detectors, done" in said and "report: " in said
    first = read_findings(out)
    assert main(command(given, out)) == code
    assert first["findings"] == read_findings(out)["findings"]


def test_page(given):
    out = given / "out"
    if not (out / "report.html").exists():
        assert main(command(given, out)) == exit_code_of(out)
    page, saved = (out / "report.html").read_text(), read_findings(out)
    findings = saved["findings"]
    assert set(findings) == {"predictions", *CHOSEN}
    assert findings["predictions"]["metrics"]["suspects called real"] > 0.5
    assert saved["verdict"].startswith("unusual: ") and "is clean" not in saved["verdict"]
    for text in (
        "Audit of",
        "Nothing here says that a detector is clean",
        "Cannot see:",
        "no interval",
        "false alarms",
        "were trained for this audit",
        "Left out",
    ):
        assert text in page, text
    assert page.count("data:image/jpeg") > 20 and "http" not in page and "<script" not in page
    of_filter = findings["spectral"]["comparisons"]["top 2 % above the rest"]
    assert of_filter["state"] == "no interval"


def test_verdict_leads_the_page(given):
    out = given / "out"
    if not (out / "report.html").exists():
        main(command(given, out))
    page, said = (out / "report.html").read_text(), read_verdict(out)
    assert set(said) >= {"verdict", "found", "methods", "seconds", "reason", "zoo"}
    assert list(said["methods"]) == ["slices"], "a patch of toys is searched by slices"
    assert "pass as real already" in said["left_out"]["sweep"]
    assert page.index(said["reason"][:30]) < page.index("Older defenses") < page.index("At a glance")
    assert "not asked: --older runs all of them" in page and "Cannot see:" in page


def test_incompetent_detector_gets_no_verdict(given, tmp_path, capsys):
    untrained = tmp_path / "untrained.safetensors"
    save_detector(make_detector("resnet18", width=4, seed=5), untrained)
    out = tmp_path / "out"
    arguments = command(given, out)
    arguments[1] = str(untrained)
    assert main(arguments) == 3
    said = read_verdict(out)
    assert said["verdict"] == "incompetent" and said["found"] == [] and said["methods"] == {}
    assert "cannot tell these real faces from these fakes" in said["reason"]
    assert said["reason"] in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "No verdict: the detector is right about" in page
    assert set(read_findings(out)["findings"]) == {"predictions"}, "older defenses were asked"


def test_exchanged_labels_are_named(given, tmp_path):
    model = load_detector(given / "model.safetensors")
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(parameter.flip(0).clone())
    save_detector(model, tmp_path / "swapped.safetensors")
    out = tmp_path / "out"
    arguments = command(given, out)
    arguments[1] = str(tmp_path / "swapped.safetensors")
    assert main(arguments) == 3
    assert "--fake-class" in read_verdict(out)["reason"]
    mended = tmp_path / "mended"
    arguments[arguments.index("--out") + 1] = str(mended)
    main([*arguments, "--fake-class", "0"])
    assert read_verdict(mended)["verdict"] != "incompetent"


def test_names_of_files_are_escaped(given, tmp_path):
    hostile = 'a"><script>x<|script>.png'.replace("|", "")
    suspects = tmp_path / "suspects"
    write(apply_patch(faces(16, 3).images[1::2]), suspects)
    (suspects / "000.png").rename(suspects / hostile)
    out = tmp_path / "out"
    arguments = command(given, out)
    arguments[arguments.index("--suspects") + 1] = str(suspects)
    code = main([*arguments[: arguments.index("--only")], "--only", "frequency"])
    assert code == exit_code_of(out)
    page = (out / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_bad_input_is_one_sentence(given, tmp_path, capsys):
    model, good = str(given / "model.safetensors"), str(given / "faces")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"\x10" + bytes(7) + b"{nothing of use}")
    small = write(faces(4, 5).images[:, :, ::2, ::2], tmp_path / "small")
    few = write(faces(4, 5).images, tmp_path / "few")
    size = ["--resolution", "32"]
    fakes = ["--fakes", str(given / "fakes")]
    cases = [
        (
            [str(tmp_path / "no.safetensors"), "--faces", good],
            "expected a file written by save_detector",
        ),
        (
            [str(tmp_path / "broken.safetensors"), "--faces", good],
            "expected a safetensors file, got a damaged one",
        ),
        (
            [model, "--faces", str(tmp_path / "nowhere")],
            "--faces: expected a folder, .zip or .tar of images, got nothing",
        ),
        ([model, "--faces", str(tmp_path / "empty")], "--faces: expected images in"),
        ([model, "--faces", small, *size], "expected at least 32 px, got 16x16"),
        (
            [model, "--faces", few, "--fakes", few, *size],
            "expected at least 40 trusted images per class, got 4",
        ),
        (
            [model, "--faces", good, "--training-set", few, *size],
            "expected folders real and fake inside",
        ),
        ([model, "--faces", good, *fakes, *size, "--only", "magic"], "expected defenses among"),
    ]
    for arguments, message in cases:
        assert main(["audit", *arguments, "--out", str(tmp_path / "out")]) == 2, arguments
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said, said
