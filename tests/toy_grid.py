"A grid of toys, for tests that kill it: `python toy_grid.py fill|full OUT`. Each piece is a number, each cell a power of it."

import os
import random
import resource
import signal
import sys
import time
import uuid
from pathlib import Path

from natrig_nb.runs.old_jobs import Here, Job, Processes, Ray
from natrig_nb.runs.old_store import fill, piece, read_rows

PIECES, POWERS = 6, 10


def number(out, n):
    "A piece: the number n."
    piece(out, f"number-{n}", {"n": n}, lambda place: (place / "n").write_text(str(n)), "number")


def power(out, n, k):
    "A cell: n to the k; the seventh power fails, and some kill their worker the first time."
    mark = Path(out) / "begun" / f"{n}-{k}"
    first = not mark.exists()
    if mark.parent.exists():
        mark.write_text(str(os.getpid()))
    if k == 3 and n % 2 and first and (Path(out) / "deadly").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if k == 5 and n == 4 and (Path(out) / "deadly").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    if k == 7:
        raise ValueError(f"expected another power, got {k}")
    return {
        "value": float(int((Path(out) / "pieces" / f"number-{n}" / "n").read_text()) ** k),
        "seconds": 0.01,
        "made": uuid.uuid4().hex,
        "text": random.Random(100 * n + k).randbytes(1000).hex(),
    }


def toys(out, pieces=PIECES, powers=POWERS):
    "Jobs and the columns of their rows."
    jobs = [Job(f"number-{n}", number, (str(out), n), kind="number") for n in range(pieces)]
    jobs += [
        Job(f"{n}^{k}", power, (str(out), n, k), (f"number-{n}",), "power")
        for n in range(pieces)
        for k in range(powers)
    ]
    return jobs, {
        j.key: {"n": j.args[1], "k": j.args[2], "code": "x"} for j in jobs if "^" in j.key
    }


def run(out, executor="processes", count=2, **size):
    "Fill the grid of toys."
    make = {
        "here": Here,
        "processes": lambda: Processes(count, ("natrig_nb.runs.old_store",)),
        "ray": lambda: Ray(count),
    }[executor]
    return fill(out, *toys(out, **size), make)


def fill_the_disk(out):
    "Make room scarce, run, say what was left, make room, run again."
    out, block = Path(out), Path(out) / "block"
    table = run(out, "here", pieces=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for keep in (0, 60_000):  # nothing fits; a piece fits, the table soon does not
        limited = os.statvfs(out).f_blocks * os.statvfs(out).f_frsize > 1e8
        if limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (keep or 1, before[1]))
        else:
            block.write_bytes(bytes(os.statvfs(out).f_bavail * os.statvfs(out).f_frsize - keep))
        try:
            run(out, "here")
        except ValueError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        block.unlink(missing_ok=True)
        kept = read_rows(out)
        assert kept[kept.cell.isin(table.cell)].made.tolist() == table.made.tolist()
    print("rows in the end:", len(run(out, "here")))


if __name__ == "__main__":
    {"fill": run, "full": fill_the_disk}[sys.argv[1]](sys.argv[2])
