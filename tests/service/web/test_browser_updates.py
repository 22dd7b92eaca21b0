"""What others change while an image is open in the viewer, in a real Chromium, against a real process."""

import contextlib
import signal

import pytest
from tests.service.conftest import dicom, insert_token_of_service, served
from tests.service.web.helpers import (
    TOKEN,
    expect,
    expect_viewer,
    sign_in,
    upload,
    wait_until,
)

pytestmark = pytest.mark.browser
OTHER = {"Authorization": "Bearer fedcba9876543210"}
CHANGED = {
    "en": "Updated: someone else has changed this image or its study.",
    "zh-Hant": "已更新：其他人變更了此影像或其檢查。",
}


@pytest.fixture
def shared(signed_in):
    """The viewer of ward-3, live, the client, and the id of the image; ward-4 is `OTHER`."""
    page, client = signed_in
    id = upload(client, {"high.png": 180})["high.png"]
    page.goto(f"{client.base_url}/images/{id}")
    expect_viewer(page, "high.png")
    wait_until_live(page, client)
    return page, client, id


def wait_until_live(page, client):
    def count():
        lines = client.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith("pneumoscope_event_streams"))

    wait_until(page, lambda: count() == 1)


def review(client, id, label="other_finding", finding="effusion", headers=OTHER):
    body = {"label": label, "finding": finding if label == "other_finding" else ""}
    assert client.put(f"/v1/predictions/{id}/review", json=body, headers=headers).status_code == 200


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
def test_reading_of_another_reader_appears_and_disappears(shared, language):
    page, client, id = shared
    page.goto(f"{client.base_url}/images/{id}?language={language}")
    expect_viewer(page, "high.png")
    wait_until_live(page, client)
    page.keyboard.press("+")
    zoom = page.locator("#zoom").inner_text()
    expect(page.locator("#readings-title")).to_have_count(0)
    review(client, id)
    expect(page.locator("[data-part=readings]")).to_contain_text("effusion")
    expect(page.locator("[data-part=readings]")).to_contain_text("ward-4")
    expect(page.locator("#change-notice")).to_have_text(CHANGED[language])
    assert page.locator("#change-notice").get_attribute("role") == "status"
    client.delete(f"/v1/predictions/{id}/review", headers=OTHER)
    expect(page.locator("#readings-title")).to_have_count(0)
    assert page.locator("#zoom").inner_text() == zoom  # the display stays


def test_unsaved_note_and_own_label_stay(shared):
    page, client, id = shared
    page.keyboard.press("n")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    page.fill("textarea[name=note]", "half a sen")
    review(client, id)
    expect(page.locator("[data-part=readings]")).to_contain_text("effusion")
    assert page.input_value("textarea[name=note]") == "half a sen"
    expect(page.get_by_role("radio", name="No finding")).to_be_checked()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("#save-status")).to_have_text("Saved.")
    found = client.get(f"/v1/predictions/{id}").json()["reviews"]
    assert {each["reviewer"]: each["note"] for each in found} == {"ward-3": "half a sen", "ward-4": ""}


def test_own_reading_is_not_a_change_by_others(shared):
    page, client, id = shared
    requests = []
    page.on("request", lambda each: each.url.endswith(f"/images/{id}") and requests.append(each))
    with page.expect_response("**/state"):
        page.keyboard.press("p")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    upload(client, {"other.png": 100})  # nor is another image
    page.wait_for_timeout(1500)
    expect(page.locator("#change-notice")).to_have_text("")
    expect(page.locator("#save-status")).to_have_text("Saved.")
    assert requests == []


def test_corrected_patient_appears_unless_the_form_is_open(shared):
    page, client, id = shared
    client.put(f"/v1/predictions/{id}/identity", json={"patient_name": "Doe^Jane"}, headers=OTHER)
    expect(page.locator(".patient-banner")).to_contain_text("Doe Jane")
    page.get_by_text("Patient and study", exact=True).click()
    name = page.locator("input[name=patient_name]")
    expect(name).to_have_value("Doe^Jane")
    name.fill("Roe^Jane")
    client.put(f"/v1/predictions/{id}/identity", json={"patient_name": "Poe^Jane"}, headers=OTHER)
    expect(page.locator(".patient-banner")).to_contain_text("Poe Jane")
    expect(page.locator("#change-notice")).to_contain_text("Patient and study were changed by someone else.")
    expect(name).to_have_value("Roe^Jane")
    page.get_by_role("link", name="Load the image again").click()
    expect(name).to_have_value("Poe^Jane")


def test_review_of_another_leaves_the_open_form_of_the_patient_usable(shared):
    page, client, id = shared
    page.get_by_text("Patient and study", exact=True).click()
    page.locator("input[name=patient_name]").fill("Doe^Jane")
    review(client, id)
    expect(page.locator("[data-part=readings]")).to_contain_text("effusion")
    expect(page.locator("#change-notice")).to_have_text(CHANGED["en"])
    page.get_by_role("button", name="Save patient and study").click()
    expect(page.locator(".patient-banner")).to_contain_text("Doe Jane")


def test_decision_with_a_corrected_age_is_offered(browser, child_bundle, tmp_path):
    insert_token_of_service(tmp_path, "ward-3")
    insert_token_of_service(tmp_path, "ward-4", "fedcba9876543210", id="00000002")
    with served(child_bundle, tmp_path) as (_, client):
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        file = dicom(PatientID="7", StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.4")
        (first,) = client.post("/v1/predictions", files=[("images", ("a.dcm", file))]).json()["predictions"]
        page = browser.new_page(locale="en-GB")
        page.goto(f"{client.base_url}/images/{first['id']}")
        sign_in(page)
        expect(page.locator(".decision-line")).to_contain_text("Rejected")
        wait_until_live(page, client)
        own = {"Origin": str(client.base_url).rstrip("/")}
        answer = client.post(f"/images/{first['id']}", data={"age": "3"}, headers={**OTHER, **own})
        assert answer.status_code == 303
        expect(page.locator(".decision-line")).to_contain_text("This image was predicted again.")
        page.get_by_role("link", name="Show the newest prediction").click()
        expect(page.locator(".decision-line")).to_contain_text("No pneumonia detected")
        expect(page.get_by_text("3 years (entered)")).to_be_visible()
        expect(page.get_by_role("link", name="Show the newest prediction")).to_have_count(0)
        page.close()


def test_deleted_image_is_announced(shared):
    page, client, id = shared
    client.delete(f"/v1/predictions/{id}")
    expect(page.locator("#change-notice")).to_have_text("This image was deleted by someone else.")


def test_next_image_is_live_too(signed_in):
    page, client = signed_in
    ids = upload(client, {"one.png": 100, "two.png": 150})
    page.goto(f"{client.base_url}/?order=oldest")
    page.get_by_role("link", name="one.png").click()
    expect_viewer(page, "one.png")
    page.keyboard.press("j")
    expect_viewer(page, "two.png")
    wait_until_live(page, client)
    review(client, ids["one.png"])
    review(client, ids["two.png"], finding="atelectasis")
    expect(page.locator("[data-part=readings]")).to_contain_text("atelectasis")
    expect(page.locator("[data-part=readings]")).not_to_contain_text("effusion")


def test_change_while_the_next_image_opens_is_not_missed(signed_in):
    page, client = signed_in
    ids = upload(client, {"one.png": 100, "two.png": 150})
    page.goto(f"{client.base_url}/?order=oldest")
    page.get_by_role("link", name="one.png").click()
    expect_viewer(page, "one.png")
    wait_until_live(page, client)

    def change_after_reading(route):
        response = route.fetch()
        review(client, ids["two.png"])
        page.wait_for_timeout(1500)  # the event arrives before the image
        route.fulfill(response=response)

    page.route(f"**/images/{ids['two.png']}", change_after_reading, times=1)
    page.keyboard.press("j")
    expect_viewer(page, "two.png")
    expect(page.locator("[data-part=readings]")).to_contain_text("effusion")


def test_blind_reader_does_not_see_that_others_have_read(browser, bundle_folder, tmp_path):
    insert_token_of_service(tmp_path, "ward-3")
    insert_token_of_service(tmp_path, "ward-4", "fedcba9876543210", id="00000002")
    with served(bundle_folder, tmp_path, "--blind-first") as (_, client):
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        id = upload(client, {"high.png": 180})["high.png"]
        page = browser.new_page(locale="en-GB")
        page.goto(f"{client.base_url}/images/{id}")
        sign_in(page)
        expect_viewer(page, "high.png")
        wait_until_live(page, client)
        with page.expect_response("**/state"):
            review(client, id)
        page.wait_for_timeout(500)
        expect(page.locator("#change-notice")).to_have_text("")
        assert "effusion" not in page.content()
        page.keyboard.press("p")
        expect(page.locator("[data-part=readings]")).to_contain_text("effusion")
        page.close()


def test_lost_connection_is_shown_in_the_viewer(browser, bundle_folder, tmp_path):
    with contextlib.closing(browser.new_context(locale="en-GB")) as context:
        page = context.new_page()
        with served(bundle_folder, tmp_path) as (process, client):
            id = upload(client, {"high.png": 180})["high.png"]
            page.goto(f"{client.base_url}/images/{id}")
            expect_viewer(page, "high.png")
            wait_until_live(page, client)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            expect(page.locator("#live-status")).to_have_text("This page is not live; reconnecting …")
