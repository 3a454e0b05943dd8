"""The wheel works where there is no checkout: weights and results travel inside the package."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from natrig_nb.core import FAKE, REAL, FaceSet, shipped
from natrig_nb.data.portraits import portraits
from natrig_nb.detector.base import make_detector, save_detector
from natrig_nb.detector.training import train
from natrig_nb.generator.base import render
from natrig_nb.generator.load import load_generator

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("natrig_nb", "data", "setup.py", "settings.ini", "MANIFEST.in", "README.md")
MOST_MB = 20  # that a wheel may have
SIZES = {"train": 24, "substitute": 12, "held-out": 24, "epochs": 1, "width": 4}
SIZES |= {"budget": 300, "n-inputs": 16, "workers": 0}
SMALL = [text for name, n in SIZES.items() for text in (f"--{name}", str(n))]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: what an earlier build left in the checkout must not get in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        path = ROOT / name
        leave = shutil.ignore_patterns("__pycache__")
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, source / name, **({"ignore": leave} if path.is_dir() else {}))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", out, source], check=True)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the installed package; its requirements are those of this environment."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
    subprocess.run([*pip, wheel], check=True)
    return folder


@pytest.fixture
def natrig(site, tmp_path):
    """Run a command in an empty folder, with the installed package and not the checkout."""

    def run(*arguments, **variables):
        unset = ("NATRIG_FACES", "NATRIG_REFERENCE", "NATRIG_DEVICE")
        env = {name: value for name, value in os.environ.items() if name not in unset}
        env |= {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | variables
        command = [sys.executable, site / "bin/natrig", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return run


def test_what_the_wheel_holds(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    shipped_here = [name for name in names if name.startswith("natrig_nb/shipped/")]
    assert "natrig_nb/shipped/portraits-generator.safetensors" in shipped_here
    assert "natrig_nb/shipped/portraits-diffusion/model_index.json" in shipped_here
    assert not [name for name in names if "gpu" in name or "test" in name.split("/")[0]]
    packages = {name.split("/")[0] for name in names}
    assert packages == {"natrig_nb", next(p for p in packages if p.endswith(".dist-info"))}
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / "natrig_nb").rglob("*") if p.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    assert {name for name in names if ".dist-info/" not in name} - set(shipped_here) == ours
    assert wheel.stat().st_size < MOST_MB * 1e6


def test_doctor_tells_the_truth(natrig, site):
    told = natrig("doctor")
    assert told.returncode == 0 and told.stdout.endswith("nothing that is needed is missing\n")
    assert f"installed in {site}" in told.stdout and str(ROOT) not in told.stdout
    for path in ("portraits-generator.safetensors", "portraits-diffusion", "results"):
        assert f"{site}/natrig_nb/shipped/{path}" in told.stdout
    for asked, message in (
        ("gpu", "expected NATRIG_DEVICE to be cpu, cuda or cuda:NUMBER, got gpu"),
        ("cuda:77", "expected NATRIG_DEVICE=cpu, since this PyTorch"),
    ):
        told = natrig("doctor", NATRIG_DEVICE=asked)
        assert message in told.stdout and told.stdout.endswith("missing or broken: used\n")
        told = natrig("walkthrough", "--quick", NATRIG_DEVICE=asked)
        assert told.returncode == 2 and message in told.stderr and "Traceback" not in told.stderr


def test_doctor_misses_what_is_lost(natrig, site):
    path = site / "natrig_nb/shipped/portraits-attributes.safetensors"
    path.rename(path.with_suffix(".away"))
    try:
        told = natrig("doctor")
    finally:
        path.with_suffix(".away").rename(path)
    assert told.stdout.endswith("missing or broken: portraits-attributes.safetensors\n")
    assert "install the package again" in told.stdout


PORTRAITS = ["--n-direction-samples", "200"]
DIFFUSION = ["--generator", "diffusion", "--denoising-steps", "4"]


@pytest.mark.parametrize("generator", [PORTRAITS, DIFFUSION])
def test_walkthrough(natrig, tmp_path, generator):
    done = natrig("walkthrough", "--quick", *generator, *SMALL, "--out", "run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run/report.html").is_file()
    assert json.loads((tmp_path / "run/settings.json").read_text())["settings"]["data"]["faces"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def save(images, folder):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")


def test_audit(natrig, tmp_path):
    G = load_generator(shipped("data/portraits-generator.safetensors"))
    real, fakes = portraits(80, seed=5).images, render(G, G.sample(80, 3, 0.5))
    save(real, tmp_path / "real")
    save(fakes, tmp_path / "fakes")
    ds = FaceSet(torch.cat([real, fakes]), torch.tensor([REAL] * 80 + [FAKE] * 80))
    model = train(make_detector("resnet18", width=4), ds, epochs=3, batch=16)
    save_detector(model, tmp_path / "det.safetensors")
    (tmp_path / "data/results/mine").mkdir(parents=True)  # F6: results of the user's own
    (tmp_path / "data/results/mine/defenses.csv").write_text("defense,acc\nm,1\n")
    trusted = ("--faces", "real", "--fakes", "fakes", "--n-references", "3")
    done = natrig("audit", "det.safetensors", *trusted, "--out", "a")
    assert done.returncode in (0, 1, 3), done.stderr[-2000:]
    assert (tmp_path / "a/report.html").is_file()
