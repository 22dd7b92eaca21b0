"""The controls find a shortcut that was planted, and nothing where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumoscope.data.inspection import InspectedImage
from pneumoscope.data.manifest import LabelledImage
from pneumoscope.data.shortcuts import CONTROLS, measure_shortcuts, ring

N = 240


def _images(plant: str = "", *, images_a_patient: int = 2) -> list[InspectedImage]:
    """Noise, with the label written into the planted place."""
    random = np.random.default_rng(5)
    images = []
    for number in range(N):
        patient = number // images_a_patient
        positive = patient % 2 == 1
        pixels = random.integers(90, 160, size=(32, 32), dtype=np.uint8)
        if plant == "border" and positive:
            pixels[:2] += 60
        if plant == "rim" and positive:
            pixels[2:4, 4:28] += 60
        if plant == "centre" and positive:
            pixels[10:20, 10:20] += 60
        if plant == "patient":
            pixels[ring(4)] = np.random.default_rng(patient).integers(0, 256, size=int(ring(4).sum()))
        size = 6000 + int(random.integers(0, 3000)) + (9000 if plant == "metadata" and positive else 0)
        image = LabelledImage(
            f"{number}.png", "PNEUMONIA" if positive else "NORMAL", "", f"P-{patient}", "", str(number)
        )
        images.append(InspectedImage(image, size, 224, 224, "JPEG", "L", 4638, np.zeros(256, bool), pixels))
    return images


@pytest.mark.parametrize(
    ("plant", "finders"),
    [
        ("metadata", {"metadata"}),
        ("border", {"border", "centre_blanked"}),
        ("rim", {"centre_blanked"}),
        ("centre", set()),
        ("", set()),
    ],
)
def test_a_planted_shortcut_is_found_by_those_who_see_it(plant: str, finders: set[str]) -> None:
    found = measure_shortcuts(_images(plant))
    assert set(found) == set(CONTROLS)
    for control, interval in found.items():
        assert interval.value is not None
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low <= interval.value <= interval.high
        if control in finders:
            assert interval.value > 0.95
        else:
            assert 0.35 < interval.value < 0.65
        assert (interval.n, interval.level, interval.seed) == (N, 0.95, 0)
        assert interval.method.startswith("5-fold by patient, ")


def test_images_of_a_patient_are_in_one_fold() -> None:
    """Rims that name the patient but not the label teach nothing once no patient is on both sides."""
    value = measure_shortcuts(_images("patient", images_a_patient=8))["centre_blanked"].value
    assert value is not None
    assert value < 0.75


def test_the_same_seed_gives_the_same_numbers_and_another_others() -> None:
    images = _images("rim")[:80]
    assert measure_shortcuts(images, seed=1) == measure_shortcuts(images, seed=1)
    one, two = measure_shortcuts(_images(), seed=1), measure_shortcuts(_images(), seed=2)
    assert one["border"].value != two["border"].value


def test_the_value_is_the_area_under_scikit_learns_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _images("border")
    labels = np.array([one.image.positive for one in images])
    scores = np.random.default_rng(0).random(N) + 0.4 * labels
    monkeypatch.setattr("pneumoscope.data.shortcuts._out_of_fold", lambda *_: scores)
    for interval in measure_shortcuts(images).values():
        assert interval.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_too_few_patients_are_undefined_with_the_reason() -> None:
    images = [one for one in _images() if one.image.positive or one.image.patient in {"P-0", "P-2", "P-4", "P-6"}]
    for interval in measure_shortcuts(images).values():
        assert interval.value is None
        assert interval.reason == "5 folds need 5 NORMAL patients; there are 4"
        assert interval.n == len(images)


def test_the_ring_is_the_outer_pixels() -> None:
    assert ring(2).sum() == 32 * 32 - 28 * 28
    assert ring(2)[:2].all()
    assert ring(2)[:, -2:].all()
    assert not ring(2)[2:-2, 2:-2].any()
