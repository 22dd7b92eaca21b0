"""Journeys of a physician from beginning to end, in a real Chromium against a real process.

Each journey is one function. It runs on a desktop, where buttons, links, fields and tools are used by the keyboard, and on a
phone, upright and on its side, where they are tapped; in English and Traditional Chinese, in light and dark; see
`person.HALVES`. Options of lists and files to upload are set by Playwright, and on a phone a mouse draws the ruler.
`Person.check` examines each page on the way: axe, its width, errors of scripts, and whether it is in one language. What the
interface promises, and the tests of it beside the journeys:

- patient, study and priors are shown, searched and filtered; names are not in URLs: `test_browser_identity`,
  `api/test_identity`
- images of a study stand together; its decision is that of the most suspicious frontal image: `test_browser_reading`,
  `storage/test_identities`
- the same pixels under another patient raise a conflict that a person sees: `test_browser_two_patients`,
  `storage/test_two_patients`
- a corrected patient ID moves the prediction: `test_browser_identity`, `storage/test_identities`
- order by urgency; tabs of rejected and unreadable files with counts and reasons: `test_routes`, `test_browser_worklist`
- the list is live; filters apply at once: `test_browser_live`, `test_changes`
- labels of each reader are kept, withdrawn, and compared with the model and each other: `test_browser_viewer`,
  `test_dashboard`
- blind-first: `test_browser_viewer`, `test_browser_reading`, `test_browser_display`, `test_browser_screen`
- no image is labeled from the list: `test_browser_worklist`
- sentences for decision, interval, prevalence and uncertainty: `test_routes`, `core/test_messages`
- window and level of all bits, presets, ruler in mm, contour, key list: `test_browser_display`,
  `imaging/test_pixel_values`, `api/test_pixels`
- full screen; the decision above the image on a phone; nothing covers the image on its side: `test_browser_screen`
- local time zone: `service/test_time_zone`
- all failed uploads are retried at once: `test_browser_worklist`
- roles, tokens, sign-in by code or provider, delays, log of views: `test_browser_accounts`, `service/auth`,
  `audit/test_access`
- pages on every screen: `test_browser_pages`, and the pictures of docs/web-ui.md
"""

import re

import pytest
from tests import images
from tests.imaging.conformance import dataset, deep, written
from tests.service.conftest import png, served
from tests.service.web.conftest import SESSION_SECONDS
from tests.service.web.helpers import (
    REVIEW_URL,
    TOKEN,
    expect,
    expect_values,
    expect_viewer,
    fail_requests,
    image_file,
    remove_everything,
    row_names,
    stored_review,
    upload,
    wait_until,
)
from tests.service.web.person import HALVES, SCREENS, Person, on

pytestmark = pytest.mark.browser
FIRST, SECOND = HALVES
JANE = {"PatientID": "77", "PatientName": "Doe^Jane", "PatientBirthDate": "20220115", "PatientSex": "F"}
STUDY = {"StudyInstanceUID": "1.2.1", "AccessionNumber": "ACC1", "StudyDate": "20260102"}
PRIOR = {"StudyInstanceUID": "1.2.2", "AccessionNumber": "ACC0", "StudyDate": "20250102"}
BROKEN = {"name": "broken.dcm", "mimeType": "application/dicom", "buffer": b"no image"}
OTHER_READER = {"Authorization": "Bearer fedcba9876543210"}


@pytest.fixture
def person(request, browser):
    """A person at the screen of the test's parameter."""
    context = browser.new_context(**request.param.context)
    yield Person(context.new_page(), request.param)
    context.close()


@pytest.fixture(scope="module")
def blind_process(child_bundle, browser, tmp_path_factory):
    """A service in which readers label first, for patients of 1 to 5 years."""
    with served(child_bundle, tmp_path_factory.mktemp("blind"), "--blind-first", deadline=SESSION_SECONDS) as (
        _,
        client,
    ):
        yield client


def file(level, number, **elements):
    return images.dicom(level, 64, SOPInstanceUID=f"1.2.3.{number}", **{"PatientAge": "004Y"} | elements)


def send(client, files):
    response = client.post("/v1/predictions", files=[("images", each) for each in files.items()])
    assert response.status_code == 201
    return {each["path"]: each["id"] for each in response.json()["predictions"]}


@pytest.fixture
def studies(service):
    """A study of three images, one of them lateral; a prior; and an image without a patient."""
    return send(service, {
        "front.dcm": file(180, 1, **JANE, **STUDY),
        "second.dcm": file(100, 2, **JANE, **STUDY),
        "side.dcm": file(110, 3, **JANE, **STUDY, ViewPosition="LL"),
        "prior.dcm": file(120, 4, **JANE, **PRIOR, PatientAge="003Y"),
        "plain.png": png(150),
    })  # fmt: skip


def link(person, name):
    return person.page.get_by_role("link", name=name, exact=True)


def open_image(person, name):
    """Open an image of the list; the viewer shows its values."""
    person.follow(link(person, name).first)
    expect_viewer(person.page, name)
    expect_values(person.page)


@on(FIRST)
def test_uploaded_images_are_listed_most_urgent_first_and_rejected_and_unreadable_ones_apart(person, service):
    page = person.page
    person.open(service.base_url)
    page.set_input_files("#file-input", [*(image_file(level) for level in (90, 60, 180)), BROKEN])
    expect(page.locator("#upload-queue [data-state=done]")).to_have_count(3)
    error = page.locator("#upload-queue .upload-error")
    expect(error).to_contain_text(person.text("Unreadable image"))
    expect(page.locator(".tabs .count")).to_have_text(["2", "1", "1"])
    expect(page.locator("tr[data-id]").first).to_have_attribute("data-name", "180.png")
    expect(page.locator("tr[data-id]")).to_have_count(2)
    person.check()
    assert row_names(page) == ["180.png", "90.png"]
    expect(page.locator("tr[data-id]").first).to_contain_text(person.text("Pneumonia"))
    expect(page.locator("tr[data-id]").last).to_contain_text(person.text("No pneumonia detected"))
    expect(page.locator("#list > .note").first).to_contain_text("50%")
    tabs = page.locator(".tabs a")
    expect(tabs.locator(".count")).to_have_text(["2", "1", "1"])
    person.activate(tabs.nth(1))
    expect(page.locator("#total")).to_contain_text("1")
    assert row_names(page) == ["60.png"]
    expect(page.locator(".reasons")).to_contain_text(person.text("Inverted"))
    person.check()
    person.activate(page.locator(".tabs a").nth(2))
    expect(page.locator("tbody tr")).to_contain_text("broken.dcm")
    person.check()
    person.activate(page.locator("tbody tr").get_by_role("button"))
    expect(page.locator(".empty-state")).to_have_text(person.text("No unreadable files."))


@on(SECOND)
def test_filters_apply_at_once_and_others_change_the_list_while_it_is_open(person, service):
    page = person.page
    ids = upload(service)
    person.open(service.base_url)
    if person.screen.size != "desktop":
        person.activate(page.locator("#show-filters"))
    person.choose(page.locator("select[name=decision]"), "pneumonia")
    expect(page.locator("#total")).to_contain_text("2")
    assert row_names(page) == ["high.png", "middle.png"]
    person.choose(page.locator("select[name=order]"), "lowest")
    expect(page.locator("tr[data-id]").first).to_have_attribute("data-name", "middle.png")
    service.put(f"/v1/predictions/{ids['high.png']}/review", json={"label": "no_finding"}).raise_for_status()
    expect(page.locator("tr[data-name='high.png'] .review")).to_have_text(person.text("No finding"))
    person.choose(page.locator("select[name=reviewed]"), "no")
    expect(page.locator("#total")).to_contain_text("1")
    service.delete(f"/v1/predictions/{ids['middle.png']}")
    expect(page.locator(".empty-state")).to_contain_text(person.text("No images match these filters."))
    person.check()


@on(SECOND)
def test_patient_is_found_by_name_and_the_study_and_its_priors_stand_together(person, service, studies):
    page = person.page
    person.open(service.base_url)
    person.write(page.locator(".search input[name=text]"), "jane")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert "jane" not in page.url
    assert row_names(page) == ["front.dcm", "second.dcm", "prior.dcm"]
    study = page.locator(".study-row").first
    expect(study.locator(".study-decision")).to_contain_text(person.text("Pneumonia"))
    expect(study).to_contain_text(person.text("Not a frontal view"))
    person.check()
    open_image(person, "front.dcm")
    expect(page.locator(".patient-banner")).to_contain_text("Doe Jane")
    person.choose(page.locator("#compare"), studies["prior.dcm"])
    expect_values(page, "#compare-viewport")
    expect(page.locator("#compare-caption")).to_contain_text("2025-01-02")
    person.check()
    person.choose(page.locator("#compare"), "")
    priors = page.locator("[data-part=studies] section").last
    person.activate(priors.get_by_role("link"))
    expect_viewer(page, "prior.dcm")


@on(SCREENS)
def test_images_of_a_study_are_read_one_after_the_other(person, service, studies):
    page = person.page
    person.open(service.base_url)
    open_image(person, "front.dcm")
    expect(page.locator(".decision-heading")).to_be_in_viewport(ratio=1)
    expect(page.locator(".decision-heading")).to_contain_text(person.text("Pneumonia"))
    expect(page.locator(".decision-line .probability")).to_contain_text("%")
    person.label("o", "other_finding")
    finding = page.locator("#finding-field input")
    expect(finding).to_be_focused()
    page.keyboard.type("effusion")
    page.keyboard.press("Enter")
    expect(page.locator("#save-status")).to_have_text(person.text("Saved."))
    person.check()
    person.tool("j", "next")
    expect_viewer(page, "second.dcm")
    expect(page.locator(".decision-heading")).to_contain_text(person.text("No pneumonia detected"))
    person.label("p", "pneumonia")
    expect(page.locator("#save-status")).to_have_text(person.text("Saved."))
    person.activate(page.locator("#withdraw"))
    expect(page.locator("#save-status")).to_have_text(person.text("Withdrawn."))
    person.label("n", "no_finding")
    wait_until(page, lambda: stored_review(service, studies["second.dcm"]) == ("no_finding", ""))
    person.tool("j", "next")
    expect_viewer(page, "side.dcm")
    expect(page.locator(".decision-line")).to_contain_text(person.text("Not a frontal view"))
    person.label("u", "unusable")
    expect(page.locator("#save-status")).to_have_text(person.text("Saved."))
    person.check()
    person.follow(page.locator(".header nav a").nth(1))
    agreement = person.named("region", "Readers and model")
    expect(agreement.locator("tbody tr")).to_have_text(
        re.compile(r"\D0\s*1\s*1\s*1")
    )  # pneumonia, other, none, unusable
    person.check()


@on(SCREENS)
def test_image_is_examined_with_every_tool(person, service):
    """The image has 12 bits and a known spacing of pixels."""
    page = person.page
    pixels = written(
        dataset(deep(), **JANE, **STUDY, ImagerPixelSpacing=[0.2, 0.1], WindowCenter=1500, WindowWidth=2500)
    )
    send(service, {"twelve.dcm": pixels})
    person.open(service.base_url)
    open_image(person, "twelve.dcm")
    width = page.locator("#window-width")
    expect(width).to_have_value("2500")
    person.choose(page.locator("#window-preset"), person.text("Full range"))
    expect(width).to_have_value("4095")
    person.write(width, "1000")
    expect(page.locator("#window-preset option:checked")).to_have_text(person.text("Manual"))
    page.evaluate("document.activeElement.blur()")
    person.tool("i", "invert")
    expect(page.locator("#invert")).to_have_attribute("aria-pressed", "true")
    person.tool("m", "measure")
    viewport = page.locator(".viewport").first
    if person.screen.size == "desktop":
        person.reach(viewport)
        for key in ("Enter", "ArrowRight"):
            page.keyboard.press(key)
    else:
        viewport.scroll_into_view_if_needed()
        box = viewport.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
        page.mouse.up()
    unit = person.text("{length} mm at the detector").partition("}")[2]
    expect(page.locator("#measurement")).to_have_text(re.compile(rf"^[\d.]+{re.escape(unit)}$"))
    person.tool("h", "heatmap-toggle")
    expect(page.locator(".heatmap-layer")).to_be_visible()
    expect(page.locator(".color-scale")).to_contain_text(person.text("Contribution, relative to this image:"))
    person.tool("c", "contour-toggle")
    expect(page.locator(".contour")).to_be_visible()
    person.check()
    person.tool("s", "full-screen")
    wait_until(page, lambda: page.evaluate("document.fullscreenElement !== null"))
    expect(page.locator(".decision-heading")).to_be_in_viewport(ratio=1)
    person.tool("?", "help")
    expect(person.named("heading", "Keyboard shortcuts")).to_be_visible()
    person.check()


@on(FIRST)
def test_reader_labels_before_the_prediction_appears_and_then_enters_the_age(person, blind_process):
    page = person.page
    remove_everything(blind_process)
    send(blind_process, {"blind.png": png(100)})
    person.open(blind_process.base_url)
    expect(page.locator("tr[data-id]")).to_contain_text(person.text("Hidden until you have read the image"))
    person.check()
    open_image(person, "blind.png")
    expect(page.locator("#heatmap-toggle")).to_have_count(0)
    expect(page.locator(".decision")).to_have_count(0)
    person.check()
    person.label("n", "no_finding")
    expect(page.locator(".decision-heading")).to_contain_text(person.text("No pneumonia detected"))
    expect(page.locator("#heatmap-toggle")).to_be_visible()
    person.write(page.locator("#age"), "30")
    person.follow(person.named("button", "Predict again"))
    expect(page.locator(".metadata")).to_contain_text("30")
    expect(page.locator(".decision-line")).to_contain_text(person.text("Age outside the model's range"))
    person.check()


@on(SECOND)
def test_patient_of_a_plain_image_is_entered_and_a_wrong_date_is_explained(person, service, studies):
    page = person.page
    person.open(f"{service.base_url}/images/{studies['plain.png']}")
    person.activate(page.locator("#identity summary"))
    form = page.locator("#identity form")
    person.write(form.locator("[name=patient_id]"), "77")
    person.write(form.locator("[name=study_date]"), "yesterday")
    person.follow(form.get_by_role("button"))
    expect(form.locator("#study_date-problem")).to_have_text(person.text("This is not a date. Write it as 2021-01-31."))
    person.check()
    person.write(form.locator("[name=study_date]"), "2026-03-01")
    person.follow(form.get_by_role("button"))
    expect(page.locator(".patient-banner")).to_contain_text("Doe Jane")  # the patient is known
    priors = page.locator("[data-part=studies]").get_by_role("link")
    expect(priors).to_have_count(2)
    person.check()


@on(FIRST)
def test_one_of_two_patients_of_the_same_image_is_chosen(person, service):
    page = person.page
    send(service, {"front.dcm": file(180, 1, **JANE, **STUDY)})
    ann = {"PatientID": "78", "PatientName": "Roe^Ann", "PatientBirthDate": "20210301", "PatientSex": "F"}
    send(service, {"copy.dcm": file(180, 2, **ann, **STUDY)})
    person.open(service.base_url)
    expect(page.locator(".other-patient")).to_have_count(1)
    person.check()
    open_image(person, "front.dcm")
    choices = page.locator(".patient-choice form")
    expect(choices).to_have_count(2)
    person.check()
    person.follow(choices.filter(has_text="Doe Jane").get_by_role("button"))
    expect(page.locator(".patient-banner")).to_contain_text("Doe Jane")
    expect(choices).to_have_count(0)


@on(FIRST)
def test_reading_and_corrections_of_others_appear_in_the_open_image(person, authenticated):
    page, client = person.page, authenticated
    id = upload(client, {"high.png": 180})["high.png"]
    person.open(f"{client.base_url}/images/{id}")
    person.write(page.locator("input[type=password]"), TOKEN)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect_viewer(page, "high.png")
    person.label("p", "pneumonia")
    expect(page.locator("#save-status")).to_have_text(person.text("Saved."))
    review = {"label": "other_finding", "finding": "effusion"}
    client.put(f"/v1/predictions/{id}/review", json=review, headers=OTHER_READER).raise_for_status()
    expect(page.locator("[data-part=readings]")).to_contain_text("effusion")
    expect(page.locator("#change-notice")).to_contain_text(
        person.text("Updated: someone else has changed this image or its study.")
    )
    client.put(f"/v1/predictions/{id}/identity", json={"patient_name": "Doe^Jane"}, headers=OTHER_READER)
    expect(page.locator(".patient-banner")).to_contain_text("Doe Jane")
    person.check()
    elsewhere = {"label": "no_finding", "note": "elsewhere"}  # the reader's own, in another window
    client.put(f"/v1/predictions/{id}/review", json=elsewhere).raise_for_status()
    person.label("u", "unusable")
    expect(page.locator("#conflict-note")).to_have_text("elsewhere")
    person.check()


@on(SECOND)
def test_failed_save_is_reported_and_repeated(person, service):
    page = person.page
    id = upload(service, {"high.png": 180})["high.png"]
    person.open(f"{service.base_url}/images/{id}")
    expect_values(page)
    fail_requests(page, REVIEW_URL, 503)
    person.label("p", "pneumonia")
    expect(page.locator("#save-status")).to_contain_text(person.text("Service busy"))
    assert stored_review(service, id) is None
    page.unroute(REVIEW_URL)
    person.activate(page.locator("#review-form").get_by_role("button", name=person.text("Save"), exact=True))
    expect(page.locator("#save-status")).to_have_text(person.text("Saved."))
    assert stored_review(service, id) == ("pneumonia", "")


@on(FIRST)
def test_failed_uploads_are_sent_again_all_at_once(person, service):
    page = person.page
    person.open(service.base_url)
    page.route("**/v1/predictions", lambda route: route.abort())
    page.set_input_files("#file-input", [image_file(90), image_file(180)])
    retry = page.locator("#retry-failed")
    expect(retry).to_have_text(person.text("Retry all failed ({n})").format(n=2))
    person.check()
    page.unroute("**/v1/predictions")
    person.activate(retry)
    expect(page.locator("#upload-queue [data-state=done]")).to_have_count(2)
    assert service.get("/v1/predictions").json()["total"] == 2


@on(SECOND)
def test_report_is_opened_and_the_image_deleted(person, service, studies):
    page = person.page
    person.open(f"{service.base_url}/images/{studies['front.dcm']}")
    expect_values(page)
    person.follow(person.named("link", "Printable report"))
    expect(page.locator(".heatmap-layer")).to_be_visible()
    expect(page.locator(".report-page")).to_contain_text("Doe Jane")
    expect(page.locator(".signature dt").first).to_have_text(person.text("Name of the physician"))
    person.check()
    person.follow(person.named("link", "Back to the image"))
    expect_viewer(page, "front.dcm")
    person.activate(page.locator("#delete"))
    dialog = page.locator("#confirm-delete")
    expect(dialog).to_be_visible()
    person.check()
    person.follow(dialog.locator("button[value=yes]"))
    expect(page.locator("tr[data-name='second.dcm']")).to_be_visible()
    assert "front.dcm" not in row_names(page)


@on(SECOND)
def test_administrator_signs_in_adds_and_revokes_a_token_and_signs_out(person, authenticated):
    page = person.page
    person.open(f"{authenticated.base_url}/tokens")
    person.check()
    person.write(page.locator("input[type=password]"), TOKEN)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    person.write(page.locator("input[name=user]"), "dr.lin")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.locator(".new-secret code")).to_have_text(re.compile(r"^[\w-]{43}$"))
    person.check()
    row = page.get_by_role("row", name="dr.lin")
    person.activate(row.locator("summary"))
    person.follow(row.get_by_role("button"))
    expect(page.get_by_role("row", name="dr.lin")).to_contain_text(
        re.compile(person.text("Revoked %(time)s", time=r"[\d-]+ [\d:]+"))
    )
    person.follow(person.named("link", "Another device"))
    person.activate(person.named("button", "Create a code"))
    expect(page.locator(".qr-code")).to_be_visible()
    person.check()
    person.follow(person.named("button", "Sign out"))
    expect(page.locator("input[type=password]")).to_be_visible()
