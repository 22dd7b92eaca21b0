"""Subgroups, tests of interaction and differences between sets, compared with numbers from the written predictions."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from pneumoscope.core.errors import DatasetError, RunError, UnknownNameError, UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.external_predictions import evaluate_predictions
from pneumoscope.evaluation.subgroups import read_columns
from pneumoscope.runs.evaluations import read_evaluation
from pneumoscope.statistics.intervals import newcombe
from pneumoscope.statistics.multiple_testing import holm


def manifest(folder, patient=lambda i: i, **columns):
    """Write a manifest with these columns, as functions of the index, and return it."""
    images = load_manifest(folder).images
    file = folder / "images.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["path", "label", "split", "patient", *columns])
        for i, image in enumerate(images):
            values = [function(i) for function in columns.values()]
            writer.writerow([image.path, image.label, image.split, f"p{patient(i)}", *values])
    return file


@pytest.fixture
def data(maker):
    return manifest(
        maker.images(normal=40, pneumonia=60), sex=lambda i: "MF"[i % 2], site=lambda i: ["A", "B", ""][i % 3]
    )


def test_subgroups_have_the_metrics_of_their_images(maker, data):
    evaluation, scored = evaluate(maker.run(), data, by=("sex", "site"))
    assert [(group.column, group.value) for group in evaluation.subgroups] == [
        ("sex", "F"),
        ("sex", "M"),
        ("site", "A"),
        ("site", "B"),
        ("site", "not stated"),
    ]
    for group, start, step in zip(evaluation.subgroups, (1, 0, 0, 1, 2), (2, 2, 3, 3, 3), strict=True):
        images = scored[start::step]
        labels = np.array([image.label == "PNEUMONIA" for image in images])
        decisions = np.array([image.score >= 0.4 for image in images])  # the threshold of "balanced"
        assert (group.n, group.operating_point) == (len(images), "balanced")
        assert group.counts["PNEUMONIA"] == labels.sum()
        assert group.metrics["auroc"].value == pytest.approx(
            metrics.roc_auc_score(labels, [image.logit for image in images])
        )
        assert group.metrics["sensitivity"].value == pytest.approx(metrics.recall_score(labels, decisions))
        assert group.metrics["specificity"].value == pytest.approx(metrics.recall_score(~labels, ~decisions))
        assert group.metrics["accuracy"].value == pytest.approx((labels == decisions).mean())


def test_tests_of_interaction_are_corrected_together(maker, data):
    evaluation, _ = evaluate(maker.run(), data, by=("sex", "site"))
    tests = evaluation.interactions
    assert [(test.column, test.metric) for test in tests] == [
        (column, metric) for column in ("sex", "site") for metric in ("auroc", "sensitivity", "specificity")
    ]
    assert [test.p_holm for test in tests] == holm([test.p for test in tests])
    assert tests[3].groups == ("A", "B")  # without "not stated"
    assert "between the 2 groups of site (p = " in tests[3].sentence
    assert "Holm-corrected for 6 tests; Cochran's Q, DeLong)" in tests[3].sentence
    assert (tests[0].seed, tests[1].seed) == (None, 0)


def test_a_difference_between_groups_is_found(maker, tmp_path):
    folder = maker.images(normal=100, pneumonia=100)
    data = manifest(folder, site=lambda i: "AB"[i % 2])
    images, random = load_manifest(data).images, np.random.default_rng(0)
    rows = []
    for i, image in enumerate(images):
        shift = 0.25 if i % 2 else 0.02  # scores of site A are almost random
        value = 0.5 + (shift if image.positive else -shift) + 0.15 * random.normal()
        rows.append(f"{image.path},{min(max(value, 0), 1)}")
    file = tmp_path / "other.csv"
    file.write_text("\n".join(["path,probability", *rows]))
    evaluation, _ = evaluate_predictions(file, data, by=["site"])
    assert all(test.p_holm < 0.01 for test in evaluation.interactions)
    assert evaluation.interactions[1].sentence.startswith(
        "The sensitivity differs significantly between the 2 groups of site (p < 0.001"
    )
    assert evaluation.subgroups[0].operating_point == "half"


def test_group_of_one_label_is_left_out_of_the_test_of_the_auroc(maker):
    folder = maker.images(normal=40, pneumonia=60)
    data = manifest(folder, site=lambda i: "C" if i > 90 else "AB"[i % 2])  # images 40 to 99 show pneumonia
    evaluation, _ = evaluate(maker.run(), data, by=["site"])
    auroc, sensitivity, specificity = evaluation.interactions
    assert [test.groups for test in (auroc, sensitivity, specificity)] == [("A", "B"), ("A", "B", "C"), ("A", "B")]
    assert auroc.p is not None


def test_etiology_needs_no_manifest_and_undefined_tests_have_a_reason(maker):
    evaluation, _ = evaluate(maker.run(), maker.images(), by=["etiology"])
    assert [group.value for group in evaluation.subgroups] == ["bacteria", "normal", "virus"]
    auroc, sensitivity, specificity = evaluation.interactions
    assert auroc.p is None
    assert auroc.sentence == (
        "A difference in AUROC between the groups of etiology cannot be tested: there are no two groups with NORMAL and"
        " PNEUMONIA images."
    )
    assert sensitivity.groups == ("bacteria", "virus")
    assert (specificity.p, specificity.reason) == (None, "there are no two groups with NORMAL images")
    assert "Holm-corrected for 1 test;" in sensitivity.sentence
    assert evaluation.subgroups[0].metrics["specificity"].reason == "there is no NORMAL image"


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        (lambda i: "A" if i % 4 else "", "the value is missing for 25 of 100 images, and the others have one value"),
        # Images 40 to 99 show pneumonia: A has both labels, B has NORMAL only.
        (
            lambda i: ("B" if i % 2 and i < 40 else "A") if i % 4 else "",
            "the value is missing for 25 of 100 images, and no two values have NORMAL and PNEUMONIA images",
        ),
        (lambda i: "", "the value is missing for all 100 images"),
        (lambda i: "A", "there are no two groups with NORMAL and PNEUMONIA images"),
    ],
)
def test_missing_values_are_the_reason_why_groups_cannot_be_compared(maker, site, reason):
    data = manifest(maker.images(normal=40, pneumonia=60), site=site)
    evaluation, _ = evaluate(maker.run(), data, by=["site"])
    assert evaluation.interactions[0].reason == reason
    assert evaluation.interactions[0].sentence.endswith(f"cannot be tested: {reason}.")


@pytest.mark.parametrize("column", ["label", "finding"])
def test_subgroups_of_the_label_itself_are_an_error_before_an_image_is_scored(maker, column):
    data = manifest(maker.images(normal=4, pneumonia=6), finding=lambda i: "pneumonia" if i >= 4 else "clear")
    scored = []
    with pytest.raises(UsageError, match=rf"'{column}' are the images of each label \(NORMAL, PNEUMONIA\)"):
        evaluate(maker.run(), data, by=[column], progress=lambda *numbers: scored.append(numbers))
    assert scored == []


def test_the_label_of_a_folder_is_an_error_that_names_the_other_columns(maker):
    images, run, scored = maker.images(normal=4, pneumonia=6), maker.run(), []
    with pytest.raises(UsageError, match=r"'label' are the images of each label \(NORMAL, PNEUMONIA\)") as caught:
        evaluate(run, images, by=["label"], progress=lambda *numbers: scored.append(numbers))
    assert "most metrics are undefined within one label" in caught.value.message
    assert caught.value.hint == (
        "Columns that divide the images of a label, such as sex or site, need a manifest CSV: pneumoscope split"
        f" {images} --out FILE. For the sensitivity by etiology, give --by etiology"
    )
    with pytest.raises(UsageError) as caught:
        evaluate(run, manifest(images, sex=lambda i: "MF"[i % 2]), by=["label"])
    assert caught.value.hint.endswith("images.csv' are split, patient, sex")
    bare = images / "bare.csv"
    bare.write_text("\n".join(["path,label", *(f"{image.path},{image.label}" for image in load_manifest(images))]))
    with pytest.raises(UsageError) as caught:
        evaluate(run, bare, split="all", by=["label"])
    assert (
        caught.value.hint == f"Add a column that divides the images of a label, such as sex or site, to {str(bare)!r}"
    )
    assert scored == []


def test_etiology_is_recommended_only_if_it_divides_the_images_of_a_label(maker):
    images = load_manifest(maker.images(normal=4, pneumonia=6)).images
    unknown = [dataclasses.replace(image, etiology="") for image in images]
    by_cause = [dataclasses.replace(image, label=image.etiology) for image in images]
    for chosen, name, recommended in (
        (images, "label", True), (unknown, "label", False), (by_cause, "label", False), (by_cause, "etiology", False)
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            read_columns(Path("images"), [name], chosen)
        assert ("--by etiology" in caught.value.hint) == recommended
        assert caught.value.hint.count("etiology") == 2 * recommended


def test_columns_that_cannot_be_used_are_errors_before_an_image_is_scored(maker, data, tmp_path):
    run, scored = maker.run(), []
    with pytest.raises(UnknownNameError, match=r"images.csv' has no column 'sxe'. Did you mean 'sex'"):
        evaluate(run, data, by=["sxe"])
    with pytest.raises(UsageError, match="is not a manifest CSV and has no column 'sex'"):
        evaluate(run, data.parent, by=["sex"])
    with pytest.raises(RunError, match=r"has no evaluation.json"):
        evaluate(run, data, reference="north")
    with pytest.raises(UsageError, match=r"the column 'path' has 100 values among the evaluated images"):
        evaluate(run, data, by=["path"], progress=lambda *numbers: scored.append(numbers))
    assert scored == []
    assert not (tmp_path / "ledger.jsonl").exists()
    assert not (run / "evaluation").exists()


def test_difference_from_other_images(maker):
    run, images, north = maker.run(), maker.images(normal=40, pneumonia=60), maker.images("north", seed=4)
    internal, _ = evaluate(run, images)
    external, scored = evaluate(run, north, name="north", reference="test")
    difference = external.difference
    assert (difference.reference, difference.reference_n) == ("test", 100)
    assert difference.reference_images_sha256 == internal.images_sha256
    assert difference.metrics["auroc"].value == pytest.approx(
        external.metrics["auroc"].value - internal.metrics["auroc"].value
    )
    for name, point in external.operating_points.items():
        for metric in ("accuracy", "sensitivity", "specificity"):
            a, b = point.metrics[metric], internal.operating_points[name].metrics[metric]
            interval = difference.operating_points[name][metric]
            assert interval.value == pytest.approx(a.value - b.value)
            # Newcombe's interval of independent images is at most as wide as that for repeated patients.
            plain = newcombe(round(a.value * a.n), a.n, round(b.value * b.n), b.n)
            assert interval.low <= plain.low + 1e-12
            assert interval.high >= plain.high - 1e-12
    assert read_evaluation(run / "evaluation" / "north" / "evaluation.json") == external
    assert external.n == len(scored)


def test_difference_needs_other_images_and_the_same_model(maker, tmp_path):
    run, images, scored = maker.run(), maker.images(), []

    def progress(*numbers):
        scored.append(numbers)

    evaluate(run, images)
    with pytest.raises(DatasetError, match=r"32 of 32 images are also in .*test'; the first is test/NORMAL"):
        evaluate(run, images, name="again", reference="test", progress=progress)
    other, north = maker.bundle(tmp_path / "other", gain=0.1), maker.images("north", seed=4)
    with pytest.raises(UsageError, match=r"has an evaluation of another model \(gray\).*pneumoscope compare"):
        evaluate(other, north, reference=run / "evaluation" / "test", progress=progress)
    evaluate(run, north, name="north")
    shutil.copy(run / "evaluation" / "north" / "predictions.csv", run / "evaluation" / "test")
    with pytest.raises(RunError, match=r"predictions.csv in .*test' are from different evaluations"):
        evaluate(run, maker.images("south", seed=5), name="south", reference="test", progress=progress)
    assert scored == []


def test_note_names_the_operating_points_if_no_decisions_are_compared(maker):
    run, images, north, notes = maker.run(), maker.images(), maker.images("north", seed=4), []
    evaluate(run, images)

    def difference(points, **options):
        notes.clear()
        evaluation, _ = evaluate(
            run,
            north,
            name="north",
            reference="test",
            operating_points=points,
            note=notes.append,
            replace=True,
            **options,
        )
        return evaluation.difference

    assert difference(["0.3"]).operating_points == {}
    assert [note for note in notes if "not compared" in note] == [
        "accuracy, sensitivity and specificity are not compared: no operating point is in both evaluations (these images:"
        " 0.3; test: half, balanced, rule_out, rule_in). Evaluate these images again with --operating-point balanced"
    ]
    assert set(difference(["0.3", "balanced"]).operating_points) == {"balanced"}
    assert not any("not compared" in note for note in notes)


def test_note_suggests_an_operating_point_that_predictions_of_another_tool_can_have(maker, tmp_path):
    notes = []

    def scored(name, folder, points, **options):
        file = tmp_path / f"{name}.csv"
        rows = [f"{image.path},{0.7 if image.positive else 0.2}" for image in load_manifest(folder).images]
        file.write_text("\n".join(["path,probability", *rows]))
        evaluate_predictions(
            file,
            folder,
            name="tool",
            operating_points=points,
            out=tmp_path / f"out-{name}",
            note=notes.append,
            **options,
        )

    internal, north = maker.images(), maker.images("north", seed=4)
    scored("internal", internal, ["0.4"])
    scored("external", north, None, reference=tmp_path / "out-internal")
    (note,) = (note for note in notes if "not compared" in note)
    assert "(these images: half; out-internal: 0.4). Evaluate these images again with --operating-point 0.4" in note


def test_note_names_thresholds_that_differ(maker):
    run, north, notes = maker.run(), maker.images("north", seed=4), []
    evaluate(run, maker.images())
    file = run / "evaluation" / "test" / "evaluation.json"
    record = json.loads(file.read_text())
    record["operating_points"]["balanced"]["threshold"] += 0.01
    file.write_text(json.dumps(record))
    evaluate(run, north, name="north", reference="test", operating_points=["balanced"], note=notes.append)
    (note,) = (note for note in notes if "not compared" in note)
    assert "the thresholds of balanced differ from those of test; evaluate both with the same site profile" in note


def test_predictions_of_one_model_are_known_by_its_name(maker, tmp_path):
    evaluations = {}

    def other_tool(name, folder, model="", reference=None):
        images, random = load_manifest(folder).images, np.random.default_rng(len(name))
        values = np.clip([0.4 + 0.2 * image.positive + 0.2 * random.normal() for image in images], 0, 1)
        file = tmp_path / f"{name}.csv"
        rows = [f"{image.path},{float(value)!r}" for image, value in zip(images, values, strict=True)]
        file.write_text("\n".join(["path,probability", *rows]))
        evaluations[name], _ = evaluate_predictions(
            file, folder, name=model, reference=reference, out=tmp_path / f"out-{name}", replace=True
        )

    images, north = maker.images(), maker.images("north", seed=4)
    other_tool("internal", images)
    with pytest.raises(UsageError, match=r"of another model \(internal\)\. Give both .* of one model the same --name"):
        other_tool("external", north, reference=tmp_path / "out-internal")
    with pytest.raises(UsageError, match=r"of another model \(internal\)\. To compare models"):
        evaluate(maker.bundle(tmp_path / "bundle"), north, reference=tmp_path / "out-internal")
    other_tool("internal", images, "CheXNet v2")
    other_tool("external", north, "CheXNet v2", tmp_path / "out-internal")
    areas = [evaluations[name].metrics["auroc"].value for name in ("external", "internal")]
    assert evaluations["external"].difference.metrics["auroc"].value == pytest.approx(areas[0] - areas[1])


def test_patients_in_several_groups_are_counted(maker):
    # Two images of each patient, in two groups; the last four images are of two patients in one group each.
    folder = maker.images(normal=40, pneumonia=60)
    data = manifest(folder, lambda i: i // 2, site=lambda i: "AB"[i % 2 if i < 96 else (i // 2) % 2])
    evaluation, _ = evaluate(maker.run(), data, by=["site"])
    assert [(test.metric, test.shared_patients) for test in evaluation.interactions] == [
        ("auroc", 48),
        ("sensitivity", 28),
        ("specificity", 20),
    ]
    for test in evaluation.interactions:
        assert test.sentence.endswith(
            f" {test.shared_patients} patients are in several groups and count as a different patient in each."
        )
    data = manifest(folder, site=lambda i: "AB"[i % 2])
    evaluation, _ = evaluate(maker.run(), data, by=["site"], replace=True)
    assert not any("several groups" in test.sentence for test in evaluation.interactions)


def test_patient_identifiers_in_both_sets_are_counted(maker):
    run, images = maker.run(), manifest(maker.images())
    evaluate(run, images)
    external, _ = evaluate(run, manifest(maker.images("north", seed=4)), name="north", reference="test")
    assert external.difference.remark == (
        "32 patient identifiers are in both sets and count as a different patient in each."
    )
    south = manifest(maker.images("south", seed=5), lambda i: f"s{i}")
    external, _ = evaluate(run, south, name="south", reference="test")
    assert external.difference.remark == ""


def test_breakdown_is_kept_if_the_same_images_are_evaluated_again(maker, data):
    run = maker.run()
    first, _ = evaluate(run, data, by=["sex"], operating_points=["balanced"])
    again, _ = evaluate(run, data, operating_points=["half"])
    assert again.subgroups == first.subgroups
    assert again.interactions == first.interactions
    replaced, _ = evaluate(run, data, replace=True)
    assert replaced.subgroups == ()
    written = json.loads((run / "evaluation" / "test" / "evaluation.json").read_text())
    assert written["subgroups"] == []


@pytest.mark.parametrize("changed", ["label", "patient", "nothing"])
def test_breakdown_is_dropped_with_other_labels_or_patients(maker, data, changed):
    run, north = maker.run(), maker.images("north", seed=4)
    evaluate(run, north, name="north")
    first, _ = evaluate(run, data, name="test", by=["sex"], reference="north")
    header, *rows = data.read_text().splitlines()
    if changed == "label":
        a, b = (next(i for i, row in enumerate(rows) if f",{label}," in row) for label in ("NORMAL", "PNEUMONIA"))
        rows[a], rows[b] = rows[a].replace(",NORMAL,", ",PNEUMONIA,"), rows[b].replace(",PNEUMONIA,", ",NORMAL,")
    elif changed == "patient":
        rows = [row.replace(",p1,", ",p3,") for row in rows]
    data.write_text("\n".join([header, *rows]))
    again, _ = evaluate(run, data, name="test")
    assert first.subgroups
    assert first.difference
    if changed == "nothing":
        assert (again.subgroups, again.interactions, again.difference) == (
            first.subgroups,
            first.interactions,
            first.difference,
        )
    else:
        assert (again.subgroups, again.interactions, again.difference) == ((), (), None)
    replaced, _ = evaluate(run, data, name="test", by=["site"])
    assert {group.column for group in replaced.subgroups} == {"site"}
