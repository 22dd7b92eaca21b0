"""Take the screenshot of Orthanc's explorer for the documentation, after a round trip with the page's own configuration.

It needs Orthanc and dcmtk (Debian's packages orthanc and dcmtk) and Chromium. The images are synthetic; `make demo` generates
them and trains a model on them. Then run

    .venv/bin/python docs/orthanc_screenshot.py --images demo/images/test --model demo/quick --out docs/images
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import sync_playwright

PAGE = Path(__file__).parent / "how-to" / "orthanc.md"
FILES = ("route.lua", "orthanc.json", "dicom.toml")
WINDOW = {"width": 1280, "height": 700}
SECONDS = 60
KEYS = {
    "Modality": "DX", "ViewPosition": "PA", "BodyPartExamined": "CHEST", "PatientID": "P-0001",
    "PatientName": "Drawn^Image", "PatientAge": "003Y", "StudyDescription": "Chest", "SeriesDescription": "Chest PA",
}  # fmt: skip


def main() -> None:
    """Send an image to Orthanc, wait for the results, and take the screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of drawn images, of which one is sent")
    parser.add_argument("--model", type=Path, required=True, help="bundle or run folder to serve")
    parser.add_argument("--out", type=Path, required=True, help="folder of the screenshot")
    arguments = parser.parse_args()
    image = min(path for path in arguments.images.rglob("*.jpeg") if path.parent.name == "PNEUMONIA")
    ports = {port: str(free_port()) for port in ("4242", "8042", "11112", "8647")}
    explorer = f"http://127.0.0.1:{ports['8042']}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, ports)
        make_dicom(image, folder / "image.dcm")
        serve = [sys.executable, "-m", "pneumoscope", "serve", "--port", ports["8647"], "--ephemeral"]
        with (
            running(["/usr/sbin/Orthanc", "orthanc.json"], folder),
            running([*serve, "--model", arguments.model.resolve(), "--dicom-config", "dicom.toml"], folder),
        ):
            for url in (f"{explorer}/system", f"http://127.0.0.1:{ports['8647']}/readyz"):
                wait_until(lambda url=url: fetch(url) is not None, f"{url} does not answer")
            send = ["/usr/bin/storescu", "--propose-jpeg8", "-aec", "ORTHANC", "127.0.0.1", ports["4242"], "image.dcm"]
            subprocess.run(send, cwd=folder, check=True, timeout=SECONDS)
            wait_until(lambda: len(fetch(f"{explorer}/series") or ()) == 3, "no results in Orthanc")
            (study,) = fetch(f"{explorer}/studies")
            take_screenshot(f"{explorer}/app/explorer.html#study?uuid={study}", arguments.out / "page-orthanc.png")


def write_files(folder: Path, ports: dict[str, str]) -> None:
    """Write the files that the page shows, with free ports and for one machine."""
    text = re.sub(r"\b10\.0\.0\.[56]\b", "127.0.0.1", PAGE.read_text(encoding="utf-8"))
    text = re.sub(rf"\b({'|'.join(ports)})\b", lambda port: ports[port[0]], text)
    for name in FILES:
        found = re.search(rf'^```\w+ title="{re.escape(name)}"\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
        if found is None:
            raise ValueError(f"{PAGE} has no block for {name}")
        (folder / name).write_text(found[1], encoding="utf-8")


def make_dicom(image: Path, file: Path) -> None:
    """Write a DICOM file of a JPEG file."""
    keys = KEYS | {"StudyDate": f"{datetime.now(UTC):%Y%m%d}"}
    options = [option for name, value in keys.items() for option in ("--key", f"{name}={value}")]
    subprocess.run(["/usr/bin/img2dcm", *options, image, file], check=True, timeout=SECONDS)


def take_screenshot(url: str, file: Path) -> None:
    """Save a screenshot of a page of the explorer."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport=WINDOW, locale="en-GB").new_page()
        page.goto(url)
        page.get_by_text("pneumoscope: ").first.wait_for()
        page.wait_for_load_state("networkidle")
        page.screenshot(path=file)
    print(file)


@contextmanager
def running(command: Sequence[Any], folder: Path) -> Iterator[None]:
    """Start a process in a folder, and stop it in the end."""
    with subprocess.Popen(list(map(str, command)), cwd=folder) as process:
        try:
            yield
        finally:
            process.terminate()


def fetch(url: str) -> Any:
    """Return a JSON document; None if the server does not answer."""
    try:
        response = httpx.get(url, timeout=5)
    except httpx.TransportError:
        return None
    return response.json() if response.is_success else None


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: It does not hold within `SECONDS`.
    """
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.2)


def free_port() -> int:
    """Return a port of the loopback address that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    main()
