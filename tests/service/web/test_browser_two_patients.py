"""An image that was received under two patients, in a real Chromium against a real process: a person sees both, and chooses."""

import pytest
from tests import images
from tests.service.web.helpers import expect, expect_viewer, row_names

pytestmark = pytest.mark.browser
FIRST = {
    "PatientID": "77", "PatientName": "Doe^Jane", "PatientBirthDate": "20220115", "PatientSex": "F", "AccessionNumber": "ACC1",
    "StudyInstanceUID": "1.2.1", "SOPInstanceUID": "1.2.1.1.1", "StudyDate": "20260102",
}  # fmt: skip
SECOND = {
    "PatientID": "R-204", "PatientName": "Roe^Robert", "PatientBirthDate": "20220304", "PatientSex": "M",
    "AccessionNumber": "ACC-9", "StudyInstanceUID": "1.2.9", "SOPInstanceUID": "1.2.9.1.1", "StudyDate": "20260203",
}  # fmt: skip
PRIOR = SECOND | {"StudyInstanceUID": "1.2.8", "SOPInstanceUID": "1.2.8.1.1", "StudyDate": "20250203"}
WARNING = "The same image was received under two patients"
SEARCH = "Patient name, patient ID, accession number or file name"


def send(service, name, level, header):
    file = images.dicom(level, 64, **header)
    response = service.post("/v1/predictions", files=[("images", (name, file))])
    assert response.status_code == 201, response.text
    return response.json()["predictions"][0]["id"]


@pytest.fixture
def image(page, service):
    """The id of the image of both patients, in the worklist."""
    send(service, "front.dcm", 180, FIRST)
    id = send(service, "copy.dcm", 180, SECOND)
    page.reload()
    return id


def search(page, text):
    page.get_by_label(SEARCH).fill(text)
    with page.expect_navigation():
        page.get_by_label(SEARCH).press("Enter")


def choices(page):
    return page.get_by_role("group", name="Choose the patient").locator("form")


def choose(page, name):
    with page.expect_navigation():
        choices(page).filter(has_text=name).get_by_role("button", name="Choose this patient").click()


def test_worklist_shows_the_conflict_with_the_other_patient_and_finds_both(page, service, image):
    assert row_names(page) == ["front.dcm"]
    row = page.locator("tr[data-id]")
    expect(row.locator(".warning").first).to_contain_text(WARNING)
    expect(row.locator(".other-patient")).to_contain_text("Roe Robert")
    expect(page.locator(".study-row")).to_contain_text("Doe Jane")
    for text in ("robert", "R-204", "acc-9", "jane", "77"):
        search(page, text)
        assert row_names(page) == ["front.dcm"], text
    page.locator(".other-patient").get_by_role("link", name="All studies of this patient").click()
    expect(page.locator(".study-row")).to_contain_text("Roe Robert")
    expect(page.locator(".other-patient")).to_contain_text("Doe Jane")


@pytest.mark.parametrize(("chosen", "other"), [("Doe Jane", "robert"), ("Roe Robert", "jane")])
def test_physician_chooses_one_of_the_two_patients(page, service, image, chosen, other):
    page.get_by_role("link", name="front.dcm").click()
    expect_viewer(page, "front.dcm")
    expect(page.get_by_text(WARNING)).to_be_visible()
    expect(choices(page)).to_have_count(2)
    choose(page, chosen)
    expect_viewer(page, "front.dcm")
    expect(page.locator(".patient-banner")).to_contain_text(chosen)
    expect(page.get_by_text(WARNING)).to_have_count(0)
    expect(choices(page)).to_have_count(0)
    send(service, "again.dcm", 180, FIRST)
    send(service, "again.dcm", 180, SECOND)
    page.goto(str(service.base_url))
    expect(page.locator(".study-row")).to_contain_text(chosen)
    expect(page.locator(".other-patient")).to_have_count(0)
    search(page, other)
    expect(page.locator(".empty-state")).to_contain_text("No images match these filters.")


def test_choice_that_another_person_has_made_is_not_overwritten(page, service, image):
    page.get_by_role("link", name="front.dcm").click()
    expect(choices(page)).to_have_count(2)
    tag = choices(page).first.locator("input[name=tag]").get_attribute("value")
    choose(page, "Doe Jane")
    answer = service.post(
        f"/images/{image}/identity",
        data={"tag": tag, "patient_id": "R-204", "patient_name": "Roe^Robert"},
        headers={"Origin": str(service.base_url).rstrip("/")},
    )
    assert answer.status_code == 412
    assert "Patient or study were changed in the meantime" in answer.text
    page.reload()
    expect(page.locator(".patient-banner")).to_contain_text("Doe Jane")


def test_form_says_that_saving_decides(page, service, image):
    page.get_by_role("link", name="front.dcm").click()
    page.get_by_text("Patient and study", exact=True).click()
    form = page.locator(".identity-form")
    expect(form).to_contain_text("Saving assigns the image to this patient")
    form.get_by_label("Patient ID", exact=True).fill("78")
    with page.expect_navigation():
        form.get_by_role("button", name="Save patient and study").click()
    expect(page.get_by_text(WARNING)).to_have_count(0)
    expect(page.locator(".patient-banner")).to_contain_text("78")


def test_conflict_appears_while_the_image_is_open(page, service):
    send(service, "front.dcm", 180, FIRST)
    page.reload()
    page.get_by_role("link", name="front.dcm").click()
    expect_viewer(page, "front.dcm")
    expect(choices(page)).to_have_count(0)
    send(service, "copy.dcm", 180, SECOND)
    expect(page.get_by_text(WARNING)).to_be_visible()
    expect(choices(page)).to_have_count(2)
    choose(page, "Roe Robert")
    expect(page.locator(".patient-banner")).to_contain_text("Roe Robert")


def test_report_and_priors_of_the_other_patient_show_the_conflict(page, service, image):
    prior = send(service, "prior.dcm", 120, PRIOR)
    page.goto(f"{service.base_url}/images/{prior}")
    studies = page.get_by_role("region", name="Other studies of this patient")
    expect(studies).to_contain_text("2026-02-03")
    expect(studies).to_contain_text("Image of two patients")
    expect(page.locator("#compare")).to_contain_text("Image of two patients")
    studies.get_by_role("link").click()
    expect_viewer(page, "front.dcm")
    page.get_by_role("link", name="Printable report").click()
    header = page.locator(".report-page header")
    for text in (WARNING, "Doe Jane", "Roe Robert", "R-204"):
        expect(header).to_contain_text(text)


@pytest.mark.parametrize("width", [360, 1280])
def test_choice_fits_the_screen(page, service, image, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_role("link", name="front.dcm").click()
    expect(choices(page)).to_have_count(2)
    page.wait_for_load_state()  # the style sheet
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    for button in choices(page).get_by_role("button").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_choice_leaves_most_of_the_screen_to_the_image(page, service, image):
    page.set_viewport_size({"width": 1280, "height": 800})
    page.get_by_role("link", name="front.dcm").click()
    expect(choices(page)).to_have_count(2)
    page.wait_for_load_state()  # the style sheet
    first, second = (each.bounding_box() for each in choices(page).all())
    assert first["y"] == second["y"]  # side by side, so that the patients can be compared
    assert first["height"] <= 100
    for age in ("3 y 11 mo", "3 y 10 mo"):  # the second is one day younger than 3 years and 11 months
        expect(choices(page).filter(has_text=age)).to_have_count(1)
