"""The page in a real browser: Chromium, driven by Playwright.

A browser that cannot be started fails these tests. RECAST_CHROMIUM names another one than that on
the PATH.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import axe_core_python
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from recast.media.video import Video
from recast.pipeline import recipes
from recast.web.job_store import JobStore
from recast.web.requests import as_json
from recast.worlds.shapes import world

from .test_web_uploads import bad_uploads
from .web_servers import RunningServer, gaussian, server_folder, start_server, wait_for

pytestmark = pytest.mark.slow
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
PROMPT = "a yellow square on a navy background"
LONG = 10_000
TABS = ("Transfer", "History", "Motions", "Compare", "Bench")
WIDE = """() => document.documentElement.scrollWidth <= document.documentElement.clientWidth ? []
    : [...document.querySelectorAll("body *")]
        .filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth)
        .map((e) => e.outerHTML.slice(0, 90))"""
"""The elements that make a page wider than its window."""
DRAWN = """() => document.querySelector("[data-recast-mask] canvas")?.getContext("2d")
    .getImageData(0, 0, 512, 512).data.some((value) => value > 0)"""
"""Whether something is drawn on the canvas."""
PATIENCE = 180_000
"""Milliseconds that a test waits on a machine that does much else."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = (os.environ.get("RECAST_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = [path for name in names if name and (path := shutil.which(name))]
    assert found, "these tests need Chromium; install it, or name it in RECAST_CHROMIUM"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = server_folder(tmp_path_factory.mktemp("server"))
    with start_server(folder.root, "--jobs-per-client", "6") as running:
        yield running


@pytest.fixture
def visit(browser: Browser, server: RunningServer) -> Iterator[Callable[..., Page]]:
    """Opens an address of the server in a browser of its own. At the end no script may have
    failed."""
    contexts, errors = [], []

    def open_page(path: str = "/", url: str = server.url, **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url + path)
        page.wait_for_selector("#rc-start", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


def toasts(page: Page) -> list[str]:
    return page.locator(".toast-body").all_inner_texts()


@pytest.fixture(autouse=True)
def stop_jobs(server: RunningServer) -> Iterator[None]:
    yield
    for job in server.store.jobs(states=("queued", "running")):
        server.store.cancel(job.id)
        wait_for(server.store, job.id, ("cancelled", "done"))


def queue(store: JobStore, steps: int) -> str:
    return store.add("transfer", "test", as_json(gaussian(steps)))


def shown_job(page: Page) -> str:
    """The id of the job that was started. A page that shows an error fails the test at once."""
    page.wait_for_function(
        "() => location.search.includes('job=') || document.querySelector('.toast-body')"
    )
    assert "job=" in page.url, toasts(page)
    return page.url.partition("job=")[2]


def test_a_whole_transfer_on_the_shipped_model(
    visit: Callable[..., Page], server: RunningServer, tmp_path: Path
) -> None:
    clip = Video(world.render(world.sample(recipes.SEED)), world.FPS)
    page = visit()
    page.set_input_files("#rc-upload input[type=file]", clip.save(tmp_path / "my ball.mp4"))
    expect(page.locator("#rc-clip input")).to_have_value("Upload: my-ball.mp4")
    expect(page.locator(".rc-used img")).to_have_count(8)
    page.locator("#rc-prompt textarea").fill(PROMPT)
    page.get_by_text("All settings").click()
    page.get_by_label("Steps", exact=True).first.fill("5")
    page.get_by_label("Inner steps").fill("2")
    page.get_by_role("button", name="Transfer the motion").click()
    id = shown_job(page)
    expect(page.locator(".rc-job")).to_be_in_viewport()  # beside the long form of settings
    assert toasts(page) == []
    expect(page.locator(".rc-state")).to_contain_text(re.compile("Running|Waiting|Done"))
    page.wait_for_selector(".rc-done")
    expect(page.locator("#rc-estimate")).to_contain_text("Forecast of the time: about")
    job = server.store.get(id)
    assert job.request["config"] == {"inner_steps": "2"}
    assert job.request["draw"]["steps"] == "5"
    page.wait_for_function("() => Math.abs(document.querySelector('video').duration - 2) < 0.2")
    expect(page.locator(".rc-scores")).to_contain_text("motion fidelity")
    page.get_by_text("The same on the command line").click()
    expect(page.locator(".rc-copy pre").first).to_contain_text(
        f"recast transfer my-ball.mp4 '{PROMPT}' --method dmt --inner-steps 2 --steps 5"
    )
    play_frame_by_frame(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="Manifest").click()
    assert '"recast-run-1"' in download.value.path().read_text()
    use_the_motion_again(page)
    page.goto(f"{server.url}/?again={id}")
    expect(page.locator("#rc-prompt textarea")).to_have_value(PROMPT)
    expect(page.locator("#set-config-inner_steps")).to_have_value("2")


def play_frame_by_frame(page: Page) -> None:
    count = page.locator("[data-count]")
    slider = page.get_by_label("Frame", exact=True)
    slider.fill("3")
    expect(count).to_have_text("4 / 16")
    page.get_by_label("One frame on").click()
    expect(count).to_have_text("5 / 16")
    page.get_by_label("One frame back").click()
    page.get_by_label("One frame back").click()
    expect(count).to_have_text("3 / 16")


def use_the_motion_again(page: Page) -> None:
    page.get_by_role("tab", name="Motions").click()
    card = page.locator(".rc-card", has_text="my-ball.mp4")
    expect(card).to_contain_text("dmt on shapes")
    card.get_by_role("link", name="Use").click()
    expect(page.locator("#rc-clip input")).to_have_value(re.compile("Motion: my-ball.mp4, dmt"))
    expect(page.locator("#rc-film")).to_contain_text("dmt learned on shapes")
    expect(page.locator("#rc-start-time")).to_be_hidden()


def test_stop(visit: Callable[..., Page], server: RunningServer) -> None:
    id = queue(server.store, LONG)
    page = visit(f"/?job={id}")
    wait_for(server.store, id, ("running",), steps=2)
    page.wait_for_selector("[data-preview]:not([hidden])")
    expect(page.locator("[data-left]")).to_contain_text("left in this stage")
    begin = time.monotonic()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector(".rc-cancelled")
    assert time.monotonic() - begin < 2 + 1  # the page asks for news twice a second


def test_reload_in_the_middle_and_a_second_tab(
    visit: Callable[..., Page], server: RunningServer
) -> None:
    page = visit()
    page.locator("#rc-prompt textarea").fill("a cat")
    choose(page, "#rc-model", "gaussian")
    choose(page, "#rc-method", "unguided")
    choose(page, "#rc-clip", "Sample: dots")
    page.get_by_text("All settings").click()
    expect(page.locator("#rc-settings summary").nth(1)).not_to_contain_text("dmt")
    steps = page.get_by_label("Steps", exact=True).first
    if not steps.is_visible():  # the form of the new method came after the click, and is closed
        page.get_by_text("All settings").click()
    steps.fill(str(LONG))
    page.get_by_role("button", name="Transfer the motion").click()
    id = shown_job(page)
    wait_for(server.store, id, ("running",), steps=1)
    page.reload()
    stage = page.locator("[data-stage]")
    expect(stage).to_contain_text("step")
    second = page.context.new_page()
    second.goto(f"{server.url}/?job={id}")
    expect(second.locator("[data-stage]")).to_contain_text("step")
    second.get_by_role("button", name="Stop").click()
    page.wait_for_selector(".rc-cancelled")


def close_next_stream(page: Page) -> list[str]:
    """Write a prompt, wait until the stream of its answers has closed, and close the next stream at
    once. Returns the list of the addresses of streams that were closed so."""
    page.locator("#rc-prompt textarea").fill("a red zebra")
    expect(page.locator("#rc-prompt-note")).to_contain_text("zebra")
    expect(page.locator("#rc-estimate")).to_contain_text("Forecast of the time")
    page.wait_for_timeout(1000)
    closed = []

    def close(route: Route) -> None:
        closed.append(route.request.url)
        route.fulfill(content_type="text/event-stream", body='data: {"msg": "close_stream"}\n\n')

    page.route("**/queue/data**", close, times=1)
    return closed


def test_a_job_starts_although_the_stream_of_answers_closes(visit: Callable[..., Page]) -> None:
    page = visit()
    closed = close_next_stream(page)
    page.get_by_role("button", name="Transfer the motion").click()
    shown_job(page)
    assert len(closed) == 1


def test_a_note_appears_although_the_stream_of_answers_closes(visit: Callable[..., Page]) -> None:
    page = visit()
    closed = close_next_stream(page)
    page.locator("#rc-prompt textarea").fill("a red gnu")
    expect(page.locator("#rc-prompt-note")).to_contain_text("gnu")
    assert len(closed) == 1


def test_what_was_set_stays_when_another_method_is_chosen(visit: Callable[..., Page]) -> None:
    page = visit()
    page.get_by_text("All settings").click()
    page.get_by_label("Steps", exact=True).first.fill("7")
    choose(page, "#rc-method", "sdedit")
    expect(page.locator("#rc-settings summary").nth(1)).not_to_contain_text("dmt")
    expect(page.locator("#set-config-strength")).to_be_visible()  # the form is still open
    expect(page.locator("#set-draw-steps")).to_have_value("7")
    expect(page.locator("#rc-estimate")).to_contain_text("Forecast of the time")


def test_a_second_choice_while_the_first_is_estimated(visit: Callable[..., Page]) -> None:
    page = visit()
    estimate = page.locator("#rc-estimate")
    for method, name in (("moft", "MOFT"), ("flowmotion", "FlowMotion")):
        choose(page, "#rc-method", method)
        expect(estimate).to_contain_text(re.compile(f"{name}.*are being estimated", re.DOTALL))
    expect(estimate).to_contain_text(re.compile(r"FlowMotion.*Forecast of the time", re.DOTALL))


def test_words_that_the_model_does_not_know(visit: Callable[..., Page]) -> None:
    page = visit()
    page.locator("#rc-prompt textarea").fill("a red zebra")
    note = page.locator("#rc-prompt-note")
    expect(note).to_contain_text("The shapes model does not know: zebra.")
    page.locator("#rc-prompt textarea").fill("a red circle")
    expect(note).not_to_contain_text("zebra")


def choose(page: Page, place: str, label: str) -> None:
    page.locator(f"{place} input").click()
    page.get_by_role("option", name=label, exact=True).click()


def test_killing_the_server_in_the_middle(visit: Callable[..., Page], tmp_path: Path) -> None:
    root = server_folder(tmp_path / "killed").root
    with start_server(root) as first:
        port = int(first.url.rpartition(":")[2])
        running, waiting = queue(first.store, LONG), queue(first.store, 3)
        page = visit(f"/?job={running}", url=first.url)
        wait_for(first.store, running, ("running",), steps=2)
        expect(page.locator("[data-stage]")).to_contain_text("step")
        first.process.kill()
        first.process.wait()
        expect(page.get_by_text("The server does not answer")).to_be_visible()
    with start_server(root, port=port) as second:
        page.wait_for_selector(".rc-interrupted")
        wait_for(second.store, waiting, ("done",))
        page.get_by_role("button", name="Resume").click()
        page.wait_for_selector("[data-recast-live]")
        wait_for(second.store, running, ("running",), steps=1)
        page.get_by_role("button", name="Stop").click()
        page.wait_for_selector(".rc-cancelled")


def test_an_error_goes_when_a_job_starts(visit: Callable[..., Page]) -> None:
    page = visit()
    start = page.get_by_role("button", name="Transfer the motion")
    start.click()
    expect(page.locator(".toast-body")).to_contain_text("prompt", ignore_case=True)
    page.locator("#rc-prompt textarea").fill(PROMPT)
    start.click()
    page.wait_for_selector(".rc-job")
    expect(page.locator(".toast-body")).to_have_count(0, timeout=5000)


def test_ten_bad_uploads_are_explained(
    visit: Callable[..., Page], server: RunningServer, tmp_path: Path, ball: Path
) -> None:
    page = visit()
    refused = 0
    for name, (path, message) in bad_uploads(tmp_path, ball).items():
        if path.is_symlink() or path.suffix in (".pt",) or not path.stat().st_size:
            continue  # a browser does not send these
        page.set_input_files("#rc-upload input[type=file]", path)
        toast = page.locator(".toast-body", has_text=re.compile(message, re.IGNORECASE))
        expect(toast.first).to_be_visible(timeout=PATIENCE)
        assert str(tmp_path) not in toast.first.inner_text(), name
        toast.first.get_by_test_id("toast-close").click()
        expect(page.locator(".toast-body")).to_have_count(0)
        refused += 1
    assert refused >= 10
    root = Path(server.command[server.command.index("--folder") + 1])
    assert not [path for path in (root / "clips").glob("*") if path.name[0] == "."]
    assert not [*(root / "uploads").rglob("*.zip")]


def test_twenty_jobs_of_four_browsers(visit: Callable[..., Page], server: RunningServer) -> None:
    send = """async ([body, count]) => Promise.all([...Array(count)].map(() =>
        fetch('/jobs', {method: 'POST', body: JSON.stringify(body)}).then((a) => a.json())))"""
    body = as_json(gaussian(3))
    pages = [visit() for _ in range(4)]
    ids = [one["id"] for page in pages for one in page.evaluate(send, [body, 5])]
    assert len(set(ids)) == 20
    jobs = [wait_for(server.store, id, ("done",)) for id in ids]
    assert len({job.client for job in jobs}) == 4
    begun = [job.started or 0 for job in sorted(jobs, key=lambda job: job.number)]
    assert begun == sorted(begun)  # one after the other, in their order
    pages[0].get_by_role("tab", name="History").click()
    expect(pages[0].locator(".rc-card")).to_have_count(server.store.count(("done", "cancelled")))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_finding_of_axe(
    visit: Callable[..., Page], server: RunningServer, scheme: str
) -> None:
    done = wait_for(server.store, queue(server.store, 3), ("done",)).id
    page = visit(f"/?job={done}&__theme={scheme}", color_scheme=scheme)
    page.wait_for_selector(".rc-done")
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background)[:3])) < 80) == (scheme == "dark")
    page.evaluate(AXE)
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(600)
        if tab == "Transfer":
            page.get_by_text("All settings").click()
            page.get_by_role("button", name="Change only a region").click()
        assert serious(page) == [], tab


def serious(page: Page) -> list[str]:
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{finding['id']}: {node['target']} {node['html'][:120]}"
        for finding in found["violations"]
        if finding["impact"] in ("serious", "critical")
        for node in finding["nodes"]
    ]


def test_the_width_of_a_phone(visit: Callable[..., Page], server: RunningServer) -> None:
    done = wait_for(server.store, queue(server.store, 3), ("done",)).id
    page = visit(f"/?job={done}", viewport={"width": 375, "height": 740}, has_touch=True)
    page.wait_for_selector(".rc-done")
    expect(page.locator(".rc-job h3")).to_be_in_viewport()  # the fields are above it
    count, card = (page.locator(place).bounding_box() for place in ("[data-count]", ".rc-player"))
    assert count is not None
    assert card is not None
    assert count["x"] + count["width"] <= card["x"] + card["width"]
    for tab in TABS:
        open_tab(page, tab)
        page.wait_for_timeout(400)
        assert page.evaluate(WIDE) == [], tab
    open_tab(page, "Transfer")
    box = page.locator("#rc-start").bounding_box()
    assert box is not None
    assert box["height"] >= 36


def open_tab(page: Page, name: str) -> None:
    """Tabs that do not fit stand in a menu."""
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()


def test_the_keyboard_alone(visit: Callable[..., Page], server: RunningServer) -> None:
    id = queue(server.store, LONG)
    page = visit()
    reached = tab_until(page, "() => document.activeElement.closest('#rc-prompt') !== null")
    assert reached < 30
    page.keyboard.type("a cat")
    assert tab_until(page, "() => document.activeElement.id === 'rc-start'") < 40
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # it is seen where the keyboard is
    page.keyboard.press("Enter")
    started = shown_job(page)
    assert started != id
    assert tab_until(page, "() => document.activeElement.textContent === 'Stop'") < 40
    page.keyboard.press("Enter")
    page.wait_for_selector(".rc-cancelled")
    assert server.store.get(started).state == "cancelled"


def tab_until(page: Page, reached: str) -> int:
    """Press Tab until an expression is true; returns how often."""
    for count in range(60):
        if page.evaluate(reached):
            return count
        page.keyboard.press("Tab")
    raise AssertionError(f"the keyboard does not reach: {reached}")


def test_a_comparison_with_a_clip_of_another_system(
    visit: Callable[..., Page], server: RunningServer, tmp_path: Path
) -> None:
    root = Path(server.command[server.command.index("--folder") + 1])
    other = tmp_path / "theirs.mp4"
    shutil.copyfile(root / "samples" / "dots.mp4", other)
    page = visit()
    page.get_by_role("tab", name="Compare").click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.get_by_label("Clip").first.click()
    page.get_by_role("option", name="Sample: dots").click()
    panel.get_by_label(re.compile("^Model")).click()
    page.get_by_role("option", name="gaussian").click()
    panel.locator("textarea").first.fill("a cat")
    for method, on in (("dmt", False), ("unguided", True)):
        panel.get_by_label(method, exact=True).set_checked(on)
    panel.locator("input[type=file]").set_input_files(other)
    panel.get_by_label(re.compile("^Steps")).fill("4")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator(".rc-compare")).to_contain_text("3 of 3 finished")
    scores = page.locator(".rc-compare table")
    expect(scores).to_contain_text("theirs.mp4")
    expect(scores.locator("tr", has_text="motion fidelity, plain")).to_contain_text("1.000")
    expect(page.get_by_label("The source", exact=True)).to_be_visible()
    page.wait_for_url(re.compile(r"\?compare=\w+"))
    page.reload()
    expect(page.locator(".rc-compare")).to_contain_text("3 of 3 finished")
    page.get_by_role("tab", name="History").click()
    page.locator(".rc-card", has_text="scores of theirs.mp4").locator("h3 a").click()
    expect(page.locator(".rc-compare")).to_contain_text("3 of 3 finished")


def test_a_drawn_region_and_the_words_of_the_automatic_one(
    visit: Callable[..., Page], server: RunningServer
) -> None:
    page = visit()
    choose(page, "#rc-clip", "Sample: demo")
    choose(page, "#rc-method", "dreammotion")
    page.locator("#rc-prompt textarea").fill("a blue square on a navy background")
    page.locator("#rc-source-prompt textarea").fill("an orange circle on a black background")
    page.get_by_role("button", name="Change only a region").click()
    page.get_by_label("By the words").check()
    expect(page.locator(".rc-words mark")).to_have_text(
        ["orange", "circle", "black", "background", "blue", "square", "navy", "background"]
    )
    page.get_by_label("Draw it").check()
    canvas = page.locator("[data-recast-mask] canvas")
    canvas.hover(position={"x": 40, "y": 40})  # waits until the page does not move any more
    page.mouse.down()
    canvas.hover(position={"x": 120, "y": 60})
    page.mouse.up()
    page.get_by_label("Whole frame").check()
    expect(canvas).to_have_count(0)
    page.get_by_label("Draw it").check()
    page.wait_for_function(DRAWN)  # a new canvas shows what was drawn on the old one
    page.get_by_role("button", name="Transfer the motion").click()
    id = shown_job(page)
    assert server.store.get(id).request["mask"] == "drawn"
    root = Path(server.command[server.command.index("--folder") + 1])
    mask = root / "jobs" / id / "mask.png"
    assert 0.005 < (np.asarray(Image.open(mask).convert("L")) > 127).mean() < 0.2
    server.store.cancel(id)
