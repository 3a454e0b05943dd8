"Is the package what the notebooks export, and are the notebooks clean? Says what is not; `--fix` cleans the notebooks."

import filecmp
import json
import os
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
        same = lambda n: (
            (ROOT / n).exists()
            and (fresh / n).exists()
            and filecmp.cmp(ROOT / n, fresh / n, shallow=False)
        )
        return sorted(f"{n} differs from its notebook (make tidy)" for n in names if not same(n))


def cleaned(nb):
    "A notebook as it is committed: as nbdev cleans it, without widgets, whose state no page of a repository shows."
    nb = deepcopy(nb)
    clean_nb(nb)
    nb["metadata"] = {"kernelspec": KERNEL}
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [
                o
                for o in cell["outputs"]
                if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})
            ]
    return nb


def untidy(path):
    "What keeps one notebook from being clean."
    nb = json.loads(path.read_text(encoding="utf-8"))
    errors = [o for c in nb["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"]
    faults = [
        (nb != cleaned(nb), "is not clean (make tidy)"),
        (errors, "has an error among its outputs"),
        (
            path.stat().st_size > NOTEBOOK_BYTES,
            f"has {path.stat().st_size} bytes, expected at most {NOTEBOOK_BYTES}",
        ),
    ]
    return [f"{path.relative_to(ROOT)} {what}" for wrong, what in faults if wrong]


def fix(path):
    "Clean one notebook in place; a clean one is not touched."
    nb = json.loads(path.read_text(encoding="utf-8"))
    if nb != cleaned(nb):
        path.write_text(
            json.dumps(cleaned(nb), sort_keys=True, indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    if "--fix" in sys.argv:
        [fix(path) for path in notebooks()]
    found = export_differences() + [fault for path in notebooks() for fault in untidy(path)]
    print(
        "\n".join(found)
        or f"{len(notebooks())} notebooks are clean, and the package is what they export"
    )
    sys.exit(bool(found))
