"""Format the code cells of the notebooks with ruff, and sort their imports as the exported modules need them.

`python tools/format.py` formats all notebooks; with paths, only those. Cells that are no plain Python
stay as they are.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# nbdev makes one-line imports of the package relative; those in parentheses stay absolute
ABSOLUTE = re.compile(r"^from natrig_nb(\S*) import(?! \()", re.MULTILINE)
RELATIVE = re.compile(r"^from (\.+)(\S*) import", re.MULTILINE)
ISORT = "lint.isort.lines-after-imports = 1"


def ruff(source: str, *arguments: str) -> str:
    """What ruff makes of a piece of Python; the piece itself where ruff cannot read it."""
    command = [str(Path(sys.executable).parent / "ruff"), *arguments, "--line-length", "100", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
    return source if done.returncode else done.stdout


def module_of(cells: list) -> str | None:
    """The module that a notebook exports, or None."""
    found = re.search(r"#\| default_exp (\S+)", "\n".join("".join(c["source"]) for c in cells))
    return found and found.group(1)


def to_relative(source: str, package: list) -> str:
    """Imports of this package as the exported module writes them; `package` is its path, e.g. ["defense"]."""

    def convert(match: re.Match) -> str:
        target = [part for part in match.group(1).split(".") if part]
        shared = 0
        while shared < min(len(package), len(target)) and package[shared] == target[shared]:
            shared += 1
        dots = "." * (len(package) - shared + 1)
        return f"from {dots}{'.'.join(target[shared:])} import"

    return ABSOLUTE.sub(convert, source)


def to_absolute(source: str, package: list) -> str:
    """The inverse of `to_relative`."""

    def convert(match: re.Match) -> str:
        above = package[: len(package) - len(match.group(1)) + 1]
        path = ".".join(["natrig_nb", *above, match.group(2)]).rstrip(".")
        return f"from {path} import"

    return RELATIVE.sub(convert, source)


def sort_imports(source: str, package: list) -> str:
    """One cell with its imports in the order that `ruff --select I` wants in the exported module."""
    if not re.search(r"^(from|import) ", source, re.MULTILINE):
        return source
    relative = to_relative(source, package)
    ordered = ruff(
        relative, "check", "--quiet", "--select", "I", "--fix", "--isolated", "--config", ISORT
    )
    return to_absolute(ordered, package)


def format_source(source: str, package: list, exported: bool) -> str:
    """One code cell, formatted; directives keep their spelling."""
    if source.lstrip().startswith("%") or not source.strip():
        return source
    formatted = ruff(source, "format", "--isolated")
    if exported:
        formatted = ruff(sort_imports(formatted, package), "format", "--isolated")
    formatted = formatted.rstrip("\n")
    return re.sub(r"^# \|", "#|", formatted, flags=re.MULTILINE)


def format_notebook(path: Path) -> bool:
    """Format one notebook in place; True where it changed."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    module = module_of(notebook["cells"])
    package = module.split(".")[:-1] if module else []
    changed = False
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        before = "".join(cell["source"])
        after = format_source(
            before, package, bool(re.search(r"^#\| *export", before, re.MULTILINE))
        )
        if after != before.rstrip("\n"):
            cell["source"] = after.splitlines(keepends=True)
            changed = True
    if changed:
        text = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    return changed


def main() -> None:
    """Format the notebooks that the command line names, or all."""
    paths = [Path(p) for p in sys.argv[1:]] or sorted((ROOT / "nbs").rglob("*.ipynb"))
    for path in paths:
        if ".ipynb_checkpoints" not in path.parts and format_notebook(path):
            print(f"formatted {path}")


if __name__ == "__main__":
    main()
