"""README.md is nbs/index.ipynb, and everything it links to exists."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from readme import README, cell_texts, readme  # noqa: E402


def test_readme_equals_index():
    assert README.read_text(encoding="utf-8") == readme(), "run `make tidy`"


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme()) if "://" not in link]
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_five_notebooks_are_named_in_reading_order():
    order = re.findall(r"(?m)^\d\. \[`[^`]+`\]\((nbs/api/[^)]+)\)", readme())
    assert len(order) == 5 and all((ROOT / path).exists() for path in order)


def test_hidden_cells_stay_hidden():
    said = {"output_type": "stream", "text": ["said"]}

    def cell(source):
        return {"cell_type": "code", "source": [source], "outputs": [said]}

    assert cell_texts(cell("#| hide\nprint('said')")) == []
    assert cell_texts(cell("#| echo: false\nprint('said')")) == ["```\nsaid\n```"]
    assert cell_texts(cell("print('said')")) == ["```python\nprint('said')\n```", "```\nsaid\n```"]
