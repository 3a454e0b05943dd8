"Runs among kills, a full disk and other executors; stale artifacts; and parts of the user's own."

import importlib.util
import json
import os
import random
import shlex
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
from copies import WEIGHTS, copy_package, run_python  # noqa: E402

from natrig_nb.runs.config import RunConfig  # noqa: E402
from natrig_nb.runs.experiments.grid import expand, plan  # noqa: E402
from natrig_nb.runs.results import read_results  # noqa: E402

MOMENTS = int(os.environ.get("NATRIG_KILLS", 4))  # 20 in the slow run
CELLS = toy_grid.NUMBERS * toy_grid.POWERS
FAILED = toy_grid.NUMBERS


def same(a, b):
    "Whether two tables have the same rows, whatever their order and the chance of their making."

    def comparable(table):
        rows = table[table.metric != "made"][["trigger", "seed", "metric", "value", "space", "error"]]
        return rows.sort_values(["trigger", "seed", "metric"], ignore_index=True)

    pd.testing.assert_frame_equal(comparable(a), comparable(b))


def place(tmp_path):
    "A folder in which toys leave marks when they begin."
    (tmp_path / "begun").mkdir(parents=True)
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    table = toy_grid.run(tmp_path_factory.mktemp("undisturbed"), "serial")
    assert table.cell.nunique() == CELLS and table.error.notna().sum() == FAILED
    return table


def toy_command(action, out):
    "A command that imports the toys as a module, as the tests do: their code is the same code."
    script = "import sys, toy_grid; toy_grid.main(*sys.argv[1:])"
    return ["env", f"PYTHONPATH={Path(__file__).parent}", sys.executable, "-c", script, action, str(out)]


def begun(out):
    return len(list(out.glob("begun/*")))


def ended(out, seconds=10):
    "Whether all processes that began a toy have ended."
    pids, deadline = {p.read_text() for p in out.glob("begun/*")}, time.time() + seconds
    while time.time() < deadline:
        if not [pid for pid in pids if pid and Path(f"/proc/{pid}").exists()]:
            return True
        time.sleep(0.05)
    return False


def wait_until_begun(job, out, target):
    "Wait until so many toys have begun."
    deadline = time.time() + 120
    while begun(out) < target and job.poll() is None and time.time() < deadline:
        time.sleep(0.002)


def kill_a_worker(out):
    "Kill the process that began the latest toy."
    newest = max(out.glob("begun/*"), key=lambda p: p.stat().st_mtime_ns)
    pid = newest.read_text()
    if pid and Path(f"/proc/{pid}").exists():
        os.kill(int(pid), signal.SIGKILL)


def test_killed_at_seeded_moments(undisturbed, tmp_path):
    rng, out, kept = random.Random(20), place(tmp_path), {}
    for moment in range(MOMENTS):
        job = subprocess.Popen(toy_command("run", out), stderr=subprocess.DEVNULL)
        last = max(begun(out) + 1, (CELLS - 10) * (moment + 1) // MOMENTS)
        wait_until_begun(job, out, rng.randint(begun(out) + 1, last))
        time.sleep(rng.uniform(0, 0.02))
        how = rng.choice(("driver", "interrupt", "worker"))
        if how == "worker":  # and the driver while it replaces the worker
            kill_a_worker(out)
            time.sleep(rng.uniform(0, 0.5))
        job.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
        assert job.wait(120) != 0, "the run ended before it was killed"
        assert ended(out), f"workers outlive the {how}"
        rows = read_results(out)
        assert not rows.duplicated(["cell", "metric"]).any()
        now = toy_grid.made_values(rows)
        assert kept.items() <= now.items(), "a finished row was lost or computed again"
        kept = now
        print(f"{how} {moment + 1} of {MOMENTS}: {len(kept)} of {CELLS - FAILED} cells")  # with -s
    table = toy_grid.run(out, "serial")
    same(table, undisturbed)
    assert kept.items() <= toy_grid.made_values(table).items()


def test_workers_leave_nothing_behind(tmp_path):
    "Their progress bars made semaphores, of which Python's resource tracker complained at the end."
    done = subprocess.run(toy_command("run", tmp_path), capture_output=True, text=True)
    assert not done.returncode and "leaked" not in done.stderr, done.stderr


def test_killed_workers_are_replaced(undisturbed, tmp_path):
    out = place(tmp_path)
    (out / "deadly").touch()
    table = toy_grid.run(out)
    errors = table[table.error.notna()].set_index(["trigger", "seed"]).error
    assert "killed" in errors["4", 5] and len(errors) == FAILED + 1
    (out / "deadly").unlink()
    same(toy_grid.run(out, "serial", again=True), undisturbed)


def test_full_disk(tmp_path):
    command = toy_command("full", tmp_path)
    mount = f"mount -t tmpfs -o size=2m none {tmp_path} && exec {shlex.join(command)}"
    check = ["unshare", "-Urm", "true"]
    real = shutil.which("unshare") and not subprocess.run(check, capture_output=True).returncode
    command = ["unshare", "-Urm", "sh", "-c", mount] if real else command
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    *errors, last = done.stdout.strip().splitlines()
    assert len(errors) == 2
    for error in errors:
        assert "expected room" in error and "make room and run the same command again" in error
    assert last == f"cells in the end: {CELLS}"


def test_rows_are_readable_while_they_are_written(tmp_path):
    writer = subprocess.Popen(toy_command("write", tmp_path))
    try:
        counts, deadline = [0], time.time() + 60
        while counts[-1] < 400 and time.time() < deadline:
            rows = read_results(tmp_path)
            assert len(rows) == 2 * rows.cell.nunique(), "half of a cell was read"
            counts.append(len(rows))
    finally:
        writer.kill()
        writer.wait()
    assert counts[-1] >= 400 and counts == sorted(counts)
    assert len(read_results(tmp_path)) >= counts[-1]


def test_two_processes_give_the_same_rows(undisturbed, tmp_path):
    same(toy_grid.run(tmp_path), undisturbed)


def test_ray_gives_the_same_rows(undisturbed, tmp_path, monkeypatch):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("the package ray is not installed")
    import ray

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where workers find the toys
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        for count in (1, 2, 4):
            same(toy_grid.run(tmp_path / str(count), "ray", count), undisturbed)
        out = place(tmp_path / "killed")
        (out / "deadly").touch()
        table = toy_grid.run(out, "ray")
        errors = table[table.error.notna()].set_index(["trigger", "seed"]).error
        assert "killed" in errors["4", 5] and len(errors) == FAILED + 1
    finally:
        ray.shutdown()


def test_ten_thousand_cells_are_planned_in_seconds(tmp_path):
    start = time.process_time()  # of this process alone, whoever else is at work
    cells = expand(
        RunConfig(),
        rates=[i / 1000 for i in range(1, 101)],
        triggers=["smile", "badnets", "blended"],
        defenses=["none", "strip", "cleanse", "pruning"],
        seeds=range(9),
    )
    table = plan(cells, tmp_path).set_index("kind").tasks
    seconds = time.process_time() - start
    assert len(cells) == 10_800 and table["victim-resnet18-w16"] == table["poisoned"] == 2700
    assert table["benign-resnet18-w16"] == 9 and table["trigger"] == table["triggered"] == 3
    assert not list(tmp_path.iterdir()), "a plan must not write"
    assert seconds < 4, f"{seconds:.1f} s"  # 2.6 s beside twelve other processes


KEYS = """
import json, sys
from natrig_nb.runs.artifacts import with_inputs
from natrig_nb.runs.config import RunConfig, changed
from natrig_nb.runs.experiments.walkthrough import walkthrough_cells, walkthrough_measurement
from natrig_nb.runs.preparation import Recipes

recipes, cells = Recipes(), walkthrough_cells(changed(RunConfig(), seeds=1))
measurements = [walkthrough_measurement(recipes, cell) for cell in cells]
keys = {}
for m in measurements:
    for artifact in with_inputs(m.inputs):
        keys.setdefault(artifact.kind, set()).add(artifact.key)
    keys.setdefault("rows of " + m.case["defense"], set()).add(m.code)
names = {}
for m in measurements:
    if m.case["defense"] == "none":
        names[m.case["trigger"]] = m.inputs[3].key
keys = {kind: sorted(found) for kind, found in keys.items()}
print(json.dumps({**keys, **{"trigger " + name: key for name, key in names.items()}}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the package, to be edited."
    return copy_package(tmp_path_factory.mktemp("copy"), WEIGHTS)


def keys_in(copy):
    "Keys of all artifacts and rows of a walkthrough, by kind, with the code of the copy."
    done = run_python(copy, "-c", KEYS)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def stale_after(copy, module, old, new):
    "Kinds of artifacts and rows that get other keys when a module is edited."
    path = copy / "natrig_nb" / module
    text = path.read_text()
    assert old in text, f"expected {old!r} in {module}"
    before = keys_in(copy)
    path.write_text(text.replace(old, new, 1))
    try:
        after = keys_in(copy)
    finally:
        path.write_text(text)
    return {kind for kind in before if before[kind] != after[kind]}


def test_training_makes_detectors_stale_and_faces_not(copy):
    stale = stale_after(copy, "detector/training.py", "0.01", "0.0100001")
    detectors = {"benign-resnet18-w16", "victim-resnet18-w16", "substitute", "trigger optimized"}
    assert detectors <= stale and {"rows of none", "rows of strip"} <= stale
    kept = {"faces", "portraits", "population", "splits", "directions"}
    kept |= {"trigger smile", "trigger smile+age", "trigger badnets", "trigger blended"}
    assert not stale & kept


def test_reports_and_comments_make_nothing_stale(copy):
    module = (copy / "natrig_nb" / "report" / "tables.py").read_text()
    last = [line for line in module.splitlines() if line.startswith("def ")][-1]
    assert stale_after(copy, "report/tables.py", last, f"X = 1\n\n\n{last}") == set()
    training = (copy / "natrig_nb" / "detector" / "training.py").read_text()
    first = [line for line in training.splitlines() if line.startswith("def ")][0]
    assert stale_after(copy, "detector/training.py", first, f"# a remark\n{first}") == set()


def test_a_defense_makes_only_its_own_rows_stale(copy):
    stale = stale_after(copy, "defense/strip.py", "\n\ndef ", "\n\nX = 1\n\n\ndef ")
    assert {"rows of strip", "rows of strip_additive"} <= stale
    assert not stale & {"rows of none", "rows of cleanse", "victim-resnet18-w16", "splits"}
