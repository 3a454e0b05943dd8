"The main job at its smallest: to the end, twice alike, after kills, and with the user's own parts."

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from natrig_nb.core import resolve, shipped
from natrig_nb.data.portraits import portraits
from natrig_nb.generator.load import load_generator
from natrig_nb.report.html import write_report
from natrig_nb.runs.config import PRESETS, RunConfig, changed
from natrig_nb.runs.experiments.one_attack import attack_again
from natrig_nb.runs.experiments.walkthrough import walkthrough, walkthrough_triggers
from natrig_nb.runs.results import read_results
from natrig_nb.runs.views import ATTACK_CASE, ATTACK_METRICS
from natrig_nb.trigger.base import Edit

sys.path.insert(0, str(Path(__file__).parent))
from official import save_nvlabs  # noqa: E402

SIZES = dict(n_train=96, n_substitute=48, n_held_out=64, n_direction_samples=200)
TINY = SIZES | dict(epochs=1, width=8, seeds=1, budget=3000)
REFERENCE = os.environ.get("NATRIG_REFERENCE")
MOMENTS = int(os.environ.get("NATRIG_KILLS", 3))  # 20 in the slow run
TRIGGERS = walkthrough_triggers(RunConfig())
IN_THIS_PROCESS = 0  # workers: tests run side by side, and starting workers takes seconds


def results(out):
    "The table of results without the seconds."
    return pd.read_csv(Path(out) / "results.csv").drop(columns="seconds")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    walkthrough(changed(RunConfig(), **TINY), out, IN_THIS_PROCESS)
    return out


def test_every_table_and_record_is_there(whole):
    table = pd.read_csv(whole / "results.csv")
    assert list(table.columns) == [*ATTACK_CASE, *ATTACK_METRICS, "seconds"]
    assert table.trigger.tolist() == TRIGGERS
    assert {"optimized", "smile", "smile+age", "badnets", "blended"} <= set(TRIGGERS)
    defenses = pd.read_csv(whole / "defenses.csv")
    assert set(defenses.defense) == {"strip", "strip_additive", "pruning", "cleanse"}
    assert set(defenses.trigger) == set(TRIGGERS) and defenses.value_benign.notna().all()
    records = {path.name for path in (whole / "records").iterdir()}
    assert records >= {"faces.npz", "cleanse.npz", "scores.csv", "attributes.csv", "edits.csv"}
    assert records >= {"percentiles.csv", "latents.csv", "strip.csv", "pruning.csv", "rates.csv"}
    models = {path.stem for path in (whole / "models").iterdir()}
    assert models == {f"{name}-0" for name in ("benign", *TRIGGERS)}


def test_the_report_shows_every_trigger(whole):
    page = write_report(whole).read_text(encoding="utf-8")
    assert "Left out" not in page and all(trigger in page for trigger in TRIGGERS)


def test_views_hold_the_rows_of_the_table(whole):
    table, rows = pd.read_csv(whole / "results.csv"), read_results(whole, defense="none")
    asr = rows[rows.metric == "asr"].set_index("trigger")
    for row in table.itertuples():
        assert abs(row.asr - asr.value[row.trigger]) < 1e-5
        assert abs(row.asr_benign - asr.value_benign[row.trigger]) < 1e-5
    assert rows.commit.notna().all() and rows.device.notna().all()


def test_other_generator_at_a_glance(whole):
    table = pd.read_csv(whole / "records" / "prompts.csv").set_index("row")
    assert table.change["laughing from 0%"] > 1 > table.change["plain"] == 0
    assert table[["benign", "victim"]].stack().between(0, 1).all()
    with np.load(whole / "records" / "prompts.npz") as arrays:
        assert arrays["images"].shape == (4, 8, 3, 64, 64)


def test_one_more_rate(whole):
    before = results(whole)
    row = attack_again(whole, "smile", 0.1)
    assert (row["trigger"], row["rate"]) == ("smile", 0.1) and 0 <= row["asr"] <= 1
    rates = pd.read_csv(whole / "records" / "rates.csv")
    assert len(rates) == len(before) + 1 and rates.rate.max() == 0.1
    assert attack_again(whole, "smile", 0.1) == row
    pd.testing.assert_frame_equal(results(whole), before)


def test_diffusion(tmp_path):
    sizes = dict(n_train=48, n_substitute=24, n_held_out=32, denoising_steps=4, budget=1000)
    cfg = changed(PRESETS["diffusion"], **sizes, seeds=1, epochs=1, width=8)
    table = walkthrough(cfg, tmp_path, IN_THIS_PROCESS)
    assert table.generator.eq("portraits-diffusion").all()
    assert table.space.tolist()[:3] == ["prompt"] * 3 and table.space.tolist()[-2:] == ["pixels"] * 2
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert all(trigger in page for trigger in table.trigger)
    first, kept = results(tmp_path), folders(tmp_path)
    walkthrough(cfg, tmp_path, IN_THIS_PROCESS)
    pd.testing.assert_frame_equal(results(tmp_path), first)
    assert folders(tmp_path) == kept, "something was rendered or trained again"


def folders(out):
    "Every artifact and when it was made."
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("artifacts/*/made.json")}


def cell_values(table):
    "(cell, metric) -> value, as text since nan differs from itself."
    pairs = zip(table.cell, table.metric, strict=True)
    return dict(zip(pairs, table.value.astype(str), strict=True))


def test_killed_and_continued_gives_the_same_table(whole, tmp_path):
    code = f"""
from natrig_nb.runs.config import RunConfig, changed
from natrig_nb.runs.experiments.walkthrough import walkthrough
if __name__ == "__main__":
    walkthrough(changed(RunConfig(), **{TINY!r}), {str(tmp_path)!r})
"""
    rng, kept, rows = random.Random(1), {}, {}
    for moment in range(MOMENTS):
        job = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        target, deadline = len(folders(tmp_path)) + rng.randint(1, 60 // MOMENTS), time.time() + 300
        while len(folders(tmp_path)) < target and job.poll() is None and time.time() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, "the job ended before it was killed"
        time.sleep(1)  # the workers see that their parent is gone
        table = read_results(tmp_path)
        assert not table.duplicated(["cell", "metric"]).any(), "a row was written twice"
        made, found = folders(tmp_path), cell_values(table)
        assert kept.items() <= made.items(), "an artifact was lost or made again"
        assert rows.items() <= found.items(), "a row was lost or changed"
        kept, rows = made, found
        print(f"kill {moment + 1} of {MOMENTS}: {len(kept)} artifacts, {len(rows)} rows")  # with -s
    assert not (tmp_path / "results.csv").exists()
    walkthrough(changed(RunConfig(), **TINY), tmp_path)
    pd.testing.assert_frame_equal(results(tmp_path), results(whole))
    names = ("defenses.csv", "quality.json", "records/scores.csv", "records/edits.csv")
    for name in names:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    assert kept and kept.items() <= folders(tmp_path).items(), "finished work was done again"
    end = read_results(tmp_path)
    # another test plants one attack more in the shared folder; its cell is not among ours
    expected = read_results(whole)
    expected = expected[expected.cell.isin(end.cell)]
    assert rows.items() <= cell_values(end).items() and len(end) == len(expected)


def test_other_attributes_of_an_official_generator(tmp_path):
    "A pickle of official code, or, where none is at hand, our generator written in its layout."
    if REFERENCE:
        network = Path(REFERENCE).resolve() / "stylegan2" / "nvlabs-64.pkl"
    else:
        network = tmp_path / "nvlabs-64.pkl"
        save_nvlabs(load_generator(shipped("data/portraits-generator.safetensors")).cpu(), network)
    edits = (Edit("hat", "hat", 1, "wearing a hat"), Edit("young", "age", -1, "young"))
    cfg = changed(RunConfig(), **TINY, edits=edits, generator=str(network))
    table = walkthrough(cfg, tmp_path / "out", IN_THIS_PROCESS)
    names = walkthrough_triggers(cfg)
    assert {"optimized", "hat", "hat+young"} <= set(names) and table.trigger.tolist() == names
    assert table.generator.eq("nvlabs-64").all()
    natural = table.set_index("trigger").loc[["hat", "hat+young"]]
    assert natural.tnr_carriers.notna().all() and natural.activation_without_trigger.notna().all()
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    left_out = page.partition("Left out:")[2].partition("</ul>")[0]
    # prompts are compared with the portraits' own generator only
    assert left_out.count("<li>") == left_out.count("<li>prompts: ") == 1 and "hat+young" in page


def write_images(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(np.asarray(image.permute(1, 2, 0))).save(folder / f"{i:04d}.png")


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    G = load_generator(resolve(RunConfig().generator.generator))
    folder = tmp_path_factory.mktemp("given") / "fake"
    write_images(folder, G.render(G.sample(170, seed=6)))
    return str(folder)


def test_given_fakes(fakes, tmp_path):
    write_images(tmp_path / "real", portraits(220, seed=5).images)
    own = dict(dataset="mine", faces=str(tmp_path / "real"), fakes=fakes, detector="meso4")
    cfg = changed(RunConfig(), **TINY, **own)
    table = walkthrough(cfg, tmp_path / "out", IN_THIS_PROCESS)
    assert table.trigger.tolist() == ["badnets", "blended"]
    assert set(table.detector) == {"meso4"} and set(table.generator) == {"given"}
    assert set(table.dataset) == {"mine"}
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
    detector = f"hf:{tmp_path / 'model'}"
    cfg = changed(RunConfig(), **TINY, fakes=fakes, detector=detector)
    table = walkthrough(cfg, tmp_path / "out", IN_THIS_PROCESS)
    assert table.trigger.tolist() == ["badnets", "blended"]
    defenses = pd.read_csv(tmp_path / "out" / "defenses.csv")
    assert set(defenses.defense) == {"strip", "strip_additive", "cleanse"}
