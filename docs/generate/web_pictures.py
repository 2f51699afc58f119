"""The pictures of the page in docs/images/web-*.webp: a server, real transfers, and Chromium.

    python docs/generate/web_pictures.py

It takes some minutes, because the clips are made by the shipped model.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parents[1] / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
PROMPT = "a yellow square on a navy background"
PATIENCE = 600_000
"""Milliseconds."""


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A server in a folder, and its address."""
    command = [sys.executable, "-m", "recast", "serve", "--folder", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if match := re.search(r"open (http://\S+?)/", line):
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, match[1]
    raise SystemExit("the server did not start")


def job(url: str, **request: Any) -> str:
    """The id of a new job."""
    body = json.dumps({"clip": "sample:demo", "prompt": PROMPT, **request}).encode()
    with urllib.request.urlopen(f"{url}/jobs", body) as answer:
        return str(json.load(answer)["id"])


def opened(browser: Browser, url: str, width: int, height: int, **options: Any) -> Page:
    """A page of a size in pixels."""
    page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    return page


def save(page: Page, name: str) -> None:
    """Write what the window shows."""
    page.wait_for_timeout(1500)
    image = Image.open(BytesIO(page.screenshot())).convert("RGB")
    image.save(IMAGES / f"web-{name}.webp", quality=80, method=6)


def take(browser: Browser, url: str) -> None:
    """The four pictures."""
    done = job(url)
    running = opened(browser, f"{url}/?job={done}", 1280, 900)
    running.wait_for_selector("[data-curve]:not([hidden])")
    running.wait_for_selector("[data-preview]:not([hidden])")
    running.wait_for_function("() => document.querySelector('[data-bar]').value > 0.4")
    save_part(running, ".rc-job", "running")
    running.wait_for_selector(".rc-done")
    page = opened(browser, f"{url}/?job={done}", 1280, 1000)
    page.wait_for_selector(".rc-done")
    page.wait_for_selector(".rc-used img")
    save(page, "transfer")
    page.get_by_role("tab", name="Compare").click()
    page.locator("textarea:visible").first.fill(PROMPT)
    page.get_by_label("dreammotion", exact=True).check()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_selector(".rc-compare:has-text('3 of 3 finished')")
    page.evaluate("() => scrollTo(0, 0)")
    save(page, "compare")
    phone = opened(browser, f"{url}/?__theme=dark", 390, 844, color_scheme="dark")
    phone.get_by_role("tab", name="History").click()
    phone.wait_for_selector(".rc-card")
    save(phone, "phone")


def save_part(page: Page, place: str, name: str) -> None:
    """Write a picture of one element."""
    image = Image.open(BytesIO(page.locator(place).screenshot())).convert("RGB")
    image.save(IMAGES / f"web-{name}.webp", quality=80, method=6)


def main() -> None:
    """Start a server, take the pictures, and stop it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        server, url = start(Path(place) / "server")
        try:
            time.sleep(2)
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            take(browser, url)
            browser.close()
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()
