"""Make .venv and install the project into it, where the requirements changed. Standard library only."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV, LOCK = ROOT / ".venv", ROOT / "requirements.lock"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON, STAMP = BIN / "python", VENV / "installed"
OLDEST, NEWEST = (3, 11), (3, 13)
# for the tests of second opinions; what it asks for beside our own requirements is not needed, and old
WITHOUT_DEPENDENCIES = ("adversarial-robustness-toolbox==1.20.1",)


def version_fits(version):
    return OLDEST <= tuple(version[:2]) <= NEWEST


def find_python():
    "A Python of a version that the pinned packages work with: this one, else one on the PATH."
    if version_fits(sys.version_info):
        return sys.executable
    for name in ("python3.13", "python3.12", "python3.11"):
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0:
            return path
    wanted_versions = "{}.{} to {}.{}".format(*OLDEST, *NEWEST)  # noqa: UP032
    found = ".".join(str(part) for part in sys.version_info[:2])
    sys.exit(
        f"expected Python {wanted_versions}, got {found} ({sys.executable}): install one of them, or "
        "name it as in `make test PYTHON=/path/to/python3.12`"
    )


def wanted():
    "A hash of everything that decides what is installed, and where."
    text = b"".join(
        (ROOT / name).read_bytes()
        for name in ("settings.ini", "setup.py", "requirements.lock", "tools/install.py")
    )
    return hashlib.sha256(text + str(ROOT).encode()).hexdigest()


def run(*command, **kw):
    return subprocess.run([str(c) for c in command], cwd=ROOT, **kw)


def wheel_folders():
    "Folders of wheels that pip is configured to look in; uv does not read pip's configuration."
    lines = run(
        PYTHON, "-m", "pip", "config", "list", stdout=subprocess.PIPE, universal_newlines=True
    ).stdout.splitlines()
    values = [
        line.split("=", 1)[1].strip("'\"")
        for line in lines
        if line.partition("=")[0].endswith("find-links")
    ]
    return sorted({folder for value in values for folder in value.replace("\\n", " ").split()})


def installer():
    "`uv pip install` where uv can be had (three times faster), else pip's."
    pip = [PYTHON, "-m", "pip"]
    if run(*pip, "install", "--quiet", "uv").returncode:
        return pip + ["install"]
    os.environ.update(UV_FIND_LINKS=",".join(wheel_folders()), UV_PYTHON_DOWNLOADS="never")
    # the requirements come from settings.ini, which uv does not read when it looks for a cached build
    return [
        BIN / "uv",
        "pip",
        "install",
        "--python",
        PYTHON,
        "--compile-bytecode",
        "--refresh-package",
        "natrig_nb",
    ]


def main():
    if STAMP.exists() and STAMP.read_text() == wanted():
        return
    fits = f"import sys; sys.exit(not ({OLDEST!r} <= sys.version_info[:2] <= {NEWEST!r}))"
    if PYTHON.exists() and run(PYTHON, "-c", fits).returncode:
        shutil.rmtree(str(VENV))
    if not PYTHON.exists():
        python = find_python()
        if run(python, "-m", "venv", VENV).returncode:
            sys.exit(
                f"expected `{python} -m venv` to work, got an error: on Debian and Ubuntu it needs the "
                "package python3-venv"
            )
    install = installer()
    local = ["--no-index", "--no-deps"] + [
        a for folder in wheel_folders() for a in ("--find-links", folder)
    ]
    if len(local) > 2:
        run(
            *install, "--quiet", *local, "torch", stderr=subprocess.DEVNULL
        )  # a wheel on this disk goes first
    failed = run(*install, "--constraint", LOCK, "--editable", ".[dev]").returncode
    if failed or run(*install, "--quiet", "--no-deps", *WITHOUT_DEPENDENCIES).returncode:
        sys.exit(
            "expected the installation to succeed, got the error above; what is there is kept, "
            "and the same command tries again"
        )
    STAMP.write_text(wanted())


if __name__ == "__main__":
    main()
