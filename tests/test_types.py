"""The types of the package: `basedpyright` finds no error in the paths of pyrightconfig.json."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 20  # errors in the message of a failure


def described(error: dict) -> str:
    """One error as a line: file, line, message."""
    path = Path(error["file"]).relative_to(ROOT)
    line = error["range"]["start"]["line"] + 1
    message = error["message"].splitlines()[0]
    return f"{path}:{line}: {message}"


@pytest.mark.skipif(
    importlib.util.find_spec("basedpyright") is None,
    reason="basedpyright is not installed (pip install basedpyright): types are not checked",
)
def test_no_type_errors():
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--level", "error"]
    # the packages of this Python, wherever the checkout has its environment
    command += ["--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr or done.stdout
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] > 0
    errors = [described(error) for error in report["generalDiagnostics"]]
    assert not errors, "\n".join([f"{len(errors)} type errors", *errors[:SHOWN]])
