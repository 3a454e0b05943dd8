"""The survey as people meet it: its page in a real browser, and its server under a thousand bad uploads."""

import http.client
import json
import random
import shutil
import socket
import threading

import pytest
import torch

from natrig_nb.survey.answers import (
    MAX_BYTES,
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
    tab_to(page, "I have read this, I want to take part, and I am old enough to decide this myself.")
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


@pytest.mark.parametrize("name", SCREENS)
def test_every_screen_fits(open_page, study, name):
    page = open_page(**SCREENS[name])
    check_screen(page, f"consent, {name}")
    begin(page)
    for number in range(len(study["forms"][3])):
        asked = truth(study, 3, number)
        check_screen(page, f"before question {number}, {name}")
        for _ in range(2):
            pass_screens(page)
        if asked["kind"] != "main":
            check_screen(page, f"question {number}, {name}")
        give_answer(page, asked)
    check_screen(page, f"end, {name}")
    assert page.faults == []


def test_names_for_a_screen_reader(open_page, study):
    page = open_page()
    begin(page)
    status = page.locator("#status")
    assert status.get_attribute("aria-live") == "polite"
    assert page.locator("html").get_attribute("lang") == "en"
    seen = set()
    for number in range(len(study["forms"][3])):
        for _ in range(2):
            pass_screens(page)
        asked = truth(study, 3, number)
        tree = page.locator("body").aria_snapshot()
        nameless = [line for line in tree.splitlines() if line.strip() in ("- radio", "- checkbox", "- button")]
        assert nameless == []
        assert "progressbar" in tree
        assert page.locator("img:not([alt])").count() == 0
        seen.add(status.inner_text())
        page.get_by_role("button", name="Next").click()
        assert "Please answer" in page.get_by_role("alert").inner_text()
        give_answer(page, asked)
    assert {"Practice"} < seen
    assert any(words.startswith("Question 5 of") for words in seen)


def malformed(record, kind, rng):
    """An upload with one fault."""
    texts = ("../../etc/passwd", "<script>alert(1)</script>", "'; DROP TABLE a", "\x00", "a" * 300)
    content = json.loads(json.dumps(record))
    faults = ("entry", "extra", "lost", "answer", "picture", "bytes", "cut", "deep", "order", "huge")
    fault = faults[kind % len(faults)]
    if fault == "entry":
        content[rng.choice(list(content))] = rng.choice(texts)
    if fault == "lost":
        del content[rng.choice(list(content))]
    if fault == "extra":
        content[rng.choice(texts)] = rng.choice((None, -1, 10**30, 1.5, [], {}, True, "0"))
    if fault in ("answer", "picture"):
        answer = rng.choice(content["answers"])
        place = answer if fault == "answer" else rng.choice(answer["pictures"])
        place[rng.choice(list(place))] = rng.choice(texts)
    if fault == "order":
        content["answers"].reverse()
    text = json.dumps(content).encode()
    if fault == "bytes":
        return rng.randbytes(rng.randrange(2000))
    if fault == "cut":
        return text[: rng.randrange(len(text))]
    if fault == "deep":
        return b"[" * rng.randrange(10_000, 100_000)
    return text + b" " * MAX_BYTES if fault == "huge" else text


def post(port, content, path="/answers", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", path, content, {"Content-Type": "application/json", **headers})
    return connection.getresponse().status


def pour(port, n_bytes):
    """Announce and send an upload of many bytes until the server has had enough; the status, if any."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        head = f"POST /answers HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: {n_bytes}\r\n\r\n".encode())
        sent = 0
        try:
            while sent < n_bytes:
                line.sendall(b" " * 1_000_000)
                sent += 1_000_000
        except OSError:
            return sent
    return sent


def test_a_thousand_malformed_uploads(study, page_file, tmp_path):
    server = make_server(page_file, tmp_path / "inside" / "answers", port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    answers = []
    for trial in study["forms"][2]:
        asked = expected_answer(study, trial)
        pictures = [{**picture, "chosen": picture["tampered"]} for picture in asked["pictures"]]
        answers.append({**asked, "pictures": pictures, "confidence": 3, "ms": 900})
    record = {"version": 1, "study": study["digest"], "session": "56" * 16, "form": 2, "language": "en"}
    record |= {"complete": True, "seconds": 60, "pixel_ratio": 1, "answers": answers}
    rng = random.Random(0)
    port = server.server_port
    statuses = [post(port, malformed(record, kind, rng)) for kind in range(990)]
    statuses += [post(port, json.dumps(record), path) for path in ("/", "/answers/../../x.json", "/answers/x")]
    statuses += [
        post(port, json.dumps(record), **{"Content-Type": kind}) for kind in ("text/plain", "text/html")
    ]
    statuses += [post(port, b"{}", **{name: "evil.example"}) for name in ("Host", "Origin")]
    statuses.append(post(port, b"{}", **{"Content-Length": "100000000"}))
    statuses.append(post(port, b"{}", **{"Transfer-Encoding": "chunked"}))
    assert pour(port, 100_000_000) < 100_000_000
    assert len(statuses) + 1 == 1000
    assert set(statuses) <= {400, 404, 411, 413, 415, 421}
    assert statuses.count(413) == 100
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert made == []
    assert thread.is_alive()
    assert post(port, json.dumps(record)) == 201
    assert len(read_answers(tmp_path / "inside" / "answers").people) == 1
    server.shutdown()
    server.server_close()
