"""Uploads and the worklist in a real Chromium, against a real process."""

import contextlib
import json
import re
import signal
import sqlite3
from pathlib import Path

import pytest
from tests.processes import free_port
from tests.service.conftest import png, served
from tests.service.web.helpers import (
    LEVELS,
    abort_first_request,
    expect,
    expect_viewer,
    fail_requests,
    image_file,
    row_names,
    stored_review,
    upload,
)

pytestmark = pytest.mark.browser
PREDICTIONS_URL = "**/v1/predictions"
TEXT_FILE = {"name": "letter.txt", "mimeType": "text/plain", "buffer": b"Dear colleague"}


def test_chosen_files_are_uploaded_and_listed(page, service):
    page.set_input_files("#file-input", [image_file(60), image_file(90), image_file(180)])
    expect(page.locator("#upload-queue [data-state=done]")).to_have_count(3)
    expect(page.locator("#upload-summary")).to_have_text("3 of 3 done, 0 failed")
    expect(page.locator("#total")).to_have_text("2 images")
    assert row_names(page) == ["180.png", "90.png"]
    expect(page.locator(".tabs")).to_contain_text("Rejected 1")
    thumbnail = page.locator("tr[data-id] img").first
    expect(thumbnail).to_be_visible()
    assert thumbnail.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    assert service.get("/v1/predictions").json()["total"] == 3
    page.click("#clear-finished")
    expect(page.locator("#uploads")).to_be_hidden()


def test_unreadable_file_shows_its_error_in_view_and_cannot_be_retried(page):
    page.set_input_files("#file-input", [*(image_file(level) for level in range(90, 100)), TEXT_FILE, image_file(100)])
    expect(page.locator("#upload-summary")).to_have_text("11 of 12 done, 1 failed")
    failed = page.locator("#upload-queue li").first
    expect(failed.locator(".filename")).to_have_text("letter.txt")
    expect(failed.locator(".upload-error")).to_contain_text("Failed: Unreadable image (")
    expect(failed.locator(".upload-error")).to_be_in_viewport()
    expect(page.get_by_role("button", name="Retry", exact=True)).to_have_count(0)


def test_unreadable_file_is_explained_in_chinese(page, service):
    page.goto(f"{service.base_url}/?language=zh-Hant")
    page.set_input_files("#file-input", [TEXT_FILE])
    error = page.locator("#upload-queue .upload-error")
    expect(error).to_contain_text("失敗：無法讀取影像")
    expect(error).to_contain_text("不是影像檔")


def test_upload_can_be_retried_after_a_network_failure(page):
    abort_first_request(page, PREDICTIONS_URL)
    page.set_input_files("#file-input", [image_file(90)])
    expect(page.locator("#upload-queue .upload-error")).to_contain_text("The server cannot be reached.")
    page.get_by_role("button", name="Retry", exact=True).click()
    expect(page.locator("#upload-summary")).to_have_text("1 of 1 done, 0 failed")
    expect(page.locator("#upload-queue .upload-error")).to_have_count(0)
    expect(page.locator("#total")).to_have_text("1 image")


def test_uploads_that_can_be_retried_are_not_cleared(page):
    abort_first_request(page, PREDICTIONS_URL)
    page.set_input_files("#file-input", [image_file(90), image_file(180), TEXT_FILE])
    expect(page.locator("#upload-summary")).to_have_text("1 of 3 done, 2 failed")
    page.click("#clear-finished")
    expect(page.locator("#upload-queue li")).to_have_count(1)
    expect(page.locator("#upload-summary")).to_have_text("0 of 1 done, 1 failed")
    expect(page.locator("#clear-finished")).to_be_hidden()
    page.get_by_role("button", name="Retry", exact=True).click()
    expect(page.locator("#upload-summary")).to_have_text("1 of 1 done, 0 failed")


def test_folder_is_uploaded_with_its_subfolders(page, tmp_path):
    (tmp_path / "images/inner").mkdir(parents=True)
    (tmp_path / "images/a.png").write_bytes(png(100))
    (tmp_path / "images/inner/b.png").write_bytes(png(140))
    (tmp_path / "images/.hidden").write_bytes(b"x")
    page.set_input_files("#folder-input", tmp_path / "images")
    expect(page.locator("#upload-queue [data-state=done]")).to_have_count(2)
    expect(page.locator("#total")).to_have_text("2 images")
    assert sorted(row_names(page)) == ["images/a.png", "images/inner/b.png"]


@pytest.mark.parametrize("action", ["drop", "paste"])
def test_dropped_and_pasted_images_are_uploaded(page, action):
    page.locator("body").evaluate(
        """(body, [action, bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "mine.png", { type: "image/png" }));
          const options = { bubbles: true, cancelable: true };
          body.dispatchEvent(action === "drop" ? new DragEvent("drop", { ...options, dataTransfer: transfer })
            : new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
        }""",
        [action, list(png(140))],
    )
    expect(page.locator("#total")).to_have_text("1 image")
    assert row_names(page) == ["mine.png"]


def test_upload_is_repeated_while_the_service_is_busy(page):
    attempts = []

    def busy_once(route):
        attempts.append(route)
        if len(attempts) == 1:
            return route.fulfill(status=503, headers={"Retry-After": "0.1"}, content_type="application/json", body="{}")
        return route.continue_()

    page.route(PREDICTIONS_URL, busy_once)
    page.set_input_files("#file-input", [image_file(90)])
    expect(page.locator("#upload-queue [data-state=done]")).to_have_count(1)
    assert len(attempts) == 2


def test_empty_file_and_empty_drop_are_reported(page):
    page.set_input_files("#file-input", [{"name": "empty.png", "mimeType": "image/png", "buffer": b""}, image_file(90)])
    expect(page.locator("#upload-summary")).to_have_text("1 of 2 done, 1 failed")
    first = page.locator("#upload-queue li").first
    expect(first).to_contain_text("empty.png")
    expect(first.locator(".upload-error")).to_have_text("Failed: The file is empty.")
    page.locator("body").evaluate(
        "body => body.dispatchEvent(new DragEvent('drop', { bubbles: true, dataTransfer: new DataTransfer() }))"
    )
    expect(page.locator("#status")).to_have_text("No files found.")
    assert page.locator("#status").bounding_box()["height"] > 20


def test_uploads_wait_in_the_queue_when_the_session_expires(signed_in):
    page, client = signed_in
    fail_requests(page, PREDICTIONS_URL, 401, "authentication")
    page.set_input_files("#file-input", [image_file(level) for level in range(80, 90)])
    expect(page.get_by_role("button", name="Retry", exact=True)).to_have_count(10)
    expect(page.locator("#upload-summary")).to_have_text("0 of 10 done, 10 failed")
    expect(page.locator("#session-expired")).to_contain_text("Your session has expired.")
    assert page.url == f"{client.base_url}/"
    expect(page.locator("#clear-finished")).to_be_hidden()
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Sign in in a new tab").click()
    popup.value.close()
    page.unroute(PREDICTIONS_URL)
    page.get_by_role("button", name="Retry all").click()
    expect(page.locator("#upload-summary")).to_have_text("10 of 10 done, 0 failed")
    expect(page.locator("#session-expired")).to_be_hidden()


def retry_all(page, language="en"):
    return page.get_by_role("button", name={"en": "Retry all failed", "zh-Hant": "重試所有失敗項目"}[language])


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("language", ["en", "zh-Hant"])
def test_all_uploads_that_failed_while_the_service_was_down_are_retried_at_once(
    browser, bundle_folder, tmp_path, language, width
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = browser.new_page(viewport={"width": width, "height": 844})
    port = free_port()
    with served(bundle_folder, tmp_path, "--port", str(port)) as (process, client):
        page.goto(f"{client.base_url}/?language={language}")
        page.set_input_files("#file-input", [image_file(80)])
        expect(page.locator("#upload-queue [data-state=done]")).to_have_count(1)
        expect(retry_all(page, language)).to_be_hidden()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    empty = {"name": "empty.png", "mimeType": "image/png", "buffer": b""}
    page.set_input_files("#file-input", [*(image_file(level) for level in range(90, 95)), TEXT_FILE, empty])
    expect(page.locator("#upload-queue [data-state=retry]")).to_have_count(6)  # the empty file can never succeed
    expect(retry_all(page, language)).to_have_text(
        {"en": "Retry all failed (6)", "zh-Hant": "重試所有失敗項目（6）"}[language]
    )
    page.wait_for_load_state()
    found = json.loads(json.dumps(axe.Axe().run(page).response))["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    with served(bundle_folder, tmp_path, "--port", str(port)) as (_, client):
        retry_all(page, language).focus()
        page.keyboard.press("Enter")
        expect(page.locator("#upload-queue [data-state=done]")).to_have_count(6)
        expect(page.locator("#upload-queue [data-state=failed]")).to_have_count(2)  # the empty file, and the text
        expect(retry_all(page, language)).to_be_hidden()
        assert page.locator("#upload-queue").evaluate("queue => queue === document.activeElement")
        summary = {"en": "6 of 8 done, 2 failed", "zh-Hant": "共 8 個檔案，完成 6 個，失敗 2 個"}
        expect(page.locator("#upload-summary")).to_have_text(summary[language])
        assert client.get("/v1/predictions").json()["total"] == 6
    page.close()


def test_uploads_that_failed_while_the_database_was_locked_are_retried(page, service, service_folder):
    with contextlib.closing(sqlite3.connect(service_folder / "pneumoscope-data/pneumoscope.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        page.set_input_files("#file-input", [image_file(90), image_file(180), TEXT_FILE])
        expect(page.locator("#upload-queue [data-state=retry]")).not_to_have_count(0, timeout=100_000)
        expect(page.locator("#upload-summary")).to_contain_text("3 failed", timeout=100_000)
        expect(page.locator("#upload-queue .upload-error").last).to_contain_text("Storage unavailable")
        other.rollback()
    retry_all(page).click()
    expect(page.locator("#upload-summary")).to_have_text("2 of 3 done, 1 failed")
    assert service.get("/v1/predictions").json()["total"] == 2


@pytest.mark.parametrize(("status", "transient"), [(429, True), (502, True), (504, True), (413, False), (415, False)])
def test_failures_that_can_never_succeed_are_not_retried(page, status, transient):
    """Responses of a proxy, which are not problem documents."""
    page.route(
        PREDICTIONS_URL, lambda route: route.fulfill(status=status, content_type="text/html", body="<h1>no</h1>")
    )
    page.set_input_files("#file-input", [image_file(90)])
    expect(page.locator("#upload-summary")).to_have_text("0 of 1 done, 1 failed")
    expect(page.locator("#upload-queue .upload-error")).to_contain_text("The request failed.")
    expect(retry_all(page)).to_be_visible(visible=transient)


def test_list_is_refreshed_during_uploads_and_keeps_selection_and_focus(page, service):
    held, levels = [], iter(range(150, 160))

    def hold_all_but_the_first(route):
        held.append(route)
        if len(held) == 1:
            route.continue_()

    def wait_for_refresh():
        page.evaluate("document.getElementById('list').dataset.old = ''")
        upload(service, {"other.png": next(levels)})
        expect(page.locator("#list[data-old]")).to_have_count(0)

    page.route(PREDICTIONS_URL, hold_all_but_the_first)
    page.set_input_files("#file-input", [image_file(level) for level in range(80, 110)])
    expect(page.locator("#upload-queue progress, #upload-queue li:has-text('Processing')").first).to_be_visible()
    expect(page.locator("#total")).to_have_text("1 image")
    expect(page.locator("#upload-queue li").first).not_to_have_attribute("data-state", "done")
    expect(page.locator("#upload-queue li").last).to_have_attribute("data-state", "done")
    queue = page.locator("#upload-queue")
    assert queue.evaluate("queue => queue.scrollHeight > queue.clientHeight && queue.tabIndex === 0")
    page.keyboard.press("j")
    wait_for_refresh()
    assert page.locator("tr.selected a").evaluate("link => link === document.activeElement")
    page.evaluate("document.activeElement.blur()")
    wait_for_refresh()
    expect(page.locator("tr.selected")).to_have_count(1)
    for route in held[1:]:
        route.abort()


def test_filters_and_csv_export(page, service):
    upload(service)
    page.reload()
    assert row_names(page) == ["high.png", "middle.png", "low.png"]
    page.select_option("select[name=decision]", "pneumonia")
    page.select_option("select[name=order]", "lowest")
    expect(page.locator("tr[data-id]").first).to_have_attribute("data-name", "middle.png")
    expect(page.locator("#total")).to_have_text("2 images")
    assert row_names(page) == ["middle.png", "high.png"]
    with page.expect_download() as download:
        page.get_by_role("link", name="Export as CSV").click()
    assert len(Path(download.value.path()).read_text("utf-8-sig").splitlines()) == 3


def test_tabs_list_rejected_images_and_unreadable_files(page, service):
    upload(service)
    page.set_input_files("#file-input", [TEXT_FILE])
    expect(page.locator(".tabs")).to_contain_text("Unreadable 1")
    page.get_by_role("link", name="Rejected 1").click()
    expect(page.locator("#total")).to_have_text("1 image")
    assert row_names(page) == ["dark.png"]
    expect(page.locator(".reasons")).to_have_text("Inverted: 1")
    expect(page.get_by_role("link", name="Rejected 1")).to_have_attribute("aria-current", "page")
    page.get_by_role("link", name="Unreadable 1").click()
    expect(page.locator("tbody tr")).to_contain_text("not an image")
    page.get_by_role("button", name="Remove letter.txt from the list").click()
    expect(page.locator(".empty-state")).to_have_text("No unreadable files.")
    page.get_by_role("link", name="Predicted 3").click()
    expect(page.locator("#total")).to_have_text("3 images")
    assert row_names(page) == ["high.png", "middle.png", "low.png"]


def test_worklist_is_read_by_keyboard(page, service):
    ids = upload(service)
    page.reload()
    for key in ("j", "j", "k"):
        page.keyboard.press(key)
    page.keyboard.press("p")  # an image is labeled in the viewer only, where it is seen
    page.keyboard.press("Enter")
    expect_viewer(page, "high.png")
    for key, name in (("j", "middle.png"), ("j", "low.png"), ("k", "middle.png")):
        page.keyboard.press(key)
        expect_viewer(page, name)
    page.keyboard.press("n")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    assert {name: stored_review(service, ids[name]) for name in LEVELS} == {
        "dark.png": None, "high.png": None, "middle.png": ("no_finding", ""), "low.png": None,
    }  # fmt: skip
    page.goto(str(service.base_url))
    expect(page.locator("tr[data-name='middle.png'] .review")).to_have_text("No finding")


def test_readings_are_shown_after_the_browser_goes_back(page, service):
    upload(service, {"high.png": 180})
    page.reload()
    page.get_by_role("link", name="high.png").click()
    expect_viewer(page, "high.png")
    page.keyboard.press("p")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    page.go_back()
    expect(page.locator("tr[data-id] .review")).to_have_text("Pneumonia")


def test_shortcuts_work_after_files_were_chosen(page):
    page.focus("#file-input")
    page.set_input_files("#file-input", [image_file(180)])
    expect(page.locator("#total")).to_have_text("1 image")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect_viewer(page, "180.png")


def test_entered_age_applies_to_the_next_files_only(page, service):
    age = page.get_by_label("Age of the patient (years)")
    age.fill("3.5")
    page.set_input_files("#file-input", [image_file(140), image_file(150)])
    expect(page.locator("#upload-queue [data-state=done]")).to_have_count(2)
    expect(page.locator("#upload-queue")).to_contain_text("140.png (age entered: 3.5)")
    assert age.input_value() == ""
    page.set_input_files("#file-input", [image_file(160)])
    expect(page.locator("#upload-queue [data-state=done]")).to_have_count(3)
    found = service.get("/v1/predictions").json()["predictions"]
    ages = {each["path"]: each["age"] and each["age"]["years"] for each in found}
    assert ages == {"140.png": 3.5, "150.png": 3.5, "160.png": None}


def test_nothing_is_uploaded_with_an_impossible_age(page, service):
    page.get_by_label("Age of the patient (years)").fill("350")
    page.set_input_files("#file-input", [image_file(140)])
    expect(page.locator("#status")).to_contain_text("Nothing was uploaded. Enter an age from 0 to 130 years.")
    assert service.get("/v1/predictions").json()["total"] == 0


def test_reason_of_a_failed_upload_has_the_signs_of_its_language(browser, service):
    context = browser.new_context(locale="zh-TW")
    page = context.new_page()
    page.goto(str(service.base_url))
    page.set_input_files(
        "#file-input", [{"name": "a.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7 " + bytes(50)}]
    )
    error = page.locator(".upload-error")
    expect(error).to_contain_text("失敗：無法讀取影像（檔案類型：PDF 文件")
    assert not re.search(r"[\u4e00-\u9fff] ?\(|\)$", error.inner_text())
    context.close()
