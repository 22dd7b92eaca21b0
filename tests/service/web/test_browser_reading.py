"""Reading a study as a physician does: its order, comparisons, patient form, contradictions and dashboard, in a real Chromium."""

import re
from datetime import date, timedelta

import pytest
from tests import images
from tests.service.conftest import png, served
from tests.service.web.helpers import expect, expect_values, expect_viewer, put_in_one_study, row_names, upload

pytestmark = pytest.mark.browser
JANE = {"PatientID": "77", "PatientName": "Doe^Jane", "PatientBirthDate": "20220115", "PatientSex": "F"}
STUDY = {"StudyInstanceUID": "1.2.1", "AccessionNumber": "ACC1", "StudyDate": "20260102"}
PRIOR = {"StudyInstanceUID": "1.2.2", "AccessionNumber": "ACC0", "StudyDate": "20250102"}
EARLIER = {"StudyInstanceUID": "1.2.3", "AccessionNumber": "ACC2", "StudyDate": "20240102"}
LANGUAGES = ("en", "zh-Hant")


def file(level, number, age="004Y", **elements):
    return images.dicom(level, 64, PatientAge=age, SOPInstanceUID=f"1.2.3.{number}", **elements)


def send(client, files):
    response = client.post("/v1/predictions", files=[("images", each) for each in files.items()])
    assert response.status_code == 201
    return {each["path"]: each for each in response.json()["predictions"]}


@pytest.fixture
def studies(page, service):
    """A study of three images, one of them lateral, two priors, and an image of another patient, in the worklist."""
    found = send(service, {
        "front.dcm": file(180, 1, **JANE, **STUDY),
        "second.dcm": file(100, 2, **JANE, **STUDY),
        "side.dcm": file(110, 3, **JANE | STUDY | {"ViewPosition": "LL"}),
        "earlier.dcm": file(130, 4, **JANE, **EARLIER, age="002Y"),
        "prior.dcm": file(120, 5, **JANE, **PRIOR, age="003Y"),
        "stranger.dcm": file(170, 6, PatientID="78", PatientName="Roe^Ann", StudyInstanceUID="1.3", StudyDate="20260102"),
        "plain.png": png(150),
    })  # fmt: skip
    page.reload()
    return found


def comparisons(page):
    """Return {label of the group: texts of its options} of the list of images to compare with."""
    script = "groups => groups.map(group => [group.label, [...group.children].map(each => each.textContent)])"
    return dict(page.locator("#compare optgroup").evaluate_all(script))


def test_rejected_images_of_a_study_follow_its_other_images(page, studies):
    names = row_names(page)
    assert "side.dcm" not in names
    assert names[:2] == ["front.dcm", "second.dcm"]
    page.get_by_role("link", name="front.dcm").click()
    expect_viewer(page, "front.dcm")
    for name in ("second.dcm", "side.dcm", names[2]):
        page.keyboard.press("j")
        expect_viewer(page, name)
    page.keyboard.press("k")
    expect_viewer(page, "side.dcm")


def test_rejected_images_that_are_read_are_skipped_among_unread_images(page, studies, service):
    service.put(f"/v1/predictions/{studies['side.dcm']['id']}/review", json={"label": "unusable"}).raise_for_status()
    for query, expected in (("?reviewed=no", "stranger.dcm"), ("", "side.dcm")):
        page.goto(f"{service.base_url}/{query}")
        page.get_by_role("link", name="second.dcm").click()
        expect_viewer(page, "second.dcm")
        page.keyboard.press("j")
        expect_viewer(page, expected)


def test_images_of_the_patient_and_of_no_one_else_can_be_compared(page, studies):
    page.get_by_role("link", name="front.dcm").click()
    expect_values(page)
    labels = {"pneumonia": "Pneumonia", "no_pneumonia": "No pneumonia detected"}
    prior, earlier, second = (
        f"{labels[studies[name]['decision']]} {studies[name]['probability']:.0%} \u00b7 {name}"
        for name in ("prior.dcm", "earlier.dcm", "second.dcm")
    )
    assert comparisons(page) == {
        "Other studies of this patient": [f"2025-01-02 \u00b7 {prior}", f"2024-01-02 \u00b7 {earlier}"],
        "Same study": [
            f"2026-01-02 \u00b7 {second}", "2026-01-02 \u00b7 Not a frontal view (LL) \u00b7 side.dcm",
        ],
    }  # fmt: skip
    page.select_option("#compare", studies["side.dcm"]["id"])
    expect_values(page, "#compare-viewport")
    expect(page.locator("#compare-caption")).to_have_text("2026-01-02 \u00b7 Not a frontal view (LL) \u00b7 side.dcm")


@pytest.mark.parametrize(
    ("language", "unknown", "none"),
    [
        ("en", "Patient unknown: only images of the same study are listed", "No other image of this patient"),
        ("zh-Hant", "病人不明：僅列出同一檢查的影像", "此病人沒有其他影像"),
    ],
)
def test_list_of_comparisons_says_if_the_patient_is_unknown(page, service, studies, language, unknown, none):
    page.goto(f"{service.base_url}/images/{studies['plain.png']['id']}?language={language}")
    assert comparisons(page) == {}
    expect(page.locator("#compare option").last).to_have_text(unknown)
    page.goto(f"{service.base_url}/images/{studies['stranger.dcm']['id']}")
    expect(page.locator("#compare option").last).to_have_text(none)


def test_images_of_a_study_without_a_patient_can_be_compared(page, service):
    ids = upload(service, {"one.png": 150, "two.png": 170})
    put_in_one_study(service)
    page.goto(f"{service.base_url}/images/{ids['one.png']}")
    ((label, options),) = comparisons(page).items()
    assert label == "Same study"
    assert [re.sub("^.* ", "", each) for each in options] == ["two.png"]
    expect(page.locator("#compare option").last).to_have_text(re.compile("^Patient unknown"))


ERRORS = {
    "en": ("This date is in the future.", "This is not a date. Write it as 2021-01-31.", "Nothing was saved."),
    "zh-Hant": ("此日期在未來。", "這不是有效日期，請依 2021-01-31 的格式填寫。", "資料未儲存。"),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_impossible_dates_are_explained_beside_their_fields_and_nothing_is_lost(page, service, studies, language):
    future, no_date, unsaved = ERRORS[language]
    page.goto(f"{service.base_url}/images/{studies['plain.png']['id']}?language={language}")
    page.locator("#identity summary").click()
    form = page.locator("#identity form")
    entered = {"patient_id": "79", "patient_name": "Poe^Joe", "study_date": "yesterday"}
    entered["patient_birth_date"] = (date.today() + timedelta(days=3)).isoformat()
    for name, value in entered.items():
        form.locator(f"[name={name}]").fill(value)
    form.locator("[name=patient_sex]").select_option("M")
    with page.expect_navigation():
        form.get_by_role("button").click()
    expect(form.get_by_role("alert")).to_contain_text(unsaved)
    for name, problem in (("patient_birth_date", future), ("study_date", no_date)):
        expect(form.locator(f"[name={name}]")).to_have_attribute("aria-invalid", "true")
        described = form.locator(f"[name={name}]").get_attribute("aria-describedby")
        expect(form.locator(f"#{described}")).to_have_text(problem)
        expect(form.locator(f"#{described}")).to_be_in_viewport()
    for name, value in (*entered.items(), ("patient_sex", "M")):
        expect(form.locator(f"[name={name}]")).to_have_value(value)
    assert service.get(f"/v1/predictions/{studies['plain.png']['id']}").json()["identity"] is None
    form.locator("[name=study_date]").fill("2026-01-31")
    form.locator("[name=patient_birth_date]").fill("31.01.2021")
    with page.expect_navigation():
        form.get_by_role("button").click()
    expect(page.locator(".patient-banner")).to_contain_text("Poe Joe")
    expect(page.locator(".patient-banner")).to_contain_text({"en": "Male", "zh-Hant": "男性"}[language])


def test_form_that_was_not_saved_can_be_shown_in_the_other_language(page, service, studies):
    page.goto(f"{service.base_url}/images/{studies['plain.png']['id']}")
    page.locator("#identity summary").click()
    page.locator("#identity [name=study_date]").fill("yesterday")
    page.locator("#identity [name=study_date]").press("Enter")
    expect(page.locator("#identity .field-problem")).to_be_visible()
    page.get_by_role("link", name="繁體中文").click()
    expect(page.locator("#identity summary")).to_have_text("病人與檢查")


@pytest.fixture
def contradictory(page, service):
    """The id of an image whose age contradicts the dates."""
    header = {"PatientID": "80", "PatientName": "Low^Liz", "StudyInstanceUID": "1.4", "StudyDate": "20260102"}
    found = send(service, {"a.dcm": file(180, 9, **header)})["a.dcm"]
    dates = found["identity"] | {"patient_birth_date": "1990-01-02"}
    service.put(f"/v1/predictions/{found['id']}/identity", json=dates).raise_for_status()
    return found["id"]


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", "Contradictory age: 4 years stated, 36 years by birth date and study date."),
        ("zh-Hant", "年齡互相矛盾：記載為 4 歲，依出生日期與檢查日期則為 36 歲。"),
    ],
)
def test_contradictory_age_stands_beside_the_decision(page, service, contradictory, language, words):
    for path, place in (
        ("/", "td:has(.decision)"),
        (f"/images/{contradictory}", ".decision-line"),
        (f"/images/{contradictory}/report", ".report-page"),
    ):
        page.goto(f"{service.base_url}{path}?language={language}")
        warning = page.locator(f"{place} .age-conflict")
        expect(warning).to_have_count(1)
        expect(warning).to_contain_text(words)
        decision = page.locator(f"{place} .decision").first.bounding_box()
        assert abs(warning.bounding_box()["y"] - decision["y"] - decision["height"]) < 60, path
        expect(page.locator(".age-conflict")).to_have_count(1)


SIZE = {"width": 1280, "height": 800}


@pytest.mark.parametrize("language", LANGUAGES)
def test_worklist_begins_in_the_upper_part_of_the_screen(page, service, studies, language):
    page.set_viewport_size(SIZE)
    page.goto(f"{service.base_url}/?language={language}")
    assert page.locator("#list tbody tr").first.bounding_box()["y"] <= 330
    page.goto(f"{service.base_url}/?search=&reviewed=yes")  # no image: the upload area does not grow
    expect(page.locator(".empty-state")).to_be_visible()
    assert page.locator("#dropzone").bounding_box()["height"] < 60


def test_upload_area_shrinks_when_the_first_image_arrives(page, service):
    dropzone = page.locator("#dropzone")
    expect(page.get_by_role("heading", name="Drop images or a folder here")).to_be_visible()
    height = dropzone.bounding_box()["height"]
    upload(service, {"high.png": 180})
    expect(page.locator("tr[data-id]")).to_have_count(1)
    expect(page.get_by_role("heading", name="Drop images or a folder here")).to_be_hidden()
    assert dropzone.bounding_box()["height"] < height / 2


def test_order_by_urgency_says_that_read_images_stand_last(page, service):
    ids = upload(service)
    service.put(f"/v1/predictions/{ids['high.png']}/review", json={"label": "pneumonia"}).raise_for_status()
    page.reload()
    assert row_names(page)[-1] == "high.png"
    expect(page.get_by_label("Sort by").locator("option:checked")).to_have_text("Most urgent first, read images last")


def test_dashboard_counts_lead_to_the_images_that_they_count(page, service, studies):
    service.put(f"/v1/predictions/{studies['front.dcm']['id']}/review", json={"label": "pneumonia"}).raise_for_status()
    service.post("/v1/predictions", files=[("images", ("broken.dcm", b"no image"))])
    page.goto(f"{service.base_url}/dashboard")
    table = page.get_by_role("region", name="Images", exact=True)
    columns = table.locator("thead th").all_inner_texts()
    row = table.locator("tbody tr").nth(1)  # of the last days: midnight may have passed since the images were sent
    week = dict(zip(columns, row.locator("th, td").all_inner_texts(), strict=True))
    assert week["Images (n)"] == "7"
    assert (week["Not read"], week["Rejected"], week["Unreadable files"]) == ("6", "1", "1")
    assert sum(int(week[name]) for name in ("Pneumonia", "No pneumonia detected", "Uncertain", "Rejected")) == 7
    reasons = page.get_by_role("region", name="Rejected images by reason")
    expect(reasons.locator("tbody tr").first).to_have_text(re.compile(r"Not a frontal view\s*[01]\s*1\s*1\s*1"))
    row.get_by_role("link", name=week["Pneumonia"], exact=True).first.click()
    expect(page.locator("#total")).to_have_text(f"{week['Pneumonia']} images")


@pytest.mark.parametrize("language", LANGUAGES)
def test_report_has_lines_for_name_signature_and_date(page, service, studies, language):
    page.goto(f"{service.base_url}/images/{studies['front.dcm']['id']}/report?language={language}")
    labels = {"en": ["Name of the physician", "Signature", "Date"], "zh-Hant": ["醫師姓名", "簽名", "日期"]}
    expect(page.locator(".signature dt")).to_have_text(labels[language])
    assert [box.bounding_box()["width"] > 80 for box in page.locator(".signature dd").all()] == [True] * 3


def test_rejection_is_explained_in_words_with_the_measured_value_and_its_limit(page, service):
    id = upload(service, {"dark.png": 60})["dark.png"]
    page.goto(f"{service.base_url}/images/{id}")
    expect(page.locator(".result-details")).to_contain_text("Black and white appear to be inverted")
    expect(page.locator(".result-details")).to_contain_text("have it corrected where it comes from and send it again")
    rejection = service.get(f"/v1/predictions/{id}").json()["rejection"]["parameters"]
    expect(page.locator(".result-details")).to_contain_text(
        f"Probability of an upright chest radiograph: {rejection['probability']:.3f}; rejected below {rejection['limit']:.3f}."
    )


def test_blind_reader_cannot_tell_the_decision_of_an_unread_image(browser, bundle_folder, tmp_path):
    with served(bundle_folder, tmp_path, "--blind-first") as (_, client):
        ids = upload(client)
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(f"{client.base_url}/")
        expect(page.locator(".tabs")).to_have_text(re.compile(r"All 4\s+Rejected 0\s+Unreadable 0"))
        assert sorted(row_names(page)) == sorted(ids)
        page.goto(f"{client.base_url}/?decision=rejected")
        expect(page.get_by_text("Only images that you have read are listed and counted here")).to_be_visible()
        assert row_names(page) == []
        page.goto(f"{client.base_url}/dashboard")
        table = page.get_by_role("region", name="Images", exact=True)
        expect(table.locator("tbody tr").last).to_have_text(re.compile(r"All\s*4\s*4\s*0\s*0\s*0\s*0\s*0\s*0"))
        expect(page.get_by_text("totals over all images would reveal the decisions of the others")).to_be_visible()
        expect(page.get_by_role("region", name="Decisions")).to_have_count(0)
        client.put(f"/v1/predictions/{ids['dark.png']}/review", json={"label": "unusable"}).raise_for_status()
        page.reload()
        expect(table.locator("tbody tr").last).to_have_text(re.compile(r"All\s*4\s*3\s*1\s*0\s*0\s*0\s*1\s*0"))
        table.locator("tbody tr").last.get_by_role("link", name="1", exact=True).click()
        assert row_names(page) == ["dark.png"]
        expect(page.locator("tr[data-id]")).to_contain_text("Black and white appear to be inverted")
        context.close()
