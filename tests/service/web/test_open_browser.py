"""`serve --open` opens the worklist in the default browser."""

import time

from tests.service.conftest import served


def test_open_option_starts_the_default_browser(bundle_folder, tmp_path, monkeypatch):
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.new && mv {opened}.new {opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    with served(bundle_folder, tmp_path, "--open") as (_, client):
        deadline = time.monotonic() + 60
        while not opened.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert opened.read_text().strip() == str(client.base_url).rstrip("/")
