"""Subgroups of images of several classes, compared with scikit-learn and with enumerated permutations."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from pneumoscope.core.multiclass_results import MulticlassScoredImage
from pneumoscope.evaluation.multiclass.breakdown import class_group_metrics
from pneumoscope.evaluation.subgroups import find_subgroups
from pneumoscope.statistics.inputs import patient_groups
from pneumoscope.statistics.multiclass import overall_metrics
from pneumoscope.statistics.multiclass_paired import macro_auroc_covariance
from pneumoscope.statistics.multiple_testing import holm
from pneumoscope.statistics.probabilities import log_odds, softmax

CLASSES = ("bacteria", "normal", "virus")


def draw(n=180, *, gain=(1.5, 1.5), seed=0, per_patient=2):
    """Return images of two sites in turn, by patient; the probabilities of a site are as good as its gain."""
    random = np.random.default_rng(seed)
    targets = np.repeat(random.integers(0, 3, n // per_patient), per_patient)
    sites = np.arange(n) // per_patient % 2
    logits = random.normal(size=(n, 3))
    logits[np.arange(n), targets] += np.array(gain)[sites]
    p = softmax(logits)
    images = [
        MulticlassScoredImage(
            path=f"{i}.png",
            sha256=f"{i:064x}",
            patient=f"p{i // per_patient}",
            label=CLASSES[targets[i]],
            etiology="",
            predicted=CLASSES[p[i].argmax()],
            prediction_set=None,
            probabilities=tuple(p[i].tolist()),
        )
        for i in range(n)
    ]
    return images, p, targets, sites


def broken_down(images, sites, **columns):
    columns = {"site": ["AB"[site] for site in sites], **columns}
    return find_subgroups(columns, images, class_group_metrics(images, CLASSES, seed=3), "")


def test_subgroups_have_the_metrics_of_their_images():
    images, p, y, sites = draw()
    groups, _ = broken_down(images, sites)
    assert [(group.column, group.value, group.operating_point) for group in groups] == [
        ("site", "A", ""),
        ("site", "B", ""),
    ]
    for group, number in zip(groups, (0, 1), strict=True):
        rows = sites == number
        predicted = p[rows].argmax(1)
        assert group.n == rows.sum()
        assert group.counts == {name: (y[rows] == k).sum() for k, name in enumerate(CLASSES)}
        assert group.metrics["macro_auroc"].value == pytest.approx(
            metrics.roc_auc_score(y[rows], p[rows], multi_class="ovr")
        )
        assert group.metrics["accuracy"].value == pytest.approx(metrics.accuracy_score(y[rows], predicted))
        recalls = metrics.recall_score(y[rows], predicted, average=None)
        for name, recall in zip(CLASSES, recalls, strict=True):
            assert group.metrics[f"sensitivity, {name}"].value == pytest.approx(recall)
        patients = [images[i].patient for i in np.flatnonzero(rows)]
        alone = overall_metrics(p[rows], y[rows], CLASSES, patients, seed=3)
        assert group.metrics["macro_auroc"] == alone["macro_auroc"]
        assert group.metrics["accuracy"] == alone["accuracy"]


def test_macro_auroc_is_tested_by_the_variances_of_the_groups():
    images, p, y, sites = draw()
    _, tests = broken_down(images, sites)
    areas, variances = [], []
    for number in (0, 1):
        rows = np.flatnonzero(sites == number)
        groups = patient_groups([images[i].patient for i in rows], len(rows))
        area, variance = macro_auroc_covariance(log_odds(p[rows])[None], y[rows], CLASSES, groups)
        areas.append(area[0])
        variances.append(variance[0, 0])
    expected = 2 * stats.norm.sf(abs(areas[0] - areas[1]) / np.sqrt(sum(variances)))
    assert tests[0].metric == "macro_auroc"
    assert tests[0].p == pytest.approx(expected)


def test_sensitivity_of_a_class_is_tested_by_permutations_of_its_patients():
    images, p, y, sites = draw(36, gain=(0.5, 1.5), per_patient=1)
    _, tests = broken_down(images, sites)
    test = next(test for test in tests if test.metric == "sensitivity, virus")
    of_class = np.flatnonzero(y == 2)
    correct, group = (p.argmax(1) == y)[of_class], sites[of_class]
    size = int((group == 0).sum())
    observed = abs(correct[group == 0].mean() - correct[group == 1].mean())
    draws = [
        abs(correct[list(a)].mean() - np.delete(correct, list(a)).mean())
        for a in combinations(range(len(correct)), size)
    ]
    assert test.p == pytest.approx(np.mean(np.array(draws) >= observed - 1e-12), abs=0.02)


def test_all_tests_are_corrected_together_and_the_accuracy_is_not_tested():
    images, _, _, sites = draw()
    _, tests = broken_down(images, sites, age=["old" if i % 3 else "young" for i in range(len(images))])
    each = ("macro_auroc", *(f"sensitivity, {name}" for name in CLASSES))
    assert [(test.column, test.metric) for test in tests] == [
        (column, name) for column in ("site", "age") for name in each
    ]
    assert [test.p_holm for test in tests] == holm([test.p for test in tests])
    assert "Holm-corrected for 8 tests; Cochran's Q, DeLong)" in tests[0].sentence
    assert tests[1].sentence.startswith("The sensitivity for bacteria ")
    assert [test.operating_point for test in tests] == [None] * 8
    assert tests[4].shared_patients > 0  # the ages of a patient differ here


def test_a_difference_between_sites_is_found():
    images, _, _, sites = draw(400, gain=(0.2, 2.5))
    _, tests = broken_down(images, sites)
    assert all(test.p_holm < 0.01 for test in tests)
    assert "differs significantly between the 2 groups of site" in tests[0].sentence


def test_a_group_with_few_patients_of_a_class_prevents_the_test_of_the_macro_auroc():
    images, _, y, _ = draw(per_patient=1)
    sites = np.arange(len(y)) % 2
    sites[np.flatnonzero(y == 2)[5:]] = 0
    sites[np.flatnonzero(y == 2)[:5]] = 1
    groups, tests = broken_down(images, sites)
    few = "5 patients of the class virus are too few"
    assert groups[1].metrics["macro_auroc"].reason.startswith(f"{few} for a bootstrap")
    assert (tests[0].p, tests[0].reason) == (
        None,
        "5 patients of the class virus in the group B are too few for a test of macro AUROCs, which needs 6 of each",
    )
    assert tests[1].p is not None


def test_a_group_without_a_class_is_in_no_test_of_the_macro_auroc():
    images, _, y, _ = draw()
    sites = np.where(y == 2, 1, np.arange(len(y)) % 2)
    sites[:4] = 0
    values = np.array(["A", "B", "C"])[np.where(y == 0, 2, sites)]
    groups, tests = find_subgroups({"site": values.tolist()}, images, class_group_metrics(images, CLASSES, seed=0), "")
    assert groups[2].metrics["macro_auroc"].reason == "the class normal has no images"
    assert groups[2].metrics["sensitivity, normal"].reason == "there is no normal image"
    assert tests[0].reason == "there are no two groups with bacteria, normal and virus images"
    assert tests[0].sentence.startswith("A difference in macro AUROC between the groups of site cannot be tested")
