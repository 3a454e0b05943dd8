"Loading a 1024 px network from a pickle, and images a second; writes data/results/benchmark-stylegan.json.  python benchmarks/stylegan.py [note]"

import copy
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from official import peak_memory, save_nvlabs  # noqa: E402

from natrig_nb.core import pick_device  # noqa: E402
from natrig_nb.generator.stylegan2 import StyleGAN2, load_stylegan2  # noqa: E402

FFHQ = {
    256: dict(resolution=256, base=16384),
    1024: dict(resolution=1024, base=32768),
}  # the official widths


def synchronized():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(f):
    "Seconds of wall time and of processor time."
    synchronized()
    wall, cpu = time.perf_counter(), time.process_time()
    f(), synchronized()
    return time.perf_counter() - wall, time.process_time() - cpu


def write_snapshot(path):
    "An official snapshot of FFHQ size: G_ema, G, and numbers in place of the discriminator's 29 million; 360 MB."
    G = StyleGAN2(**FFHQ[1024], clamp=256).requires_grad_(False)
    save_nvlabs(G, path, trap=copy.deepcopy(G), others=[("D", torch.randn(29_012_513))])


def measure_load(path):
    "Run in a fresh process: seconds, and memory above what the imports take."
    before, size = peak_memory(), os.path.getsize(path)
    wall, cpu = timed(lambda: load_stylegan2(path))
    return dict(
        megabytes=round(size / 1e6),
        seconds=round(wall, 2),
        cpu_seconds=round(cpu, 2),
        peak_to_size=round((peak_memory() - before) / size, 2),
    )


def operations(G):
    "Floating-point operations of one image, two a multiply-add, from the shapes of the layers."
    total = sum(2 * m.weight.numel() for m in G.modules() if type(m).__name__ == "Linear")
    for m in G.modules():
        if type(m).__name__ == "SynthesisLayer":
            side = len(m.noise_const)
            total += (
                2 * m.weight.numel() * (side // 2 if m.up else side) ** 2
            )  # zeros between pixels are not multiplied
            total += (2 * 16 * len(m.weight) * side**2 if m.up else 0) + 6 * len(
                m.weight
            ) * side**2  # filter; scaling, noise, bias, bend
    for r in G.synthesis.sizes:
        block = getattr(G.synthesis, f"b{r}")
        total += 2 * block.torgb.weight.numel() * r**2 + 3 * r**2 * (
            2 * 4 + 1
        )  # 4 of the filter's 16 products meet a pixel
    return total


def machine_peak():
    "Operations a second of the best matrix product, the most this machine gives."
    a = torch.randn(1536, 1536, device=pick_device())
    a @ a
    walls, cpus = zip(*(timed(lambda: a @ a) for _ in range(10)))
    return 2 * 1536**3 / min(walls), 2 * 1536**3 / min(cpus)


def measure_synthesis(resolution, images, batch):
    "Images a second, of wall time and of processor time, and the share of the machine's peak."
    torch.manual_seed(0)
    G = (
        StyleGAN2(**FFHQ[resolution])
        .requires_grad_(False)
        .eval()
        .to(pick_device(), memory_format=torch.channels_last)
    )
    ws = G.mapping(torch.randn(batch, 512, device=pick_device()))
    G.synthesis(ws)
    runs = [timed(lambda: G.synthesis(ws)) for _ in range(images // batch)]
    wall, cpu = (batch / min(column) for column in zip(*runs))
    peak_wall, peak_cpu = machine_peak()
    ops = operations(G)
    return dict(
        resolution=resolution,
        batch=batch,
        images_a_second=round(wall, 3),
        images_a_cpu_second=round(cpu, 3),
        gigaoperations_an_image=round(ops / 1e9, 1),
        gigaoperations_a_second_of_peak=round(peak_wall / 1e9, 1),
        share_of_peak=round(ops * wall / peak_wall, 2),
        share_of_peak_cpu=round(ops * cpu / peak_cpu, 2),
    )


def main(note):
    record = dict(
        device=str(pick_device()),
        threads=torch.get_num_threads(),
        processors=os.cpu_count(),
        load_average=round(os.getloadavg()[0], 1),
        note=note,
        torch=torch.__version__,
        python=platform.python_version(),
        date=time.strftime("%Y-%m-%d"),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ffhq-size.pkl"
        write_snapshot(path)
        done = subprocess.run(
            [sys.executable, __file__, "load", str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
        record["load"] = json.loads(done.stdout)
    record["synthesis"] = [measure_synthesis(256, 4, 2), measure_synthesis(1024, 2, 1)]
    (ROOT / "data/results/benchmark-stylegan.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        print(json.dumps(measure_load(sys.argv[2])))
    else:
        main(" ".join(sys.argv[1:]))
