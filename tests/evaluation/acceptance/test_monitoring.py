"""Monitoring without labels: what it detects, and how often it gives a false alarm."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
from msgspec import structs
from PIL import Image
from scipy import stats
from tests.conftest import SIZE
from tests.evaluation.acceptance.test_accept import CARD_POINTS, WIDE, write_site
from tests.images import dicom

from pneumoscope.bundle.site_profile import read_site_profile
from pneumoscope.core.errors import SiteProfileError, UndefinedMetricError, UsageError
from pneumoscope.evaluation.acceptance import monitoring
from pneumoscope.evaluation.acceptance.accept import accept
from pneumoscope.evaluation.acceptance.monitoring import monitor, monitoring_markdown
from pneumoscope.imaging.statistics import image_statistics
from pneumoscope.inference.session import BundleSession
from pneumoscope.statistics.drift import MIN_IMAGES

pytestmark = pytest.mark.slow
STATISTICS = ("brightness", "contrast", "sharpness", "border")


@pytest.fixture(scope="module")
def bundle(shared_maker):
    folder = shared_maker.root / "monitored"
    return shared_maker.bundle(folder, gain=0.1, operating_points=CARD_POINTS, rejection_limits=WIDE)


@pytest.fixture(scope="module")
def profile(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    accept(write_site(folder / "images", normal=200, pneumonia=200), bundle, site="North", out=folder)
    return folder / "site.json"


def recent(folder, **options):
    return [str(path) for path in sorted(write_site(folder, **options).rglob("*.png"))]


def test_image_statistics_by_hand():
    pixels = np.full((20, 20), 100, np.uint8)
    pixels[:, 10:] = 200
    pixels[[0, -1]] = 0
    pixels[:, [0, -1]] = 0
    found = dataclasses.asdict(image_statistics(pixels))

    gray = pixels.astype(float)
    assert tuple(found) == STATISTICS
    assert found["brightness"] == pytest.approx(gray.mean(), rel=1e-6)
    assert found["contrast"] == pytest.approx(gray.std(), rel=1e-6)
    assert found["border"] == 0
    vertical = 2 * (9 * 100 + 9 * 200) / (19 * 20)  # at the top and at the bottom
    horizontal = 18 * (100 + 100 + 200) / (19 * 20)
    assert found["sharpness"] == pytest.approx((vertical + horizontal) / 2, rel=1e-6)


def test_p_values_are_those_of_the_two_sample_tests(bundle, profile, tmp_path):
    paths = recent(tmp_path / "recent", normal=60, pneumonia=60, seed=5)
    result = monitor(paths, profile, bundle)
    reference = monitor_reference(profile)

    brightness = [np.asarray(Image.open(path), float).mean() for path in paths]
    by_name = {test.name: test for test in result.tests}
    expected = stats.ks_2samp(reference["brightness"], brightness, method="asymp").pvalue
    assert by_name["brightness"].p_value == pytest.approx(expected)
    assert by_name["brightness"].recent == pytest.approx(np.median(brightness))
    assert by_name["rejected"].p_value == stats.fisher_exact([[0, 120], [0, 400]]).pvalue
    assert [test.name for test in result.tests] == ["logit", *STATISTICS, "rejected"]


def monitor_reference(profile):
    return read_site_profile(profile).monitoring


def test_unchanged_images_give_no_alarm_and_brighter_ones_do(bundle, profile, tmp_path):
    same = monitor(recent(tmp_path / "same", normal=60, pneumonia=60, seed=5), profile, bundle)
    brighter = monitor(recent(tmp_path / "brighter", normal=60, pneumonia=60, seed=6, shift=25), profile, bundle)

    assert not same.alarm
    assert monitoring_markdown(same).startswith("No drift detected. 120 images compared with the profile of North (")
    assert brighter.alarm
    assert {"logit", "brightness"} <= {test.name for test in brighter.tests if test.alarm}
    assert monitoring_markdown(brighter).startswith("**Drift: logit, brightness")


def test_more_rejections_give_an_alarm(shared_maker, tmp_path):
    folder = shared_maker.root / "monitored rejections"
    limited = shared_maker.bundle(
        folder, gain=0.1, operating_points=CARD_POINTS, rejection_limits=structs.replace(WIDE, max_distance=2.0)
    )
    accept(write_site(tmp_path / "images"), limited, site="North", out=tmp_path)
    paths = recent(tmp_path / "recent", normal=50, pneumonia=50, seed=7, shift=45)
    result = monitor(paths, tmp_path / "site.json", limited)

    (rejected,) = [test for test in result.tests if test.name == "rejected"]
    assert rejected.alarm
    assert rejected.recent == result.rejected.value > 0.1 > rejected.reference


def test_false_alarms_are_as_rare_as_promised(bundle, tmp_path, monkeypatch):
    # The reference and each check are samples of one population; the network is replaced by its formula to save time.
    rng = np.random.default_rng(0)

    def sample(n):
        level = np.where(rng.random(n) < 0.5, rng.normal(95, 16, n), rng.normal(145, 16, n))
        pixels = np.clip(rng.normal(level[:, None, None], 8, (n, SIZE, SIZE)), 0, 255).astype(np.uint8)
        values = [dataclasses.asdict(image_statistics(each)) for each in pixels]
        columns = {name: [each[name] for each in values] for name in STATISTICS}
        logits = 0.1 * (np.array(columns["brightness"]) - 125)
        return {"logit": logits.tolist(), **columns}, (rng.random(n) < 0.03).tolist()

    accept(write_site(tmp_path / "images", normal=30, pneumonia=30), bundle, site="North", out=tmp_path)
    session = BundleSession.load(bundle, site=tmp_path / "site.json")
    base = session.profile
    monkeypatch.setattr(BundleSession, "load", lambda *_, **__: session)
    alarms = []
    for _ in range(400):
        reference, rejected = sample(300)
        session.profile = structs.replace(
            base, monitoring=reference, monitored_patients=300, monitored_rejected=sum(rejected)
        )
        values, recent_rejected = sample(100)
        monkeypatch.setattr(monitoring, "_measure", lambda *_, v=values, r=recent_rejected: (r, v, {}))
        alarms.append(monitor([], tmp_path / "site.json", bundle).alarm)

    # 5% or less: Holm's correction and the tests on whole counts are conservative.
    assert np.mean(alarms) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(alarms) > 0


def test_planned_checks_share_the_false_alarms(bundle, profile, tmp_path):
    paths = recent(tmp_path / "recent", normal=60, pneumonia=60, seed=8, shift=12)
    one = monitor(paths, profile, bundle)
    smallest = min(test.adjusted for test in one.tests)
    assert one.alarm
    assert 0 < smallest <= 0.05
    few, many = int(0.05 / smallest), int(0.05 / smallest) + 1
    assert monitor(paths, profile, bundle, checks=few).alarm
    found = monitor(paths, profile, bundle, checks=many)
    assert not found.alarm
    assert [test.adjusted for test in found.tests] == [test.adjusted for test in one.tests]
    assert f"{many} planned checks" in monitoring_markdown(found)


def test_unreadable_files_are_named_and_left_out(bundle, profile, tmp_path):
    paths = recent(tmp_path / "recent", normal=30, pneumonia=30)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    result = monitor([*paths, str(broken)], profile, bundle)
    assert (result.n, list(result.unreadable)) == (60, [str(broken)])
    assert f"Unreadable: {broken}: " in monitoring_markdown(result)


def test_too_few_images_and_invalid_numbers_are_errors(bundle, profile, tmp_path):
    paths = recent(tmp_path / "recent", normal=20, pneumonia=20)
    with pytest.raises(
        UndefinedMetricError, match=f"needs at least {MIN_IMAGES} readable images; there are 40 of 40 files"
    ):
        monitor(paths, profile, bundle)
    for options in ({"false_alarms": 0}, {"false_alarms": 1.5}, {"checks": 0}):
        with pytest.raises(UsageError, match="the probability must be between 0 and 1"):
            monitor(paths, profile, bundle, **options)


def test_profile_of_another_model_is_refused(profile, shared_maker, tmp_path):
    other = shared_maker.bundle(shared_maker.root / "not monitored", gain=0.3)
    with pytest.raises(SiteProfileError, match="made for another model"):
        monitor([], profile, other)


def test_reference_has_one_image_per_patient(bundle, tmp_path):
    accept(
        write_site(tmp_path / "images", normal=100, pneumonia=100, per_patient=4), bundle, site="North", out=tmp_path
    )
    profile = read_site_profile(tmp_path / "site.json")
    assert (profile.n, profile.patients, profile.monitored_patients) == (200, 50, 50)
    assert {len(values) for values in profile.monitoring.values()} == {50}


def test_the_images_of_the_profile_do_not_differ_from_it(bundle, tmp_path):
    # Logits far from 0, where probabilities would be rounded to 1.
    folder = write_site(tmp_path / "images", normal=100, pneumonia=100, shift=60)
    accept(folder, bundle, site="North", out=tmp_path)
    result = monitor([str(path) for path in folder.rglob("*.png")], tmp_path / "site.json", bundle)
    assert [test.p_value for test in result.tests] == pytest.approx([1.0] * 6)


def test_required_age_is_as_in_the_acceptance_test(shared_maker, tmp_path):
    aged = shared_maker.bundle(
        shared_maker.root / "monitored ages", gain=0.1, operating_points=CARD_POINTS, rejection_limits=WIDE, age_range=(1, 5)
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for label, gray in (("NORMAL", 95), ("PNEUMONIA", 145)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(40):
            header = {"PatientID": f"{label} {i}"} | ({"PatientAge": "003Y"} if i % 2 else {})
            (tmp_path / "images" / label / f"{i}.dcm").write_bytes(dicom(int(rng.normal(gray, 12)), **header))
    accept(tmp_path / "images", aged, site="Ages", out=tmp_path / "out", require_age="dicom")
    paths = [str(path) for path in (tmp_path / "images").rglob("*.dcm")]

    same = monitor(paths, tmp_path / "out" / "site.json", aged, require_age="dicom")
    assert (same.alarm, same.rejected.value) == (False, 0.5)
    for path in paths[:30]:
        pathlib.Path(path).write_bytes(dicom(120, PatientAge="003Y", BodyPartExamined="HAND"))
    as_stated, assumed = (
        monitor(paths, tmp_path / "out" / "site.json", aged, require_age="dicom", assume=assume).rejected.value
        for assume in ((), ("chest",))
    )
    assert as_stated > assumed
    other = monitor(paths, tmp_path / "out" / "site.json", aged, assume=["chest"])
    assert (other.alarm, other.rejected.value) == (True, 0)


def test_profile_without_a_reference_cannot_be_monitored(bundle, profile, tmp_path):
    for empty in ({"monitoring": {}}, {"monitored_patients": 0}):
        other = tmp_path / "other.json"
        other.write_text(structs.replace(read_site_profile(profile), **empty).to_json())
        with pytest.raises(SiteProfileError, match="has no reference for monitoring"):
            monitor([], other, bundle)
