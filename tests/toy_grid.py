"""A grid of toys, for tests that kill it.

Each artifact is a number, each measurement a power of it; the seventh power fails.
"""

import os
import random
import resource
import signal
import time
import uuid
from pathlib import Path

from natrig_nb.core import progress
from natrig_nb.runs.artifacts import Artifact
from natrig_nb.runs.executors import make_executor
from natrig_nb.runs.results import Results, read_results
from natrig_nb.runs.run import Measurement, run_measurements

NUMBERS, POWERS = 6, 10


def make_number(folder, settings):
    "An artifact: the number n."
    (folder / "n.txt").write_text(str(settings["n"]))


def power(settings, number):
    "A measurement: n to the k; some kill their worker, the first time or always."
    out, n, k = Path(settings["out"]), settings["n"], settings["k"]
    mark, deadly = out / "begun" / f"{n}-{k}", (out / "deadly").exists()
    first = not mark.exists()
    if mark.parent.exists():
        mark.write_text(str(os.getpid()))
    if deadly and ((k == 3 and n % 2 and first) or (k == 5 and n == 4)):
        os.kill(os.getpid(), signal.SIGKILL)
    for seconds in progress([0.01], "a toy"):
        time.sleep(seconds)
    if k == 7:
        raise ValueError(f"expected another power, got {k}")
    value = float(int((number / "n.txt").read_text()) ** k)
    text = random.Random(100 * n + k).randbytes(1000).hex()  # rows of two kilobytes
    made = uuid.uuid4().int % 2**50  # another value each time it is computed
    return [
        {"metric": "power", "value": value, "space": text},
        {"metric": "made", "value": float(made)},
    ]


def toys(out, numbers=NUMBERS, powers=POWERS):
    "The measurements of the grid."
    artifacts = [Artifact("number", make_number, {"n": n}) for n in range(numbers)]
    return [
        Measurement(
            {"trigger": str(n), "seed": k},
            power,
            {"out": str(out), "n": n, "k": k},
            (artifact,),
            kind="power",
        )
        for n, artifact in enumerate(artifacts)
        for k in range(powers)
    ]


def run(out, executor="processes", workers=2, again=False, **size):
    "Compute what is left of the grid of toys."
    measurements = toys(out, **size)
    return run_measurements(
        measurements, out, lambda: make_executor(executor, workers), again=again
    )


def fill_the_disk(out):
    "Make room scarce, run, print the error, make room, run again."
    out, block = Path(out), Path(out) / "block"
    before = made_values(run(out, "serial", numbers=2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = os.statvfs(out).f_blocks * os.statvfs(out).f_frsize > 1e8
    for room in (0, 60_000):  # nothing fits; artifacts fit, rows soon do not
        if large:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room or 1, limits[1]))
        else:
            free = os.statvfs(out).f_bavail * os.statvfs(out).f_frsize
            block.write_bytes(bytes(max(0, free - room)))
        try:
            run(out, "serial")
        except ValueError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        block.unlink(missing_ok=True)
        kept = made_values(read_results(out))
        assert before.items() <= kept.items(), "a finished row was lost"
    table = run(out, "serial")
    assert before.items() <= made_values(table).items(), "a finished row was computed again"
    print("cells in the end:", table.cell.nunique())


def made_values(table):
    "Cell -> the value that changes whenever it is computed."
    made = table[table.metric == "made"]
    return dict(zip(made.cell, made.value, strict=True))


def write_rows(out, count=10_000):
    "Write rows until somebody ends this process."
    results = Results(out)
    for k in range(count):
        rows = [{"metric": name, "value": float(k)} for name in ("one", "other")]
        results.write(f"cell-{k}", rows, "code", "toy", 0.0)


ACTIONS = {"run": run, "full": fill_the_disk, "write": write_rows}


def main(action, out):
    "Do one of the actions; Ctrl-C works too where the caller's shell had switched it off."
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ACTIONS[action](out)
