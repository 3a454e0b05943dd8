"Painting a trigger against copying the picture, the floor of memory; one JSON line each.  python benchmarks/triggers.py [pixels ...]"

import json
import sys
import time

import torch
import torch.nn.functional as F

from natrig_nb.core import seeded
from natrig_nb.trigger.badnets import BadNets
from natrig_nb.trigger.blended import Blended
from natrig_nb.trigger.forgery import Forgery
from natrig_nb.trigger.lowfreq import LowFrequency
from natrig_nb.trigger.lsb import LSB
from natrig_nb.trigger.refool import Refool
from natrig_nb.trigger.sig import SIG
from natrig_nb.trigger.wanet import WaNet

TRIGGERS = (BadNets(), Blended(), SIG(), WaNet(), Refool(), LowFrequency(), LSB(), Forgery())
BATCH = 32


def best(f, n=50):
    "Processor time of the fastest of n calls, microseconds a picture: the honest figure on a busy machine."
    f()
    times = []
    for _ in range(n):
        start = time.process_time()
        f()
        times.append(time.process_time() - start)
    return round(min(times) * 1e6 / BATCH, 2)


def measure(size):
    "All triggers at one size, after the two floors: a copy, and for the warp nothing but the reading of pixels."
    x = torch.rand(BATCH, 3, size, size, generator=seeded(0)) * 2 - 1
    grid = WaNet().grid(1, size).repeat(BATCH, 1, 1, 1)
    copy, read = best(x.clone), best(lambda: F.grid_sample(x, grid, align_corners=True))
    for trigger in TRIGGERS:
        yield dict(
            trigger=trigger.name,
            size=size,
            microseconds=best(lambda: trigger.paint(x)),
            copy=copy,
            read=read if trigger.name == "wanet" else None,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for size in [int(s) for s in sys.argv[1:]] or [64]:
        for row in measure(size):
            print(json.dumps(row), flush=True)
