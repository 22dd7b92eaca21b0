"""Differences of models of several classes from other images, compared with numbers from the written predictions."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from sklearn import metrics
from tests.conftest import GRAY_CLASSES

from pneumoscope.core.errors import DatasetError, RunError, UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass
from pneumoscope.evaluation.multiclass.external_predictions import evaluate_multiclass_predictions
from pneumoscope.runs.multiclass_evaluations import read_multiclass_evaluation_folder
from pneumoscope.statistics.intervals import newcombe

Z = 1.959964


def arrays(images):
    y = np.array([GRAY_CLASSES.index(image.label) for image in images])
    return y, np.array([image.probabilities for image in images]), [image.patient for image in images]


def area_and_variance(y, p, patients, area):
    """Return an area and the variance of its jackknife, which leaves out one patient in turn."""
    keys = np.array(patients)
    left_out = np.array([area(y[keys != patient], p[keys != patient]) for patient in sorted({*patients})])
    return area(y, p), (len(left_out) - 1) * left_out.var()


def logit_limits(area, variance):
    """Return the limits of an area's normal interval on the logit scale."""
    step = Z * np.sqrt(variance) / (area * (1 - area))
    return [1 / (1 + (1 - area) / area * np.exp(-sign * step)) for sign in (-1, 1)]


def test_differences_are_those_of_scikit_learn_with_the_variance_of_a_jackknife(maker):
    run, north = maker.multiclass_run(), maker.classes("north", seed=1, count=20)
    internal, others = evaluate_multiclass(run, maker.classes(count=24))
    external, images = evaluate_multiclass(run, north, name="north", reference="test")
    difference = external.difference
    assert (difference.reference, difference.reference_n, difference.operating_points) == ("test", 72, {})
    assert difference.reference_images_sha256 == internal.images_sha256
    assert list(difference.metrics) == [
        "accuracy",
        "macro_auroc",
        *(f"{metric}, {name}" for metric in ("auroc", "sensitivity", "specificity") for name in GRAY_CLASSES),
    ]

    def macro(y, p):
        return metrics.roc_auc_score(y, p, multi_class="ovr")

    def of_class(k):
        return lambda y, p: metrics.roc_auc_score(y == k, p[:, k])

    areas = {"macro_auroc": macro} | {f"auroc, {name}": of_class(k) for k, name in enumerate(GRAY_CLASSES)}
    for name, area in areas.items():
        (a, variance_a), (b, variance_b) = (area_and_variance(*arrays(each), area) for each in (images, others))
        interval = difference.metrics[name]
        assert interval.value == pytest.approx(a - b)
        (low_a, high_a), (low_b, high_b) = logit_limits(a, variance_a), logit_limits(b, variance_b)
        expected = (a - b - np.hypot(a - low_a, high_b - b), a - b + np.hypot(high_a - a, b - low_b))
        assert (interval.low, interval.high) == pytest.approx(expected, abs=0.01), name
        assert interval.method.endswith("mover, unpaired")
        assert interval.n == 60 + 72
    assert difference.metrics["macro_auroc"].method == "delong, mean of classes, by patient, mover, unpaired"
    assert read_multiclass_evaluation_folder(run / "evaluation" / "north") == (external, images)


def test_differences_of_rates_are_those_of_newcombe(maker):
    run, folders = maker.multiclass_run(), [maker.classes(), maker.classes("north", seed=1, count=20)]
    for data in folders:  # each image of a different patient, so that the design effect is 1
        header, *rows = data.read_text().splitlines()
        edited = [",".join([*row.split(",")[:2], row.split(",")[0], row.split(",")[3]]) for row in rows]
        data.write_text("\n".join([header, *edited]))
    _, others = evaluate_multiclass(run, folders[0])
    external, images = evaluate_multiclass(run, folders[1], name="north", reference="test")

    def counts(scored, among, correct):
        chosen = [image for image in scored if among(image)]
        return sum(map(correct, chosen)), len(chosen)

    def expected(among, correct):
        return newcombe(*counts(images, among, correct), *counts(others, among, correct))

    found = external.difference.metrics
    assert found["accuracy"] == expected(lambda image: True, lambda image: image.predicted == image.label)
    for name in GRAY_CLASSES:
        of_class = expected(lambda image: image.label == name, lambda image: image.predicted == name)  # noqa: B023
        rest = expected(lambda image: image.label != name, lambda image: image.predicted != name)  # noqa: B023
        assert found[f"sensitivity, {name}"] == of_class
        assert found[f"specificity, {name}"] == rest
    assert external.difference.remark == ""


def test_difference_needs_other_images_and_the_same_model(maker, tmp_path):
    run, data, scored = maker.multiclass_run(), maker.classes(), []
    evaluate_multiclass(run, data)

    def attempt(target, images, error, match, **options):
        with pytest.raises(error, match=match):
            evaluate_multiclass(
                target, images, progress=lambda *numbers: scored.append(numbers), **{"reference": "test"} | options
            )

    attempt(run, data, DatasetError, r"36 of 36 images are also in .*test'; the first is bright-0-0.png", name="again")
    north = maker.classes("north", seed=1)
    attempt(run, north, RunError, r"'south' has no evaluation.json", name="north", reference="south")
    other = maker.multiclass_bundle(tmp_path / "other", gain=0.1)
    internal = run / "evaluation" / "test"
    attempt(other, north, UsageError, r"an evaluation of another model \(levels\).*compare", reference=internal)
    binary = maker.run("binary")
    evaluate(binary, maker.images())
    pneumonia = binary / "evaluation" / "test"
    attempt(run, north, RunError, "an evaluation of NORMAL and PNEUMONIA", name="north", reference=pneumonia)
    with pytest.raises(RunError, match="an evaluation of several classes"):
        evaluate(binary, maker.images("more", seed=4), name="more", reference=internal)
    evaluate_multiclass(run, north, name="north")
    shutil.copy(run / "evaluation" / "north" / "predictions.csv", internal)
    attempt(run, maker.classes("south", seed=2), RunError, "are from different evaluations", name="south")
    assert scored == []


def other_tool(maker, name, data, model="", reference=None, classes=()):
    """Evaluate predictions of another tool, which are right with a probability of 0.6."""
    images, random = load_manifest(data).images, np.random.default_rng(len(name))
    rows = [f"path,{','.join(f'logit_{each}' for each in GRAY_CLASSES)}"]
    for image in images:
        logits = random.normal(size=3) + np.eye(3)[GRAY_CLASSES.index(image.label)]
        rows.append(",".join([image.path, *map(repr, logits.tolist())]))
    file = maker.root / f"{name}.csv"
    file.write_text("\n".join(rows))
    out = maker.root / f"out-{name}"
    options = {"name": model, "reference": reference, "classes": classes, "out": out, "replace": True}
    return evaluate_multiclass_predictions(file, data, **options)[0]


def test_predictions_of_one_model_are_known_by_its_name(maker):
    data, north, internal = maker.classes(), maker.classes("north", seed=1), maker.root / "out-internal"
    other_tool(maker, "internal", data)
    with pytest.raises(UsageError, match=r"of another model \(internal\)\. Give both .* of one model the same --name"):
        other_tool(maker, "external", north, reference=internal)
    with pytest.raises(UsageError, match=r"of another model \(internal\)\. To compare models"):
        evaluate_multiclass(maker.multiclass_bundle(maker.root / "bundle"), north, reference=internal)
    before = other_tool(maker, "internal", data, "Tool v2")
    after = other_tool(maker, "external", north, "Tool v2", internal)
    expected = after.metrics["macro_auroc"].value - before.metrics["macro_auroc"].value
    assert after.difference.metrics["macro_auroc"].value == pytest.approx(expected)
    with pytest.raises(UsageError, match="of the classes bright, dark, mid, and these are mid, dark, bright"):
        other_tool(maker, "external", north, "Tool v2", internal, GRAY_CLASSES[::-1])


def test_patient_identifiers_in_both_sets_are_counted(maker):
    run, north = maker.multiclass_run(), maker.classes("north", seed=1)
    evaluate_multiclass(run, maker.classes())
    north.write_text(north.read_text().replace(",bright-1-0,", ",bright-0-0,"))
    external, _ = evaluate_multiclass(run, north, name="north", reference="test")
    assert external.difference.remark == (
        "1 patient identifier is in both sets and counts as a different patient in each."
    )


@pytest.mark.parametrize(
    ("kept", "macro", "few"),
    [
        (0, "the class mid has no images", "0 patients of the class mid are"),
        (2, "", "1 patient of the class mid is"),
        (4, "", "2 patients of the class mid are"),
        (10, "", "5 patients of the class mid are"),
        (12, None, ""),
    ],
)
def test_differences_of_a_class_with_few_patients_are_undefined_with_the_reason(maker, kept, macro, few):
    run, north = maker.multiclass_run(), maker.classes("north", seed=1)
    evaluate_multiclass(run, maker.classes())
    lines = north.read_text().splitlines()
    mid = [line for line in lines if ",mid," in line]
    north.write_text("\n".join(line for line in lines if line not in mid[kept:]))
    found = evaluate_multiclass(run, north, name="north", reference="test")[0].difference.metrics
    if macro == "":
        macro = f"{few} too few for the variance of the macro AUROC, which needs 6 of each"
    named = few.replace("class mid", "class mid in these images")
    of_class = f"{named} too few for a difference in AUROC, which needs 6 of each" if few else ""
    assert (found["macro_auroc"].value is None, found["macro_auroc"].reason) == (bool(few), macro or "")
    assert found["macro_auroc"].n == 36 + 24 + kept
    assert (found["auroc, mid"].reason, found["auroc, mid"].value is None) == (of_class, bool(of_class))
    assert found["auroc, dark"].value is not None
    assert (found["sensitivity, mid"].value is None) == (kept == 0)


def test_difference_is_kept_with_the_same_images_and_dropped_with_other_labels(maker):
    run, north = maker.multiclass_run(), maker.classes("north", seed=1)
    evaluate_multiclass(run, maker.classes())
    first, _ = evaluate_multiclass(run, north, name="north", reference="test")
    again, _ = evaluate_multiclass(run, north, name="north")
    assert again.difference == first.difference is not None
    assert evaluate_multiclass(run, north, name="north", replace=True)[0].difference is None
    evaluate_multiclass(run, north, name="north", reference="test")
    north.write_text(north.read_text().replace("bright-1-0.png,bright", "bright-1-0.png,dark"))
    assert evaluate_multiclass(run, north, name="north")[0].difference is None


def test_rows_and_notebooks_have_the_differences(maker):
    run = maker.multiclass_run()
    evaluate_multiclass(run, maker.classes())
    external, _ = evaluate_multiclass(run, maker.classes("north", seed=1), name="north", reference="test")
    rows = [row for row in external.rows() if row["reference"]]
    assert len(rows) == len(external.difference.metrics)
    assert {row["reference"] for row in rows} == {"test"}
    (row,) = (row for row in rows if (row["metric"], row["class"]) == ("auroc", "dark"))
    assert row["low"] == external.difference.metrics["auroc, dark"].low
    assert rows[0]["class"] is None
    assert all(row.keys() == rows[0].keys() for row in external.rows())
    assert "these images minus test (36 images)" in external._repr_html_()


def test_an_evaluation_without_a_difference_is_read(maker):
    """Evaluations did not record differences at first."""
    run = maker.multiclass_run()
    evaluation, images = evaluate_multiclass(run, maker.classes())
    file = run / "evaluation" / "test" / "evaluation.json"
    record = json.loads(file.read_text())
    assert record.pop("difference") is None
    file.write_text(json.dumps(record))
    assert read_multiclass_evaluation_folder(file.parent) == (evaluation, images)
