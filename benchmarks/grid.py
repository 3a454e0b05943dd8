"""What a cell costs beside its own work, and how long 10,800 cells are planned.

`python benchmarks/grid.py [CELLS]`. The cells do nothing. The time until the first row, which is
that of the workers' start, is counted apart.
"""

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from natrig_nb.runs.config import RunConfig
from natrig_nb.runs.executors import make_executor
from natrig_nb.runs.experiments.grid import expand, plan
from natrig_nb.runs.run import Measurement, run_measurements


def nothing(settings):
    return [{"metric": "number", "value": float(settings["k"])}]


class Clock:
    "An executor that notes when its first call came back."

    def __init__(self, executor):
        self.executor, self.first = executor, None

    def __getattr__(self, name):
        return getattr(self.executor, name)

    def collect(self, seconds=0.2):
        ended = self.executor.collect(seconds)
        if ended and self.first is None:
            self.first = time.perf_counter()
        return ended


def measure(name, make, count):
    "Milliseconds per cell, from the first row to the last one on disk."
    cells = [Measurement({"seed": k}, nothing, {"k": k}) for k in range(count)]
    clocks = []

    def timed():
        clocks.append(Clock(make()))
        return clocks[0]

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        table = run_measurements(cells, out, timed)
        end = time.perf_counter()
    assert len(table) == count and table.error.isna().all(), table.error.dropna().tolist()[:1]
    first = clocks[0].first
    each = 1000 * (end - first) / (count - 1)
    print(f"{name:14} start {first - start:5.1f} s, then {each:6.2f} ms per cell", flush=True)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    measure("this process", partial(make_executor, "serial"), count)
    for n in (1, 2, 4):
        measure(f"{n} processes", partial(make_executor, "processes", n), count)
    start = time.process_time()
    cells = expand(
        RunConfig(),
        rates=[i / 1000 for i in range(1, 101)],
        triggers=["smile", "badnets", "blended"],
        defenses=["none", "strip", "cleanse", "pruning"],
        seeds=range(9),
    )
    with tempfile.TemporaryDirectory() as out:
        plan(cells, out)
    print(f"{len(cells)} cells planned in {time.process_time() - start:.1f} s")
    try:
        import ray  # noqa: F401
    except ImportError:
        sys.exit("no ray: pip install ray")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    for n in (1, 2, 4):
        measure(f"Ray({n})", partial(make_executor, "ray", n), count)
