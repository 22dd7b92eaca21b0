"""Checking data sets with known faults, planted shortcuts, and the public data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from pneumoscope.core.errors import DatasetError
from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import to_json
from pneumoscope.data import check as module
from pneumoscope.data.check import CONTROLS, border_mask, check_data, measure_shortcuts
from pneumoscope.data.inspection import InspectedImage
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LABELS, LabeledImage

Draw = Callable[..., Path]
N = 240


@pytest.fixture
def faulty(tmp_path: Path, draw_image: Draw) -> Path:
    """Six patients per label in train, two in test, one of them leaked; a copy, a re-saved copy, and three unreadable files."""
    root = tmp_path / "images"
    for number in range(6):
        draw_image(root / "train" / "NORMAL" / f"IM-{number:04}-0001.png", seed=number, size=(90, 80))
        draw_image(root / "train" / "PNEUMONIA" / f"person{number}_virus_1.png", seed=10 + number)
    draw_image(root / "train" / "PNEUMONIA" / "person0_bacteria_1.png", seed=30)
    draw_image(root / "test" / "NORMAL" / "IM-0003-0002.png", seed=40)  # the patient of train/NORMAL/IM-0003-0001
    draw_image(
        root / "test" / "NORMAL" / "IM-0100-0001.png", seed=1, size=(90, 80)
    )  # train/NORMAL/IM-0001, byte for byte
    draw_image(root / "test" / "PNEUMONIA" / "person90_bacteria_9.png", seed=50)
    with Image.open(root / "train" / "PNEUMONIA" / "person2_virus_1.png") as image:
        image.convert("RGB").save(root / "test" / "PNEUMONIA" / "person91_virus_9.jpeg", quality=70)
    (root / "val" / "NORMAL").mkdir(parents=True)
    (root / "val" / "PNEUMONIA").mkdir()
    draw_image(root / "val" / "NORMAL" / "IM-0200-0001.png", seed=60)
    draw_image(root / "val" / "PNEUMONIA" / "person92_virus_9.png", seed=61)
    (root / "train" / "NORMAL" / "IM-0300-0001.png").write_text("no image")
    (root / "train" / "NORMAL" / "IM-0301-0001.png").touch()
    (root / "train" / "NORMAL" / "read.me").touch()
    return root


def test_all_faults_are_found(faulty: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    found = check_data(load_manifest(faulty), progress=lambda *call: calls.append(call))
    assert found.images == {
        "train": {"NORMAL": 6, "PNEUMONIA": 7},
        "val": {"NORMAL": 1, "PNEUMONIA": 1},
        "test": {"NORMAL": 2, "PNEUMONIA": 2},
    }
    assert found.etiology == {
        "train": {"normal": 6, "bacteria": 1, "virus": 6},
        "val": {"normal": 1, "bacteria": 0, "virus": 1},
        "test": {"normal": 2, "bacteria": 1, "virus": 1},
    }
    assert found.patients == {"train": 13, "val": 2, "test": 4}
    assert found.unknown_patients == 0
    assert found.patients_in_several_splits == {"train/val": 0, "train/test": 1, "val/test": 0}
    assert found.exact_duplicate_groups == 1
    assert found.exact_duplicates == (("test/NORMAL/IM-0100-0001.png", "train/NORMAL/IM-0001-0001.png"),)
    near = found.near_duplicates
    assert (near.pairs, near.identical, near.different_patients) == (2, 1, 2)
    assert dict(near.across) == {"train/val": 0, "train/test": 2, "val/test": 0}
    assert {(file.path, file.reason) for file in found.unreadable} == {
        ("train/NORMAL/IM-0300-0001.png", "not an image (8 bytes)"),
        ("train/NORMAL/IM-0301-0001.png", "empty (0 bytes)"),
        ("train/NORMAL/read.me", "not an image"),
    }
    assert (found.sizes["NORMAL"].n, found.sizes["NORMAL"].width.p50) == (9, 90.0)
    assert found.sizes["PNEUMONIA"].aspect.p25 == pytest.approx(1.2)
    assert found.sizes["PNEUMONIA"].modes == {"L": 9, "RGB": 1}
    assert set(found.shortcuts) == {"metadata", "border", "center_blanked"}
    assert calls[-1] == ("measuring shortcuts", 19, 19)


def test_json_has_the_documented_keys(faulty: Path) -> None:
    document = json.loads(to_json(check_data(load_manifest(faulty))))
    assert document["schema"] == 1
    documented = (
        "images etiology patients patients_in_several_splits expected_leak_rate exact_duplicate_groups"
        " near_duplicates unreadable shortcuts"
    )
    assert set(documented.split()) <= set(document)
    assert document["unreadable"][0] == {"path": "train/NORMAL/IM-0300-0001.png", "reason": "not an image (8 bytes)"}
    assert document["near_duplicates"]["listed"][0]["split_a"] == "test"


def test_data_without_splits_or_patients(tmp_path: Path, draw_image: Draw) -> None:
    for number in range(3):
        draw_image(tmp_path / "NORMAL" / f"{number}.png", seed=number)
        draw_image(tmp_path / "PNEUMONIA" / f"{number}.png", seed=10 + number)
    found = check_data(load_manifest(tmp_path))
    assert found.images == {"all": {"NORMAL": 3, "PNEUMONIA": 3}}
    assert found.etiology == {"all": {"normal": 3, "bacteria": 0, "virus": 0, "unknown": 3}}
    assert found.patients == {"all": 0}
    assert found.unknown_patients == 6
    assert found.patients_in_several_splits == {}
    assert (found.expected_leak_rate, found.expected_leak_rate_reason) == (None, "no patient is known")
    assert found.shortcuts["border"].value is None
    assert "the patient of 6 of 6 images is unknown" in found.notes[-1]


def test_splits_have_the_names_of_their_folders(tmp_path: Path, draw_image: Draw) -> None:
    for split in ("train", "validation", "test"):
        draw_image(tmp_path / split / "NORMAL" / "a.png")
        draw_image(tmp_path / split / "PNEUMONIA" / "b.png")
    assert list(check_data(load_manifest(tmp_path)).images) == ["train", "validation", "test"]


def test_data_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    for label in LABELS:
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"no image can be decoded; the first of 2: NORMAL/a.png: not an image"):
        check_data(load_manifest(tmp_path))


# --- the public images ------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_public_data_set(real_images: Path) -> None:
    found = check_data(load_manifest(real_images))
    assert found.images == {
        "train": {"NORMAL": 1341, "PNEUMONIA": 3875},
        "val": {"NORMAL": 8, "PNEUMONIA": 8},
        "test": {"NORMAL": 234, "PNEUMONIA": 390},
    }
    assert found.etiology["train"] == {"normal": 1341, "bacteria": 2530, "virus": 1345}
    assert found.etiology["test"] == {"normal": 234, "bacteria": 242, "virus": 148}
    assert found.patients_in_several_splits == {"train/val": 0, "train/test": 0, "val/test": 0}
    assert found.expected_leak_rate == pytest.approx(0.40, abs=0.01)
    assert found.exact_duplicate_groups == 30
    assert not any({"train", "test"} == {path.split("/")[0] for path in group} for group in found.exact_duplicates)
    near = found.near_duplicates
    assert near.pairs >= sum(len(group) * (len(group) - 1) // 2 for group in found.exact_duplicates) == near.identical
    assert near.across["train/test"] == 0
    mislabeled = [pair for pair in near.listed if pair.different_patients]
    assert [(Path(pair.a).name, Path(pair.b).name) for pair in mislabeled] == [
        ("NORMAL2-IM-0095-0001.jpeg", "NORMAL2-IM-0096-0001.jpeg")
    ]
    assert found.unreadable == ()
    for interval in found.shortcuts.values():
        assert interval.value is not None
        assert 0.8 < interval.value < 0.98, "the public data set has shortcuts"
        assert interval.n == 5856


def test_shortcuts_are_noted_in_descending_order(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interval(value, low, high):
        return Interval(value, low, high, "delong", 40)

    shortcuts = {
        "metadata": interval(0.8, 0.6, 0.9),
        "border": interval(0.978, 0.9, 0.995),
        "center_blanked": interval(0.55, 0.5, 0.7),
    }

    def notes(measured: dict[str, Interval]) -> list[str]:
        monkeypatch.setattr(module, "measure_shortcuts", lambda *_, **__: measured)
        return [note for note in check_data(load_manifest(faulty)).notes if "without the lungs" in note]

    found = notes(shortcuts)
    assert [next(name for name in CONTROLS if CONTROLS[name] in note) for note in found] == ["border", "metadata"]
    assert "has an AUROC of 0.978 (0.900 to 0.995)" in found[0]
    undefined = {name: Interval(None, None, None, "delong", 4, reason="too few") for name in shortcuts}
    assert notes(undefined) == []


def test_audit_names_the_folder_without_its_parents(faulty: Path) -> None:
    found = check_data(load_manifest(faulty))
    assert found.data == "images"
    assert str(faulty.parent) not in to_json(found)


# --- shortcuts -------------------------------------------------------------------------------------------------------


def _images(plant: str = "", *, images_per_patient: int = 2) -> list[InspectedImage]:
    """Return images of noise, with a shortcut in one place."""
    generator = np.random.default_rng(5)
    images = []
    for number in range(N):
        patient = number // images_per_patient
        positive = patient % 2 == 1
        pixels = generator.integers(90, 160, size=(32, 32), dtype=np.uint8)
        if plant == "border" and positive:
            pixels[:2] += 60
        if plant == "rim" and positive:
            pixels[2:4, 4:28] += 60
        if plant == "center" and positive:
            pixels[10:20, 10:20] += 60
        if plant == "patient":
            pixels[border_mask(4)] = np.random.default_rng(patient).integers(0, 256, size=int(border_mask(4).sum()))
        size = 6000 + int(generator.integers(0, 3000)) + (9000 if plant == "metadata" and positive else 0)
        image = LabeledImage(
            f"{number}.png", "PNEUMONIA" if positive else "NORMAL", "", f"P-{patient}", "", str(number)
        )
        images.append(InspectedImage(image, size, 224, 224, "JPEG", "L", 4638, np.zeros(256, bool), pixels))
    return images


@pytest.mark.parametrize(
    ("plant", "affected"),
    [
        ("metadata", {"metadata"}),
        ("border", {"border", "center_blanked"}),
        ("rim", {"center_blanked"}),
        ("center", set()),
        ("", set()),
    ],
)
def test_planted_shortcut_is_found_by_the_controls_that_see_it(plant: str, affected: set[str]) -> None:
    found = measure_shortcuts(_images(plant))
    assert set(found) == set(CONTROLS)
    for control, interval in found.items():
        assert interval.value is not None
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low <= interval.value <= interval.high
        if control in affected:
            assert interval.value > 0.95
        else:
            assert 0.35 < interval.value < 0.65
        assert (interval.n, interval.level, interval.seed) == (N, 0.95, 0)
        assert interval.method.startswith("5-fold by patient, ")


def test_folds_keep_patients_together() -> None:
    """Borders that identify the patient but not the label are useless if no patient is in two folds."""
    value = measure_shortcuts(_images("patient", images_per_patient=8))["center_blanked"].value
    assert value is not None
    assert value < 0.75


def test_result_depends_on_the_seed_only() -> None:
    images = _images("rim")[:80]
    assert measure_shortcuts(images, seed=1) == measure_shortcuts(images, seed=1)
    one, two = measure_shortcuts(_images(), seed=1), measure_shortcuts(_images(), seed=2)
    assert one["border"].value != two["border"].value


def test_auroc_matches_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _images()
    labels = np.array([item.image.positive for item in images])
    seen, auroc_interval = [], module.auroc_interval

    def note(scores: Any, *others: Any) -> Interval:
        seen.append(scores)
        return auroc_interval(scores, *others)

    monkeypatch.setattr(module, "auroc_interval", note)
    found = [interval.value for interval in measure_shortcuts(images).values()]
    assert found == pytest.approx([roc_auc_score(labels, scores) for scores in seen], abs=1e-12)
    assert len(set(found)) == len(CONTROLS)


def test_too_few_patients_are_undefined() -> None:
    images = [item for item in _images() if item.image.positive or item.image.patient in {"P-0", "P-2", "P-4", "P-6"}]
    for interval in measure_shortcuts(images).values():
        assert interval.value is None
        assert interval.reason == "5 folds need 5 NORMAL patients; found 4"
        assert interval.n == len(images)


def test_shortcuts_of_several_classes_are_those_of_each_class_against_all_others(
    tmp_path: Path, draw_image: Draw
) -> None:
    for number, label in enumerate(("covid", "normal", "tb")):
        for image in range(6):
            size = (90, 50) if label == "tb" else (60, 50)  # the width reveals one class
            draw_image(tmp_path / label / f"{image}.png", seed=10 * number + image, size=size)
    found = check_data(load_manifest(tmp_path))
    assert found.images == {"all": {"covid": 6, "normal": 6, "tb": 6}}
    assert list(found.sizes) == ["covid", "normal", "tb"]
    assert set(found.shortcuts) == {
        f"{control}, {label}" for control in CONTROLS for label in ("covid", "normal", "tb")
    }
    assert found.shortcuts["border, tb"].method.startswith("5-fold by patient")
    few = measure_shortcuts([], classes=("covid", "normal", "tb"))
    assert few["border, tb"].reason == "5 folds need 5 no tb patients; found 0"


def test_shortcuts_of_two_classes_are_measured_and_noted_once(tmp_path: Path, draw_image: Draw) -> None:
    for number, label in enumerate(("covid", "tb")):
        for image in range(25):
            size = (90, 50) if label == "tb" else (60, 50)  # the width reveals the class
            draw_image(tmp_path / label / f"{image}.png", seed=100 * number + image, size=size)
    found = check_data(load_manifest(tmp_path))
    assert list(found.shortcuts) == list(CONTROLS)
    assert sum(CONTROLS["metadata"] in note for note in found.notes) == 1
    assert not any("the class" in note for note in found.notes)
    few = measure_shortcuts([], classes=("covid", "tb"))
    assert few["border"].reason == "5 folds need 5 covid patients; found 0"


def test_data_without_an_etiology_have_no_columns_of_etiologies(tmp_path: Path, draw_image: Draw) -> None:
    for number, label in enumerate(("NORMAL", "PNEUMONIA")):
        for image in range(2):
            draw_image(tmp_path / label / f"{image}.png", seed=10 * number + image)
    assert check_data(load_manifest(tmp_path)).etiology_columns == ()
    draw_image(tmp_path / "PNEUMONIA" / "person1_virus_1.png", seed=99)
    assert check_data(load_manifest(tmp_path)).etiology_columns == ("bacteria", "virus", "unknown")


def test_border_mask_is_true_in_the_outer_pixels() -> None:
    assert border_mask(2).sum() == 32 * 32 - 28 * 28
    assert border_mask(2)[:2].all()
    assert border_mask(2)[:, -2:].all()
    assert not border_mask(2)[2:-2, 2:-2].any()
