"""What a cell of the grid costs beside its own work, and how long the plan of 10,800 cells takes: `python benchmarks/grid.py [CELLS]`.

Cells do nothing. Each executor is warmed up by a grid of the same number of workers, so that the start of workers is counted apart."""

import sys
import tempfile
import time
from pathlib import Path

from natrig_nb.runs.experiments.grid import expand, plan
from natrig_nb.runs.old_jobs import Here, Job, Processes, Ray
from natrig_nb.runs.old_store import fill
from natrig_nb.runs.study import Experiment


def nothing(k):
    return {"value": float(k), "seconds": 0.0}


class Clock:
    "Workers that note when their first job came back."

    def __init__(self, workers):
        self.workers, self.first = workers, None

    def __getattr__(self, name):
        return getattr(self.workers, name)

    def wait(self, seconds=0.2):
        ended = self.workers.wait(seconds)
        if ended and self.first is None:
            self.first = time.perf_counter()
        return ended


def measure(name, make, count):
    "Milliseconds a cell, from the first row to the last on disk."
    cells = {str(k): {"k": k, "code": "x"} for k in range(count)}
    clocks, start = [], time.perf_counter()

    def timed():
        clocks.append(Clock(make()))
        return clocks[0]

    with tempfile.TemporaryDirectory() as out:
        table = fill(
            out, [Job(str(k), nothing, (k,), kind="nothing") for k in range(count)], cells, timed
        )
        end = time.perf_counter()
        assert len(table) == count and table.error.isna().all(), (
            table.error.dropna().iloc[:1].tolist()
        )
    print(
        f"{name:14} start {clocks[0].first - start:5.1f} s, then {1000 * (end - clocks[0].first) / (count - 1):6.2f} ms a cell",
        flush=True,
    )


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    measure("this process", Here, count)
    for n in (1, 2, 4):
        measure(f"{n} processes", lambda: Processes(n), count)
    try:
        import ray
    except ImportError:
        sys.exit("no ray: pip install ray")
    import os

    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    for n in (1, 2, 4):
        measure(f"Ray({n})", lambda: Ray(n), count)
    start = time.process_time()
    rates = [i / 1000 for i in range(1, 101)]
    cells = expand(
        Experiment(),
        rates=rates,
        triggers=["smile", "badnets", "blended"],
        defenses=["none", "strip", "cleanse", "pruning"],
        seeds=range(9),
    )
    with tempfile.TemporaryDirectory() as out:
        plan(cells, out)
    print(f"plan of {len(cells)} cells: {time.process_time() - start:.2f} s of this process")
