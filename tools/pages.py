"""Build the pages of the repository with Sphinx: course, studies, component notebooks, search. No network.

`python tools/pages.py` writes `out/site`; open `out/site/index.html`. Warnings are errors. The notebooks are
shown as they are saved; nothing is run. Needs `pip install natrig_nb[docs]`.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out" / "site"
SOURCE = ROOT / "out" / "site-source"
SHELVES = {"learn": "Course", "studies": "Studies", "api": "Components"}
REPOSITORY = "https://github.com/natrig/natrig_nb/blob/main"
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)
LINK = re.compile(r"(\]\(|src=\")([^)\"\s]+)")
CONF = """
project = "natrig_nb"
html_title = "natrig_nb"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
html_theme = "furo"
html_static_path = ["_static"]
html_copy_source = False
html_css_files = ["tables.css"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_mime_priority_overrides = [("html", "image/jpeg", 5), ("html", "image/png", 6)]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]
"""
CSS = """
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: 0.85em; }
td, th { padding: 0.15em 0.6em; border-bottom: 1px solid var(--color-background-border); }
div.cell_output img { max-width: 100%; height: auto; }
"""


def site_link(match, folder):
    "A link of a notebook as a link of the site: pages stay, other files go to the repository."
    start, address = match.groups()
    path, mark, anchor = address.partition("#")
    if "://" in address or not path:
        return match.group(0)
    target = (ROOT / "nbs" / folder / path).resolve()
    if target.suffix in (".ipynb", ".png", ".jpg"):
        return match.group(0)
    shelf = target.relative_to(ROOT).as_posix()
    if shelf.startswith("nbs/") and target.is_dir():
        up = "../" * len(Path(folder).parts)
        return f"{start}{up}{shelf.removeprefix('nbs/').partition('/')[0]}.md{mark}{anchor}"
    return f"{start}{REPOSITORY}/{shelf}"


def page(path):
    "A notebook as the site shows it: no directives, no hidden cells, no widgets, no warnings."
    nb = json.loads(path.read_text(encoding="utf-8"))
    folder = path.relative_to(ROOT / "nbs").parent.as_posix()
    cells = []
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = LINK.sub(lambda match: site_link(match, folder), source)
            cells.append({**cell, "source": text})
            continue
        flags = {line[2:].strip() for line in source.splitlines() if line.startswith("#|")}
        if "hide" in flags or any(flag.startswith("default_exp") for flag in flags):
            continue
        shown = [o for o in cell["outputs"] if o.get("name") != "stderr"]
        for output in shown:
            data = output.get("data", {})
            if "text/markdown" in data:
                text = "".join(data["text/markdown"])
                data["text/markdown"] = LINK.sub(lambda match: site_link(match, folder), text)
        tags = ["remove-input"] if "echo: false" in flags else []
        source = DIRECTIVE.sub("", source).replace("%matplotlib inline\n", "")
        cells.append({**cell, "source": source, "outputs": shown, "metadata": {"tags": tags}})
    nb["metadata"]["language_info"] = {"name": "python"}
    return json.dumps({**nb, "cells": cells}, ensure_ascii=False)


def shelf_page(name, title):
    "The page of a shelf with the table of its notebooks."
    paths = sorted((ROOT / "nbs" / name).rglob("*.ipynb"))
    paths = [path for path in paths if ".ipynb_checkpoints" not in path.parts]
    entries = [path.relative_to(ROOT / "nbs").with_suffix("").as_posix() for path in paths]
    return "\n".join([f"# {title}", "", "```{toctree}", ":maxdepth: 1", "", *entries, "```", ""])


def write_source():
    "Everything that Sphinx reads."
    shutil.rmtree(SOURCE, ignore_errors=True)
    (SOURCE / "_static").mkdir(parents=True)
    (SOURCE / "conf.py").write_text(CONF, encoding="utf-8")
    (SOURCE / "_static/tables.css").write_text(CSS, encoding="utf-8")
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            target = SOURCE / path.relative_to(ROOT / "nbs")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(page(path), encoding="utf-8")
    shutil.copytree(ROOT / "figures", SOURCE.parent / "figures", dirs_exist_ok=True)
    index = json.loads((SOURCE / "index.ipynb").read_text(encoding="utf-8"))
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *SHELVES, "```"])
    cell = {"cell_type": "markdown", "id": "toctree", "metadata": {}, "source": toctree}
    index["cells"].append(cell)
    (SOURCE / "index.ipynb").write_text(json.dumps(index), encoding="utf-8")
    for name, title in SHELVES.items():
        (SOURCE / f"{name}.md").write_text(shelf_page(name, title), encoding="utf-8")


def dead_links():
    "Local links of the pages that lead nowhere."
    dead = []
    for path in sorted(OUT.rglob("*.html")):
        text = re.sub(r"(?s)<pre>.*?</pre>", "", path.read_text(encoding="utf-8"))
        for link in re.findall(r'(?:href|src)="([^"#?]+)', text):
            is_local = "://" not in link and not link.startswith(("data:", "mailto:"))
            if is_local and not (path.parent / link).exists():
                dead.append(f"{path.relative_to(OUT)}: {link}")
    return dead


def main():
    "Write the source, build it, and follow every local link."
    write_source()
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run([*command, str(SOURCE), str(OUT)], cwd=ROOT)
    if done.returncode:
        sys.exit("expected a site without warnings, got those above")
    dead = dead_links()
    if dead:
        sys.exit("expected links that lead somewhere, got:\n" + "\n".join(dead))
    print(f"{OUT.relative_to(ROOT)}/index.html")


if __name__ == "__main__":
    main()
