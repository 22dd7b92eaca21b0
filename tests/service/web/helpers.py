"""Constants and helpers of the tests of the web interface, most of them for the tests in a real Chromium."""

import io
import json
import re
import time

import numpy as np
from PIL import Image
from tests.service.conftest import png

try:
    from playwright.sync_api import expect
except ImportError:  # the fixture `browser` skips the tests that need it
    expect = None

TOKEN = "0123456789abcdef"
BASE_URL = "http://127.0.0.1:8000"
LEVELS = {"dark.png": 60, "low.png": 90, "high.png": 180, "middle.png": 150}
REVIEW_URL = "**/v1/predictions/*/review"
# Delays the browser's first review, as a busy service would.
DELAY_FIRST_REVIEW = """(() => {
  const realFetch = window.fetch;
  let first = true;
  window.fetch = async (...args) => {
    if (args[1]?.method === "PUT" && first) {
      first = false;
      await new Promise((resolve) => setTimeout(resolve, 700));
    }
    return realFetch(...args);
  };
})()"""


def record_traffic(page):
    """Return a list that receives the URL of every request, console message and script error of a page."""
    seen = []
    page.on("request", lambda request: seen.append(request.url))
    # The browser also logs failed requests; the pages handle those.
    expected = ("Failed to load resource: the server responded", "Failed to load resource: net::ERR_FAILED")
    page.on("console", lambda line: line.text.startswith(expected) or seen.append(f"{line.type}: {line.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    return seen


def image_file(level, size=64):
    """Return an image as a file for `set_input_files`."""
    return {"name": f"{level}.png", "mimeType": "image/png", "buffer": png(level, size)}


def upload(client, images=LEVELS):
    """Upload images through the API and return their ids by name."""
    parts = [("images", (name, png(level))) for name, level in images.items()]
    response = client.post("/v1/predictions", files=parts)
    return {each["path"]: each["id"] for each in response.json()["predictions"]}


def remove_everything(client):
    """Delete all predictions and unreadable files of a service, with their reviews and patients."""
    while found := client.get("/v1/predictions", params={"limit": 100}).json()["predictions"]:
        for each in found:
            assert client.delete(f"/v1/predictions/{each['id']}").status_code == 204
    while found := client.get("/v1/unreadable", params={"limit": 100}).json()["files"]:
        for each in found:
            assert client.delete(f"/v1/unreadable/{each['id']}").status_code == 204


def put_in_one_study(client):
    """Give all images one accession number, so that they can be compared."""
    for each in client.get("/v1/predictions").json()["predictions"]:
        client.put(f"/v1/predictions/{each['id']}/identity", json={"accession_number": "ACC9"}).raise_for_status()


def select_comparison(page, name):
    """Choose an image by the name of its file in the list "Compare with"."""
    option = page.locator("#compare option", has_text=name)
    page.select_option("#compare", option.get_attribute("value"))


def expect_viewer(page, name):
    """Wait until the viewer of an image is open and its scripts run."""
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(page.locator("#zoom")).to_have_text(re.compile("%"))


def expect_values(page, selector=".viewport"):
    """Wait until a viewport shows the values of its image."""
    expect(page.locator(f"{selector}[data-loaded]").first).to_be_visible()


def row_names(page):
    return page.locator("tr[data-id]").evaluate_all("rows => rows.map(row => row.dataset.name)")


def pixels(locator):
    """Return a screenshot of an element, shape (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def image_pixels(page, selector=".viewport"):
    """Return a screenshot of the image in a viewport, without the lower part, over which controls can lie."""
    viewport = page.locator(selector).first
    outer, inner = viewport.bounding_box(), viewport.locator(".stage").bounding_box()
    left, top = (max(outer[side], inner[side]) for side in "xy")
    right = min(outer["x"] + outer["width"], inner["x"] + inner["width"])
    bottom = min(outer["y"] + 0.75 * outer["height"], inner["y"] + inner["height"])
    clip = {"x": left + 1, "y": top + 1, "width": right - left - 2, "height": bottom - top - 2}
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")).astype(int)


def colorfulness(rgb):
    """Return the largest difference between the channels of a pixel; 0 for gray."""
    return (rgb.max(axis=2) - rgb.min(axis=2)).max()


def fail_requests(page, url, status, code="busy"):
    """Answer all requests but GET with a problem document, until `page.unroute(url)`."""
    body = json.dumps({"title": "Error", "detail": f"failed with {status}", "code": code})
    page.route(
        url,
        lambda route: (
            route.fulfill(status=status, content_type="application/problem+json", body=body)
            if route.request.method != "GET"
            else route.continue_()
        ),
    )


def abort_first_request(page, url):
    """Abort the first request, as if the network failed."""
    aborted = []

    def handle(route):
        aborted.append(route)
        route.abort() if len(aborted) == 1 else route.continue_()

    page.route(url, handle)


def stored_review(client, id):
    """Return (label, note) of the only stored review; None if there is none."""
    reviews = client.get(f"/v1/predictions/{id}").json()["reviews"]
    assert len(reviews) <= 1
    return (reviews[0]["label"], reviews[0]["note"]) if reviews else None


def wait_until(page, condition, seconds=60):
    """Wait until a condition is true; the page's events are handled meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        page.wait_for_timeout(20)


def wait_until_still(page):
    """Wait until the page has not scrolled for ten frames: the browser scrolls smoothly, and on a busy machine late."""
    page.evaluate(
        """new Promise((end) => {
          let place = scrollY, frames = 0;
          const look = () => {
            frames = scrollY === place ? frames + 1 : 0;
            place = scrollY;
            frames < 10 ? requestAnimationFrame(look) : end();
          };
          look();
        })"""
    )


def sign_in(page):
    page.get_by_label("Access token").fill(TOKEN)
    with page.expect_navigation():
        page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_label("Access token")).to_have_count(0)
