"""The viewer, its review form and the report in a real Chromium, against a real process."""

import contextlib
import re
import sqlite3
import time

import numpy as np
import pytest
from tests.service.conftest import dicom, served
from tests.service.web.helpers import (
    DELAY_FIRST_REVIEW,
    REVIEW_URL,
    colorfulness,
    expect,
    expect_values,
    expect_viewer,
    fail_requests,
    image_file,
    image_pixels,
    pixels,
    put_in_one_study,
    record_traffic,
    select_comparison,
    sign_in,
    stored_review,
    upload,
    wait_until,
)

pytestmark = pytest.mark.browser
NOTE = "textarea[name=note]"
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d \(UTC\)"


def main_menu(page, name):
    return page.locator(".header").get_by_role("link", name=name)


def pages_of(pdf):
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))


def test_image_fits_the_window_and_zooms_to_its_pixels(viewer):
    page, _ = viewer
    image = page.locator(".viewport .image").first
    viewport_box, fitted = page.locator(".viewport").first.bounding_box(), image.bounding_box()
    assert any(fitted[side] == pytest.approx(viewport_box[side], abs=1) for side in ("width", "height"))
    page.keyboard.press("1")
    assert image.bounding_box()["width"] == pytest.approx(400, abs=0.5)
    expect(page.locator("#zoom")).to_have_text("100%")
    page.locator(".viewport").first.hover()
    page.mouse.wheel(0, -800)
    expect(page.locator("#zoom")).to_have_text("739%")  # exp(800 / 400)
    assert image.bounding_box()["width"] == pytest.approx(400 * np.exp(2), rel=0.01)
    canvas = page.locator(".viewport canvas").first
    assert canvas.evaluate("canvas => getComputedStyle(canvas).imageRendering") == "pixelated"
    page.keyboard.press("f")
    assert image.bounding_box() == fitted


def test_actual_size_shows_unaltered_gray_levels(viewer):
    page, _ = viewer
    page.keyboard.press("1")
    row = image_pixels(page)[20, :, 0]
    assert (row[10], row[-10]) == (100, 180)


def test_dragging_pans_or_sets_the_window(viewer):
    page, _ = viewer
    box = page.locator(".viewport").first.bounding_box()
    image = page.locator(".viewport .image").first
    before = image.bounding_box()
    center = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def drag(dx, dy):
        page.mouse.move(*center)
        page.mouse.down()
        page.mouse.move(center[0] + dx, center[1] + dy)
        page.mouse.up()

    drag(60, 25)
    after = image.bounding_box()
    assert (after["x"] - before["x"], after["y"] - before["y"]) == pytest.approx((60, 25))
    page.locator(".viewport").first.focus()
    page.keyboard.press("ArrowLeft")
    assert image.bounding_box()["x"] == pytest.approx(after["x"] + 40)
    page.keyboard.press("w")
    expect(page.locator("#window-drag")).to_have_attribute("aria-pressed", "true")
    drag(-155, 25)
    assert (page.input_value("#window-width"), page.input_value("#window-level")) == ("100", "140")
    assert image.bounding_box()["x"] == pytest.approx(after["x"] + 40)  # the image did not move
    # The window is 90 to 190: gray level 100 becomes 10% of white and 180 becomes 90%.
    row = image_pixels(page)[100, :, 0]
    assert all(np.abs(row - expected).min() <= 1 for expected in (25.5, 229.5))
    page.keyboard.press("i")
    row = image_pixels(page)[100, :, 0]
    assert row[10] > row[-10]
    page.keyboard.press("0")
    assert (page.input_value("#window-width"), page.get_attribute("#invert", "aria-pressed")) == ("255", "false")


def test_heatmap_is_hidden_at_first_and_has_an_adjustable_opacity(viewer):
    page, _ = viewer
    without = image_pixels(page)
    assert colorfulness(without) <= 2
    page.keyboard.press("h")
    expect(page.locator(".heatmap-layer")).to_be_visible()
    page.locator(".heatmap-layer").evaluate("image => image.decode()")
    strong = colorfulness(image_pixels(page))
    assert strong > 40
    page.locator("#heatmap-opacity").fill("20")
    assert 3 < colorfulness(image_pixels(page)) < strong / 2
    page.keyboard.press("h")
    assert np.array_equal(image_pixels(page), without)


def test_compared_images_zoom_together(viewer, service):
    page, _ = viewer
    put_in_one_study(service)
    page.reload()
    expect_values(page)
    page.select_option("#compare", label="Image without heatmap")
    first, second = page.locator(".viewport .image").first, page.locator("#compare-viewport .image")
    expect_values(page, "#compare-viewport")
    expect(page.locator(".heatmap-layer")).to_be_visible()
    assert colorfulness(image_pixels(page, "#compare-viewport")) <= 2
    page.keyboard.press("+")
    assert first.bounding_box()["width"] == pytest.approx(second.bounding_box()["width"])
    select_comparison(page, "other.png")
    expect_values(page, "#compare-viewport")
    assert first.bounding_box()["height"] == pytest.approx(second.bounding_box()["height"], abs=1)
    page.select_option("#compare", label="None")
    expect(page.locator("#compare-viewport")).to_be_hidden()


def test_review_is_saved_with_its_note(viewer, service):
    page, id = viewer
    page.fill(NOTE, "rotated <b>image</b>")
    page.get_by_role("radio", name="No finding").check()
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#save-status")).to_have_text("Saved.")
    assert stored_review(service, id) == ("no_finding", "rotated <b>image</b>")
    page.reload()
    assert page.input_value(NOTE) == "rotated <b>image</b>"
    page.locator("h1").click()
    page.keyboard.press("p")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    assert stored_review(service, id) == ("pneumonia", "rotated <b>image</b>")


def test_choice_by_mouse_is_saved_at_once_and_links_wait_for_it(viewer, service):
    page, id = viewer
    page.fill(NOTE, "rotated")
    page.get_by_role("radio", name="No finding").click()
    expect(page.locator("#save-status")).to_have_text("Saved.")
    assert stored_review(service, id) == ("no_finding", "rotated")
    page.get_by_role("radio", name="Pneumonia").click()
    main_menu(page, "Dashboard").click()
    expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()
    assert stored_review(service, id) == ("pneumonia", "rotated")


def test_other_finding_is_saved_with_its_text(viewer, service):
    page, id = viewer
    finding = page.get_by_label("Which finding")
    expect(finding).to_be_hidden()
    page.keyboard.press("o")
    expect(finding).to_be_focused()
    page.keyboard.type("pleural effusion")
    assert service.get(f"/v1/predictions/{id}").json()["reviews"] == []  # saved when it is entered
    page.keyboard.press("Enter")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    (review,) = service.get(f"/v1/predictions/{id}").json()["reviews"]
    assert (review["label"], review["finding"]) == ("other_finding", "pleural effusion")
    page.reload()
    expect(finding).to_have_value("pleural effusion")
    page.get_by_role("radio", name="Unusable image").click()
    expect(finding).to_be_hidden()
    wait_until(page, lambda: stored_review(service, id) == ("unusable", ""))


def test_enter_saves_the_finding_and_the_next_key_opens_the_next_image(page, service):
    ids = upload(service, {"one.png": 100, "two.png": 150})
    page.goto(f"{service.base_url}/?order=oldest")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect_viewer(page, "one.png")
    finding = page.get_by_label("Which finding")
    page.keyboard.press("o")
    expect(finding).to_be_focused()
    page.keyboard.type("atelectasis")
    page.keyboard.press("Enter")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    expect(finding).not_to_be_focused()
    page.keyboard.press("o")
    page.keyboard.type(" left")
    expect(page.locator("#save-status")).to_have_text("")  # what is in the field is not saved
    page.keyboard.press("Escape")
    expect(finding).not_to_be_focused()
    finding.fill("atelectasis")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    expect_viewer(page, "two.png")
    (review,) = service.get(f"/v1/predictions/{ids['one.png']}").json()["reviews"]
    assert review["finding"] == "atelectasis"


@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080)])
def test_label_and_its_confirmation_are_in_view(viewer, size):
    page, _ = viewer
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.keyboard.press("n")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    bottom = page.locator(".footer").bounding_box()["y"]
    for element in (page.get_by_label("No finding"), page.locator("#save-status")):
        box = element.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= bottom


def test_reading_is_withdrawn(viewer, service):
    page, id = viewer
    expect(page.get_by_role("button", name="Withdraw")).to_be_hidden()
    page.keyboard.press("p")
    page.get_by_role("button", name="Withdraw").click()
    expect(page.locator("#save-status")).to_have_text("Withdrawn.")
    assert stored_review(service, id) is None
    expect(page.locator("#review-form input:checked")).to_have_count(0)
    page.keyboard.press("n")
    wait_until(page, lambda: stored_review(service, id) == ("no_finding", ""))


def test_readers_see_the_readings_of_others(signed_in):
    page, client = signed_in
    id = upload(client, {"high.png": 180})["high.png"]
    body = {"label": "other_finding", "finding": "effusion", "note": "left"}
    other = {"Authorization": "Bearer fedcba9876543210"}
    assert client.put(f"/v1/predictions/{id}/review", json=body, headers=other).status_code == 200
    page.goto(f"{client.base_url}/images/{id}")
    expect_viewer(page, "high.png")
    readings = page.get_by_role("region", name="Other readings")
    expect(readings).to_contain_text(re.compile(f"Other finding: effusion\\s+Read by ward-4 on {TIME}"))
    page.keyboard.press("p")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    main_menu(page, "Worklist").click()
    expect(page.locator("tr[data-id] .review")).to_contain_text("Other finding: effusion (ward-4)")
    expect(page.locator("tr[data-id] .review")).to_contain_text("Pneumonia (ward-3)")
    main_menu(page, "Dashboard").click()
    expect(page.get_by_role("region", name="Pairs of readers")).to_contain_text("ward-3, ward-4")


def test_blind_reader_sees_the_prediction_after_the_label(browser, bundle_folder, tmp_path):
    with served(bundle_folder, tmp_path, "--blind-first") as (_, client):
        id = upload(client, {"high.png": 180})["high.png"]
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(f"{client.base_url}/")
        expect(page.locator("tr[data-id]")).to_contain_text("Hidden until you have read the image")
        expect(page.get_by_label("Decision")).to_have_count(0)
        expect(page.get_by_role("link", name="Export as CSV")).to_have_count(0)
        expect(page.get_by_label("Sort by").locator("option")).to_have_text(["Newest first", "Oldest first"])
        page.set_input_files("#file-input", [image_file(150)])
        expect(page.locator("#upload-queue [data-state=done]")).to_contain_text("Received")
        for path in ("/?decision=pneumonia", "/?order=highest", "/worklist.csv"):
            assert client.get(path).status_code == 422
        assert "91%" not in page.content()
        page.goto(f"{client.base_url}/images/{id}/report")  # redirects to the viewer
        expect_viewer(page, "high.png")
        expect(page.get_by_text("Read the image first.")).to_be_visible()
        expect(page.locator("#heatmap-toggle")).to_have_count(0)
        assert "91%" not in page.content()
        page.keyboard.press("n")
        expect(page.locator(".result-panel .probability")).to_contain_text("91%")
        expect(page.locator("#heatmap-toggle")).to_be_visible()
        expect(page.get_by_role("radio", name="No finding")).to_be_checked()
        page.goto(f"{client.base_url}/")
        expect(page.locator("tr[data-id] .probability")).to_contain_text("91%")
        context.close()


def test_browser_asks_before_leaving_an_unsaved_note(viewer, service):
    page, id = viewer
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.dismiss()))
    page.click(NOTE)
    page.keyboard.type("rotated")
    main_menu(page, "Worklist").click(no_wait_after=True)
    wait_until(page, lambda: dialogs)
    assert (dialogs, page.input_value(NOTE)) == (["beforeunload"], "rotated")
    page.get_by_role("radio", name="Pneumonia").check()
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#save-status")).to_have_text("Saved.")
    main_menu(page, "Worklist").click()
    expect(page.get_by_role("heading", name="Worklist")).to_be_visible()
    assert len(dialogs) == 1
    assert stored_review(service, id) == ("pneumonia", "rotated")


@pytest.mark.parametrize("by", ["key", "click"])
def test_next_image_opens_only_after_a_successful_save(page, service, by):
    ids = upload(service)
    page.goto(f"{service.base_url}/?order=highest")
    page.add_init_script(DELAY_FIRST_REVIEW)
    page.get_by_role("link", name="high.png").click()
    expect_viewer(page, "high.png")
    fail_requests(page, REVIEW_URL, 503)
    page.keyboard.press("p")
    page.keyboard.press("j") if by == "key" else page.click("#next")
    expect(page.locator("#save-status")).to_have_text("Not saved: Service busy (failed with 503)")
    expect_viewer(page, "high.png")
    page.unroute(REVIEW_URL)
    page.keyboard.press("p")
    page.keyboard.press("j") if by == "key" else page.click("#next")
    expect_viewer(page, "middle.png")
    assert stored_review(service, ids["high.png"]) == ("pneumonia", "")


@pytest.mark.parametrize("note", ["", "mine"])
def test_newer_review_from_another_window_is_shown_before_it_is_replaced(viewer, service, note):
    page, id = viewer
    page.fill(NOTE, note)
    service.put(f"/v1/predictions/{id}/review", json={"label": "pneumonia", "note": "elsewhere"})
    page.locator("h1").click()
    page.keyboard.press("n")
    expect(page.locator("#conflict")).to_be_visible()
    expect(page.locator("#conflict-review")).to_have_text(re.compile(f"Read on {TIME} – Pneumonia"))
    expect(page.locator("#conflict-note")).to_have_text("elsewhere")
    assert page.input_value(NOTE) == (note or "elsewhere")
    assert stored_review(service, id) == ("pneumonia", "elsewhere")
    page.get_by_role("radio", name="No finding").click()
    expect(page.locator("#save-status")).to_have_text("Saved.")
    expect(page.locator("#conflict")).to_be_hidden()
    assert stored_review(service, id) == ("no_finding", note or "elsewhere")


def test_last_of_two_quick_reviews_is_stored(page, service):
    id = upload(service, {"high.png": 180})["high.png"]
    finished = []
    page.on("requestfinished", lambda request: request.method == "PUT" and finished.append(request))
    page.add_init_script(DELAY_FIRST_REVIEW)
    page.goto(f"{service.base_url}/images/{id}")
    expect_viewer(page, "high.png")
    page.keyboard.press("p")
    page.keyboard.press("n")
    wait_until(page, lambda: len(finished) == 2)
    assert stored_review(service, id) == ("no_finding", "")


def test_held_key_saves_one_review(viewer, service):
    page, id = viewer
    sent = []
    page.on("request", lambda request: request.method == "PUT" and sent.append(request))
    for _ in range(4):
        page.keyboard.down("p")  # repeats from the second call on
    page.keyboard.up("p")
    page.keyboard.press("n")  # is saved after all earlier reviews
    wait_until(page, lambda: stored_review(service, id) == ("no_finding", ""))
    assert len(sent) == 2


def test_draft_survives_signing_in_again_but_not_signing_out(signed_in):
    page, client = signed_in
    id = upload(client, {"high.png": 180})["high.png"]
    page.goto(f"{client.base_url}/images/{id}")
    expect_viewer(page, "high.png")
    page.fill(NOTE, "rotated")
    page.context.clear_cookies()
    page.get_by_role("radio", name="No finding").click()
    sign_in(page)
    expect_viewer(page, "high.png")
    expect(page.locator("#save-status")).to_have_text("Draft restored; not saved yet.")
    assert (page.input_value(NOTE), page.get_by_role("radio", name="No finding").is_checked()) == ("rotated", True)
    assert stored_review(client, id) is None
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#save-status")).to_have_text("Saved.")
    assert stored_review(client, id) == ("no_finding", "rotated")
    page.reload()
    expect(page.locator("#save-status")).to_have_text(re.compile(f"Read by ward-3 on {TIME}"))
    page.fill(NOTE, "typed")
    # Keep the page open so that its storage can be read.
    page.evaluate(
        "document.querySelector('.header form').addEventListener('submit', (event) => event.preventDefault())"
    )
    assert page.evaluate("Object.keys(sessionStorage).some((name) => name.includes('draft'))")
    page.get_by_role("button", name="Sign out").click()
    assert page.evaluate("sessionStorage.length") == 0
    page.fill(NOTE, "rotated")


def test_image_is_deleted_after_confirmation(viewer, service):
    page, id = viewer
    page.click("#delete")
    page.get_by_role("button", name="Cancel").click()
    assert service.get(f"/v1/predictions/{id}").status_code == 200
    page.click("#delete")
    page.locator("#confirm-delete").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Worklist")).to_be_visible()
    assert service.get(f"/v1/predictions/{id}").status_code == 404


def test_shortcuts_are_listed_and_inactive_in_text_fields(viewer, service):
    page, id = viewer
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#shortcuts")).to_be_hidden()
    page.focus(NOTE)
    page.keyboard.type("pnhi")
    assert page.input_value(NOTE) == "pnhi"
    assert stored_review(service, id) is None


def test_errors_are_translated_with_advice_instead_of_english_details(page, service):
    id = upload(service, {"high.png": 180})["high.png"]
    # Only a save requests these two, so both routes are in place before the page opens.
    page.route(f"**/v1/predictions/{id}", lambda route: route.abort())
    fail_requests(page, REVIEW_URL, 503)
    page.goto(f"{service.base_url}/images/{id}?language=zh-Hant")
    expect_viewer(page, "high.png")
    page.keyboard.press("p")
    expect(page.locator("#save-status")).to_have_text("未儲存：無法連線至伺服器。")
    page.unroute(f"**/v1/predictions/{id}")
    page.keyboard.press("p")
    expect(page.locator("#save-status")).to_have_text("未儲存：系統忙碌中（請稍候幾秒再試）")
    page.route("**/heatmap-layer.png", lambda route: route.abort())
    page.once("dialog", lambda dialog: dialog.accept())  # the review is not saved
    page.goto(f"{service.base_url}/images/{id}/report")
    expect(page.locator("#heatmap-error")).to_have_text("無法連線至伺服器。")


def test_removed_image_has_no_display_controls(browser, bundle_folder, tmp_path):
    with served(bundle_folder, tmp_path) as (_, client):
        ids = upload(client, {"old.png": 180, "new.png": 150})
    file = tmp_path / "pneumoscope-data/pneumoscope.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "UPDATE predictions SET created = '2020-01-01T00:00:00.000000Z' WHERE id = ?", (ids["old.png"],)
        )
    with served(bundle_folder, tmp_path, "--keep", "1d") as (_, client):
        deadline = time.monotonic() + 60
        while client.get(f"/v1/predictions/{ids['old.png']}").json()["image_removed"] is None:
            assert time.monotonic() < deadline, "the image is not removed"
            time.sleep(0.1)
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        seen = record_traffic(page)
        page.goto(f"{client.base_url}/?order=highest")
        page.get_by_role("link", name="old.png").click()
        expect(page.get_by_text("The image was removed on")).to_be_visible()
        expect(page.get_by_role("button", name="Save")).to_be_enabled()  # the scripts run
        for key in "fi1wm0hcs+-":
            page.keyboard.press(key)
        page.keyboard.press("j")
        expect_viewer(page, "new.png")
        assert page.locator("#compare option").all_inner_texts() == [
            "None", "Image without heatmap", "Patient unknown: only images of the same study are listed",
        ]  # fmt: skip
        assert [each for each in seen if each.startswith("error")] == []
        context.close()


def test_report_prints_on_one_page_with_image_heatmap_and_notice(viewer):
    page, _ = viewer
    page.goto(f"{page.url}/report")
    expect(page.locator(".heatmap-layer")).to_be_visible()
    page.locator(".heatmap-layer").evaluate("image => image.decode()")
    figures = page.locator(".report-images figure")
    image, heatmap = (pixels(figures.nth(index).locator("img").first) for index in (0, 1))
    assert image.shape == heatmap.shape
    assert colorfulness(image) <= 2
    assert colorfulness(heatmap) > 40
    page.emulate_media(media="print")
    expect(page.locator(".header")).to_be_hidden()
    expect(page.locator(".notice")).to_be_visible()
    assert pages_of(page.pdf()) == 1


@pytest.mark.parametrize("note", ["word " * 800, "word " * 30, "影像有旋轉" * 400, "影像有旋轉" * 30])
def test_report_with_a_long_note_prints_on_one_page(viewer, service, note):
    page, id = viewer
    assert service.put(f"/v1/predictions/{id}/review", json={"label": "pneumonia", "note": note}).status_code == 200
    page.goto(f"{page.url}/report")
    expect(page.locator(".heatmap-layer")).to_be_visible()
    page.emulate_media(media="print")
    assert pages_of(page.pdf(prefer_css_page_size=True)) == 1


def test_place_in_the_list_is_kept_when_an_age_is_entered(browser, child_bundle, tmp_path):
    with served(child_bundle, tmp_path) as (_, client):
        upload(client, {"one.png": 100, "two.png": 110, "three.png": 120})
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(f"{client.base_url}/?order=oldest")
        page.get_by_role("link", name="two.png").click()
        expect_viewer(page, "two.png")
        page.get_by_label("Enter the patient's age (years)").fill("3")
        page.get_by_role("button", name="Predict again").click()
        expect(page.locator(".result-panel")).to_contain_text("3 years (entered)")
        page.locator("#next").click()
        expect_viewer(page, "three.png")
        page.locator("#previous").click()
        expect(page.locator(".result-panel")).to_contain_text("3 years (entered)")
        context.close()


@pytest.mark.parametrize("javascript", [True, False])
def test_age_entered_in_the_viewer_leads_to_a_new_prediction(browser, child_bundle, tmp_path, javascript):
    with served(child_bundle, tmp_path) as (_, client):
        response = client.post("/v1/predictions", files=[("images", ("a.dcm", dicom()))])
        (rejected,) = response.json()["predictions"]
        context = browser.new_context(java_script_enabled=javascript, locale="en-GB")
        page = context.new_page()
        page.goto(f"{client.base_url}/images/{rejected['id']}")
        panel = page.locator(".result-panel")
        expect(panel).to_contain_text("The age is required and not stated")
        page.get_by_label("Enter the patient's age (years)").fill("131")
        page.get_by_role("button", name="Predict again").click()
        expect(panel).to_contain_text("The age is required and not stated")  # the browser rejects the number
        page.get_by_label("Enter the patient's age (years)").fill("3.5")
        page.get_by_role("button", name="Predict again").click()
        expect(panel).to_contain_text("3.5 years (entered)")
        expect(panel).to_contain_text("No pneumonia detected")
        if javascript:
            expect_viewer(page, "a.dcm")  # its scripts run
            page.keyboard.press("h")
            expect(page.locator(".heatmap-layer")).to_be_visible()
        found = client.get("/v1/predictions", params={"order": "oldest"}).json()["predictions"]
        assert [each["decision"] for each in found] == ["rejected", "no_pneumonia"]
        assert page.url.endswith(f"/images/{found[1]['id']}")
        page.get_by_label("Correct the patient's age (years)").fill("4")  # 3.5 was a mistake
        page.get_by_role("button", name="Predict again").click()
        expect(panel).to_contain_text("4 years (entered)")
        page.goto(f"{client.base_url}/")  # the worklist has the latest prediction of the image only
        expect(page.locator("tr[data-id]")).to_have_count(1)
        expect(page.locator("tr[data-id]")).to_contain_text("4 years (entered)")
        context.close()
