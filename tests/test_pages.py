"""What the site shows of a notebook, and what its links become; `make site` builds the pages themselves."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import pages  # noqa: E402

def code(source, *outputs):
    """A code cell."""
    return {"cell_type": "code", "id": "x", "metadata": {}, "source": source, "outputs": list(outputs)}


def shown(tmp_path, monkeypatch, *cells):
    """The cells of a page made from these cells of a notebook in nbs/learn."""
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    path = tmp_path / "nbs/learn/one.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"cells": list(cells), "metadata": {}}))
    return json.loads(pages.page(path))["cells"]


def test_directives_hidden_cells_and_warnings_are_left_out(tmp_path, monkeypatch):
    warning = {"output_type": "stream", "name": "stderr", "text": "a warning"}
    said = {"output_type": "stream", "name": "stdout", "text": "said"}
    cells = shown(
        tmp_path,
        monkeypatch,
        code("#| default_exp one"),
        code("#| hide\nprivate = 1"),
        code("#| export\n%matplotlib inline\nx = 1", warning, said),
        code("#| echo: false\nx", said),
    )
    assert [cell["source"] for cell in cells] == ["x = 1", "x"]
    assert [cell["outputs"] for cell in cells] == [[said], [said]]
    assert [cell["metadata"]["tags"] for cell in cells] == [[], ["remove-input"]]


def test_links_lead_to_pages_or_to_the_repository(tmp_path, monkeypatch):
    (tmp_path / "nbs/studies").mkdir(parents=True)
    text = "[a](02_poison.ipynb) [b](../studies) [c](../../data/README.md) [d](https://arxiv.org) [e](#f)"
    (cell,) = shown(tmp_path, monkeypatch, {"cell_type": "markdown", "source": text})
    links = re.findall(r"\]\(([^)]+)\)", cell["source"])
    repository = f"{pages.REPOSITORY}/data/README.md"
    assert links == ["02_poison.ipynb", "../studies.md", repository, "https://arxiv.org", "#f"]


def test_dead_links_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "OUT", tmp_path)
    (tmp_path / "one.html").write_text('<a href="two.html#x">a</a> <a href="http://x.org">b</a>')
    assert pages.dead_links() == ["one.html: two.html"]
    (tmp_path / "two.html").write_text('<pre>href="nowhere"</pre>')
    assert pages.dead_links() == []


def test_every_notebook_is_on_a_shelf():
    listed = "".join(pages.shelf_page(name, title) for name, title in pages.SHELVES.items())
    notebooks = {p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    names = {p.relative_to(ROOT / "nbs").with_suffix("").as_posix() for p in notebooks}
    assert names - {"index"} == {line for line in listed.splitlines() if "/" in line}
