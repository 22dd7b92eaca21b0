"""Take the screenshots of the web interface for the documentation, in both languages, in a real Chromium.

The images are synthetic; no radiograph of a patient appears in a screenshot. `make demo` generates the images and trains a
model on them. Then run

    .venv/bin/python docs/screenshots.py --images demo/images/test --model demo/quick --out docs/images
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, expect, sync_playwright

LANGUAGES = {"en": "en-GB", "zh-Hant": "zh-TW"}  # language of the UI: locale of the browser
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
MAX_IMAGES = 60
START_SECONDS = 60


def main() -> None:
    """Start a service, upload images as a user would, and take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images to upload")
    parser.add_argument("--model", type=Path, required=True, help="bundle or run folder to serve")
    parser.add_argument("--out", type=Path, required=True, help="folder of the screenshots")
    arguments = parser.parse_args()
    images = sorted(path for path in arguments.images.rglob("*") if path.is_file())
    images = images[:: math.ceil(len(images) / MAX_IMAGES)]
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with (
        running_service(arguments.model) as url,
        sync_playwright() as playwright,
        tempfile.TemporaryDirectory() as folder,
    ):
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        take_screenshots(browser, url, images, Path(folder))
        for file in sorted(Path(folder).iterdir()):
            shutil.copy(file, arguments.out / file.name)
            print(arguments.out / file.name)


@contextmanager
def running_service(model: Path) -> Iterator[str]:
    """Start a service with in-memory storage, yield its URL and stop it in the end.

    Raises:
        TimeoutError: The service does not answer within `START_SECONDS`.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "pneumoscope", "serve", "--port", str(port), "--ephemeral", "--model", str(model)]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not is_ready(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise TimeoutError(f"{' '.join(command)} does not answer")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def is_ready(url: str) -> bool:
    """Return True if the service answers its readiness check."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False


def take_screenshots(browser: Browser, url: str, images: list[Path], out: Path) -> None:
    """Save all pages at desktop size in each language, and worklist and viewer on a phone in Chinese."""
    upload_and_review(new_page(browser, "en"), url, images)
    for language in LANGUAGES:
        suffix = "" if language == "en" else f".{language}"
        page = new_page(browser, language)
        page.goto(url)
        save(page, out / f"page-worklist{suffix}.png")
        page.locator("tr[data-id]", has=page.locator(".decision.pneumonia")).first.locator("a").click()
        page.locator(".viewport[data-loaded]").wait_for()
        page.select_option("#compare", "same")
        page.locator("#compare-viewport[data-loaded]").wait_for()
        page.locator(".heatmap-layer").wait_for()
        save(page, out / f"page-viewer{suffix}.png")
        viewer = page.url
        for name, path in (
            ("dashboard", f"{url}/dashboard"),
            ("model", f"{url}/model"),
            ("report", f"{viewer}/report"),
        ):
            page.set_viewport_size({**DESKTOP, "height": 1250 if name == "report" else DESKTOP["height"]})
            page.goto(path)
            save(page, out / f"page-{name}{suffix}.png")
    phone = browser.new_context(
        viewport=PHONE, color_scheme="dark", locale=LANGUAGES["zh-Hant"], has_touch=True
    ).new_page()
    for name, path in (("worklist", url), ("viewer", viewer)):
        phone.goto(path)
        if name == "viewer":
            phone.locator(".viewport[data-loaded]").wait_for()
        save(phone, out / f"page-phone-{name}.png")


def new_page(browser: Browser, language: str) -> Page:
    """Return a page at desktop size in a language."""
    return browser.new_context(viewport=DESKTOP, locale=LANGUAGES[language]).new_page()


def upload_and_review(page: Page, url: str, images: list[Path]) -> None:
    """Upload images, and label those with the highest probabilities in the viewer by keyboard."""
    page.goto(url)
    page.set_input_files("#file-input", images)
    expect(page.locator("#upload-queue [data-state]")).to_have_count(len(images), timeout=120_000)
    worklist = f"{url}/?order=highest"  # an order that does not change with readings
    for row, key in enumerate("ppnp"):
        page.goto(worklist)
        page.locator("tr[data-id] th a").nth(row).click()
        expect(page.locator("#zoom")).to_have_text(re.compile("%"))
        page.keyboard.press(key)
        expect(page.locator("#save-status")).to_have_text("Saved.")
        page.goto(worklist)
        review = page.locator("tr[data-id] .review").nth(row)
        expect(review).to_have_text("Pneumonia" if key == "p" else "No finding")


def save(page: Page, file: Path) -> None:
    """Take a screenshot when all images in view are decoded."""
    page.wait_for_load_state("networkidle")
    page.evaluate("Promise.all([...document.images].filter(i => i.src && i.loading !== 'lazy').map(i => i.decode()))")
    page.screenshot(path=file)


if __name__ == "__main__":
    main()
