"""Acceptance tests of small networks at simulated sites."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
from msgspec import structs
from PIL import Image
from sklearn.metrics import roc_auc_score
from tests.conftest import LIMITS, POINTS, SIZE
from tests.images import dicom

from pneumoscope.bundle.card import Proportion, short_hash
from pneumoscope.bundle.model_card import model_card
from pneumoscope.bundle.site_profile import read_site_profile
from pneumoscope.core.errors import BundleError, DatasetError, ThresholdError, UndefinedMetricError, UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.acceptance.accept import accept
from pneumoscope.evaluation.acceptance.report import acceptance_markdown
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.inference.model import load_model
from pneumoscope.runs.evaluations import read_evaluation
from pneumoscope.statistics.intervals import wilson

pytestmark = pytest.mark.slow


def reference(value: float, n: int) -> Proportion:
    interval = wilson(round(value * n), n)
    return Proportion(value=interval.value, low=interval.low, high=interval.high, n=n, method="wilson")


# A card of a model with a sensitivity and specificity of about 0.9 at its thresholds.
CARD_POINTS = {
    name: structs.replace(point, sensitivity=reference(0.92, 800), specificity=reference(0.92, 800))
    for name, point in POINTS.items()
}
WIDE = structs.replace(LIMITS, min_upright=0.0, max_distance=9.0, rejected=reference(0.02, 800))


def write_site(folder, *, normal=150, pneumonia=150, shift=0.0, spread=16.0, seed=0, per_patient=1):
    """Write images whose mean gray level tells the labels apart, and return the folder."""
    rng = np.random.default_rng(seed)
    number = 0
    for label, count, gray in (("NORMAL", normal, 95), ("PNEUMONIA", pneumonia, 145)):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            level = np.clip(rng.normal(gray + shift, spread), 5, 250)
            pixels = np.clip(rng.normal(level, 8, (SIZE, SIZE)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"person{i // per_patient}_virus_{number}.png" if label == "PNEUMONIA"
                                         else folder / label / f"IM-{i // per_patient:04d}-{number:04d}.png")  # fmt: skip
            number += 1
    return folder


@pytest.fixture(scope="module")
def bundle(shared_maker):
    return shared_maker.bundle(
        shared_maker.root / "accepted", gain=0.1, operating_points=CARD_POINTS, rejection_limits=WIDE
    )


@pytest.fixture(scope="module")
def same_site(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("same"), normal=400, pneumonia=400, seed=1)


@pytest.fixture(scope="module")
def brighter_site(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("brighter"), normal=220, pneumonia=220, shift=30, seed=2, per_patient=2)


def test_figures_are_those_of_the_images(bundle, same_site):
    result, _ = accept(same_site, bundle, site="Same")
    manifest = load_manifest(same_site)
    labels = np.array([image.positive for image in manifest])
    levels = [np.asarray(Image.open(same_site / image.path), float).mean() for image in manifest]
    logits = 0.1 * (np.array(levels) - 125)

    assert (result.n, result.counts) == (800, {"NORMAL": 400, "PNEUMONIA": 400})
    assert result.prevalence.value == 0.5
    assert result.auroc.value == pytest.approx(roc_auc_score(labels, logits))
    for name, point in result.operating_points.items():
        predicted = 1 / (1 + np.exp(-logits)) >= CARD_POINTS[name].threshold
        assert point.observed["sensitivity"].value == predicted[labels].mean()
        assert point.observed["specificity"].value == (~predicted[~labels]).mean()
        assert point.reference["sensitivity"].value == 0.92
    assert result.rejected.share.value == 0
    assert result.calibration.slope.value > 0


def test_model_is_accepted_where_nothing_changed_and_not_where_images_are_brighter(bundle, same_site, brighter_site):
    same, _ = accept(same_site, bundle, site="Same")
    brighter, _ = accept(brighter_site, bundle, site="Brighter")

    assert same.verdict == "non_inferior"
    assert all(test.verdict == "non_inferior" for test in same.operating_points["balanced"].tests.values())
    assert same.accepted_test.verdict == "non_inferior"
    assert brighter.verdict == "inferior"
    tests = brighter.operating_points["balanced"].tests
    assert (tests["specificity"].verdict, tests["sensitivity"].verdict) == ("inferior", "non_inferior")
    assert brighter.calibration.intercept.high < 0 < same.calibration.intercept.high  # probabilities are too high


def test_profile_repairs_the_threshold_and_the_calibration(bundle, brighter_site, tmp_path):
    result, profile = accept(brighter_site, bundle, site="Brighter", out=tmp_path)

    assert {"calibration", "balanced"} <= set(result.changed)
    assert (tmp_path / "images.csv").read_text().count("\n") == 441
    point = result.operating_points["balanced"]
    assert point.with_profile["specificity"].value > point.observed["specificity"].value + 0.2
    assert result.calibration_with_profile.brier.high < result.calibration.brier.low
    assert read_site_profile(tmp_path / "site.json") == profile
    assert json.loads((tmp_path / "acceptance.json").read_text())["site"] == "Brighter"
    assert (tmp_path / "acceptance.md").read_text() == acceptance_markdown(result)
    # On new images of the same site, the profile performs as the cross-fitted figures say.
    new = write_site(tmp_path / "new", shift=30, seed=3)
    model = load_model(bundle, site=tmp_path / "site.json")
    decisions = [model.predict(path).decision == "no_pneumonia" for path in sorted((new / "NORMAL").iterdir())]
    interval = point.with_profile["specificity"]
    assert interval.low - 0.03 <= np.mean(decisions) <= interval.high + 0.03


def test_figures_of_new_thresholds_are_those_of_other_patients_as_in_the_report(bundle, brighter_site):
    result, profile = accept(brighter_site, bundle, site="Brighter")

    point, of_report = profile.operating_points["balanced"], result.operating_points["balanced"].with_profile
    for metric, found in (("sensitivity", point.sensitivity), ("specificity", point.specificity)):
        expected = of_report[metric]
        assert (found.value, found.low, found.high, found.n) == (expected.value, expected.low, expected.high, 220)
        assert found.method == expected.method
    # On the images that chose it, the threshold has another, higher Youden index.
    manifest = load_manifest(brighter_site)
    labels = np.array([image.positive for image in manifest])
    levels = [np.asarray(Image.open(brighter_site / image.path), float).mean() for image in manifest]
    predicted = 1 / (1 + np.exp(-0.1 * (np.array(levels) - 125))) >= point.threshold
    own = predicted[labels].mean() + (~predicted[~labels]).mean()
    assert point.sensitivity.value + point.specificity.value < own


def test_profile_is_not_evaluated_on_its_own_images(bundle, brighter_site, tmp_path):
    accept(brighter_site, bundle, site="Brighter", out=tmp_path)
    rows = [image for image in load_manifest(brighter_site) if image.path.endswith(("0.png", "5.png"))]
    table = tmp_path / "site.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label", "split"), *((brighter_site / row.path, row.label, "validation") for row in rows)]
        )

    evaluate(bundle, table, split="validation")
    with pytest.raises(ThresholdError, match="'balanced' was chosen on 88 of these 88 images"):
        evaluate(bundle, table, split="validation", site=tmp_path / "site.json")
    fixed, _ = evaluate(bundle, table, split="validation", operating_points=["half"], site=tmp_path / "site.json")
    assert fixed.site.startswith("Brighter (")


def test_verdict_of_few_images_is_inconclusive_with_the_needed_numbers(bundle, tmp_path):
    result, profile = accept(write_site(tmp_path / "few", normal=20, pneumonia=20), bundle, site="Few")

    point = result.operating_points["balanced"]
    assert result.verdict == "inconclusive"
    assert all(test.power < 0.8 for test in point.tests.values())
    assert point.needed["sensitivity"] > 20
    assert result.changed == ()
    assert profile.calibration is None
    report = acceptance_markdown(result)
    assert "inconclusive (" in report
    assert "| site minus card |" in report
    assert f"{point.needed['sensitivity']:,} accepted images with pneumonia" in report
    assert "needs 100 patients with accepted images of each label; there are 20 with and 20 without pneumonia" in report
    assert "The input checks are tested on images" in report
    assert "choose a larger one" not in report
    unreachable = dataclasses.replace(point, needed={"sensitivity": None, "specificity": 500})
    points = {"balanced": unreachable}
    report = acceptance_markdown(dataclasses.replace(result, operating_points=points, accepted_test=None))
    assert "The model has no input checks to test." in report
    assert "needs more images with pneumonia than feasible and 500 accepted images without pneumonia" in report
    assert "The card's own interval is too wide for this margin: choose a larger one" in report


def test_rejections_are_tested_and_limits_widened(shared_maker, tmp_path):
    # The network rejects images above a mean gray level of 120: most pneumonias here.
    limits = structs.replace(WIDE, max_distance=1.2)
    bundle = shared_maker.bundle(
        shared_maker.root / "narrow", gain=0.1, operating_points=CARD_POINTS, rejection_limits=limits
    )
    folder = write_site(tmp_path / "site", normal=180, pneumonia=180)
    result, profile = accept(folder, bundle, site="Rejected", out=tmp_path / "out")

    assert result.accepted_test.verdict == "inferior"
    assert result.verdict == "inferior"
    assert list(result.rejected.reasons) == ["out_of_distribution"]
    levels = sorted(np.asarray(Image.open(path), float).mean() for path in folder.rglob("*.png"))
    expected = levels[-1 - 7] / 100  # 2% of 360 images are above it
    assert profile.limits == {"ood_detector": pytest.approx(expected, abs=1e-5)}
    assert result.limits == {"ood_detector": (1.2, profile.limits["ood_detector"])}
    assert result.rejected_with_profile.value < 0.05 < result.rejected.share.value
    # The limit rejects 7 of the 360 images that it was fitted on, and limits fitted on other patients reject 9.
    share, of_report = profile.rejected, result.rejected_with_profile
    assert (share.value, share.low, share.high, share.n) == (of_report.value, of_report.low, of_report.high, 360)
    assert share.value == 9 / 360
    assert profile.monitored_rejected == 9
    assert len(profile.monitoring["logit"]) == 360 - 9
    assert "ood_detector" in result.changed
    assert "more unsuitable images are accepted" in acceptance_markdown(result)


def test_subgroups_come_from_dicom_headers(bundle, tmp_path):
    rng = np.random.default_rng(0)
    rows = [("path", "label", "patient")]
    for i in range(60):
        label = "PNEUMONIA" if i % 2 else "NORMAL"
        header = {"PatientAge": "003Y" if i % 3 else "040Y", "PatientSex": "F" if i < 30 else "M", "ViewPosition": "PA"}
        header["PatientID"] = f"p{i}"  # no two files are equal
        if i % 4 == 0:
            header["Manufacturer"] = "Acme | Imaging"
        content = dicom(int(rng.normal(145 if i % 2 else 95, 12)), **header)
        (tmp_path / f"{i}.dcm").write_bytes(content)
        rows.append((f"{i}.dcm", label, f"p{i}"))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)

    result, _ = accept(tmp_path / "labels.csv", bundle, site="DICOM")

    groups = {(each.field, each.value): each for each in result.subgroups}
    assert set(groups) == {
        ("age", "2 to 5 years"), ("age", "adults"), ("sex", "F"), ("sex", "M"), ("view", "PA"),
        ("manufacturer", "ACME | IMAGING"), ("manufacturer", "not stated"),
    }  # fmt: skip
    assert (groups["age", "adults"].n, groups["age", "2 to 5 years"].n) == (20, 40)
    assert (groups["sex", "F"].n, groups["sex", "F"].n_pneumonia) == (30, 15)
    assert sum(groups["manufacturer", value].n for value in ("ACME | IMAGING", "not stated")) == 60
    assert "| manufacturer | ACME   IMAGING | 15 |" in acceptance_markdown(result)


@pytest.mark.parametrize(
    ("identifier", "patients", "note"),
    [
        (lambda i: f"P{i // 2}", 20, "the patients of 40 images are those of the DICOM headers, as hashes"),
        (lambda i: "ANON", 40, "all 40 DICOM files have the same PatientID"),
        (lambda i: "", 40, "patients are not stated"),
    ],
)
def test_patients_come_from_dicom_headers(bundle, tmp_path, identifier, patients, note):
    rows = [("path", "label")]
    for i in range(40):
        content = dicom(
            145 if i % 4 < 2 else 95, PatientID=identifier(i), AccessionNumber=str(i), IssuerOfPatientID="H"
        )
        (tmp_path / f"{i}.dcm").write_bytes(content)
        rows.append((f"{i}.dcm", "PNEUMONIA" if i % 4 < 2 else "NORMAL"))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)

    result, _ = accept(tmp_path / "labels.csv", bundle, site="Ward", out=tmp_path / "out")

    assert result.patients == patients
    assert any(note in each for each in result.notes)
    with (tmp_path / "out" / "images.csv").open(newline="") as file:
        written = [row["patient"] for row in csv.DictReader(file)]
    assert len(set(written)) == (20 if patients == 20 else 1)
    assert not any("P1" in each or "ANON" in each for each in written)


@pytest.mark.parametrize(("name", "noted"), [("balanced", True), ("rule_out", False)])
def test_note_on_augmented_images_only_where_they_alone_chose_the_threshold(shared_maker, tmp_path, name, noted):
    points = {key: structs.replace(point, augmented=key != "half") for key, point in CARD_POINTS.items()}
    bundle = shared_maker.bundle(shared_maker.root / f"noted {name}", gain=0.1, operating_points=points)
    result, _ = accept(
        write_site(tmp_path / "images", normal=30, pneumonia=30), bundle, site="North", operating_point=name
    )
    assert any("augmented once" in each for each in result.notes) == noted


def test_stated_patients_come_before_those_of_the_header(bundle, tmp_path):
    rows = [("path", "label", "patient")]
    for i in range(20):
        (tmp_path / f"{i}.dcm").write_bytes(dicom(145 if i % 2 else 95, PatientID="same", AccessionNumber=str(i)))
        rows.append((f"{i}.dcm", "PNEUMONIA" if i % 2 else "NORMAL", f"p{i // 2}"))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)

    assert accept(tmp_path / "labels.csv", bundle, site="Ward")[0].patients == 10


def test_images_that_header_or_pixels_exclude_are_rejected_and_not_held_against_the_network(shared_maker, tmp_path):
    bundle = shared_maker.bundle(
        shared_maker.root / "ages at a site", gain=0.1, operating_points=CARD_POINTS, rejection_limits=WIDE, age_range=(1, 5)
    )  # fmt: skip
    rows = [("path", "label", "patient")]
    rng = np.random.default_rng(0)
    for i in range(200):
        content = dicom(
            int(rng.normal(145 if i % 2 else 95, 12)), PatientAge="003Y" if i % 4 else "060Y", PatientID=f"{i}"
        )
        (tmp_path / f"{i}.dcm").write_bytes(content)
        rows.append((f"{i}.dcm", "PNEUMONIA" if i % 2 else "NORMAL", f"p{i}"))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)

    result, _ = accept(tmp_path / "labels.csv", bundle, site="Adults")

    assert result.rejected.reasons == {"outside_age_range": 50}
    assert (result.accepted.value, result.accepted.n) == (1, 150)
    assert result.accepted_test.verdict == "non_inferior"
    assert result.accepted_reference.value == 1 - 16 / 800
    adults = next(each for each in result.subgroups if each.value == "adults")
    assert adults.rejected.value == 1
    assert adults.sensitivity.value is None


def test_stated_prevalence_changes_the_profile_and_no_figure(bundle, same_site):
    plain, _ = accept(same_site, bundle, site="Ward")
    result, profile = accept(same_site, bundle, site="Ward", prevalence=0.1)

    assert (profile.prevalence, profile.prevalence_source, profile.calibration.prevalence) == (0.1, "stated", 0.1)
    assert (result.calibration, result.calibration_with_profile) == (plain.calibration, plain.calibration_with_profile)
    assert result.stated_prevalence == 0.1
    assert "Stated for the site: 0.1." in acceptance_markdown(result)
    few, profile = accept(
        write_site(same_site.parent / "few for prevalence", normal=20, pneumonia=20), bundle, site="Few", prevalence=0.1
    )
    assert few.changed == ("prevalence",)
    assert profile.calibration.prevalence == 0.1


def test_metric_without_accepted_images_makes_the_verdict_inconclusive(shared_maker, tmp_path):
    limits = structs.replace(WIDE, max_distance=1.3)  # accepts normal images only
    bundle = shared_maker.bundle(
        shared_maker.root / "no pneumonia accepted", gain=0.1, operating_points=CARD_POINTS, rejection_limits=limits
    )
    folder = write_site(tmp_path / "site", normal=400, pneumonia=3, spread=8)
    result, _ = accept(folder, bundle, site="Rare")

    point = result.operating_points["balanced"]
    assert list(point.tests) == ["specificity"]
    assert point.tests["specificity"].verdict == "non_inferior"
    assert result.accepted_test.verdict == "non_inferior"
    assert result.verdict == "inconclusive"
    report = acceptance_markdown(result)
    assert "inconclusive (sensitivity)" in report
    assert "| not tested |" in report


def test_folder_with_an_acceptance_test_is_not_overwritten(bundle, same_site, tmp_path):
    accept(same_site, bundle, site="First", out=tmp_path)
    before = (tmp_path / "acceptance.md").read_text()
    with pytest.raises(UsageError, match="has an acceptance test already"):
        accept(same_site, bundle, site="Second", out=tmp_path)
    assert (tmp_path / "acceptance.md").read_text() == before


def test_required_age_and_lateral_views_reject(shared_maker, tmp_path):
    bundle = shared_maker.bundle(
        shared_maker.root / "required ages", gain=0.1, operating_points=CARD_POINTS, rejection_limits=WIDE, age_range=(1, 5)
    )  # fmt: skip
    rows = [("path", "label")]
    for i in range(40):
        header = (
            {"PatientID": f"{i}"}
            | ({"PatientAge": "003Y"} if i % 2 else {})
            | ({"ViewPosition": "LL"} if i > 35 else {})
            | ({"BodyPartExamined": "HAND"} if i == 0 else {})
        )
        (tmp_path / f"{i}").write_bytes(dicom(145 if i % 4 else 95, **header))
        rows.append((f"{i}", "PNEUMONIA" if i % 4 else "NORMAL"))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)

    as_stated, _ = accept(tmp_path / "labels.csv", bundle, site="Ages")
    assert as_stated.rejected.reasons == {"lateral_view": 4, "body_part_not_chest": 1}
    lenient, _ = accept(tmp_path / "labels.csv", bundle, site="Ages", assume=["chest"])
    strict, _ = accept(tmp_path / "labels.csv", bundle, site="Ages", require_age="dicom", assume=["chest"])
    assert lenient.rejected.reasons == {"lateral_view": 4}
    assert strict.rejected.reasons == {"age_required": 18, "lateral_view": 4}
    assert "the patients of 40 images are those of the DICOM headers, as hashes" in strict.notes
    assert strict.patients == 40
    (tmp_path / "labels.csv").write_text((tmp_path / "labels.csv").read_text() + "missing,NORMAL\r\n")
    with pytest.raises(DatasetError, match=r"1 site image cannot be read \(missing: No such file"):
        accept(tmp_path / "labels.csv", bundle, site="Ages")


def test_images_that_the_model_has_seen_are_refused(shared_maker, same_site):
    hashes = [short_hash(image.sha256) for image in load_manifest(same_site)][:5]
    for split in ("train", "validation"):
        bundle = shared_maker.bundle(shared_maker.root / f"seen {split}", seen={split: hashes})
        with pytest.raises(DatasetError, match=f"used 5 of the 800 images as {split} images"):
            accept(same_site, bundle, site="Seen")


@pytest.mark.parametrize("splits", [("test",), ("test", "train")])
def test_test_splits_are_refused(bundle, maker, splits):
    for seed, split in enumerate(splits):
        images = maker.images(split=split, seed=seed)
    with pytest.raises(DatasetError, match="has a test split, which is reserved for `pneumoscope evaluate`"):
        accept(images, bundle, site="Divided")


def test_one_label_unreadable_files_and_contradictory_labels_are_refused(bundle, tmp_path):
    folder = write_site(tmp_path / "site", normal=3, pneumonia=3)
    one = next((folder / "NORMAL").iterdir())
    (folder / "PNEUMONIA" / "copy.png").write_bytes(one.read_bytes())
    with pytest.raises(DatasetError, match="are the same image with different labels"):
        accept(folder, bundle, site="Twice")
    (folder / "PNEUMONIA" / "copy.png").write_bytes(one.read_bytes()[:60])
    (folder / "PNEUMONIA" / "Thumbs.db").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match="1 site image cannot be read"):
        accept(folder, bundle, site="Truncated")
    (tmp_path / "normal.csv").write_text(f"path,label\n{one},NORMAL\n")
    with pytest.raises(DatasetError, match="has no PNEUMONIA image"):
        accept(tmp_path / "normal.csv", bundle, site="One label")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"operating_point": "best"}, "has no operating point 'best'"),
        ({"margin": 0}, "margin is 0, not between"),
        ({"target_power": 1}, "power is 1, not between"),
        ({"prevalence": 1.5}, "prevalence is 1.5, not between"),
    ],
)
def test_invalid_settings_are_named(bundle, same_site, options, error):
    with pytest.raises((UsageError, UndefinedMetricError), match=error):
        accept(same_site, bundle, site="Wrong", **options)


def test_report_of_a_site_where_everything_is_rejected(shared_maker, tmp_path):
    bundle = shared_maker.bundle(
        shared_maker.root / "all rejected", operating_points=CARD_POINTS,
        rejection_limits=structs.replace(WIDE, max_distance=0.01),
    )  # fmt: skip
    result, profile = accept(write_site(tmp_path / "site", normal=20, pneumonia=20), bundle, site="None accepted")

    assert result.rejected.share.value == 1
    assert result.verdict == "inferior"
    assert profile.reference_distribution is None
    assert "there is no accepted image with pneumonia" in acceptance_markdown(result)
    assert all(dataclasses.asdict(each)["tests"] == {} for each in result.operating_points.values())


def test_evaluation_with_a_profile_is_kept_beside_that_of_the_run(maker, brighter_site, tmp_path):
    run = maker.run(operating_points=CARD_POINTS, rejection_limits=WIDE, gain=0.1)
    accept(brighter_site, run, site="Brighter", out=tmp_path / "accepted")
    images = maker.images()

    plain, _ = evaluate(run, images)
    site, _ = evaluate(run, images, site=tmp_path / "accepted" / "site.json")

    folders = sorted(path.name for path in (run / "evaluation").iterdir())
    assert folders == ["test", f"test-{site.site[-9:-1]}"]
    assert read_evaluation(run / "evaluation" / "test" / "evaluation.json") == plain
    assert (plain.site, site.site[:10]) == ("", "Brighter (")
    rows = [json.loads(line) for line in (maker.root / "ledger.jsonl").read_text().splitlines()]
    assert [row.get("site", "") for row in rows] == ["", site.site]
    evaluate(run, images, site=tmp_path / "accepted" / "site.json", out=run / "bundle" / "evidence")
    with pytest.raises(BundleError, match=r"was measured with the site profile 'Brighter \("):
        model_card(run / "bundle")
