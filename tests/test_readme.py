"""README.md is nbs/index.ipynb, and everything it links to exists."""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from readme import README, cell_texts, readme  # noqa: E402


def test_readme_equals_index():
    assert README.read_text(encoding="utf-8") == readme(), "run `make tidy`"


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme()) if "://" not in link]
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_readme_is_short():
    text = readme()
    assert len(text.split()) <= 900
    assert text.count("![") == 2 and len(re.findall(r"(?m)^\|:?-", text)) == 1


def test_chapters_are_linked_in_order():
    "Every chapter names the next one, and the README opens the first."
    chapters = sorted((ROOT / "nbs/learn").glob("[01][0-9]_*.ipynb"))
    assert f"nbs/learn/{chapters[0].name}" in readme()
    for chapter, following in pairwise(chapters):
        texts = "".join(
            "".join(cell["source"]) for cell in json.loads(chapter.read_text())["cells"]
        )
        assert f"]({following.name})" in texts, (chapter.name, following.name)


def links_of(path):
    "Local files that the markdown of a notebook links to."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", "\n".join(texts))
    return [path.parent / link for link in links if "://" not in link]


def test_links_of_course_and_studies_lead_somewhere():
    pages = [*(ROOT / "nbs/learn").glob("*.ipynb"), *(ROOT / "nbs/studies").glob("*.ipynb")]
    links = {link for page in pages for link in links_of(page)}
    assert len(links) > 20 and [str(link) for link in links if not link.exists()] == []


def test_hidden_cells_stay_hidden():
    said = {"output_type": "stream", "text": ["said"]}

    def cell(source):
        return {"cell_type": "code", "source": [source], "outputs": [said]}

    assert cell_texts(cell("#| hide\nprint('said')")) == []
    assert cell_texts(cell("#| echo: false\nprint('said')")) == ["```\nsaid\n```"]
    assert cell_texts(cell("print('said')")) == ["```python\nprint('said')\n```", "```\nsaid\n```"]
