"""The service with a site profile or a prevalence: it is stored, shown, and keeps predictions apart from those without it."""

import contextlib
import csv
import io
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from fastapi.testclient import TestClient
from msgspec import structs
from tests.conftest import LIMITS, POINTS, operating_point
from tests.service.conftest import images, png, post, problem, served

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Proportion
from pneumoscope.bundle.site_profile import SiteProfile, read_site_profile
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.population import Population
from pneumoscope.core.prediction_messages import population_sentence
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import create_app
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.database import DATABASE_FILE
from pneumoscope.service.storage.repository import PredictionRepository

BASE_URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def bundle(shared_maker):
    folder = shared_maker.root / "served with a profile"
    if not folder.exists():  # the tests of this module may be divided among processes
        shared_maker.bundle(folder, gain=0.05, operating_points=POINTS, rejection_limits=LIMITS)
    return folder


@pytest.fixture(scope="module")
def profile(bundle, tmp_path_factory):
    """A profile with a higher threshold: an image of gray level 126 is pneumonia without it only."""
    card = read_bundle(bundle)[0]
    path = tmp_path_factory.mktemp("profile") / "site.json"
    made = SiteProfile(
        format=1, version="0.1.0", created="2026-01-02T03:04:05+00:00", name="North <b>Clinic", model=card.name,
        onnx_sha256=card.onnx_sha256, card_sha256=card.sha256(), images_sha256="a" * 64, seen=[], n=1, patients=1,
        n_pneumonia=1, seed=0, prevalence=None, prevalence_source="data", calibration=None, intervals=None,
        operating_points={"balanced": structs.replace(operating_point(0.7, "youden"), site=True)}, limits={},
        rejected=Proportion(value=0, low=0, high=1, n=1, method="wilson"), reference_distribution=None, not_changed={},
    )  # fmt: skip
    path.write_text(made.to_json())
    return path


def client(bundle, folder, now=lambda: datetime.now(UTC), **options):
    repository = PredictionRepository(folder, now=now)
    app = create_app(load_model(bundle, threads=1, **options), repository)
    return TestClient(app, base_url=BASE_URL, raise_server_exceptions=False)


def test_predictions_with_and_without_the_profile_are_kept_apart(bundle, profile, tmp_path):
    folder = tmp_path / "data"
    with client(bundle, folder) as plain:
        (before,) = post(plain, png(126))
    with client(bundle, folder, site=profile) as site:
        (after,) = post(site, png(126))
        assert post(site, png(126))[0]["id"] == after["id"]
        assert before["id"] != after["id"]
        assert (before["decision"], after["decision"]) == ("pneumonia", "no_pneumonia")
        assert (before["model"]["site"], after["model"]["site"][:16]) == ("", "North <b>Clinic ")

        for page in (f"/images/{after['id']}", f"/images/{after['id']}/report", "/model", "/", "/dashboard"):
            assert "North &lt;b&gt;Clinic (" in site.get(page).text
        assert "院所設定檔" in site.get(f"/images/{after['id']}/report?language=zh-Hant").text
        page = site.get(f"/images/{before['id']}?language=en").text
        assert "North" not in page
        assert "(not the current model)" in page
        assert site.get(f"/v1/predictions/{after['id']}/heatmap.png").status_code == 200
        refused = problem(site.get(f"/v1/predictions/{before['id']}/heatmap.png"), 404, "unknown_name")
        assert "another model or site profile" in refused["hint"]
        assert "1 image predicted by model" in site.get("/dashboard").text
        assert site.get("/v1/model").json()["site"] == after["model"]["site"]
        model_page = site.get("/model?language=en").text
        assert "highest Youden index on 8 images of the site" in model_page
        assert "Sensitivity (validation)" not in model_page
    with contextlib.closing(PredictionRepository(folder)) as repository:
        assert verify(repository.engine).predictions == 2
        rows = [row for row in read_rows(repository.engine) if row.event == "predicted"]
        details = [json.loads(row.details) for row in rows]
        assert [each.get("site", "")[:16] for each in details] == ["", "North <b>Clinic "]


def test_model_page_states_what_the_figures_of_the_site_are_of(bundle, profile, tmp_path):
    share = Proportion(value=0.0625, low=0.04, high=0.09, n=432, method="wilson")
    made = structs.replace(read_site_profile(profile), limits={"ood_detector": 2.2}, rejected=share)
    path = tmp_path / "site.json"
    path.write_text(made.to_json())

    with client(bundle, None, site=path) as opened:
        page = opened.get("/model?language=en").text
        chinese = opened.get("/model?language=zh-Hant").text

    assert "each image was evaluated with a threshold that was chosen on other patients" in page
    assert "each checked with limits that were set on other patients" in page
    assert "On images of the hospital, cross-fitted" in page
    assert "n = 432" in page
    assert "of the validation images" not in page
    assert page.count("(site profile)") == 1
    assert "交叉擬合" in chinese


def test_model_page_states_validation_images_where_the_profile_keeps_the_limits(bundle, profile):
    with client(bundle, None, site=profile) as opened:
        assert "rejected: of the validation images" in opened.get("/model?language=en").text


def test_service_starts_with_a_profile_and_names_it(bundle, profile, tmp_path):
    with served(bundle, tmp_path, "--ephemeral", "--site", str(profile)) as (process, opened):
        answer = opened.post("/v1/predictions", files=images(png(126))).json()
        assert answer["predictions"][0]["decision"] == "no_pneumonia"
        assert "Site profile: North <b>Clinic (" in process.stderr.read()


def with_reference(profile, levels, folder):
    """A copy of the profile with a reference for monitoring: plain images of these gray levels, none rejected."""
    folder.mkdir(exist_ok=True)
    values = {"brightness": levels, "border": levels, "logit": [0.05 * (level - 120) for level in levels]}
    made = structs.replace(
        read_site_profile(profile), monitoring={name: list(map(float, each)) for name, each in values.items()},
        monitored_patients=len(levels), monitored_rejected=0,
    )  # fmt: skip
    path = folder / "site.json"
    path.write_text(made.to_json())
    return path


def test_dashboard_compares_complete_months_with_the_profile(bundle, profile, tmp_path):
    levels = list(range(90, 150))
    site = with_reference(profile, levels, tmp_path / "same")
    last_month = datetime.now(UTC).replace(day=1) - timedelta(days=2)
    with client(bundle, tmp_path / "data", now=lambda: last_month, site=site) as opened:
        predictions = [post(opened, png(level))[0] for level in levels]
        found = predictions[0]["image_statistics"]
        assert list(found) == ["brightness", "contrast", "sharpness", "border"]
        assert (found["brightness"], found["border"]) == (90, 90)
        page = opened.get("/dashboard?language=en").text
        assert f"No drift detected in {last_month:%Y-%m}." in page
        assert "Total variation distance" not in page  # not a second verdict
        assert "▲ p" not in page
        assert f"{last_month:%Y-%m} 未偵測到資料偏移。" in opened.get("/dashboard?language=zh-Hant").text
    darker = with_reference(profile, [level - 40 for level in levels], tmp_path / "darker")
    with client(bundle, tmp_path / "other", now=lambda: last_month, site=darker) as opened:
        for level in levels:
            post(opened, png(level))
        page = opened.get("/dashboard?language=en").text
        assert f"Drift detected in {last_month:%Y-%m}: Probability, Brightness, Border." in page
        assert page.count("▲ p &lt; 0.0001") == 3
    with client(bundle, tmp_path / "new", site=site) as opened:  # the current month is not complete
        for level in levels:
            post(opened, png(level))
        page = opened.get("/dashboard?language=en").text
        assert "No month with images is complete yet." in page
        assert "rift detected" not in page


def test_image_statistics_are_stored_only_with_a_reference(bundle, profile, tmp_path):
    with client(bundle, tmp_path / "data", site=profile) as opened:
        assert post(opened, png(120))[0]["image_statistics"] is None
        assert "Drift by month" not in opened.get("/dashboard?language=en").text


# --- prevalence


def test_prevalence_moves_the_probabilities_on_all_pages_and_is_recorded(bundle, tmp_path):
    folder = tmp_path / "data"
    with client(bundle, folder) as plain:
        (before,) = post(plain, png(126))
        page = plain.get("/?language=en").text
        assert "Probabilities are for a prevalence of 50%; if pneumonia is less common among your patients" in page
    with client(bundle, folder, prevalence=0.2) as stated:
        (after,) = post(stated, png(126))
        assert before["id"] != after["id"]
        assert after["decision"] == before["decision"] == "pneumonia"
        assert (after["model"]["site"], after["model"]["prevalence"]) == ("", 0.2)
        for name in ("probability", "threshold"):
            odds = [each[name] / (1 - each[name]) for each in (before, after)]
            assert odds[1] == pytest.approx(odds[0] / 4)  # 0.2 / 0.8 against 0.5 / 0.5
        viewer = f"/images/{after['id']}"
        probability = f"{after['probability']:.0%}"
        for path in ("/", viewer, f"{viewer}/report"):
            page = stated.get(f"{path}?language=en").text
            assert "Probabilities are for a prevalence of 20%." in page, path
            assert probability in page, path
            assert "機率以肺炎盛行率 20% 為準。" in stated.get(f"{path}?language=zh-Hant").text, path
            assert "Site profile" not in page, path
        for path in ("/dashboard", "/model"):
            assert "Probabilities are for a prevalence of 20%." in stated.get(f"{path}?language=en").text, path
        assert "1 image predicted by model" in stated.get("/dashboard?language=en").text
        old = stated.get(f"/images/{before['id']}?language=en").text
        assert "Probabilities are for" not in old  # of an image that another model has scored, it is unknown
        assert "(not the current model)" in old
        listed = stated.get("/?language=en").text  # the latest prediction of the image only
        assert after["id"] in listed
        assert before["id"] not in listed
        card = stated.get("/v1/model").json()
        assert (card["site"], card["prevalence"], card["calibration"]["prevalence"]) == ("", 0.2, 0.2)
        rows = csv.DictReader(io.StringIO(stated.get("/worklist.csv").text.removeprefix("\ufeff")))
        assert {(row["model_site"], row["model_prevalence"]) for row in rows} == {("", "0.2")}
        assert stated.get(f"/v1/predictions/{after['id']}/heatmap.png").status_code == 200
    with client(bundle, folder) as plain:
        page = plain.get(f"/images/{after['id']}?language=en").text
        assert "Probabilities are for a prevalence of 20%." in page
    with contextlib.closing(PredictionRepository(folder)) as repository:
        assert verify(repository.engine).predictions == 2
        details = [json.loads(row.details) for row in read_rows(repository.engine) if row.event == "predicted"]
        assert [each.get("prevalence") for each in details] == [None, 0.2]


def test_model_page_has_no_reliability_diagram_for_another_prevalence():
    with client(None, None) as plain, client(None, None, prevalence=0.1) as stated:
        assert "Reliability diagram" in plain.get("/model?language=en").text
        page = stated.get("/model?language=en").text
        assert "Reliability diagram" not in page
        assert "Sensitivity (validation)" in page  # thresholds are those of the card
        assert "With the site profile" not in page


def test_service_starts_with_a_prevalence_and_prints_it(bundle, tmp_path):
    with served(bundle, tmp_path, "--ephemeral", "--prevalence", "0.2") as (process, opened):
        answer = opened.post("/v1/predictions", files=images(png(126))).json()
        assert answer["predictions"][0]["model"]["prevalence"] == 0.2
        assert "Prevalence: 20%" in process.stderr.read()


def test_months_of_drift_are_those_of_the_time_zone(bundle, profile, tmp_path):
    levels = list(range(90, 150))
    site = with_reference(profile, levels, tmp_path / "profile")
    this_month = datetime.now(UTC).replace(day=1, hour=12)
    # In the evening of the last day of a month in UTC, the next month has begun in Taipei.
    last_month = (this_month - timedelta(days=2)).replace(day=1, hour=0) - timedelta(hours=4)
    repository = PredictionRepository(None, now=lambda: last_month)
    settings = Settings(time_zone=ZoneInfo("Asia/Taipei"))
    app = create_app(load_model(bundle, threads=1, site=site), repository, settings)
    with TestClient(app, base_url=BASE_URL) as opened:
        for level in levels:
            post(opened, png(level))
        page = opened.get("/dashboard?language=en").text
    assert f"No drift detected in {last_month + timedelta(hours=8):%Y-%m}." in page
    assert f"{last_month:%Y-%m}." not in page


@pytest.mark.parametrize(
    "change", ["", "DELETE FROM model_populations", "UPDATE model_populations SET population = '{\"later\": 1}'"]
)
def test_result_of_an_earlier_model_states_the_population_of_its_own_model(shared_maker, tmp_path, change):
    """Each place that shows one result: pages, API, CSV, FHIR.

    Populations of models before migration 0020 are unknown, and those that another version wrote with other fields.
    """
    is_known = not change
    children = "Trained on AP radiographs of children of 1 to 5 years from one hospital."
    replaced = shared_maker.root / "served in place of another model"
    if not replaced.exists():
        population = Population(ages=(1, 5), sites=1, view="AP")
        shared_maker.bundle(
            replaced, gain=0.06, operating_points=POINTS, rejection_limits=LIMITS, population=population
        )
    adults = "Trained on PA radiographs of adults of 18 to 90 years from 2 hospitals."
    population = Population(ages=(18, 90), sites=2, view="PA")
    first = shared_maker.bundle(tmp_path / "adults", gain=0.05, operating_points=POINTS, population=population)
    with client(first, tmp_path / "data") as earlier:
        (old,) = post(earlier, png(126))
    if not is_known:
        with contextlib.closing(sqlite3.connect(tmp_path / "data" / DATABASE_FILE)) as database:
            database.execute(change)
            database.commit()
    words = adults if is_known else "This result comes from an earlier model; its training population is not recorded."
    with client(replaced, tmp_path / "data") as current:
        assert children in current.get("/model?language=en").text
        (new,) = post(current, png(180))
        paths = ("/images/{}", "/images/{}/report", "/v1/predictions/{}", "/fhir/DiagnosticReport/{}")
        for path in paths:
            page = current.get(path.format(new["id"]), params={"language": "en"} if "/images" in path else {}).text
            assert (children in page, words in page) == (True, False), path
            page = current.get(path.format(old["id"])).text
            assert (children in page, words in page) == (False, True), path
        rows = {row["id"]: row for row in csv.DictReader(io.StringIO(current.get("/worklist.csv").text))}
        assert children in rows[new["id"]]["notice"]
        assert words in rows[old["id"]]["notice"]
        chinese = "18 至 90 歲成人" if is_known else "此結果由先前的模型產生"
        assert chinese in current.get(f"/images/{old['id']}?language=zh-Hant").text


def test_list_with_a_result_of_an_earlier_model_states_no_population(bundle, shared_maker, tmp_path):
    """Lists, the study and the patient of the API, and the worklist."""
    population = Population(ages=(18, 90), sites=2, view="PA")
    replaced = shared_maker.bundle(tmp_path / "adults", gain=0.06, operating_points=POINTS, population=population)
    stated = population_sentence(population)
    identity = {"study_instance_uid": "1.2.3", "patient_id": "7"}
    with client(bundle, tmp_path / "data") as earlier:
        earlier.post("/v1/predictions", files=images(png(126)), data=identity)
    with client(replaced, tmp_path / "data") as current:

        def notices(found):
            by_patient = {"patient_key": found["patient_key"]}
            answers = [
                current.get("/v1/predictions", params=by_patient),
                current.post("/v1/predictions/search", json={"text": found["identity"]["patient_id"]}),
                current.get(f"/v1/studies/{found['study_key']}"),
                current.get(f"/v1/patients/{found['patient_key']}"),
            ]
            page = current.get("/", params=by_patient | {"language": "en"}).text
            return [each.json()["notice"] for each in answers], page

        new, other = (
            current.post("/v1/predictions", files=images(png(level)), data=stated_identity).json()["predictions"][0]
            for level, stated_identity in ((180, identity), (181, {"study_instance_uid": "1.2.9", "patient_id": "8"}))
        )
        lists, page = notices(new)
        assert lists == 4 * [NOTICE]
        assert stated not in page
        assert NOTICE in page
        lists, page = notices(other)
        assert lists == 4 * [f"{NOTICE} {stated}"]
        assert stated in page
