"""Patients and studies as a person uses them, in a real Chromium against a real process."""

import re

import pytest
from tests import images
from tests.service.conftest import png, served
from tests.service.web.helpers import expect, expect_viewer, row_names

pytestmark = pytest.mark.browser
JANE = {"PatientID": "77", "PatientName": "Doe^Jane", "PatientBirthDate": "20220115", "PatientSex": "F"}
STUDY = {"StudyInstanceUID": "1.2.1", "AccessionNumber": "ACC1", "StudyDate": "20260102", "StudyDescription": "CHEST"}
PRIOR = {"StudyInstanceUID": "1.2.2", "AccessionNumber": "ACC0", "StudyDate": "20250102"}
SIZES = {"desktop": (1280, 800), "phone": (390, 844), "landscape": (844, 390)}
SEARCH = "Patient name, patient ID, accession number or file name"


@pytest.fixture
def studies(page, service):
    """A study of three images, one of them lateral, a prior, and an image without an identity, in the worklist."""

    def file(level, number, **elements):
        return images.dicom(level, 64, PatientAge="004Y", SOPInstanceUID=f"1.2.3.{number}", **elements)

    files = {
        "front.dcm": file(180, 1, **JANE, **STUDY),
        "second.dcm": file(100, 2, **JANE, **STUDY),
        "side.dcm": file(110, 3, **JANE | STUDY | {"ViewPosition": "LL"}),
        "prior.dcm": file(120, 4, **JANE, **PRIOR),
        "plain.png": png(150),
    }
    response = service.post("/v1/predictions", files=[("images", each) for each in files.items()])
    assert response.status_code == 201
    page.reload()
    return {each["path"]: each for each in response.json()["predictions"]}


def search(page, text):
    page.get_by_label(SEARCH).fill(text)
    with page.expect_navigation():
        page.get_by_label(SEARCH).press("Enter")


def test_images_of_one_study_stand_together_under_their_patient(page, studies):
    assert row_names(page) == ["front.dcm", "second.dcm", "plain.png", "prior.dcm"]
    study = page.locator(".study-row").first
    expect(study).to_contain_text("Doe Jane")
    expect(study).to_contain_text(re.compile(r"Patient ID\s+77"))
    expect(study).to_contain_text(re.compile(r"Study of 3 images\s+Pneumonia"))
    expect(study).to_contain_text("Rejected: Not a frontal view (1)")
    study.get_by_role("link", name="All studies of this patient").click()
    expect(page.locator("#total")).to_have_text("3 images")
    assert row_names(page) == ["front.dcm", "second.dcm", "prior.dcm"]


def test_search_leaves_no_name_in_the_address_and_keeps_the_filters(page, studies):
    page.goto(f"{page.url}?order=newest")
    search(page, "jane doe")
    expect(page.locator("#total")).to_have_text("3 images")
    assert "jane" not in page.url.lower()
    expect(page.get_by_label("Sort by")).to_have_value("newest")
    expect(page.get_by_label(SEARCH)).to_have_value("jane doe")
    page.locator(".tabs").get_by_role("link", name=re.compile("Rejected")).click()
    assert row_names(page) == ["side.dcm"]
    search(page, "unknown")
    expect(page.locator(".empty-state")).to_contain_text("No images match these filters.")
    page.locator(".empty-state").get_by_role("link", name="Show all").click()
    expect(page.locator("#total")).to_have_text("4 images")


def test_search_by_accession_number_and_file(page, studies):
    for text, names in (("acc0", ["prior.dcm"]), ("PLAIN", ["plain.png"])):
        search(page, text)
        assert row_names(page) == names


def test_viewer_shows_patient_study_and_priors(page, studies):
    page.get_by_role("link", name="front.dcm").click()
    expect_viewer(page, "front.dcm")
    expect(page.locator(".patient-banner")).to_contain_text("Doe Jane")
    study = page.get_by_role("region", name="Study", exact=True)
    expect(study).to_contain_text("Rejected: Not a frontal view (1)")
    expect(study.get_by_role("link")).to_have_text(["second.dcm", "side.dcm"])
    priors = page.get_by_role("region", name="Other studies of this patient")
    priors.get_by_role("link", name="2025-01-02").click()
    expect_viewer(page, "prior.dcm")
    page.get_by_role("link", name="Printable report").click()
    expect(page.locator(".report-page header")).to_contain_text("Doe Jane")
    expect(page.locator(".report-page header")).to_contain_text("ACC0")


def test_person_enters_the_patient_of_an_image_and_its_age_follows_from_the_dates(page, studies, service):
    page.get_by_role("link", name="plain.png").click()
    expect_viewer(page, "plain.png")
    page.get_by_text("Patient and study", exact=True).click()
    form = page.locator(".identity-form")
    for label, value in (("Patient ID", "77"), ("Birth date", "2022-01-15"), ("Study date", "2026-03-01")):
        form.get_by_label(label, exact=True).fill(value)
    with page.expect_navigation():
        form.get_by_role("button", name="Save patient and study").click()
    expect(page.locator(".patient-banner")).to_contain_text("Doe Jane")  # the patient is known
    expect(page.locator(".patient-banner")).to_be_in_viewport(ratio=1)
    assert page.evaluate("scrollY") == 0
    expect(page.locator(".patient-banner")).to_contain_text("4 y 1 mo")
    expect(page.locator(".metadata")).to_contain_text("4.12 years (entered)")
    expect(page.get_by_role("region", name="Other studies of this patient").get_by_role("link")).to_have_count(2)


def test_corrected_patient_id_moves_the_image_and_conflicts_are_shown(page, studies, service):
    page.get_by_role("link", name="second.dcm").click()
    page.get_by_text("Patient and study", exact=True).click()
    field = page.locator(".identity-form").get_by_label("Patient ID", exact=True)
    field.fill("78")
    with page.expect_navigation():
        field.press("Enter")
    expect(page.get_by_text("Images of another patient have the same Study Instance UID")).to_be_visible()
    page.goto(str(service.base_url))
    expect(page.locator(".warning", has_text="Images of another patient")).to_have_count(2)
    search(page, "78")
    assert row_names(page) == ["second.dcm"]


@pytest.mark.parametrize(
    ("size", "language", "scheme"),
    [("desktop", "en", "dark"), ("phone", "zh-Hant", "light"), ("landscape", "zh-Hant", "dark")],
)
def test_patient_is_found_and_corrected_with_the_keyboard_only(page, studies, service, size, language, scheme):
    def tab_to(target):
        for _ in range(120):
            page.keyboard.press("Tab")
            if target.evaluate("each => each === document.activeElement"):
                break
        expect(target).to_be_focused()
        expect(target).to_be_in_viewport()

    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{service.base_url}/?language={language}")
    tab_to(page.locator(".search input[name=text]"))
    page.keyboard.type("jane")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert set(row_names(page)) == {"front.dcm", "second.dcm", "prior.dcm"}
    page.keyboard.press("j")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect_viewer(page, "front.dcm")
    form = page.locator("details.identity-form")
    tab_to(form.locator("summary"))
    page.keyboard.press("Enter")
    tab_to(form.locator("[name=patient_id]"))
    page.keyboard.press("Control+A")
    page.keyboard.type("78")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.locator(".patient-banner")).to_contain_text("78")
    expect(page.locator("html")).to_have_attribute("lang", language)
    stored = service.get(f"/v1/predictions/{studies['front.dcm']['id']}").json()
    assert stored["identity"]["patient_id"] == "78"


def test_expired_search_is_explained(page, service):
    page.goto(f"{service.base_url}/?search={'ab' * 16}")
    expect(page.get_by_text("the search has expired")).to_be_visible()


def test_blind_reader_sees_the_decision_of_a_study_after_all_of_its_images(browser, bundle_folder, tmp_path):
    def file(level, number, **elements):
        return images.dicom(level, 64, PatientAge="004Y", SOPInstanceUID=f"1.2.3.{number}", **JANE, **elements)

    with served(bundle_folder, tmp_path, "--blind-first") as (_, client):
        files = {
            "first.dcm": file(180, 1, **STUDY),
            "second.dcm": file(150, 2, **STUDY),
            "prior.dcm": file(160, 3, **PRIOR),
        }
        response = client.post("/v1/predictions", files=[("images", each) for each in files.items()])
        ids = {each["path"]: each["id"] for each in response.json()["predictions"]}
        page = browser.new_context(locale="en-GB").new_page()
        for name, hidden in (("first.dcm", True), ("second.dcm", False)):
            page.goto(f"{client.base_url}/images/{ids[name]}")
            expect_viewer(page, name)
            expect(page.locator(".decision")).to_have_count(0 if hidden else 1)  # of the image that was read before
            page.keyboard.press("p")
            expect(page.locator(".result-panel .probability")).to_be_visible()
            study = page.get_by_role("region", name="Study", exact=True)
            expect(study.locator(".decision")).to_have_count(0 if hidden else 2)
            expect(page.get_by_role("region", name="Other studies").locator(".decision")).to_have_count(0)
            page.goto(f"{client.base_url}/?reviewed=yes")
            expect(page.locator(".study-row .decision")).to_have_count(0 if hidden else 1)
        page.context.close()
