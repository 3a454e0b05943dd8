"The grid among kills, a full disk and other executors, and with a trigger and a defense of the user's own."

import importlib.util
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import toy_grid  # noqa: E402

from natrig_nb.runs.experiments.grid import expand, plan  # noqa: E402
from natrig_nb.runs.old_store import read_rows  # noqa: E402
from natrig_nb.runs.study import Experiment  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
MOMENTS = int(os.environ.get("NATRIG_KILLS", 3))
CELLS = toy_grid.PIECES * toy_grid.POWERS


def same(a, b):
    "Whether two tables have the same rows, whatever their order and the chance of their making."
    plain = lambda t: t.drop(columns=["made"]).sort_values("cell", ignore_index=True)
    pd.testing.assert_frame_equal(plain(a), plain(b), check_like=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    table = toy_grid.run(tmp_path_factory.mktemp("undisturbed"), "here")
    assert len(table) == CELLS and table.error.notna().sum() == toy_grid.PIECES
    return table


def begun(out):
    return len(list(out.glob("begun/*")))


def gone(out, seconds=10):
    "Whether all processes that began a cell have ended."
    pids, deadline = {p.read_text() for p in out.glob("begun/*")}, time.time() + seconds
    while time.time() < deadline:
        alive = [pid for pid in pids if pid and Path(f"/proc/{pid}").exists()]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def test_killed_at_random_moments(undisturbed, tmp_path):
    rng = random.Random(time.time_ns())
    (tmp_path / "begun").mkdir()
    for moment in range(MOMENTS):
        job = subprocess.Popen(
            [sys.executable, toy_grid.__file__, "fill", str(tmp_path)], stderr=subprocess.DEVNULL
        )
        target, deadline = (
            rng.randint(
                begun(tmp_path) + 1, max(begun(tmp_path) + 1, CELLS * (moment + 1) // MOMENTS)
            ),
            time.time() + 60,
        )
        while begun(tmp_path) < target and job.poll() is None and time.time() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        worker = max(tmp_path.glob("begun/*"), key=lambda p: p.stat().st_mtime_ns).read_text()
        how = ("driver", "interrupt", "worker")[moment % 3]
        if how == "worker" and worker and Path(f"/proc/{worker}").exists():
            os.kill(int(worker), signal.SIGKILL)
        elif how != "worker":
            job.send_signal(signal.SIGKILL if how == "driver" else signal.SIGINT)
        assert (job.wait(60) == 0) or how != "worker"
        assert gone(tmp_path), f"workers outlive the {how}"
        kept = read_rows(tmp_path)
        assert kept.empty or kept.cell.is_unique
    table = toy_grid.run(tmp_path, "here")
    same(table, undisturbed)
    both = kept.merge(table, on="cell")
    assert len(both) == len(kept) and both.made_x.fillna("").equals(both.made_y.fillna("")), (
        "a finished row was computed again"
    )


def test_killed_workers_are_replaced(undisturbed, tmp_path):
    (tmp_path / "deadly").touch(), (tmp_path / "begun").mkdir()
    table = toy_grid.run(tmp_path).set_index("cell")
    assert (
        table.error["4^5"].startswith("the worker was killed")
        and table.value.drop("4^5").notna().sum() == CELLS - toy_grid.PIECES - 1
    )
    (tmp_path / "deadly").unlink()
    same(toy_grid.fill(tmp_path, *toy_grid.toys(tmp_path), toy_grid.Here, again=True), undisturbed)


def test_full_disk(tmp_path):
    mount = f"mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} {toy_grid.__file__} full {tmp_path}"
    real = (
        shutil.which("unshare")
        and not subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode
    )
    command = (
        ["unshare", "-Urm", "sh", "-c", mount]
        if real
        else [sys.executable, toy_grid.__file__, "full", str(tmp_path)]
    )
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    first, second, last = done.stdout.strip().splitlines()
    assert "expected room" in first and "make room and run again" in first
    assert re.search(
        r"expected room for \d+ rows.* rows before are safe: make room and run again", second
    )
    assert last == f"rows in the end: {CELLS}"


def test_two_processes_give_the_same_rows(undisturbed, tmp_path):
    same(toy_grid.run(tmp_path), undisturbed)


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the package ray is not installed"
)
def test_ray_gives_the_same_rows(undisturbed, tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the workers find the toys
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        for count in (1, 2, 4):
            start = time.time()
            same(toy_grid.run(tmp_path / str(count), "ray", count), undisturbed)
            print(f"{count} at once: {1000 * (time.time() - start) / CELLS:.0f} ms a cell of 10 ms")
        (
            (tmp_path / "killed").mkdir(),
            (tmp_path / "killed" / "deadly").touch(),
            (tmp_path / "killed" / "begun").mkdir(),
        )
        table = toy_grid.run(tmp_path / "killed", "ray").set_index("cell")
        assert (
            table.error["4^5"].startswith("the worker was killed")
            and table.value.drop("4^5").notna().sum() == CELLS - toy_grid.PIECES - 1
        )
    finally:
        ray.shutdown()


def test_ten_thousand_cells_are_planned_in_seconds(tmp_path):
    start = time.process_time()  # of this process alone, whoever else is at work
    cells = expand(
        Experiment(),
        rates=[i / 1000 for i in range(1, 101)],
        triggers=["smile", "badnets", "blended"],
        defenses=["none", "strip", "cleanse", "pruning"],
        seeds=range(9),
    )
    assert len(cells) == 10_800
    table = plan(cells, tmp_path)
    assert table.jobs.sum() == len(cells) + 1 + 9 + 3 + 2 * 2700
    assert time.process_time() - start < 5


TRIGGER = """
from dataclasses import dataclass
from natrig_nb.trigger.base import Space, Trigger, TriggerSpec

@dataclass(frozen=True, eq=False)
class Stripe(Trigger):
    "A white line."
    name: str = "stripe"
    space: Space = Space.PIXELS
    strength: float = 1.0

    def paint(self, x):
        y = x.clone()
        y[:, :, 5:9] = self.strength
        return y

def find_stripe(context): return Stripe()

TRIGGERS = (TriggerSpec("stripe", find_stripe),)
"""
DEFENSE = """
from natrig_nb.defense.base import Defense, Kind, Scores

def white(model, x, clean): return Scores(x[:, :, 5:9].float().mean((1, 2, 3)))

DEFENSE = Defense("white", Kind.DETECT, white, "White line", "Is a row white?", "All else.")
"""
JOB = """
from natrig_nb.runs.experiments.grid import expand, grid
from natrig_nb.runs.study import Experiment
if __name__ == "__main__":
    e = Experiment(world="toy", fakes="fakes", size=32, real=60, substitute=4, held_out=40, epochs=1, width=4, seeds=1, rate=0.1)
    names = {c.trigger for c in expand(e)}, {c.defense for c in expand(e)}
    assert "stripe" in names[0] and "white" in names[1], names
    table = grid(expand(e, triggers=["stripe"], defenses=["white", "none"]), "out", workers=2)
    print(table[["trigger", "defense", "defense_auroc", "asr", "error"]].to_csv(index=False))
"""


def test_add_your_own(tmp_path):
    import nbformat
    from nbdev.export import nb_export
    from PIL import Image

    from natrig_nb.testing import synthetic_faces

    shutil.copytree(
        ROOT / "natrig_nb", tmp_path / "natrig_nb", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, code in (("trigger.stripe", TRIGGER), ("defense.white", DEFENSE)):
        cells = [
            nbformat.v4.new_code_cell(source)
            for source in (f"#| default_exp {name}", "#| export" + code)
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"99_{name}.ipynb")
        nb_export(tmp_path / f"99_{name}.ipynb", lib_path=tmp_path / "natrig_nb")
    (tmp_path / "fakes").mkdir()
    for i, image in enumerate(synthetic_faces(220, seed=5, size=32).images[1::2]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "fakes" / f"{i}.png")
    (tmp_path / "job.py").write_text(JOB)
    done = subprocess.run(
        [sys.executable, "job.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert not done.returncode, done.stderr
    table = pd.read_csv(io.StringIO(done.stdout[done.stdout.index("trigger,") :])).set_index(
        "defense"
    )
    assert (
        table.defense_auroc["white"] > 0.99
        and table.asr.between(0, 1).all()
        and table.error.isna().all()
    )
