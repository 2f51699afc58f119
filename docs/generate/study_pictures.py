"""Makes the pictures of docs/guide/study.md: the page of the raters, and two reports.

    python docs/generate/study_pictures.py docs/images

It needs Chromium. The clips are scenes of the shapes world. The simulated raters of the first
report prefer DMT as often as table 1 of its paper says (arXiv 2311.17009); the opinions of the
second panel are made up.
"""

import csv
import itertools
import math
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from recast.media.video import Video
from recast.study import app, creation, panel, report
from recast.study.config import StudyConfig
from recast.study.panel import Panel
from recast.study.report import ReportConfig
from recast.worlds.shapes import captions, world

TABLE_1 = {"TokenFlow": 0.7257, "Control-A-Video": 0.8450, "Tune-A-Video": 0.7780}
STRENGTHS = {"DMT": [0.0]} | {
    name: [math.log((1 - fraction) / fraction)] for name, fraction in TABLE_1.items()
}
OPINIONS = {
    "DreamMotion": [4.2, 4.0, 4.3],
    "TokenFlow": [3.4, 3.9, 3.7],
    "Gen-1": [3.6, 3.5, 2.9],
    "Tune-A-Video": [3.3, 2.6, 2.4],
}
PAIRS, RATERS, PORT, COLOURS = 54, 150, 7877, 255
PARTS = ("shape", "colour", "ground", "pattern")


def main(pictures: Path) -> None:
    """Write study-page.png, study-report.png and study-questions.png."""
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        root = Path(scratch)
        choices = _study(root / "2afc", list(STRENGTHS), PAIRS, form="2afc", ours="DMT", items=47)
        _photograph_page(browser, choices, pictures / "study-page.png")
        panel.simulate(choices, Panel(strengths=STRENGTHS, careless=8), RATERS)
        _photograph(browser, choices, pictures / "study-report.png")
        ratings = _study(root / "three", list(OPINIONS), 12, form="three-questions")
        panel.simulate(ratings, Panel(strengths=OPINIONS, spread=0.4), 20)
        _photograph(browser, ratings, pictures / "study-questions.png")
        browser.close()


def _study(folder: Path, systems: Sequence[str], pairs: int, **settings: Any) -> Path:
    """A study of scenes: each system shows the source's motion with another appearance, and the
    first one that of the prompt."""
    clips, seeds = folder / "clips", itertools.count(3)
    for name in ("source", *systems):
        (clips / name).mkdir(parents=True)
    with (clips / "prompts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "prompt"])
        for index in range(pairs):
            source = world.sample(next(seeds))
            targets = [world.sample(next(seeds)) for _ in systems]
            writer.writerow([f"pair-{index}", captions.prompt(targets[0])])
            Video(world.render(source), world.FPS).save(clips / "source" / f"pair-{index}.mp4")
            for name, target in zip(systems, targets, strict=True):
                looks = {part: getattr(target, part) for part in PARTS}
                shown = world.render(replace(source, **looks))
                Video(shown, world.FPS).save(clips / name / f"pair-{index}.mp4")
    config = StudyConfig(folder=clips, out=folder / "study", **settings)
    return creation.create(config).run()


def _photograph_page(browser: Browser, study: Path, picture: Path) -> None:
    """Photograph the first item that a rater sees, half a second into its clips."""
    server = uvicorn.Server(uvicorn.Config(app.create(study), port=PORT, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    page = browser.new_page(viewport={"width": 820, "height": 930})
    page.goto(f"http://127.0.0.1:{PORT}/")
    page.check("#agree")
    page.click("#join button")
    page.locator("#play", has_text="Pause").wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=picture, full_page=True)
    server.should_exit = True
    thread.join()
    for path in study.glob("answers.sqlite*"):
        path.unlink()
    _shrink(picture)


def _photograph(browser: Browser, study: Path, picture: Path) -> None:
    """Write the report of a study and photograph the whole page."""
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.goto(report.write(ReportConfig(folder=study)).as_uri())
    page.screenshot(path=picture, full_page=True)
    _shrink(picture)


def _shrink(picture: Path) -> None:
    image = Image.open(picture).convert("RGB")
    size = image.width * 4 // 5, image.height * 4 // 5
    small = image.resize(size, Image.Resampling.LANCZOS)
    small.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(picture, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
