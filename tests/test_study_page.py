"""The page of the raters in a real browser: Chromium through Playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from recast.study import design
from recast.study.answers import Answers

from .studies import running, study

pytestmark = pytest.mark.slow
PATIENCE = 60_000
"""Milliseconds."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium or Chrome, since that of Playwright does not play H.264."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path is not None, "install chromium; these tests need a browser that plays H.264"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser: Browser, url: str, **options: Any) -> Page:
    """The page in a browser of its own; an error in its script fails the test."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)

    def fail(error: Any) -> None:
        raise AssertionError(error)

    page.on("pageerror", fail)
    page.goto(url)
    return page


def times(page: Page) -> list[float]:
    """Where the videos of the page are, in seconds."""
    found: list[float] = page.locator("video").evaluate_all("all => all.map(v => v.currentTime)")
    return found


def focused(page: Page) -> str:
    return str(page.locator(":focus").get_attribute("id"))


def test_a_rater_needs_only_the_keyboard_and_a_phone(browser: Browser, tmp_path: Path) -> None:
    folder = study(tmp_path)
    with running(folder) as (_, url):
        page = opened(browser, url, viewport={"width": 360, "height": 740})
        expect(page.locator("#consent")).to_contain_text("random name")
        for key in ("Tab", "Space", "Tab", "Enter"):
            page.keyboard.press(key)
        for number in range(3):
            expect(page.locator("#task")).to_have_text(f"{number + 1} of 3")
            expect(page.locator("#next")).to_be_disabled()
            assert focused(page) == "task"
            for key in ("Tab", "Tab", "Tab", "Space", "ArrowRight"):
                page.keyboard.press(key)
            expect(page.locator("#hint")).to_have_text("Please watch the videos to the end first.")
            expect(page.locator("#next")).to_be_enabled()
            page.keyboard.press("Tab")
            assert focused(page) == "next"
            overflow = page.locator("body").evaluate("it => it.scrollWidth - innerWidth")
            assert overflow <= 0
            page.keyboard.press("Enter")
        expect(page.locator("#thanks")).to_contain_text("All your answers are stored.")
        assert focused(page) == "thanks-title"
    judgments = Answers(folder / design.ANSWERS).judgments()
    assert [one.scores[one.shown[1]] for one in judgments] == [[1], [1], [1]]
    items = design.read(folder).items
    assert all(one.seconds >= items[one.item].min_play for one in judgments)


def test_clips_play_in_step_pause_and_start_again(browser: Browser, tmp_path: Path) -> None:
    with running(study(tmp_path)) as (_, url):
        page = opened(browser, url)
        page.check("#agree")
        page.click("#join button")
        expect(page.locator("#play")).to_have_text("Pause")
        for _ in range(10):
            now = times(page)
            assert len(now) == 3
            assert max(now) - min(now) < 0.25
            page.wait_for_timeout(150)
        page.click("#play")
        expect(page.locator("#play")).to_have_text("Play")
        before = times(page)
        page.wait_for_timeout(300)
        assert times(page) == before
        page.click("#again")
        expect(page.locator("#play")).to_have_text("Pause")


def test_a_page_that_is_loaded_again_goes_on_and_stores_three_ratings_for_each_video(
    browser: Browser, tmp_path: Path
) -> None:
    folder = study(tmp_path, "three-questions", checks=0)
    with running(folder) as (_, url):
        page = opened(browser, url, color_scheme="dark", reduced_motion="reduce")
        page.check("#agree")
        page.click("#join button")
        expect(page.locator("#play")).to_have_text("Play")  # nothing moves by itself
        page.click("#play")
        for scale, value in enumerate((1, 2, 3, 5, 4, 3)):
            expect(page.locator("#next")).to_be_disabled()
            page.locator(".scale").nth(scale).locator(f"input[value='{value}']").check()
        page.click("#next")
        expect(page.locator("#count")).to_have_text("1 of 2 answered")
        page.reload()
        expect(page.locator("#task")).to_have_text("2 of 2")
        code = page.locator("#own-code").text_content()
        other = opened(browser, url)
        other.click("#welcome summary")
        other.fill("#code", str(code))
        other.click("#return button")
        expect(other.locator("#task")).to_have_text("2 of 2")
    (stored,) = Answers(folder / design.ANSWERS).judgments()
    assert [list(stored.scores[name]) for name in stored.shown] == [[1, 2, 3], [5, 4, 3]]


def test_an_answer_that_cannot_be_sent_is_kept_on_the_page(
    browser: Browser, tmp_path: Path
) -> None:
    folder = study(tmp_path, min_play=0)
    with running(folder) as (_, url):
        page = opened(browser, url)
        page.check("#agree")
        page.click("#join button")
        page.locator("input[name=choice]").first.check()
        page.context.set_offline(True)
        page.click("#next")
        expect(page.locator("#problem")).to_contain_text("The server cannot be reached.")
        page.context.set_offline(False)
        expect(page.locator("input[name=choice]").first).to_be_checked()
        page.click("#next")
        expect(page.locator("#count")).to_have_text("1 of 3 answered")
        expect(page.locator("#problem")).to_be_hidden()
    assert len(Answers(folder / design.ANSWERS).judgments()) == 1
