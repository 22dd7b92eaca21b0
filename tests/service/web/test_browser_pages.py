"""All pages in a real Chromium: accessibility, layout on small screens, sign-in, and use without JavaScript.

Set PNEUMOSCOPE_SCREENSHOTS to a folder to keep screenshots.
"""

import json
import os
from pathlib import Path

import pytest
from tests.service.web.helpers import (
    LEVELS,
    expect,
    expect_viewer,
    image_file,
    sign_in,
    upload,
)
from tests.service.web.person import SCREENS, SIZES

pytestmark = pytest.mark.browser
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
MANY = LEVELS | {f"{level}.png": level for level in range(80, 135)}
IMPACTS = ("serious", "critical")


@pytest.mark.parametrize("screen", SCREENS, ids=str)
def test_pages_are_accessible_and_fit_the_screen(browser, service, screen):
    width, height = SIZES[screen.size]
    ids = upload(service, MANY)
    service.put(f"/v1/predictions/{ids['high.png']}/review", json={"label": "pneumonia", "note": "clear"})
    service.post("/v1/predictions", files=[("images", ("a-long-name-of-a-broken-file.dcm", b"no image"))])
    context = browser.new_context(**screen.context)
    page = context.new_page()
    folder = os.environ.get("PNEUMOSCOPE_SCREENSHOTS")
    viewer = f"/images/{ids['high.png']}"
    for name, path in {
        "worklist": "/", "viewer": viewer, "report": f"{viewer}/report", "dashboard": "/dashboard", "model": "/model",
        "sign-in": "/sign-in", "error": "/images/none", "rejected": f"/images/{ids['dark.png']}",
        "rejected-list": "/?decision=rejected", "unreadable": "/unreadable",
    }.items():  # fmt: skip
        page.goto(f"{service.base_url}{path}")
        if name == "viewer":
            page.keyboard.press("h")
            expect(page.locator(".heatmap-layer")).to_be_visible()
        page.wait_for_load_state()
        found = json.loads(json.dumps(axe.Axe().run(page).response))["violations"]
        violations = [(each["id"], each["nodes"][0]["html"][:120]) for each in found if each["impact"] in IMPACTS]
        assert violations == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        box = page.locator(".notice").bounding_box()
        assert box["y"] + box["height"] <= height + 1, name  # the notice is always in view
        if folder:
            page.screenshot(path=Path(folder) / f"{name}-{screen}.png")
    context.close()


@pytest.mark.parametrize("width", [360, 320])
@pytest.mark.parametrize("language", ["en", "zh-Hant"])
def test_pages_fit_a_narrow_screen(browser, service, width, language):
    ids = upload(service, MANY)
    service.put(f"/v1/predictions/{ids['high.png']}/review", json={"label": "pneumonia", "note": "clear"})
    page = browser.new_page(viewport={"width": width, "height": 700})
    viewer = f"/images/{ids['high.png']}"
    for path in ("/", "/unreadable", viewer, f"{viewer}/report", "/dashboard", "/model", "/sign-in"):
        page.goto(f"{service.base_url}{path}?language={language}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    page.close()


def covered_focus(page):
    """Return the start of the focused element if the footer covers it, "" if not, and None if nothing has the focus."""
    return page.evaluate(
        """() => {
          const focused = document.activeElement;
          if (focused === document.body) return null;
          const { height, bottom } = focused.getBoundingClientRect();
          const footer = document.querySelector(".footer").getBoundingClientRect().top;
          // An element that is higher than the space above the footer cannot be entirely visible.
          return height < footer && bottom > footer + 0.5 ? focused.outerHTML.slice(0, 200) : "";
        }"""
    )


@pytest.mark.parametrize("width", [1280, 320])
def test_footer_never_covers_the_focused_element(browser, service, width):
    ids = upload(service, {f"{level}.png": level for level in range(80, 105)})
    context = browser.new_context(viewport={"width": width, "height": 500}, locale="en-GB")
    page = context.new_page()
    for path in ("/", f"/images/{ids['90.png']}"):
        page.goto(f"{service.base_url}{path}")
        if path == "/":  # a status message makes the footer higher
            page.get_by_label("Age of the patient (years)").fill("1000")
            page.set_input_files("#file-input", [image_file(90)])
            expect(page.locator("#status")).to_contain_text("Nothing was uploaded")
            page.get_by_label("Age of the patient (years)").fill("")
            for key in "jjj":
                page.locator("body").press(key)
            page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
            assert covered_focus(page) == ""
        focused = 0
        for _ in range(60):
            page.keyboard.press("Tab")
            covered = covered_focus(page)
            if covered is None:
                break
            assert covered == ""
            focused += 1
        assert focused > 15
    context.close()


def test_user_signs_in_reviews_and_signs_out(signed_in):
    page, client = signed_in
    assert page.evaluate("document.cookie") == ""  # scripts cannot read the session
    page.set_input_files("#file-input", [image_file(140)])
    expect(page.locator("#upload-queue [data-state=done]")).to_have_count(1)
    page.locator("tr[data-id] a").click()
    expect_viewer(page, "140.png")
    page.keyboard.press("p")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto(f"{client.base_url}/dashboard")
    sign_in(page)
    expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()


def test_review_form_is_disabled_without_javascript(browser, service):
    id = upload(service, {"high.png": 180})["high.png"]
    context = browser.new_context(java_script_enabled=False, locale="en-GB")
    page = context.new_page()
    page.goto(f"{service.base_url}/images/{id}")
    expect(page.get_by_role("button", name="Save")).to_be_disabled()
    expect(page.locator("textarea")).to_be_disabled()
    assert page.get_attribute("#review-form", "method") == "post"
    expect(page.locator("noscript p")).to_be_visible()
    page.goto(f"{service.base_url}/images/{id}/report")
    expect(page.locator("noscript p")).to_be_visible()
    context.close()
