"Write README.md from nbs/index.ipynb: its markdown, and the outputs of code cells that are not hidden."

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"


def output_text(output):
    "One output of a code cell as markdown."
    if output["output_type"] == "stream":
        return "```\n" + "".join(output["text"]).rstrip() + "\n```"
    data = output["data"]
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    if "text/html" in data:
        return "".join(data["text/html"])
    if not any(kind.startswith("image/") for kind in data):
        return "```\n" + "".join(data["text/plain"]) + "\n```"
    raise ValueError(
        f"expected pictures as files below figures/, got {sorted(data)} in an output of {NOTEBOOK.name}"
    )


def cell_texts(cell):
    "What the page shows of a cell: nothing of hidden ones, no source where `#| echo: false`."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    flags = {line[2:].strip() for line in source.splitlines() if line.startswith("#|")}
    if "hide" in flags:
        return []
    code = "\n".join(line for line in source.splitlines() if not line.startswith("#|")).strip()
    shown = [] if "echo: false" in flags or not code else [f"```python\n{code}\n```"]
    return shown + [output_text(o) for o in cell["outputs"]]


def from_root(match):
    "A link of the notebook, which lies in nbs/, as a link from the root of the repository."
    start, address = match.groups()
    if "://" in address or address.startswith("#"):
        return match.group(0)
    if address.startswith("../"):
        return start + address.removeprefix("../")
    return f"{start}nbs/{address}"


def readme():
    "The text of README.md."
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    texts = [text.strip() for cell in cells for text in cell_texts(cell)]
    whole = "\n\n".join(text for text in texts if text)
    return re.sub(r'(\]\(|src=")([^)"]+)', from_root, whole) + "\n"


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")
