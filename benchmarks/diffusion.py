"Time and memory of the small Stable Diffusion: 64 portraits at 20 steps, and the gradient through its last steps."

import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from natrig_nb.core import write_atomic
from natrig_nb.core import environment

OUT = Path("data/results/benchmark-diffusion.json")
MODEL = "data/portraits-diffusion"


def peak(seconds=1.0, n=1024):
    "Floating-point operations a second that a matrix product reaches here."
    a = torch.randn(n, n)
    (a @ a).sum()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ a
        count += 1
    return 2 * n**3 * count / (time.perf_counter() - start)


def sampling(steps=20, n=64):
    "Seconds and share of the machine's peak for n portraits."
    from natrig_nb.generator.base import render
    from natrig_nb.generator.diffusion import load_diffusion, predict

    start = time.perf_counter()
    G = load_diffusion(MODEL, steps=steps)
    load, w = time.perf_counter() - start, G.sample(n, 0)
    with FlopCounterMode(display=False) as count, torch.no_grad():
        predict(G, w.noise[:1], torch.tensor(500), w.neutral)
    unet = count.get_total_flops()
    with FlopCounterMode(display=False) as count, torch.no_grad():
        G.vae.decode(w.noise[:1])
    floor = n * (steps * unet + count.get_total_flops())
    render(G, w[:4])
    seconds = min(timed(lambda: render(G, w)) for _ in range(3))
    return {
        "portraits": n,
        "steps": steps,
        "load_seconds": load,
        "seconds": seconds,
        "gflop": floor / 1e9,
        "share_of_peak": floor / seconds / peak(),
        "peak_gflops": peak() / 1e9,
        "memory_mb": memory(),
    }


def gradient(last, batch=8):
    "Seconds and memory of one step of the prompt search through `last` denoising steps."
    from natrig_nb.detector.meso import Meso4
    from natrig_nb.generator.diffusion import load_diffusion
    from natrig_nb.trigger.natural.prompt_optimized import optimize_prompt

    G, before = load_diffusion(MODEL), memory()
    seconds = timed(lambda: optimize_prompt(G, Meso4(size=64), last=last, steps=2, batch=batch)) / 2
    return {
        "last": last,
        "batch": batch,
        "seconds_a_step": seconds,
        "memory_mb": memory(),
        "above_loading_mb": memory() - before,
    }


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(call, *arguments):
    "The result of a call in a process of its own, so that its memory is its own."
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


if __name__ == "__main__":
    record = {
        "environment": environment(),
        "sampling": alone(sampling),
        "gradient": [alone(gradient, k) for k in (1, 2, 4, 8)],
    }
    with write_atomic(OUT) as f:
        f.write_text(json.dumps(record, indent=1))
    json.dump(record, sys.stdout, indent=1)
