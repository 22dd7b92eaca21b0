"""Pictures of the page for docs/page.md, taken in a real Chromium of drawn images: no radiograph of a patient is in them.

It needs the drawn images and a network trained on them, as the demo leaves both: `make demo`, then

    .venv/bin/python docs/screenshots.py --images demo/images/test --model demo/quick --out docs/images
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

LANGUAGES = {"en": "en-GB", "zh-Hant": "zh-TW"}


def main() -> None:
    """Serve, send images as a person would, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    images = sorted(path for path in chosen.images.rglob("*") if path.is_file())
    images = images[:: max(1, len(images) // 60)]
    command = [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--ephemeral", "--model", str(chosen.model)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, sync_playwright() as driver:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            found = re.match(r"(http://\S+)", first)
            if not found:
                sys.exit(first + process.stderr.read())
            executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
            browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
            with tempfile.TemporaryDirectory() as folder:
                take(browser, found[1], images, Path(folder))
                for picture in sorted(Path(folder).iterdir()):
                    shutil.copy(picture, chosen.out / picture.name)
                    print(chosen.out / picture.name)
        finally:
            process.terminate()


def take(browser: Browser, service: str, images: list[Path], out: Path) -> None:
    """The worklist, the viewer, the overview and the report on a desk, and two of them on a phone in the dark."""
    page = browser.new_context(viewport={"width": 1280, "height": 860}, locale=LANGUAGES["en"]).new_page()
    page.goto(service)
    page.set_input_files("#pick", images)
    page.locator("#queue [data-done]").nth(len(images) - 1).wait_for(timeout=120_000)
    for key in ("j", "a", "j", "a", "j", "d", "j", "a"):
        page.keyboard.press(key)
        page.wait_for_timeout(300)
    page.goto(service)
    settle(page)
    page.screenshot(path=out / "page-worklist.png")
    page.locator("tr[data-id]", has_text="pneumonia").first.locator("a").click()
    page.locator("#zoom", has_text="%").wait_for()
    page.select_option("#beside", "same")
    page.locator(".layer").wait_for()
    settle(page)
    page.screenshot(path=out / "page-viewer.png")
    image = page.url
    page.set_viewport_size({"width": 1280, "height": 1250})  # nothing of it behind the notice
    page.goto(f"{image}/report")
    settle(page)
    page.screenshot(path=out / "page-report.png")
    page.goto(f"{service}/overview")
    page.screenshot(path=out / "page-overview.png")
    phone = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme="dark", locale=LANGUAGES["zh-Hant"], has_touch=True
    ).new_page()
    for name, path in (("page-phone-worklist.png", service), ("page-phone-viewer.png", image)):
        phone.goto(path)
        settle(phone)
        phone.screenshot(path=out / name)


def settle(page: Page) -> None:
    """Wait until every picture in sight is there."""
    page.evaluate("Promise.all([...document.images].filter(i => i.src && i.loading !== 'lazy').map(i => i.decode()))")
    page.wait_for_timeout(1000)


if __name__ == "__main__":
    main()
