"Faces a second of the portrait world; prints one JSON line.  python benchmarks/portraits.py [faces] [size]"

import json
import sys
import time

import torch

from natrig_nb.data.portraits import camera, population, portraits, paint_portraits


def speed(f, n, repeats=3):
    "The best of some runs: faces a second of wall time, and of processor time."
    best = {"wall": 0.0, "cpu": 0.0}
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        f()
        best["wall"] = max(best["wall"], n / (time.perf_counter() - wall))
        best["cpu"] = max(best["cpu"], n / (time.process_time() - cpu))
    return {k: round(v) for k, v in best.items()}


n, size = (int(v) for v in (sys.argv[1:] + ["480", "64"][len(sys.argv) - 1 :]))
people = population(n, seed=0)
x = paint_portraits(people, size)  # also warms up
print(
    json.dumps(
        {
            "faces": n,
            "size": size,
            "threads": torch.get_num_threads(),
            "render": speed(lambda: paint_portraits(people, size), n),
            "camera": speed(lambda: camera(x, 0), n),
            "portraits": speed(lambda: portraits(n, 0, size), n),
        }
    )
)
