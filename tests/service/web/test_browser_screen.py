"""Full screen and the layout of the viewer on phones, in a real Chromium."""

import json
import re

import pytest
from tests.imaging.conformance import dataset, deep, written
from tests.service.conftest import served
from tests.service.web.helpers import (
    REVIEW_URL,
    expect,
    expect_values,
    expect_viewer,
    fail_requests,
    record_traffic,
    stored_review,
    upload,
    wait_until,
    wait_until_still,
)

pytestmark = pytest.mark.browser
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
SIZES = {"desktop": (1280, 800), "phone": (390, 844), "landscape": (844, 390)}
PATIENT = {
    "PatientName": "Doe^Jane Alexandra", "PatientID": "4711-0815", "PatientBirthDate": "20190301", "PatientSex": "F",
    "AccessionNumber": "A-2026-77", "StudyDate": "20220131", "StudyDescription": "Chest AP", "PatientAge": "002Y",
}  # fmt: skip


@pytest.fixture
def opened(browser, service):
    """A function that opens the first of two images of a patient, from the list, at a size of the screen."""
    contexts = []
    parts = [
        ("images", (f"{name}.dcm", written(dataset(pixels, **PATIENT, SOPInstanceUID=f"1.2.{place}"))))
        for place, (name, pixels) in enumerate({"first": deep(), "second": deep()[::-1]}.items())
    ]
    service.post("/v1/predictions", files=parts)

    def open_first(size, *, scheme="light", language="en", user_agent=None):
        width, height = SIZES[size]
        is_phone = size != "desktop"
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=is_phone, is_mobile=is_phone
        )
        contexts.append(context)
        page = context.new_page()
        page.seen = record_traffic(page)
        page.goto(f"{service.base_url}/?order=oldest&language={language}")
        page.get_by_role("link", name="first.dcm").click()
        expect_values(page)
        return page

    yield open_first
    for context in contexts:
        context.close()


def is_full_screen(page):
    return page.evaluate("document.fullscreenElement === document.documentElement")


def box(page, selector):
    return page.locator(selector).first.bounding_box()


def overlap(first, second):
    """Return the area that two boxes share."""
    width = min(first["x"] + first["width"], second["x"] + second["width"]) - max(first["x"], second["x"])
    height = min(first["y"] + first["height"], second["y"] + second["height"]) - max(first["y"], second["y"])
    return max(width, 0) * max(height, 0)


def covering(page):
    """Return what the browser shows instead of the image at points all over the viewport."""
    return page.locator(".viewport").first.evaluate(
        """viewport => {
          const { left, top, width, height } = viewport.getBoundingClientRect();
          const found = new Set();
          for (let x = 0.02; x < 1; x += 0.06) for (let y = 0.02; y < 1; y += 0.06) {
            const element = document.elementFromPoint(left + x * width, top + y * height);
            if (!viewport.contains(element)) found.add(element?.outerHTML.slice(0, 80));
          }
          return [...found];
        }"""
    )


@pytest.mark.parametrize("size", SIZES)
def test_full_screen_lasts_when_the_next_image_is_opened(opened, size):
    page = opened(size)
    page.keyboard.press("s")
    wait_until(page, lambda: is_full_screen(page))
    for key, name in (("j", "second.dcm"), ("k", "first.dcm"), ("j", "second.dcm")):
        page.keyboard.press(key)
        expect_viewer(page, name)
        expect_values(page)
        assert is_full_screen(page)
        expect(page.locator(".header")).to_be_hidden()
        expect(page.locator("#full-screen")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Full screen").click()
    wait_until(page, lambda: not is_full_screen(page))
    expect(page.locator(".header")).to_be_visible()
    assert [each for each in page.seen if each.startswith(("error", "warning"))] == []


@pytest.mark.parametrize("size", SIZES)
def test_decision_is_in_view_when_the_next_image_opens_and_full_screen_begins_and_ends(opened, size):
    page = opened(size)
    for key, name in (("j", "second.dcm"), ("s", "second.dcm"), ("k", "first.dcm"), ("s", "first.dcm")):
        page.mouse.wheel(0, 400)
        wait_until_still(page)
        page.keyboard.press(key)
        expect_viewer(page, name)
        expect_values(page)
        if key == "s":
            expect(page.locator(".header")).to_be_visible(visible=name == "first.dcm")
        page.wait_for_timeout(300)  # the browser would scroll to what has the focus
        assert page.evaluate("scrollY") == 0, key
        expect(page.locator(".decision-heading")).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("size", ["desktop", "landscape"])
def test_full_screen_cuts_off_neither_the_patient_nor_the_next_image(opened, size):
    page = opened(size)
    page.keyboard.press("s")
    wait_until(page, lambda: is_full_screen(page))
    for selector in ("#next", ".decision-heading", ".patient-banner .date"):
        found = box(page, selector)
        assert found["x"] + found["width"] <= SIZES[size][0], selector
    line = page.locator(".patient-banner .date").first
    assert line.bounding_box()["height"] < 1.6 * float(
        line.evaluate("each => parseFloat(getComputedStyle(each).fontSize)")
    )


def test_image_and_tools_fill_the_screen(opened):
    page = opened("desktop")
    before = box(page, ".viewport")
    page.keyboard.press("s")
    wait_until(page, lambda: is_full_screen(page))
    footer, image = box(page, ".footer"), box(page, ".viewport")
    assert (image["y"], image["height"]) == (0, pytest.approx(footer["y"], abs=1))
    assert image["height"] > before["height"] + 150
    assert image["width"] * image["height"] > 0.7 * 1280 * 800
    for id in ("fit", "window-drag", "invert", "measure", "heatmap-toggle", "contour-toggle", "reset", "window-width"):
        assert overlap(box(page, f"#{id}"), image) == 0
        expect(page.locator(f"#{id}")).to_be_in_viewport()
    for text in ("first.dcm", "Doe Jane Alexandra", "4711-0815", "Not a medical device"):
        expect(page.get_by_text(text).first).to_be_in_viewport()
    expect(page.locator(".decision-heading")).to_be_in_viewport()
    expect(page.locator(".reading-panel")).to_be_hidden()
    assert covering(page) == []


def test_reading_in_full_screen_is_shown_on_request_and_with_a_label(opened, service):
    page = opened("desktop")
    page.keyboard.press("s")
    wait_until(page, lambda: is_full_screen(page))
    page.get_by_role("button", name="Reading").click()
    expect(page.locator(".reading-panel")).to_be_in_viewport()
    page.keyboard.press("r")
    expect(page.locator(".reading-panel")).to_be_hidden()
    page.keyboard.press("p")  # the reader sees what was chosen, and that it was saved
    expect(page.locator("#save-status")).to_have_text("Saved.")
    expect(page.locator("#save-status")).to_be_in_viewport()
    id = page.url.rpartition("/")[2]
    assert stored_review(service, id) == ("pneumonia", "")
    page.keyboard.press("j")
    expect_viewer(page, "second.dcm")
    expect(page.get_by_role("radio", name="Pneumonia")).not_to_be_checked()
    page.keyboard.press("n")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    second = page.url.rpartition("/")[2]
    assert (id == second, stored_review(service, second)) == (False, ("no_finding", ""))
    assert stored_review(service, id) == ("pneumonia", "")
    assert is_full_screen(page)


def test_window_is_filled_where_the_browser_has_no_full_screen(browser, service):
    """As on an iPhone."""
    upload(service, {"one.png": 100, "two.png": 150})
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.add_init_script("Object.defineProperty(document, 'fullscreenEnabled', { get: () => false })")
    page.goto(f"{service.base_url}/?order=oldest&language=en")
    page.get_by_role("link", name="one.png").click()
    expect_values(page)
    before = box(page, ".viewport")["height"]
    page.get_by_role("button", name="Full screen").click()
    expect(page.locator(".header")).to_be_hidden()
    assert box(page, ".viewport")["height"] > before
    page.locator("#next").click()
    expect_viewer(page, "two.png")
    expect(page.locator(".header")).to_be_hidden()
    page.get_by_role("button", name="Full screen").click()
    expect(page.locator(".header")).to_be_visible()
    page.close()


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
def test_first_image_of_the_worklist_is_on_the_upper_half_of_a_phone(browser, service, language):
    upload(service, {"one.png": 100})
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(f"{service.base_url}/?language={language}")
    assert box(page, "tr[data-id]")["y"] <= 844 / 2
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.get_by_role("heading", level=1).count() == 1
    page.close()


@pytest.mark.parametrize("size", ["phone", "landscape"])
def test_filters_of_the_worklist_are_folded_on_a_phone(browser, service, size):
    upload(service, {"one.png": 100})
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, has_touch=True, is_mobile=True)
    page.goto(f"{service.base_url}/?language=en")
    button, decision = page.get_by_role("button", name="Filter"), page.get_by_label("Decision")
    expect(button).to_have_attribute("aria-expanded", "false")
    expect(decision).to_be_hidden()
    button.click()
    expect(button).to_have_attribute("aria-expanded", "true")
    decision.select_option("pneumonia")
    expect(page).to_have_url(re.compile("decision=pneumonia"))
    page.reload()  # a filter that applies is never hidden
    expect(decision).to_be_visible()
    button.click()
    expect(decision).to_be_hidden()
    page.close()


@pytest.mark.parametrize("size", ["phone", "landscape"])
def test_row_of_the_worklist_is_above_the_notice_on_a_phone(browser, service, size):
    upload(service, {"one.png": 100})
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, has_touch=True, is_mobile=True)
    page.goto(f"{service.base_url}/?language=en")
    decision = page.locator(".worklist-table .decision").first.bounding_box()
    assert decision["y"] + decision["height"] <= page.locator(".footer").bounding_box()["y"]
    page.close()


def test_patient_comes_before_the_file_and_the_reading_before_the_explanation(opened):
    page = opened("desktop")
    assert box(page, ".patient-banner")["y"] <= box(page, ".viewer-title h1")["y"]
    assert box(page, ".patient-banner")["x"] < box(page, ".viewer-title h1")["x"]
    assert box(page, "#review-fields")["y"] < box(page, ".result-probability")["y"]
    page.set_viewport_size({"width": 390, "height": 844})
    # Controls of the heatmap, which is off, leave no gap.
    tools, reading = box(page, ".toolbar.secondary"), box(page, ".reading-panel")
    assert reading["y"] - (tools["y"] + tools["height"]) < 60


def test_address_history_and_title_follow_the_image(opened):
    page = opened("desktop")
    first = page.url
    page.keyboard.press("+")
    page.keyboard.press("h")
    page.keyboard.press("j")
    expect_viewer(page, "second.dcm")
    assert page.url != first
    expect(page).to_have_title(re.compile("^second.dcm"))
    expect(page.locator("#heatmap-toggle")).to_have_attribute("aria-pressed", "false")  # without the heatmap first
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.url.partition("//")[2].partition("/")[2] in page.locator("a[hreflang]").first.get_attribute("href")
    page.go_back()
    expect_viewer(page, "first.dcm")
    assert page.url == first
    page.go_back()
    expect(page.get_by_role("heading", name="Worklist")).to_be_visible()
    page.go_forward()
    expect_viewer(page, "first.dcm")


def test_key_that_is_pressed_while_the_next_image_opens_labels_no_image(opened, service):
    page = opened("desktop")
    held = []
    page.route("**/images/*", lambda route: route.continue_() if held else held.append(route))
    page.keyboard.press("j")
    wait_until(page, lambda: held)
    page.keyboard.press("p")
    held[0].continue_()
    expect_viewer(page, "second.dcm")
    page.wait_for_timeout(300)
    found = service.get("/v1/predictions").json()["predictions"]
    assert [each["reviews"] for each in found] == [[], []]


def test_image_that_cannot_be_opened_leaves_the_one_before(opened):
    page = opened("desktop")
    page.route("**/images/*", lambda route: route.abort())
    page.keyboard.press("j")
    expect(page.locator("#save-status")).to_have_text("The image cannot be opened: The server cannot be reached.")
    expect_viewer(page, "first.dcm")
    page.unroute("**/images/*")
    page.keyboard.press("j")
    expect_viewer(page, "second.dcm")


def test_failed_save_keeps_the_image_in_full_screen(opened):
    page = opened("desktop")
    page.keyboard.press("s")
    wait_until(page, lambda: is_full_screen(page))
    fail_requests(page, REVIEW_URL, 503)
    page.keyboard.press("p")
    page.keyboard.press("j")
    expect(page.locator("#save-status")).to_contain_text("Not saved: Service busy")
    expect(page.locator("#save-status")).to_be_in_viewport()
    expect_viewer(page, "first.dcm")


def test_blind_reader_stays_in_full_screen_when_the_prediction_appears(browser, bundle_folder, tmp_path):
    with served(bundle_folder, tmp_path, "--blind-first") as (_, client):
        id = upload(client, {"high.png": 180})["high.png"]
        page = browser.new_page(locale="en-GB")
        page.goto(f"{client.base_url}/images/{id}")
        expect_values(page)
        page.keyboard.press("s")
        wait_until(page, lambda: is_full_screen(page))
        assert "91%" not in page.content()
        page.keyboard.press("n")
        expect(page.locator(".decision-line .probability")).to_have_text("91%")
        assert is_full_screen(page)
        page.close()


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_image_on_a_phone_starts_below_one_line_with_the_decision(opened, scheme, language):
    page = opened("phone", scheme=scheme, language=language)
    decision, image, form = (box(page, each) for each in (".decision-line", ".viewport", "#review-form"))
    assert image["y"] <= 330
    assert decision["height"] <= 45
    assert decision["y"] + decision["height"] <= image["y"]
    assert box(page, ".decision-heading")["y"] == pytest.approx(box(page, ".decision-line .probability")["y"], abs=8)
    assert form["y"] >= image["y"] + image["height"]
    assert image["width"] > 350
    page.mouse.move(195, 700)
    page.mouse.wheel(0, 500)
    wait_until(page, lambda: page.evaluate("scrollY") > 300)


@pytest.mark.parametrize(("language", "scheme"), [("en", "dark"), ("zh-Hant", "light")])
def test_nothing_covers_the_image_of_a_phone_on_its_side(opened, scheme, language):
    page = opened("landscape", scheme=scheme, language=language)
    for key in "hcm":
        page.keyboard.press(key)
    expect(page.locator(".heatmap-layer")).to_be_visible()
    image = box(page, ".viewport")
    assert image["y"] == 0
    assert image["height"] >= 390 - 30  # the notice takes one line
    assert covering(page) == []
    for selector in (".tools", ".decision-line", ".viewer-title", ".header", ".footer", "#heatmap-controls"):
        assert overlap(box(page, selector), image) == 0, selector
    for selector in (".decision-heading", ".decision-line .probability", "#fit", "h1"):
        expect(page.locator(selector)).to_be_in_viewport(ratio=1)
    page.wait_for_load_state()
    found = json.loads(json.dumps(axe.Axe().run(page).response))["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", "Contribution, relative to this image: against pneumonia, high low high, towards pneumonia"),
        ("zh-Hant", "貢獻（相對於此影像）： 不支持肺炎：高 低 高：支持肺炎"),
    ],
)
def test_legend_explains_the_colors_of_the_heatmap_beside_the_image(opened, size, language, words):
    page = opened(size, language=language)
    legend = page.locator(".color-scale")
    expect(legend).to_be_hidden()
    page.keyboard.press("h")
    expect(legend).to_be_visible()
    assert legend.inner_text().split() == words.split()
    legend.scroll_into_view_if_needed()
    assert overlap(legend.bounding_box(), box(page, ".viewport")) == 0
    for direction, color in (("against", "rgb(103, 176, 249)"), ("towards", "rgb(233, 147, 85)")):
        bar = page.locator(f".color-bar.{direction}")
        expect(bar).to_be_visible()
        assert color in bar.evaluate("bar => getComputedStyle(bar).backgroundImage")
    # The colors are those of the ends of the layer.
    ends = page.locator(".contour").evaluate(
        "contour => [...contour.querySelectorAll('.against, .towards')].map(path => getComputedStyle(path).stroke)"
    )
    assert ends == ["rgb(233, 147, 85)", "rgb(103, 176, 249)"]
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark"), ("landscape", "light")])
def test_full_screen_is_accessible(opened, size, scheme):
    page = opened(size, scheme=scheme)
    for key in "shmr":
        page.keyboard.press(key)
    expect(page.locator(".heatmap-layer")).to_be_visible()
    expect(page.locator(".reading-panel")).to_be_visible()
    page.wait_for_load_state()
    found = json.loads(json.dumps(axe.Axe().run(page).response))["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
