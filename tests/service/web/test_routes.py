"""The pages of the web interface as the server sends them: content, escaping, languages and authentication."""

import csv
import dataclasses
import html
import io
import json
import math
import re
import shutil
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import jinja2
import msgspec
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from msgspec import structs
from tests import images
from tests.conftest import POINTS
from tests.core.test_unreadable import ENGLISH_SENTENCE
from tests.imaging.conformance import CASES
from tests.service.conftest import dicom, png, repository_with_token
from tests.service.web.helpers import BASE_URL, TOKEN

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Intervals, UncertaintyBand
from pneumoscope.bundle.model_card import model_card
from pneumoscope.core.i18n import LANGUAGES
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.inference.model import load_model
from pneumoscope.service import web
from pneumoscope.service.api.routes import operation_router
from pneumoscope.service.app import create_app
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.pseudonyms import Pseudonymizer
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention
from pneumoscope.service.web.accounts import administrator_page_router, sign_in_router
from pneumoscope.service.web.page_route import PageRoute
from pneumoscope.statistics.calibration import reliability_bins

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>.png"
NOTICE = "Not a medical device"
WEB = Path(web.__file__).parent


class ParsedPage(HTMLParser):
    """The tags of a page with their attributes, its text, and the messages for its scripts."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.messages = [], "", {}
        self._in_script = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.messages = json.loads(data)
        else:
            self.text += data

    def rows(self):
        """Return the ids of the worklist by name, in order."""
        return {attrs["data-name"]: attrs["data-id"] for tag, attrs in self.tags if tag == "tr" and "data-id" in attrs}


def upload(client, *images, **kwargs):
    parts = [("images", (name, content)) for name, content in images]
    response = client.post("/v1/predictions", files=parts, **kwargs)
    assert response.status_code == 201, response.text
    return [each["id"] for each in response.json()["predictions"]]


def get_page(client, path, status=200):
    response = client.get(path)
    assert response.status_code == status, response.text[:500]
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    return ParsedPage(response.text), response


def all_paths(id):
    return ("/", "/unreadable", f"/images/{id}", f"/images/{id}/report", "/dashboard", "/model", "/sign-in")


def test_worklist_lists_the_most_urgent_images_first(client):
    upload(client, ("low.png", png(90)), ("high.png", png(180)), ("read.png", png(170)))
    page, _ = get_page(client, "/")
    ids = page.rows()
    assert list(ids) == ["high.png", "read.png", "low.png"]
    client.put(f"/v1/predictions/{ids['read.png']}/review", json={"label": "no_finding"})
    page, _ = get_page(client, "/")
    assert list(page.rows()) == ["high.png", "low.png", "read.png"]  # reviewed images come last
    assert "No finding" in page.text
    assert client.get(f"/v1/predictions/{ids['high.png']}/thumbnail.png").status_code == 200


def test_rejected_images_have_a_tab_with_counts_and_reasons(client):
    upload(client, ("low.png", png(90)), ("dark.png", png(60)), ("darker.png", png(50)), ("odd.png", png(220)))
    page, _ = get_page(client, "/")
    assert list(page.rows()) == ["low.png"]
    assert re.search(r"Predicted\s+1\s+Rejected\s+3", page.text)
    assert "Inverted: 2" not in page.text
    page, _ = get_page(client, "/?decision=rejected")
    assert set(page.rows()) == {"dark.png", "darker.png", "odd.png"}
    assert re.search(r"Predicted\s+1\s+Rejected\s+3", page.text)
    assert re.search(r"Inverted: 2\s*Unlike the training images: 1", page.text)
    assert "Black and white appear to be inverted" in page.text
    assert "No images match these filters" in get_page(client, "/?decision=rejected&reviewed=yes")[0].text


def test_image_without_another_name_is_titled_by_the_end_of_its_uid(client):
    uid = "1.2.276.0.7230010.3.1.4.8323328.8257.1795957048.273492"
    (id,) = upload(client, (uid, dicom(SOPInstanceUID=uid, StudyInstanceUID="1.2.3")))
    for path in ("/", f"/images/{id}"):
        assert ">DICOM …8.273492<" in client.get(path).text
    assert f'title="{uid}"' in client.get(f"/images/{id}").text


def test_list_without_predicted_images_links_to_rejected_ones(client):
    assert "No images yet" in get_page(client, "/")[0].text
    upload(client, ("dark.png", png(60)))
    page = client.get("/").text
    assert "No predicted images." in page
    assert 'href="/?decision=rejected">Show rejected images' in page


def test_unreadable_files_have_a_tab_and_can_be_removed_from_it(client):
    client.post("/v1/predictions", files=[("images", ("scan <1>.dcm", b"no image")), ("images", ("a.png", png(90)))])
    client.post("/v1/predictions", files=[("images", ("all.zip", b"PK\x03\x04"))])
    assert re.search(r"Predicted\s+1\s+Rejected\s+0\s+Unreadable\s+2", get_page(client, "/")[0].text)
    page, _ = get_page(client, "/unreadable")
    assert re.search(r"Predicted\s+1\s+Rejected\s+0\s+Unreadable\s+2", page.text)
    assert "scan <1>.dcm" in page.text
    assert "it is a zip archive (4 bytes). Unpack it first" in page.text
    assert "Sent by" not in page.text  # without authentication, the sender is unknown
    action = next(
        attrs["action"] for tag, attrs in page.tags if tag == "form" and "/unreadable/" in attrs.get("action", "")
    )
    response = client.post(action, follow_redirects=False)
    assert (response.status_code, response.headers["Location"]) == (303, "/unreadable")
    page, _ = get_page(client, "/unreadable")
    assert "all.zip" not in page.text
    assert "scan <1>.dcm" in page.text
    assert "無法讀取的檔案" in get_page(client, "/unreadable?language=zh-Hant")[0].text


BAD_FILES = [case for case in CASES if case.result.startswith("error")]


@pytest.mark.filterwarnings("ignore")  # pydicom warns of values that the standard does not allow
def test_reason_of_each_unreadable_file_is_in_the_language_of_the_page(client):
    problems = {}
    for case in BAD_FILES:
        response = client.post(
            "/v1/predictions", files=[("images", ("x", case.build()))], headers={"Accept-Language": "zh-TW"}
        )
        problems[case.what] = response.json()
        assert problems[case.what]["reason"]["code"] == case.result.split()[1], case.what
    listed = get_page(client, "/unreadable?language=zh-Hant")[1].text
    cells = re.findall(r"<td>([^<]*<br>.*?)</td>", listed, re.DOTALL)
    assert len(cells) == len(BAD_FILES) > 30
    for what, problem in problems.items():
        assert re.search("[\u4e00-\u9fff]", problem["message"]), what
        assert any(f"{problem['message']}。" in html.unescape(cell) for cell in cells), what
    for cell in cells:
        assert 'lang="en"' not in cell
        assert not ENGLISH_SENTENCE.search(re.sub("<[^>]*>", "", cell)), cell


def test_empty_list_of_unreadable_files_has_a_note(client):
    assert "No unreadable files." in get_page(client, "/unreadable")[0].text


def test_empty_tab_of_rejected_images_has_a_note(client):
    assert "No rejected images." in get_page(client, "/?decision=rejected")[0].text


def test_worklist_is_filtered_sorted_and_paged(client, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.web.routes._PAGE_SIZE", 2)
    upload(client, *((f"{level}.png", png(level)) for level in (120, 140, 160, 180, 90)))
    page, _ = get_page(client, "/?decision=pneumonia&order=highest")
    assert list(page.rows()) == ["180.png", "160.png"]
    assert ("option", {"value": "pneumonia", "selected": None}) in page.tags
    (next_page,) = [attrs["href"] for tag, attrs in page.tags if tag == "a" and attrs.get("rel") == "next"]
    page, _ = get_page(client, next_page)
    assert list(page.rows()) == ["140.png", "120.png"]
    assert "No images match these filters" in get_page(client, "/?decision=uncertain")[0].text
    assert "No images match these filters" in get_page(client, "/?since=2999-01-01")[0].text


def test_decisions_are_labeled_no_pneumonia_detected_and_never_normal(client):
    (id,) = upload(client, ("low.png", png(90)))
    for path in ("/", f"/images/{id}", f"/images/{id}/report", "/dashboard"):
        page, _ = get_page(client, path)
        assert "No pneumonia detected" in page.text
        assert "no_pneumonia" not in page.text
        page, _ = get_page(client, f"{path}?language=zh-Hant")
        assert "未偵測到肺炎" in page.text
        assert "正常" not in page.text
        client.cookies.clear()


@pytest.mark.parametrize(
    "query", ["decision=ill", "reviewed=maybe", "order=best", "since=yesterday", "until=1", "after=x"]
)
def test_invalid_query_is_an_error_page(client, query):
    upload(client, ("a.png", png()))
    page, _ = get_page(client, f"/?{query}", 422)
    assert "Invalid request" in page.text
    assert NOTICE in page.text


def test_any_query_parameter_is_kept_by_the_language_link(client):
    page, _ = get_page(client, "/?path=x&request=y")
    assert ("a", {"href": "/?path=x&request=y&language=zh-Hant", "lang": "zh-Hant", "hreflang": "zh-Hant"}) in page.tags


def test_image_name_and_note_are_escaped(client):
    (id,) = upload(client, (HOSTILE, png()))
    client.put(f"/v1/predictions/{id}/review", json={"label": "pneumonia", "note": f"</textarea>{HOSTILE}"})
    for path in ("/", f"/images/{id}", f"/images/{id}/report"):
        page, response = get_page(client, path)
        assert "<script>alert" not in response.text
        assert not [tag for tag, attrs in page.tags if "onerror" in attrs]
        scripts = [attrs for tag, attrs in page.tags if tag == "script"]
        assert all("src" in attrs or attrs.get("type") == "application/json" for attrs in scripts)
        assert "<script>alert(1)</script>" in page.text


def test_pages_load_nothing_from_other_hosts_and_have_no_inline_code(client):
    (id,) = upload(client, ("a.png", png()))
    for path in all_paths(id):
        page, response = get_page(client, path)
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        for _, attrs in page.tags:
            assert not [name for name in attrs if name.startswith("on") or name == "style"]
            for name in ("src", "href", "action"):
                assert re.match(r"[/#]", attrs.get(name) or "/"), attrs
                if (attrs.get(name) or "").startswith("/static/"):
                    assert client.get(attrs[name].split("#")[0]).status_code == 200
        assert NOTICE in page.text
        assert response.headers["Cache-Control"] == "no-store"


def test_pages_contain_every_message_that_their_scripts_use(client):
    (id,) = upload(client, ("a.png", png()))
    for path in all_paths(id):
        page, _ = get_page(client, path)
        files, keys = [attrs["src"] for tag, attrs in page.tags if tag == "script" and "src" in attrs], set()
        while files:
            script = client.get(files.pop()).text
            keys |= set(re.findall(r"\bmessages\.(\w+)", script))
            files += [f"/static/{name}" for name in re.findall(r'from "\./([\w.]+)"', script)]
        assert keys == set(page.messages), path


@pytest.mark.parametrize("template", sorted(file.name for file in (WEB / "templates").iterdir()))
def test_templates_contain_no_untranslated_text(template):
    environment = jinja2.Environment(extensions=["jinja2.ext.i18n"], autoescape=True)
    environment.install_null_translations(newstyle=True)
    tree = environment.parse((WEB / "templates" / template).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", "") != "page_class"]
    literal = "".join(data.data for data in tree.find_all(jinja2.nodes.TemplateData))
    page = HTMLTextAndLabels(literal)
    words = set(re.findall(r"[A-Za-z]{2,}", " ".join(page.texts)))
    assert words <= {"pneumoscope", "SHA"}


class HTMLTextAndLabels(HTMLParser):
    """Text of a page, and the attributes that a person reads."""

    def __init__(self, html):
        super().__init__()
        self.texts = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.texts += [
            value for name, value in attrs if name in ("alt", "title", "aria-label") and len(value or "") > 1
        ]

    def handle_data(self, data):
        self.texts.append(data)


def test_viewer_and_report_show_the_prediction_of_the_api(client):
    (id,) = upload(client, ("a.png", png(140)))
    prediction = client.get(f"/v1/predictions/{id}").json()
    page, _ = get_page(client, f"/images/{id}")
    assert f"{prediction['probability']:.0%}" in page.text
    assert "Pneumonia" in page.text
    assert "64 \u00d7 64, PNG" in page.text
    assert "Probabilities are for a prevalence of 50%; if pneumonia is less common" in page.text
    client.put(f"/v1/predictions/{id}/review", json={"label": "no_finding", "note": "rotated"})
    page, _ = get_page(client, f"/images/{id}/report")
    for expected in ("No finding", "rotated", prediction["image_sha256"], prediction["model"]["sha256"], NOTICE):
        assert expected in page.text


UNCERTAIN = {
    "en": "The probability is in the uncertain range (36% to 69%), where the model would be wrong too often. Read the image"
    " without the prediction.",
    "zh-Hant": "機率落在不確定範圍（36% 至 69%），模型在此範圍內的判定錯誤率過高。請不要參考預測結果，自行判讀影像。",
}
NEGATIVE = {
    "en": "The probability of pneumonia is 5%. Calibration interval (Venn-Abers): 3% to 30%, the range consistent with the"
    " calibration on 9 images. It is not a confidence interval, and the probability can lie at its end. Probabilities are for a"
    " prevalence of 50%; if pneumonia is less common among your patients, they are too high.",
    "zh-Hant": "肺炎機率：5%。校準區間（Venn-Abers）：3% 至 30%，為 9 張校準影像所無法排除的機率範圍。此區間並非信賴區間，"
    "機率可能位於區間的一端。機率以肺炎盛行率 50% 為準；若您的病人較少罹患肺炎，這些機率偏高。",
}


@pytest.fixture
def explained_client(shared_maker):
    """A client of a service whose bundle has an uncertainty band and intervals."""
    folder = shared_maker.root / "explained"
    if not folder.exists():
        band = UncertaintyBand(low=0.3, high=0.7, coverage=0.95, n_normal=30, n_pneumonia=40)
        points = {"balanced": structs.replace(POINTS["balanced"], uncertainty_band=band)}
        card, _ = read_bundle(shared_maker.bundle(folder, gain=0.05, operating_points=points))
        intervals = Intervals(edges=(-1.0, 1.0), low=(0.03, 0.3, 0.6), high=(0.3, 0.7, 1.0), method="venn-abers", n=9)
        (folder / "card.json").write_text(structs.replace(card, intervals=intervals).to_json())
    app = create_app(load_model(folder, threads=1), PredictionRepository(None))
    with TestClient(app, base_url=BASE_URL) as opened:
        yield opened


@pytest.mark.parametrize("language", LANGUAGES)
def test_viewer_and_report_explain_decision_interval_and_prevalence_in_sentences(explained_client, language):
    uncertain, negative = upload(explained_client, ("uncertain.png", png(126)), ("negative.png", png(48)))
    for path in ("/images/{}", "/images/{}/report"):
        page, _ = get_page(explained_client, f"{path.format(uncertain)}?language={language}")
        assert UNCERTAIN[language] in page.text
        page, _ = get_page(explained_client, f"{path.format(negative)}?language={language}")
        assert NEGATIVE[language] in page.text
        assert {"en": "Other findings are not assessed.", "zh-Hant": "其他發現不在評估範圍內。"}[language] in page.text
    page, _ = get_page(explained_client, f"/images/{negative}?language={language}")
    assert {"en": "Calibration interval: 3% to 30%", "zh-Hant": "校準區間：3% 至 30%"}[language] in page.text
    page, _ = get_page(explained_client, f"/?language={language}")
    note = {
        "en": "“No pneumonia detected” does not exclude other findings; they are not assessed. Probabilities are for a",
        "zh-Hant": "「未偵測到肺炎」不排除其他發現；其他發現不在評估範圍內。機率以肺炎盛行率 50% 為準；",
    }
    assert note[language] in page.text
    assert UNCERTAIN[language].partition("where")[0].partition("，")[0] in page.text
    answer = explained_client.get(f"/v1/predictions/{negative}", headers={"Accept-Language": language}).json()
    assert answer["message"] == {"en": "Other findings are not assessed", "zh-Hant": "其他發現不在評估範圍內"}[language]


@pytest.mark.parametrize(("language", "words"), [("en", "8-bit copy"), ("zh-Hant", "8 位元複本")])
def test_viewer_says_that_an_image_is_an_8_bit_copy_if_pseudonyms_are_stored(bundle_folder, language, words):
    for pseudonymizer in (Pseudonymizer(b"k" * 32), None):
        settings = Settings(pseudonymizer=pseudonymizer)
        app = create_app(load_model(bundle_folder, threads=1), PredictionRepository(None), settings)
        with TestClient(app, base_url=BASE_URL) as opened:
            files = [("images", ("a.png", png(100)))]
            id = opened.post("/v1/predictions", files=files).json()["predictions"][0]["id"]
            page = opened.get(f"/images/{id}?language={language}").text
        assert (words in page) == (pseudonymizer is not None)


def test_rejected_image_of_the_patient_can_be_compared_with(client):
    one = {"PatientID": "7", "PatientName": "Doe^Jane", "StudyInstanceUID": "1.2.3", "PatientAge": "003Y"}
    (first,) = upload(client, ("a.dcm", images.dicom(110, **one, SOPInstanceUID="1.2.3.1")))
    (rejected,) = upload(client, ("b.dcm", images.dicom(60, **one, SOPInstanceUID="1.2.3.2")))
    assert client.get(f"/v1/predictions/{rejected}").json()["decision"] == "rejected"
    page, response = get_page(client, f"/images/{first}")
    assert response.status_code == 200
    assert ("option", {"value": rejected}) in page.tags


def test_rejected_image_has_no_probability_and_no_heatmap(client):
    (id,) = upload(client, ("dark.png", png(60)))
    page, _ = get_page(client, f"/images/{id}")
    assert re.search(r"Rejected\s+Inverted\s", page.text)
    assert "heatmap-toggle" not in [attrs.get("id") for _, attrs in page.tags]
    page, _ = get_page(client, f"/images/{id}/report")
    assert "heatmap-layer" not in [attrs.get("id") for _, attrs in page.tags]


@pytest.mark.parametrize(
    ("gray", "measured"), [(60, "Probability of an upright chest radiograph"), (220, "Distance from")]
)
@pytest.mark.parametrize("page", ["", "/report"])
def test_value_of_a_rejection_and_its_limit_are_shown_once(client, gray, measured, page):
    (id,) = upload(client, ("odd.png", png(gray)))
    text = get_page(client, f"/images/{id}{page}")[0].text
    assert len(re.findall(rf"{measured}[^:]*: [0-9.]+; rejected (?:above|below) [0-9.]+\.", text)) == 1


def test_unknown_image_is_an_error_page_with_advice_in_the_language_of_the_page(client):
    for path in ("/images/0123", "/images/0123/report", "/images/%3Cscript%3E"):
        page, response = get_page(client, path, 404)
        assert "Not found" in page.text
        assert "<script>" not in response.text.replace('<script src="', "")
    page, _ = get_page(client, "/images/0123?language=zh-Hant", 404)
    assert "找不到資料" in page.text
    assert "影像已刪除，或網址有誤。" in page.text
    assert ("p", {"lang": "en"}) in page.tags  # the details are in English


def test_csv_export_has_every_image_and_no_formula(client, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.web.worklist._EXPORT_BATCH", 2)
    ids = upload(client, *((f"={level}.png", png(level)) for level in (60, 90, 120, 150, 180)))
    client.put(f"/v1/predictions/{ids[0]}/review", json={"label": "pneumonia", "note": "=1+1"})
    response = client.get("/worklist.csv?order=oldest")
    assert response.headers["Content-Type"].startswith("text/csv")
    disposition = response.headers["Content-Disposition"]
    assert re.fullmatch(r'attachment; filename="pneumoscope-\d{4}-\d\d-\d\d\.csv"', disposition)
    assert response.content.startswith(b"\xef\xbb\xbf")  # Excel needs it to recognize UTF-8
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(response.content.decode("utf-8-sig")))}
    assert set(rows) == set(ids)
    first = rows[ids[0]]
    assert (first["path"], first["decision"], first["probability"]) == ("./=60.png", "rejected", "")
    (review,) = json.loads(first["reviews"])
    assert (review["label"], review["note"], review["reviewer"]) == ("pneumonia", "=1+1", "local")
    assert (rows[ids[1]]["reviews"], first["image_bytes"]) == ("[]", str(len(png(60))))
    prediction = client.get(f"/v1/predictions/{ids[4]}").json()
    assert float(rows[ids[4]]["probability"]) == prediction["probability"]
    assert len(list(csv.DictReader(io.StringIO(client.get("/worklist.csv?decision=rejected").text)))) == 1


def test_dashboard_shows_counts_readings_and_drift(client):
    ids = upload(client, *((f"{level}.png", png(level)) for level in range(80, 140)))
    for id in ids[:4]:
        client.put(f"/v1/predictions/{id}/review", json={"label": "pneumonia"})
    page, _ = get_page(client, "/dashboard")
    assert "60 images predicted by model gray at operating point balanced." in page.text
    assert "This computer40000% (0–49%)––" in page.text  # 0 of 4 by Wilson
    assert "Total variation distance" in page.text


def test_counts_are_in_singular_and_plural(client):
    assert "0 images" in get_page(client, "/")[0].text
    upload(client, ("a.png", png()))
    assert re.search(r"\b1 image\b", get_page(client, "/")[0].text)
    page = get_page(client, "/dashboard")[0].text
    assert "1 image predicted by model" in page
    assert "of the last day with images" in page
    assert "1 張影像" in get_page(client, "/?language=zh-Hant")[0].text


def test_model_page_describes_the_current_model(client):
    page, _ = get_page(client, "/model")
    assert "mean-gray" in page.text
    assert "balanced (in use)" in page.text


def test_model_page_states_what_was_measured_and_what_was_not():
    """The numbers are those of the card that comes with the package, read from its files."""
    model = load_model(threads=1)
    evaluation = json.loads((model.folder / "evidence" / "evaluation.json").read_text())
    point = evaluation["operating_points"]["balanced"]
    with TestClient(create_app(model, PredictionRepository(None)), base_url=BASE_URL) as client:
        page = get_page(client, "/model?language=en")[0].text
        chinese = get_page(client, "/model?language=zh-Hant")[0].text
        card = client.get("/model/card")
    tp, fn, tn, fp = (point["confusion"][name] for name in ("tp", "fn", "tn", "fp"))
    counted = f"classified {tp} of {tp + fn} images with pneumonia and {fp} of {tn + fp} normal images as pneumonia"
    assert counted in page
    assert f"{tp + fn} 張肺炎影像中有 {tp} 張" in chinese
    for name, n in (("sensitivity", tp + fn), ("specificity", tn + fp)):
        value, low, high = (point["metrics"][name][each] for each in ("value", "low", "high"))
        row = f"{value:.0%} ({math.floor(100 * low)}\N{EN DASH}{math.ceil(100 * high)}%)"
        assert re.search(rf"{name}: [^.]*?{re.escape(row)}\s*{n}\b", page, re.IGNORECASE), name
    for text in ("AP radiographs of children of 1 to 5 years from one hospital", "1,140 normal, 3,294 pneumonia"):
        assert text in page
    for text in ("Accuracy at other hospitals", "Accuracy by age and sex", "Whether readers are more accurate"):
        assert text in page
    blanked = json.loads((model.folder / "evidence" / "shortcuts.json").read_text())["controls"][0]
    assert blanked["name"] == "center blanked, 60% of each side"
    assert f"AUROC {blanked['auroc']['value']:.2f}" in page
    assert (card.status_code, card.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert card.text == model_card(model.folder)


def test_model_page_without_an_evaluation_has_a_note(client):
    page = get_page(client, "/model?language=en")[0].text
    assert "Sensitivity and specificity on test images of the model" in page
    assert "No measurement on test images applies." in page


def test_state_of_an_image_changes_with_reviews_of_others_and_is_not_logged_as_a_view(bundle_folder):
    tokens = repository_with_token("ward-3")
    app = create_app(load_model(bundle_folder, threads=1), tokens, require_token=True)
    with TestClient(app, base_url=BASE_URL, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        (id,) = upload(client, ("a.png", png()))
        first = client.get(f"/images/{id}/state").json()
        client.put(f"/v1/predictions/{id}/review", json={"label": "pneumonia"})
        assert client.get(f"/images/{id}/state").json() == first
        tokens.review(id, "no_finding", user="ward-4")
        second = client.get(f"/images/{id}/state").json()
        assert second != first
        assert "viewed" not in [row.event for row in read_rows(tokens.engine)]
        assert get_page(client, f"/images/{id}")[0].text.count("ward-4") == 1
        assert second["state"] in client.get(f"/images/{id}").text
        assert client.get(f"/images/{'0' * 32}/state").status_code == 404


def test_model_page_shows_the_calibration_of_the_evaluation(bundle_folder, tmp_path):
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    model = load_model(folder, threads=1)
    bins = reliability_bins([0.1, 0.2, 0.7, 0.9], [False, False, True, True], bins=2)
    evidence = {
        "bundle_sha256": model.card.onnx_sha256, "n": 4, "split": "test", "counts": {"NORMAL": 2, "PNEUMONIA": 2},
        "reliability": [dataclasses.asdict(each) for each in bins],
    }  # fmt: skip
    with TestClient(create_app(model, PredictionRepository(None)), base_url=BASE_URL) as client:
        assert "Observed rate of pneumonia" not in get_page(client, "/model")[0].text
        (folder / "evidence").mkdir()
        (folder / "evidence" / "evaluation.json").write_text(json.dumps(evidence))

        page, _ = get_page(client, "/model")
        points = [(attrs["cx"], attrs["cy"]) for tag, attrs in page.tags if tag == "circle" and attrs["r"] == "4"]

        # The mean probabilities are 0.15 and 0.8; no image of the first bin shows pneumonia, and all of the second.
        expected = [(50 + 290 * 0.15, 300), (50 + 290 * 0.8, 10)]
        assert [(float(x), float(y)) for x, y in points] == [pytest.approx(each) for each in expected]
        assert "4 images (test) in bins" in page.text
        assert "50% of these images show pneumonia" in page.text
        assert "實際的肺炎比例" in get_page(client, "/model?language=zh-Hant")[0].text
        evidence["bundle_sha256"] = "0" * 64
        (folder / "evidence" / "evaluation.json").write_text(json.dumps(evidence))
        page, _ = get_page(client, "/model?language=en")
        assert "The evaluation of this model cannot be read" in page.text
        assert "Observed rate of pneumonia" not in page.text


def test_model_page_and_card_show_the_evaluation_of_the_run(maker):
    run = maker.run()
    evaluation, _ = evaluate(run, maker.images())
    point = evaluation.operating_points["balanced"]
    with TestClient(create_app(load_model(run, threads=1), PredictionRepository(None)), base_url=BASE_URL) as client:
        page = get_page(client, "/model?language=en")[0].text
        counts = point.confusion
        assert f"classified {counts.tp} of 20 images with pneumonia and {counts.fp} of 12 normal images" in page
        assert "Sensitivity and specificity on test images of the model" not in page
        assert "32 images (test) in bins" in page
        card = client.get("/model/card").text
        assert card == model_card(run / "bundle", run / "evaluation" / "test" / "evaluation.json")
        assert str(evaluation.metrics["auroc"].n) in card

        # Images of one label have no specificity, and --split all has no name of a split.
        evaluate(run, maker.images("sick", normal=0), split="all", name="test", replace=True)
        page = get_page(client, "/model?language=en")[0].text
        assert "Sensitivity and specificity on test images of the model" in page
        assert "20 images (all splits) in bins" in page

        # An evaluation of this name may be one of validation images.
        tuning = maker.images("tuning", seed=3)
        rows = [f"{image.path},{image.label},validation" for image in load_manifest(tuning)]
        (tuning / "images.csv").write_text("\n".join(["path,label,split", *rows]))
        evaluate(run, tuning / "images.csv", split="validation", name="test", replace=True)
        page = get_page(client, "/model?language=en")[0].text
        assert "Sensitivity and specificity on test images of the model" in page
        assert "in bins" not in page
        assert client.get("/model/card").text == model_card(run / "bundle")


def test_model_page_tells_bins_of_nearly_equal_probabilities_apart(bundle_folder, tmp_path):
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    model = load_model(folder, threads=1)
    bins = reliability_bins([1e-9, 0.99912, 0.99948], [False, True, True], bins=3)
    (folder / "evidence").mkdir()
    evidence = {
        "bundle_sha256": model.card.onnx_sha256, "n": 3, "split": "test", "counts": {"NORMAL": 1, "PNEUMONIA": 2},
        "reliability": [dataclasses.asdict(each) for each in bins],
    }  # fmt: skip
    (folder / "evidence" / "evaluation.json").write_text(json.dumps(evidence))
    with TestClient(create_app(model, PredictionRepository(None)), base_url=BASE_URL) as client:
        page = get_page(client, "/model")[0].text
    assert [text in page for text in ("< 0.01%", "99.91%", "99.95%")] == [True] * 3


@pytest.mark.parametrize("path", ["/dashboard", "/model", "/images/{id}", "/images/{id}/report"])
def test_operating_points_are_translated(client, path):
    (id,) = upload(client, ("a.png", png()))
    page, _ = get_page(client, f"{path.format(id=id)}?language=zh-Hant")
    assert "平衡（balanced）" in page.text


def test_training_labels_are_translated(bundle_folder, monkeypatch):
    model = load_model(bundle_folder, threads=1)
    counts = {"train": {"NORMAL": 3, "PNEUMONIA": 4}}
    monkeypatch.setattr(model, "card", msgspec.structs.replace(model.card, counts=counts))
    with TestClient(create_app(model, PredictionRepository(None)), base_url=BASE_URL) as client:
        assert "3 normal, 4 pneumonia" in get_page(client, "/model")[0].text
        assert "正常 3 張，肺炎 4 張" in get_page(client, "/model?language=zh-Hant")[0].text


def test_reviewer_is_named_if_the_service_has_authentication(client, anonymous_client):
    (id,) = upload(client, ("a.png", png()))
    client.put(f"/v1/predictions/{id}/review", json={"label": "pneumonia"})
    anonymous_client.headers["Authorization"] = f"Bearer {TOKEN}"
    (same_id,) = upload(anonymous_client, ("a.png", png()))
    anonymous_client.put(f"/v1/predictions/{same_id}/review", json={"label": "pneumonia"})
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d \(UTC\)"
    for path in (f"/images/{id}", f"/images/{id}/report"):
        assert re.search(f"Read on {time}", get_page(client, path)[0].text)
        assert re.search(f"Read by ward-3 on {time}", get_page(anonymous_client, path)[0].text)


@pytest.fixture
def age_client(child_bundle):
    """A client, not signed in, of a service with authentication that rejects DICOM files without an age."""
    model = load_model(child_bundle, threads=1, require_age="dicom")
    app = create_app(model, repository_with_token("ward-3"), require_token=True)
    with TestClient(app, base_url=BASE_URL, follow_redirects=False) as opened:
        opened.headers["Origin"] = BASE_URL
        yield opened


def has_age_form(page):
    return any(tag == "input" and attrs.get("name") == "age" for tag, attrs in page.tags)


def test_age_is_shown_with_its_source(age_client):
    age_client.post("/sign-in", data={"token": TOKEN})
    files = ("header", dicom(PatientAge="004Y")), ("unclear", dicom(PatientBirthDate="20200101")), ("unknown", png())
    ids = upload(age_client, *files) + upload(age_client, ("entered", png()), params={"age": "0.25"})
    texts = {
        "en": ("4 years (from the file)", "Not understood", "Not stated", "0.25 years (entered)"),
        "zh-Hant": ("4 歲（取自檔案）", "無法辨識", "未記載", "0.25 歲（人工輸入）"),
    }
    for language, expected in texts.items():
        for id, words in zip(ids, expected, strict=True):
            for path in (f"/images/{id}", f"/images/{id}/report"):
                assert words in get_page(age_client, f"{path}?language={language}")[0].text
        assert texts[language][3] in get_page(age_client, "/?decision=rejected")[0].text


def test_age_cannot_be_entered_because_of_another_warning(age_client):
    age_client.post("/sign-in", data={"token": TOKEN})
    (id,) = upload(age_client, ("a.dcm", dicom(PatientAge="004Y", ViewPosition="")))
    page, _ = get_page(age_client, f"/images/{id}")
    assert "View not stated" in page.text
    assert not has_age_form(page)


def test_unknown_age_can_be_entered_in_the_viewer(age_client):
    client = age_client
    client.post("/sign-in", data={"token": TOKEN})
    rejected, unclear, warned, dark = upload(
        client, ("a.dcm", dicom()), ("b.dcm", dicom(PatientBirthDate="20200101")), ("c.png", png()), ("d.png", png(60))
    )
    for id in (dark, unclear):  # rejected for another reason; an age that the file states is not replaced
        assert not has_age_form(get_page(client, f"/images/{id}")[0])
    for old, age, decision in ((rejected, "3.5", "no_pneumonia"), (warned, "30", "rejected")):
        assert has_age_form(get_page(client, f"/images/{old}")[0])
        response = client.post(f"/images/{old}", data={"age": age})
        assert response.status_code == 303
        new = response.headers["Location"].removeprefix("/images/")
        before, after = (client.get(f"/v1/predictions/{id}").json() for id in (old, new))
        assert (after["decision"], after["age"]["years"], after["path"]) == (decision, float(age), before["path"])
        assert after["image_sha256"] == before["image_sha256"]
        assert new != old
        assert has_age_form(get_page(client, f"/images/{new}")[0])  # a mistyped age can be corrected
        rows = list(read_rows(client.app.state.service.repository.engine))
        last = next(row for row in reversed(rows) if row.event != "viewed")
        assert (last.event, last.user, last.prediction_id) == ("predicted", "ward-3", new)


@pytest.mark.parametrize("data", [{}, {"age": ""}, {"age": "three"}, {"age": "131"}, {"age": "nan"}])
def test_impossible_age_is_an_error_page_and_predicts_nothing(age_client, data):
    age_client.post("/sign-in", data={"token": TOKEN})
    (id,) = upload(age_client, ("a.dcm", dicom()))
    response = age_client.post(f"/images/{id}", data=data)
    assert response.status_code == 422
    assert "not a number of years from 0 to 130" in response.text
    assert age_client.get("/v1/predictions").json()["total"] == 1


def test_age_of_an_unknown_or_removed_image_is_an_error_page(age_client):
    age_client.post("/sign-in", data={"token": TOKEN})
    assert age_client.post(f"/images/{'ab' * 16}", data={"age": "3"}).status_code == 404
    (id,) = upload(age_client, ("a.dcm", dicom()))
    Retention(age_client.app.state.service.repository).expire_images(timedelta(0))
    assert not has_age_form(get_page(age_client, f"/images/{id}")[0])
    assert age_client.post(f"/images/{id}", data={"age": "3"}).status_code == 410


def test_age_is_entered_only_with_a_session_and_from_a_page_of_the_service(age_client):
    (id,) = upload(age_client, ("a.dcm", dicom()), headers={"Authorization": f"Bearer {TOKEN}"})
    response = age_client.post(f"/images/{id}", data={"age": "3"})
    assert (response.status_code, response.headers["Location"]) == (303, f"/sign-in?next=%2Fimages%2F{id}")
    age_client.post("/sign-in", data={"token": TOKEN})
    for origin, status in (("https://evil.example", 403), ("", 303)):
        response = age_client.post(f"/images/{id}", data={"age": "3"}, headers={"Origin": origin})
        assert response.status_code == status
    assert response.headers["Location"].startswith("/sign-in")
    assert age_client.get("/v1/predictions").json()["total"] == 1


def test_warning_is_shown_on_every_page_of_its_prediction(age_client):
    age_client.post("/sign-in", data={"token": TOKEN})
    (id,) = upload(age_client, ("a.png", png()))
    for path in (f"/images/{id}", f"/images/{id}/report"):
        page, _ = get_page(age_client, path)
        assert ("span", {"class": "warning"}) in page.tags
        assert "Age not stated: the prediction is invalid" in page.text
    page, _ = get_page(age_client, "/")  # in a few words
    assert ("span", {"class": "warning"}) in page.tags
    assert "Age not stated" in page.text
    assert "the prediction is invalid" not in page.text


def test_chosen_language_is_kept_in_a_cookie(client):
    page, response = get_page(client, "/?language=zh-Hant")
    assert ("html", {"lang": "zh-Hant"}) in page.tags
    assert "非醫療器材" in page.text
    assert "HttpOnly" in response.headers["Set-Cookie"]
    assert ("html", {"lang": "zh-Hant"}) in get_page(client, "/dashboard")[0].tags
    assert ("html", {"lang": "en"}) in get_page(client, "/model?language=en")[0].tags
    assert ("html", {"lang": "en"}) in get_page(client, "/?language=../../x")[0].tags


def test_every_page_except_sign_in_requires_a_session(anonymous_client):
    for path in ("/", "/worklist.csv", "/images/0123", "/images/0123/report", "/dashboard", "/model"):
        response = anonymous_client.get(path)
        assert (response.status_code, response.headers["Location"]) == (303, f"/sign-in?next={quote(path, safe='')}")


def example_paths(routes):
    """Yield method, path and route of each operation."""
    for route in routes:
        if isinstance(route, APIRoute):
            for method in route.methods:
                yield method, re.sub(r"{\w+}", "ab" * 16, route.path), route


def test_only_operation_and_sign_in_are_open_to_everyone(anonymous_client):
    known = {id(route) for router in (operation_router, sign_in_router) for route in router.routes}
    protected = [each for each in example_paths(anonymous_client.app.routes) if id(each[2]) not in known]
    assert len(protected) > 60
    for method, path, route in protected:
        response = anonymous_client.request(method, path, headers={"Origin": BASE_URL})
        if isinstance(route, PageRoute):
            assert (response.status_code, response.headers["Location"][:14]) == (303, "/sign-in?next="), (method, path)
        else:
            assert response.status_code == 401, (method, path)


def test_pages_of_administrators_are_refused_to_readers(bundle_folder):
    app = create_app(
        load_model(bundle_folder, threads=1), repository_with_token("reader", role="reader"), require_token=True
    )
    with TestClient(app, base_url=BASE_URL, follow_redirects=False) as client:
        client.post("/sign-in", data={"token": TOKEN}, headers={"Origin": BASE_URL})
        assert client.get("/").status_code == 200
        for method, path, _ in example_paths(administrator_page_router.routes):
            assert client.request(method, path, headers={"Origin": BASE_URL}).status_code == 403, (method, path)


def test_sign_in_returns_to_the_requested_page(anonymous_client):
    client = anonymous_client
    response = client.get("/images/0123?language=en")
    assert response.status_code == 303
    assert response.headers["Location"] == "/sign-in?next=%2Fimages%2F0123%3Flanguage%3Den"
    wrong = client.post("/sign-in", data={"token": "0123456789abcdeg"}, params={"next": "/dashboard"})
    assert (wrong.status_code, "Set-Cookie" in wrong.headers) == (401, False)
    assert "Invalid access token" in wrong.text
    assert "0123456789abcdeg" not in wrong.text
    assert "/sign-in?next=%2Fdashboard&amp;language=zh-Hant" in wrong.text  # the language link keeps the target
    right = client.post("/sign-in", data={"token": TOKEN}, params={"next": "/dashboard"})
    assert (right.status_code, right.headers["Location"]) == (303, "/dashboard")
    cookie = right.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert "ward-3" in client.get("/").text
    assert client.get("/v1/predictions").status_code == 200  # the scripts of the pages use the API
    client.post("/sign-out")
    assert client.get("/").status_code == 303
    assert client.get("/v1/predictions").status_code == 401


def test_session_cookie_is_secure_behind_https(anonymous_client):
    response = anonymous_client.post(f"{BASE_URL.replace('http', 'https')}/sign-in", data={"token": TOKEN})
    assert "Secure" in response.headers["Set-Cookie"]


@pytest.mark.parametrize("target", ["//evil.example", "/\\evil.example", "https://evil.example", "evil", "", "/a b"])
def test_sign_in_never_redirects_to_another_site(anonymous_client, target):
    response = anonymous_client.post("/sign-in", data={"token": TOKEN}, params={"next": target})
    assert response.headers["Location"] == "/"


def test_session_cookie_changes_nothing_from_another_origin(anonymous_client):
    client = anonymous_client
    client.post("/sign-in", data={"token": TOKEN})
    image = {"files": [("images", ("a.png", png()))]}
    assert client.post("/v1/predictions", **image, headers={"Origin": "https://evil.example"}).status_code == 403
    for headers in ({}, {"Origin": ""}):
        assert client.post("/v1/predictions", **image, headers=headers).status_code == 401
    (id,) = upload(client, ("a.png", png()), headers={"Origin": BASE_URL})
    assert client.delete(f"/v1/predictions/{id}").status_code == 401
    assert client.get("/v1/predictions").json()["total"] == 1
    # A bearer token needs no Origin, even if a cookie comes along.
    assert client.delete(f"/v1/predictions/{id}", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 204


def test_service_behind_a_proxy_accepts_only_its_public_name(bundle_folder):
    settings = Settings(public_name="images.clinic.example")
    model = load_model(bundle_folder, threads=1)
    app = create_app(model, repository_with_token("ward-3"), settings, require_token=True)
    public = "https://images.clinic.example"
    with TestClient(app, base_url=public, follow_redirects=False) as client:
        client.post("/sign-in", data={"token": TOKEN}, headers={"Origin": public})
        upload(client, ("a.png", png()), headers={"Origin": public})
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example", "Origin": "https://evil.example"}):
            response = client.post("/v1/predictions", files=[("images", ("b.png", png(90)))], headers=headers)
            assert response.status_code == 403
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/healthz", headers={"Host": "127.0.0.1:8000"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [("GET", "/", {"Host": "ward-pc:8000"}), ("POST", "/search", {"Origin": "https://evil.example"})],
)
def test_refused_request_for_a_page_is_answered_with_a_page(client, method, path, headers):
    cause = {
        "GET": ("is for another host. Use http", "其他主機"),
        "POST": ("by a page of another site. Send", "其他網站"),
    }
    for language, title, not_role, detail in (
        ("en", "Not permitted", "or the request did not come from a page of this service. Ask", cause[method][0]),
        ("zh-TW", "無權限", "或此請求並非來自本服務的頁面", cause[method][1]),
    ):
        answer = client.request(method, path, headers={**headers, "Accept-Language": language})
        assert (answer.status_code, answer.headers["Content-Type"]) == (403, "text/html; charset=utf-8")
        assert title in answer.text
        assert not_role in answer.text
        (note,) = re.findall('<p class="note">(.*)</p>', answer.text)  # in the language of the page
        assert detail in note
    answer = client.request(method, "/v1/predictions", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_page_of_an_error_is_in_the_language_of_the_reader(client):
    page = client.get(f"/?search={'0' * 32}", headers={"Accept-Language": "zh-TW"})
    assert page.status_code == 422
    assert '<p class="note">搜尋已過期。請重新搜尋。</p>' in page.text
    assert '<p class="note">the search has expired. Search again</p>' in client.get(page.url).text
    page = client.get(f"/images/{'0' * 32}", headers={"Accept-Language": "zh-TW"}).text
    assert re.search(r"<summary>技術細節</summary><p lang=\"en\">there is no prediction", page)


def test_age_stands_beside_the_patient_in_list_viewer_and_report(client):
    header = {"PatientName": "Doe^Jane", "PatientBirthDate": "20220310", "StudyDate": "20261129"}
    (by_dates,) = upload(client, ("a.dcm", dicom(**header, StudyInstanceUID="1.2.3")))
    other = images.dicom(120, 64, PatientName="Roe^Joe", PatientAge="018M", StudyInstanceUID="1.2.4")
    (stated,) = upload(client, ("b.dcm", other))
    for id, english, chinese in ((by_dates, "4 y 8 mo", "4 歲 8 個月"), (stated, "18 mo", "18 個月")):
        for path in ("/", f"/images/{id}", f"/images/{id}/report"):
            assert f'<span class="label">Age</span> {english}</span>' in client.get(path).text, path
            page = client.get(path, headers={"Accept-Language": "zh-TW"}).text
            assert f'<span class="label">年齡</span> {chinese}</span>' in page, path


def test_impossible_age_by_dates_is_not_shown(client):
    header = {"PatientName": "Doe^Jane", "PatientBirthDate": "18000310", "StudyDate": "20261129"}
    (id,) = upload(client, ("a.dcm", dicom(**header, PatientAge="003Y", StudyInstanceUID="1.2.3")))
    for path in ("/", f"/images/{id}", f"/images/{id}/report"):
        page = client.get(path).text
        assert '<span class="label">Age</span> 3 y</span>' in page, path
        assert "226 y" not in page, path


def test_rejection_stands_in_the_line_of_the_decision_with_what_to_do_about_the_header(client):
    raw = dicom(PresentationIntentType="FOR PROCESSING")
    lateral, unprocessed, inverted = upload(
        client, ("a.dcm", dicom(ViewPosition="LL")), ("b.dcm", raw), ("dark.png", png(60))
    )
    advice = "If the header is wrong, have it corrected and send the image again."
    for id, reason, by_header in (
        (lateral, "Not a frontal view", True),
        (unprocessed, "Unprocessed pixels", True),
        (inverted, "Inverted", False),
    ):
        page = client.get(f"/images/{id}").text
        line = page[page.index('class="decision-line"') : page.index('class="reading-panel"')]
        assert reason in line
        assert "No probability" not in line
        assert (advice in page) is by_header
