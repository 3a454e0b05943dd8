"Random damage to checkpoints; writes data/results/fuzz.json.  python tests/checkpoint_fuzz.py [cases]"

import json
import os
import platform
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from official import save_nvlabs, save_rosinality  # noqa: E402

from natrig_nb.generator.checkpoints import EFFECTS, MAGIC, NVLABS, VALUES, CheckpointError  # noqa: E402
from natrig_nb.generator.stylegan2 import StyleGAN2, load_stylegan2  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 2.0  # seconds of processor time; longer is a hang
RUNS = (
    "exec",
    "compile",
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
)
watched = {"on": False, "events": Counter()}


def watch(event, args):
    "Python's own report of what runs; opening a file for writing counts as well."
    if not watched["on"]:
        return
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if event in RUNS or writes:
        watched["events"][event] += 1


def originals(folder):
    "Small whole files of each kind."
    torch.manual_seed(0)
    G, path = StyleGAN2(8, 4, 4, 1, 32, 4, clamp=2.0), Path(folder) / "whole"
    kinds = [
        lambda: save_nvlabs(G, path, trap=G),
        lambda: save_nvlabs(G, path, trap=G, protocol=3, nested=False, numpy1=True),
        lambda: save_rosinality(G, path),
        lambda: save_rosinality(G, path, zipped=False, training=True),
    ]
    files = []
    for save in kinds:
        save(), files.append(path.read_bytes())
    return files


NAMES = [
    *NVLABS,
    ("posix", "system"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("os", "popen"),
    ("subprocess", "Popen"),
    ("nt", "system"),
]
COMMAND = b"touch NATRIG_PICKLE_IS_EXECUTED"
words = st.sampled_from([COMMAND, b"weight", b"storage", b"cpu", b"f8", b"G_ema", b"g_ema"])
small = st.integers(0, 255).map(lambda n: bytes([n]))
op = st.one_of(
    st.sampled_from(
        [c for c in [*VALUES, *EFFECTS] if c not in (b"c", b"X", b"C", b"\x8c")]
    ).flatmap(
        lambda c: st.binary(max_size=4).map(lambda b: c + b) if c in b"KMJGhjqr" else st.just(c)
    ),
    st.sampled_from(NAMES).map(lambda n: f"c{n[0]}\n{n[1]}\n".encode()),
    words.map(lambda w: b"\x8c" + bytes([len(w)]) + w),
    words.map(lambda w: b"C" + bytes([len(w)]) + w),
    st.sampled_from(
        [
            b"cposix\nsystem\n\x8c\x1f" + COMMAND + b"\x85R",
            b"(K\x01K\x02t",
            b")R",
            b"}\x94",
            b"2\x86",
            b"R",
            b"b",
        ]
    ),
)
programs = st.lists(op, max_size=60).map(b"".join)


def damaged(files):
    "Strategies for one file: flipped bytes, cut, spliced, program text put in, or opcodes from nothing."
    whole = st.sampled_from(files)
    place = st.floats(0, 1, exclude_max=True)
    flips = st.tuples(whole, st.lists(st.tuples(place, small), min_size=1, max_size=8)).map(
        lambda t: flipped(*t)
    )
    cuts = st.tuples(whole, place).map(lambda t: t[0][: int(t[1] * len(t[0]))])
    inserts = st.tuples(whole, place, st.one_of(programs, st.binary(max_size=40))).map(
        lambda t: t[0][: int(t[1] * len(t[0]))] + t[2] + t[0][int(t[1] * len(t[0])) :]
    )
    splices = st.tuples(whole, whole, place, place).map(
        lambda t: t[0][: int(t[2] * len(t[0]))] + t[1][int(t[3] * len(t[1])) :]
    )
    opcodes = st.tuples(
        st.sampled_from(
            [
                b"\x80\x04",
                b"\x80\x03",
                b"\x80\x02",
                MAGIC,
                MAGIC + b"\x80\x02M\xe9\x03.\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.",
            ]
        ),
        programs,
    ).map(lambda t: t[0] + t[1] + b"." * 16)
    return st.one_of(flips, flips, cuts, inserts, splices, opcodes, opcodes)


def flipped(data, changes):
    data = bytearray(data)
    for at, byte in changes:
        data[int(at * len(data))] = byte[0]
    return bytes(data)


def hang(signum, frame):
    raise TimeoutError("expected an answer within a minute")


def fuzz(cases, load=load_stylegan2, seed=0):
    "Load that many damaged files; counts of what happened."
    watched["events"].clear()
    counts, longest, kinds = Counter(), [0.0], Counter()
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        files, path = originals(folder), Path(folder) / "case"
        os.chdir(folder)
        (path).write_bytes(files[0]), load_stylegan2(path)  # what is imported late is imported now

        @hypothesis.seed(seed)
        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(damaged(files))
        def one(data):
            path.write_bytes(data)
            counts["cases"] += 1
            start, watched["on"] = time.process_time(), True
            signal.alarm(60)
            try:
                load(path)
                counts["loaded"] += 1
            except CheckpointError:
                counts["refused"] += 1
            except BaseException as e:
                counts["uncaught"] += 1
                kinds[f"{type(e).__name__}: {e}"[:200]] += 1
            finally:
                watched["on"] = False
                signal.alarm(0)
            longest[0] = max(longest[0], spent := time.process_time() - start)
            counts["hangs"] += spent > LIMIT
            counts["executions"] += Path("NATRIG_PICKLE_IS_EXECUTED").exists() or bool(
                watched["events"]
            )
            watched["events"].clear()

        old = signal.signal(signal.SIGALRM, hang)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                one()
        finally:
            os.chdir(home)
            signal.signal(signal.SIGALRM, old)
    return {
        k: counts[k] for k in ("cases", "loaded", "refused", "executions", "hangs", "uncaught")
    } | dict(longest=round(longest[0], 3), errors=dict(kinds))


sys.addaudithook(watch)
if __name__ == "__main__":
    start, cases = time.time(), int((sys.argv[1:] or ["10000"])[0])
    found = fuzz(cases)
    found |= dict(
        seconds=round(time.time() - start),
        seed=0,
        python=platform.python_version(),
        torch=torch.__version__,
        hypothesis=hypothesis.__version__,
        date=time.strftime("%Y-%m-%d"),
        command=f"python tests/checkpoint_fuzz.py {cases}",
    )
    (ROOT / "data/results").mkdir(parents=True, exist_ok=True)
    (ROOT / "data/results/fuzz.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
