"""Photograph the page of a survey for the notebooks: `python tools/survey_pictures.py survey.html`.

Needs playwright and Debian's chromium. Writes `figures/survey/page.png`.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FORM = 3  # whose questions are shown
WIDTH, GAP = 470, 14  # pixels
SCREENS = {"one": "Yes", "two": "Left", "nine": "Face 2"}  # task: what is chosen


def press_on(page):
    """Press what leads to the next question."""
    for name in ("Begin", "Continue"):
        button = page.get_by_role("button", name=name, exact=True)
        if button.count():
            button.click()


def photographs(page):
    """The first main question of each task, as pictures."""
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Start").click()
    tasks = page.evaluate(f"STUDY.forms[{FORM}].map(t => [STUDY.tasks[t[0]], STUDY.kinds[t[1]]])")
    pictures = {}
    for task, kind in tasks:
        press_on(page)
        press_on(page)
        kinds = "checkbox" if task == "nine" else "radio"
        page.get_by_role(kinds, name=SCREENS[task], exact=True).check()
        page.get_by_role("radio", name="Fairly sure").check()
        if kind == "main" and task not in pictures:
            shot = page.screenshot(full_page=True)
            pictures[task] = Image.open(io.BytesIO(shot)).convert("RGB")
        page.get_by_role("button", name="Next").click()
    return list(pictures.values())


def side_by_side(pictures):
    """One picture of several, on gray."""
    height = max(picture.height for picture in pictures) + 2 * GAP
    sheet = Image.new("RGB", (len(pictures) * (WIDTH + GAP) + GAP, height), (150, 150, 150))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (GAP + i * (WIDTH + GAP), GAP))
    return sheet


def main():
    """Open the page, go to its end, and write the picture."""
    address = f"{Path(sys.argv[1]).resolve().as_uri()}?form={FORM}"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": 600})
        page.goto(address)
        sheet = side_by_side(photographs(page))
        browser.close()
    out = ROOT / "figures" / "survey" / "page.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256).save(out, optimize=True)
    print(f"{out.relative_to(ROOT)}: {out.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
