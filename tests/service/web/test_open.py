"""`serve --open` shows the page to whoever started it."""

import time

from tests.service.test_serve import served


def test_the_page_is_opened_in_this_machines_browser(paged, tmp_path, monkeypatch):
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.new && mv {opened}.new {opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    with served(paged, tmp_path, "--open") as (_, client):
        end = time.monotonic() + 20
        while not opened.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert opened.read_text().strip() == str(client.base_url).rstrip("/")
