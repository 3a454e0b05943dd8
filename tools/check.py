"""Is the package what the notebooks export, and are the notebooks clean? `--fix` cleans them."""

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK_BYTES = 1_500_000
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}


def notebooks():
    return sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def export_differences():
    "Modules that a fresh export of the notebooks, in a temporary folder, would change, add or remove."
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        shutil.copy(ROOT / "settings.ini", fresh)
        shutil.copytree(
            ROOT / "nbs", fresh / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
        )
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["nbdev_export"],
            cwd=fresh,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path},
        )
        if done.returncode:
            return ["the export fails: " + done.stderr.strip()[-500:]]
        names = {
            p.relative_to(base).as_posix()
            for base in (ROOT, fresh)
            for p in (base / "natrig_nb").rglob("*.py")
        }
        differ = [name for name in names if not same_file(ROOT / name, fresh / name)]
        return sorted(f"{name} differs from its notebook (make tidy)" for name in differ)


def same_file(one, other):
    "Whether both files exist and have the same content."
    return one.exists() and other.exists() and filecmp.cmp(one, other, shallow=False)


WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURES = ("image/png", "image/jpeg")
# folders of one machine; a page that others read must not show them
OWN_PATHS = re.compile(
    r"(?<![\w.])(?:/tmp|/root|/home|/work|/Users|/var/folders)/[\w.-]|[A-Z]:\\\\"
)


def with_one_picture(output):
    "An output that holds a picture as PNG and as JPEG keeps the smaller one."
    data = output.get("data", {})
    found = [kind for kind in PICTURES if kind in data]
    if len(found) < 2:
        return output
    larger = max(found, key=lambda kind: len("".join(data[kind])))
    kept = {kind: content for kind, content in data.items() if kind != larger}
    return {**output, "data": kept}


def cleaned(nb):
    """A notebook as it is committed: cleaned by nbdev, one format per picture, no widgets."""
    nb = deepcopy(nb)
    clean_nb(nb)
    nb["metadata"] = {"kernelspec": KERNEL}
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            shown = [o for o in cell["outputs"] if WIDGET not in o.get("data", {})]
            cell["outputs"] = [with_one_picture(o) for o in shown]
    return nb


def texts(output):
    "The texts of an output as a reader sees them."
    if output["output_type"] == "stream":
        return ["".join(output["text"])]
    data = output.get("data", {})
    return ["".join(data[kind]) for kind in ("text/plain", "text/markdown") if kind in data]


def output_faults(output):
    "What should not be among the saved outputs."
    if output["output_type"] == "error":
        return ["an error"]
    faults = []
    if output.get("name") == "stderr":
        faults.append("a warning")
    shown = texts(output)
    if any(OWN_PATHS.search(text) for text in shown):
        faults.append("a path of one machine")
    has_picture = any(kind.startswith("image/") for kind in output.get("data", {}))
    if not has_picture and any(text.startswith("<Figure size") for text in shown):
        faults.append("a figure without its picture (%matplotlib inline)")
    if any(text.strip() == "(None, None)" for text in shown):
        faults.append("the value (None, None)")
    return faults


def untidy(path):
    "What keeps one notebook from being clean."
    nb = json.loads(path.read_text(encoding="utf-8"))
    size = path.stat().st_size
    faults = []
    if nb != cleaned(nb):
        faults.append("is not clean (make tidy)")
    for cell in nb["cells"]:
        found = [fault for o in cell.get("outputs", []) for fault in output_faults(o)]
        faults += [f"has {fault} among its outputs, cell {cell.get('id')}" for fault in found]
    if size > NOTEBOOK_BYTES:
        faults.append(f"has {size} bytes, expected at most {NOTEBOOK_BYTES}")
    return [f"{path.relative_to(ROOT)} {fault}" for fault in faults]


def fix(path):
    "Clean one notebook in place; a clean one is not touched."
    nb = json.loads(path.read_text(encoding="utf-8"))
    if nb != cleaned(nb):
        text = json.dumps(cleaned(nb), sort_keys=True, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--fix" in sys.argv:
        for path in notebooks():
            fix(path)
    found = export_differences() + [fault for path in notebooks() for fault in untidy(path)]
    print(
        "\n".join(found)
        or f"{len(notebooks())} notebooks are clean, and the package is what they export"
    )
    sys.exit(bool(found))
