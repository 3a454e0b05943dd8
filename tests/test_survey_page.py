"""The page of a survey in a real browser: mouse, keyboard, zoom, phone, screen reader, reload, saving, sending."""

import json
import shutil
import threading

import pytest
import torch

from natrig_nb.survey.answers import (
    check_against_study,
    expected_answer,
    parsed_answers,
    read_answers,
)
from natrig_nb.survey.page import make_study, write_survey
from natrig_nb.survey.plan import Design
from natrig_nb.survey.report import analyze_survey
from natrig_nb.survey.server import make_server
from natrig_nb.survey.simulation import Planted, simulated_records
from natrig_nb.survey.stimuli import rendered_stimuli
from natrig_nb.testing import toy_generator
from natrig_nb.trigger.badnets import BadNets
from natrig_nb.trigger.base import LatentTrigger, Space

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MIN_TARGET = 44  # pixels of whatever is touched
MIN_CONTRAST = 4.5  # of text, WCAG 2.2 AA


@pytest.fixture(scope="module")
def study():
    triggers = {
        "right": LatentTrigger("right", Space.W, 1.0, offset=torch.tensor([0.5, 0.0, 0.0])),
        "patch": BadNets(),
    }
    design = Design(tuple(triggers), n_blocks=1, n_pairs=1)
    real = torch.full((design.n_real, 3, 32, 32), 60, dtype=torch.uint8)
    stimuli = rendered_stimuli(toy_generator(), triggers, real, design.n_identities)
    return make_study(stimuli, design, contact="the teacher")


@pytest.fixture(scope="module")
def page_file(study, tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "survey.html", study)


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no browser here: expected chromium on the PATH (apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser, page_file):
    """Opens the page and refuses everything that is not inside it."""
    contexts = []

    def opened(address=None, **settings):
        context = browser.new_context(accept_downloads=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.faults = []
        page.asked = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda m: m.type == "error" and page.faults.append(m.text))
        page.on("request", lambda request: page.asked.append(request.url))
        page.set_default_timeout(5000)
        page.goto(address or f"{page_file.as_uri()}?form=3")
        return page

    yield opened
    for context in contexts:
        context.close()


def truth(study, form, number):
    """What a question of a form shows, with the tampered pictures."""
    return expected_answer(study, study["forms"][form][number])


def give_answer(page, asked):
    """Answer one question with the mouse, correctly."""
    tampered = [picture["tampered"] for picture in asked["pictures"]]
    if asked["task"] == "one":
        page.get_by_role("radio", name="Yes" if tampered[0] else "No", exact=True).check()
    elif asked["task"] == "two":
        page.get_by_role("radio", name="Left" if tampered[0] else "Right").check()
    else:
        for number in [i + 1 for i, odd in enumerate(tampered) if odd]:
            page.get_by_role("checkbox", name=f"Face {number}").check()
    page.get_by_role("radio", name="Certain").check()
    page.get_by_role("button", name="Next").click()


def begin(page):
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Start").click()


def pass_screens(page):
    """Press what leads on until a question or the end is there."""
    for name in ("Begin", "Continue"):
        button = page.get_by_role("button", name=name, exact=True)
        if button.count():
            button.click()


def answer_all(page, study, form, start=0, stop=None):
    questions = study["forms"][form][start:stop]
    for number in range(start, start + len(questions)):
        for _ in range(2):
            pass_screens(page)
        give_answer(page, truth(study, form, number))
    pass_screens(page)


def test_page_to_the_end_with_a_reload(open_page, study, tmp_path):
    page = open_page()
    page.get_by_role("button", name="Start").click()
    assert "tick the box" in page.get_by_role("alert").inner_text()
    begin(page)
    answer_all(page, study, 3, 0, 7)
    page.reload()
    assert "7 of" in page.locator("#stage").inner_text()
    page.get_by_role("button", name="Continue where I stopped").click()
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_role("heading", name="Paused").count() == 1
    answer_all(page, study, 3, 7)
    assert page.get_by_role("heading", name="Thank you").count() == 1
    with page.expect_download() as download:
        page.get_by_role("button", name="Save my answers").click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    (file,) = tmp_path.glob("answers-*.json")
    record = parsed_answers(file.read_bytes())
    check_against_study(record, study)
    assert record["form"] == 3
    assert record["complete"]
    assert all(answer["confidence"] == 3 for answer in record["answers"])
    right = [p["chosen"] == p["tampered"] for a in record["answers"] for p in a["pictures"]]
    assert all(right)
    # a program answers too fast: the rules say so, and nobody is left
    assert read_answers(tmp_path).people.excluded.tolist() == ["too fast"]
    for answer in record["answers"]:
        answer["ms"] += 1000
    file.write_text(json.dumps(record))
    simulated = simulated_records(study, Planted({"right": 0.5, "patch": 1.0}), 5)
    for other in simulated:
        (tmp_path / f"answers-{other['session']}.json").write_text(json.dumps(other))
    found = analyze_survey(tmp_path, tmp_path / "analysis")
    counted = read_answers(tmp_path)
    assert record["session"] in set(counted.rows.participant)
    assert counted.refused == {}
    assert len(found.sentences) == 3
    assert found.report.exists()
    page.get_by_role("button", name="Delete my answers").click()
    page.reload()
    assert page.get_by_role("button", name="Start").count() == 1
    assert page.faults == []
    outside = [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == []


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def name_of_focus(page):
    return page.evaluate(
        "() => { const e = document.activeElement; return (e.labels && e.labels[0] || e).innerText.trim(); }"
    )


def tab_to(page, name):
    """Press Tab until the element of that name has the focus."""
    for _ in range(20):
        press(page, "Tab")
        if name_of_focus(page) == name:
            return
    raise AssertionError(f"Tab does not lead to {name}, but to {name_of_focus(page)}")


def answer_by_keys(page, asked):
    """Answer one question with Tab, arrows, space and Enter alone; the focus starts at the heading."""
    tampered = [picture["tampered"] for picture in asked["pictures"]]
    press(page, "Tab")
    if asked["task"] == "nine":
        for odd in tampered:
            if odd:
                press(page, "Space")
            press(page, "Tab")
    else:
        press(page, "Space" if tampered[0] else "ArrowDown", "Tab")
    press(page, "Space", "ArrowRight", "Enter")


def keys_lead_on(page):
    """Leave screens between the questions with the keyboard."""
    for name in ("Begin", "Continue"):
        if page.get_by_role("button", name=name, exact=True).count():
            tab_to(page, name)
            press(page, "Enter")


def test_keyboard_alone_and_sending(open_page, study, page_file, tmp_path):
    server = make_server(page_file, tmp_path, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = open_page(f"http://127.0.0.1:{server.server_port}/")
    assert page.url.endswith("/?form=0")
    tab_to(
        page, "I have read this, I want to take part, and I am old enough to decide this myself."
    )
    press(page, "Space", "Tab", "Enter")
    for number in range(len(study["forms"][0])):
        keys_lead_on(page)
        keys_lead_on(page)
        answer_by_keys(page, truth(study, 0, number))
    keys_lead_on(page)
    tab_to(page, "Send my answers")
    press(page, "Enter")
    page.get_by_text("Your answers have arrived").wait_for()
    press(page, "Enter")  # a second time: the same file
    page.wait_for_timeout(100)
    server.shutdown()
    server.server_close()
    (file,) = tmp_path.glob("*.json")
    record = parsed_answers(file.read_bytes())
    check_against_study(record, study)
    assert {answer["confidence"] for answer in record["answers"]} == {2}
    right = [p["chosen"] == p["tampered"] for a in record["answers"] for p in a["pictures"]]
    assert all(right)
    assert page.faults == []


CHECK_LAYOUT = """() => {
  const root = document.documentElement;
  const small = [...document.querySelectorAll('button, label.option')]
    .filter((e) => e.offsetParent && !e.closest('[hidden]'))
    .map((e) => [e.innerText, e.getBoundingClientRect().width, e.getBoundingClientRect().height])
    .filter(([, w, h]) => w < MIN || h < MIN);
  return {wide: root.scrollWidth > root.clientWidth, small};
}"""

CHECK_CONTRAST = """() => {
  const channel = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => {
    const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => channel(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|transparent/.test(color)) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('h1, h2, p, legend, span, label, button')]
    .filter((e) => e.innerText && e.offsetParent && !e.closest('[hidden]'))
    .map((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
      return [e.innerText, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""


def check_screen(page, where):
    found = page.evaluate(CHECK_LAYOUT.replace("MIN", str(MIN_TARGET)))
    assert not found["wide"], f"{where} is wider than the window"
    assert found["small"] == [], where
    low = [(words, ratio) for words, ratio in page.evaluate(CHECK_CONTRAST) if ratio < MIN_CONTRAST]
    assert low == [], where
    focus = page.evaluate("() => document.activeElement.tagName")
    assert focus == "H2", f"expected the focus at the heading of {where}"


SCREENS = {
    "desktop": {"viewport": {"width": 1366, "height": 768}},
    "zoom of 200 %": {"viewport": {"width": 683, "height": 384}, "device_scale_factor": 2},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "zoom of 400 %": {"viewport": {"width": 320, "height": 256}, "color_scheme": "dark"},
}


def first_of_each(study, form):
    """Questions of a form, each with whether it is the first of its task and kind."""
    met = set()
    for number in range(len(study["forms"][form])):
        asked = truth(study, form, number)
        what = asked["task"], asked["kind"]
        yield asked, what not in met
        met.add(what)


@pytest.mark.parametrize("name", SCREENS)
def test_every_screen_fits(open_page, study, name):
    page = open_page(**SCREENS[name])
    check_screen(page, f"consent, {name}")
    begin(page)
    for asked, is_first in first_of_each(study, 3):
        where = f"{asked['task']}, {asked['kind']}, {name}"
        if is_first:
            check_screen(page, f"the screen before {where}")
        for _ in range(2):
            pass_screens(page)
        if is_first:
            check_screen(page, where)
        give_answer(page, asked)
    check_screen(page, f"end, {name}")
    assert page.faults == []


def test_names_for_a_screen_reader(open_page, study):
    page = open_page()
    begin(page)
    status = page.locator("#status")
    assert status.get_attribute("aria-live") == "polite"
    assert page.locator("html").get_attribute("lang") == "en"
    labels = {"one": [], "two": ["Left", "Right"], "nine": [f"Face {i}" for i in range(1, 10)]}
    seen = set()
    for asked, is_first in first_of_each(study, 3):
        for _ in range(2):
            pass_screens(page)
        seen.add(status.inner_text())
        if is_first and asked["kind"] == "main":
            tree = page.locator("body").aria_snapshot()
            kind = "checkbox" if asked["task"] == "nine" else "radio"
            for label in labels[asked["task"]]:
                assert f'- {kind} "{label}"' in tree
            nameless = [f"- {kind}" for kind in ("radio", "checkbox", "button")]
            assert not set(nameless) & {line.strip() for line in tree.splitlines()}
            assert "progressbar" in tree
            assert page.locator("img:not([alt])").count() == 0
            page.get_by_role("button", name="Next").click()
            assert "Please answer" in page.get_by_role("alert").inner_text()
        give_answer(page, asked)
    assert {"Practice"} < seen
    assert any(words.startswith("Question 5 of") for words in seen)
