"""Which tests may be skipped, and the mark of slow ones.

A skip that is not on the list makes the run fail, so that no test is lost without a word.
"""

import re

import pytest

SLOW = "slow: takes over 10 s; CI runs it, `pytest -m 'not slow'` leaves it out"
ALLOWED_SKIPS = {  # pattern of the reason: why the test may be left out
    r"NATRIG_FACES": "photographs of people are not part of the repository",
    r"takes minutes: set NATRIG_(SLOW|WHOLE)": "the long form of a test that also has a short one",
    r"this is the copy": "the whole suite runs once on a copy with one new part of each kind",
    r"needs the git history": "a shallow clone or an archive has none",
    r"expected a git checkout": "an archive of the sources is none",
    r"playwright|chromium": "a browser is not among the development requirements",
}
LONGEST = (  # files of tests, the longest first
    "test_walkthrough.py",
    "test_install.py",
    "test_grid.py",
    "test_cases_runs.py",
    "test_audit.py",
    "test_one_of_each.py",
    "test_types.py",
)
unexpected = []  # (test, reason) of the skips that are not on the list


def reason_of(report):
    """The reason that a skipped test gave."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def is_allowed(reason):
    """Whether a reason is on the list."""
    return any(re.search(pattern, reason) for pattern in ALLOWED_SKIPS)


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no worker is left with one of them at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_configure(config):
    config.addinivalue_line("markers", SLOW)


def note_skip(report):
    """Remember a skip that nobody expects."""
    if report.skipped and not hasattr(report, "wasxfail") and not is_allowed(reason_of(report)):
        unexpected.append((report.nodeid, reason_of(report)))


def pytest_runtest_logreport(report):
    note_skip(report)


def pytest_collectreport(report):
    note_skip(report)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Take over what a worker of pytest-xdist noted while it collected its tests."""
    told = getattr(node, "workeroutput", {}).get("unexpected", [])
    unexpected.extend(skip for skip in map(tuple, told) if skip not in unexpected)


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["unexpected"] = unexpected
    elif unexpected and exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("skips")
    terminalreporter.line(f"unexpected skips: {len(unexpected)}")
    for test, reason in unexpected:
        terminalreporter.line(f"  {test}: {reason}")
