"""Copies of the package for tests that edit it or add to it."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import nbformat
from nbdev.export import nb_export

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ("portraits-generator.safetensors", "portraits-attributes.safetensors")


def copy_package(folder: Path, weights: tuple[str, ...] = ()) -> Path:
    """The package in another folder, with links to files of `data/`."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "natrig_nb", folder / "natrig_nb", ignore=ignored)
    shutil.copy(ROOT / "settings.ini", folder)  # by which the package knows a checkout
    for name in weights:
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / name).symlink_to(ROOT / "data" / name)
    return folder


def contents(package: Path) -> dict[str, str]:
    """File -> digest, without what Python leaves behind."""
    files = (path for path in package.rglob("*.py") if "__pycache__" not in path.parts)
    return {str(path): sha256(path.read_bytes()).hexdigest() for path in files}


def add_module(folder: Path, module: str, source: str) -> None:
    """Write and export one notebook of one module; no other file of the package may change."""
    place = folder / "nbs" / "api" / Path(*module.split(".")).with_suffix(".ipynb")
    place.parent.mkdir(parents=True, exist_ok=True)
    imports, _, rest = source.strip("\n").partition("\n\n\n")  # a cell of their own, as everywhere here
    exported = ["#| export\n" + part for part in (imports, rest) if part]
    cells = [f"#| default_exp {module}", *exported]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbformat.write(notebook, place)
    before = contents(folder / "natrig_nb")
    nb_export(place, lib_path=folder / "natrig_nb")
    after = contents(folder / "natrig_nb")
    added = folder / "natrig_nb" / Path(*module.split(".")).with_suffix(".py")
    assert after.keys() - before.keys() == {str(added)}
    assert {path: after[path] for path in before} == before


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python in a folder, with the copy of the package that is there."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def run_code(folder: Path, code: str) -> str:
    """What a program prints that imports the copy; it may start processes."""
    (folder / "job.py").write_text(code)
    done = run_python(folder, "job.py")
    assert not done.returncode, done.stderr
    return done.stdout
