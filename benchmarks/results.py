"""What it costs to append a cell to the long table that holds 10, 10,000 or 1,000,000 rows already.

`python benchmarks/results.py [NOTE]`; writes data/results/benchmark-results.json. Each cell has seven
rows, as an attack has. Two floors of the same disk: the same seven rows and nothing else into an empty
SQLite file, with the table's settings (WAL, `synchronous=NORMAL`), and with an fsync at every commit.
Takes about 40 s.
"""

import hashlib
import json
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from natrig_nb.core import environment, write_atomic
from natrig_nb.runs.results import COLUMNS, Results, read_results

OUT = Path(__file__).resolve().parent.parent / "data/results/benchmark-results.json"
SIZES = (10, 10_000, 1_000_000)
ROWS = 7  # of a cell
CELLS = 1000  # that are timed
CASE = {"experiment": "grid", "dataset": "portraits", "trigger": "smile", "rate": 0.029}


def cell_name(number):
    "A digest, as cells have: neighbors in time are far apart in the index."
    return hashlib.sha256(str(number).encode()).hexdigest()[:16]


def rows_of_cell(number):
    "Seven metrics."
    return [{**CASE, "seed": number, "metric": f"m{i}", "value": 0.5} for i in range(ROWS)]


def fill(results, n):
    "Put n rows into a table, in large transactions."
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    marks = ", ".join(f":{name}" for name in COLUMNS)
    empty = dict.fromkeys(COLUMNS)
    for start in range(0, n, 50_000):
        rows = []
        for i in range(start, min(start + 50_000, n)):
            number, metric = divmod(i, ROWS)
            known = {"cell": cell_name(number), "seed": number, "metric": f"m{metric}", "value": 0.5}
            rows.append({**empty, **CASE, **known})
        with results.connection:
            results.connection.executemany(f"INSERT INTO results ({names}) VALUES ({marks})", rows)
            cells = sorted({(row["cell"], "code", "attack", 0.0, None) for row in rows})
            results.connection.executemany(
                "INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?)", cells
            )


def milliseconds(call):
    "Median, mean and 99th percentile over calls with the numbers of new cells."
    times = []
    for number in range(10**7, 10**7 + CELLS):
        start = time.perf_counter()
        call(number)
        times.append(1000 * (time.perf_counter() - start))
    found = {"median": np.median(times), "mean": np.mean(times), "p99": np.quantile(times, 0.99)}
    return {name: round(float(value), 3) for name, value in found.items()}


def append(n):
    "Appending to a table of n rows."
    with tempfile.TemporaryDirectory() as folder:
        results = Results(folder)
        fill(results, n)
        found = milliseconds(
            lambda number: results.write(cell_name(number), rows_of_cell(number), "code", "attack")
        )
        results.close()
        if n <= 10_000:
            assert len(read_results(folder)) == n + ROWS * CELLS
        size = (Path(folder) / "results.sqlite").stat().st_size
    return {"rows_before": n, "file_mb": round(size / 1e6, 1), **found}


def floor(synchronous):
    "One commit of the same rows, without index, columns or checks."
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder) / "floor.sqlite")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("CREATE TABLE t (text TEXT)")

        def commit(number):
            with connection:
                texts = [(json.dumps(row),) for row in rows_of_cell(number)]
                connection.executemany("INSERT INTO t VALUES (?)", texts)

        found = milliseconds(commit)
        connection.close()
    return found


def main():
    record = {
        "environment": environment(),
        "note": " ".join(sys.argv[1:]),
        "unit": "milliseconds per cell of 7 rows",
        "cells_timed": CELLS,
        "append": [append(n) for n in SIZES],
        "floor_same_settings": floor("NORMAL"),
        "floor_fsync_at_every_commit": floor("FULL"),
    }
    with write_atomic(OUT) as file:
        file.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
