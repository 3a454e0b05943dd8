"The main job at its smallest: to the end, twice alike, after a kill, and with the user's own parts."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from natrig_nb.generator.base import render
from natrig_nb.generator.stylegan2 import load_stylegan2
from natrig_nb.data.portraits import portraits
from natrig_nb.report.html import write_report
from natrig_nb.runs.study import Experiment, diffusion, shipped
from natrig_nb.runs.experiments.walkthrough import COLUMNS, TRIGGERS, walkthrough

TINY = dict(
    real=96, substitute=48, held_out=64, measured=200, searches=6, epochs=1, width=8, seeds=1
)
REFERENCE = os.environ.get("NATRIG_REFERENCE")


def results(out):
    "The table of results without the seconds."
    return pd.read_csv(Path(out) / "results.csv").drop(columns="seconds")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    walkthrough(Experiment(**TINY), out)
    return out


def test_every_table_and_record_is_there(whole):
    table = pd.read_csv(whole / "results.csv")
    assert list(table.columns) == COLUMNS and table.trigger.tolist() == list(TRIGGERS)
    defenses = pd.read_csv(whole / "defenses.csv")
    assert set(defenses.defense) == {"strip", "pruning", "cleanse"} and set(
        defenses.trigger
    ) == set(TRIGGERS)
    assert defenses.value_benign.notna().all()
    page = write_report(whole).read_text(encoding="utf-8")
    assert list(dict.fromkeys(defenses.trigger)) == list(TRIGGERS)
    assert "Left out" not in page and all(t in page for t in TRIGGERS)


def test_other_generator_at_a_glance(whole):
    table = pd.read_csv(whole / "records" / "prompts.csv").set_index("row")
    assert table.change["laughing from 0%"] > 1 > table.change["plain"] == 0
    assert table[["benign", "victim"]].stack().between(0, 1).all()
    with np.load(whole / "records" / "prompts.npz") as arrays:
        assert arrays["images"].shape == (4, 8, 3, 64, 64)


def test_diffusion(tmp_path):
    small = dict(
        real=48, substitute=24, held_out=32, seeds=1, epochs=1, width=8, searches=4, steps=4
    )
    table = walkthrough(diffusion(**small), tmp_path)
    assert table.generator.eq("diffusion").all() and table.trigger.tolist() == list(TRIGGERS)
    assert table.space.tolist() == ["prompt"] * 3 + ["pixels"] * 2
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert all(t in page for t in TRIGGERS)
    first = results(tmp_path)
    pictures = (tmp_path / "pictures.pt").stat().st_mtime_ns
    walkthrough(diffusion(**small), tmp_path)
    pd.testing.assert_frame_equal(results(tmp_path), first)
    assert (tmp_path / "pictures.pt").stat().st_mtime_ns == pictures


def test_killed_and_continued_gives_the_same_table(whole, tmp_path):
    code = f"from natrig_nb.runs.study import *; from natrig_nb.runs.experiments.walkthrough import *; walkthrough(Experiment(**{TINY!r}), {str(tmp_path)!r})"
    job = subprocess.Popen([sys.executable, "-c", f"if __name__ == '__main__':\n    {code}"])
    deadline = time.time() + 300
    while len(list(tmp_path.glob("cells/attack-*.json"))) < 2 and time.time() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not (tmp_path / "results.csv").exists()
    time.sleep(3)  # the workers see that their parent is gone
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("cells/*.json")}
    walkthrough(Experiment(**TINY), tmp_path)
    pd.testing.assert_frame_equal(results(tmp_path), results(whole))
    assert (tmp_path / "defenses.csv").read_bytes() == (whole / "defenses.csv").read_bytes()
    assert len(kept) >= 3 and all(p.stat().st_mtime_ns == t for p, t in kept.items())


@pytest.mark.skipif(not REFERENCE, reason="NATRIG_REFERENCE is not set")
def test_official_generator(tmp_path):
    network = Path(REFERENCE).resolve() / "stylegan2" / "nvlabs-64.pkl"
    table = walkthrough(Experiment(**TINY, generator=str(network)), tmp_path)
    assert table.trigger.tolist() == list(TRIGGERS) and table.asr.between(0, 1).all()


def write_images(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(np.asarray(image.permute(1, 2, 0))).save(folder / f"{i:04d}.png")


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    G, folder = (
        load_stylegan2(shipped(Experiment.generator)),
        tmp_path_factory.mktemp("given") / "fake",
    )
    write_images(folder, render(G, G.sample(170, seed=6)))
    return str(folder)


def test_given_fakes(fakes, tmp_path):
    write_images(tmp_path / "real", portraits(220, seed=5).images)
    e = Experiment(
        **TINY, world="mine", faces=str(tmp_path / "real"), fakes=fakes, detector="meso4"
    )
    table = walkthrough(e, tmp_path / "out")
    assert (
        table.trigger.tolist() == ["badnets", "blended"]
        and set(table.detector) == {"meso4"}
        and set(table.generator) == {"given"}
    )
    assert table.asr.between(0, 1).all()
    assert "badnets" in write_report(tmp_path / "out").read_text(encoding="utf-8")


def test_published_classifier(fakes, tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "real", 1: "fake"},
        label2id={"real": 0, "fake": 1},
    )
    ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    e = Experiment(**TINY, fakes=fakes, detector=f"hf:{tmp_path / 'model'}")
    table = walkthrough(e, tmp_path / "out")
    assert table.trigger.tolist() == ["badnets", "blended"]
    assert set(pd.read_csv(tmp_path / "out" / "defenses.csv").defense) == {"strip", "cleanse"}
