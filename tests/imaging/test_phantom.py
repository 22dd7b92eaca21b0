"""Phantoms: the folder has the layout of the public data set, and only the lungs depend on the label."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumoscope.core.errors import StorageError, UsageError
from pneumoscope.imaging import phantom as module
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.phantom import draw_opacity_mask, draw_phantom, write_phantoms

PNEUMONIA = re.compile(r"person(?P<patient>\d+)_(?P<series>bacteria|virus)_(?P<image>\d+)\.jpeg")
NORMAL = re.compile(r"(?P<series>IM|NORMAL2-IM)-(?P<patient>\d{4})-0001(-(?P<image>\d{4}))?\.jpeg")
# Mean gray levels of 8 x 8 blocks of draw_phantom(7, True, etiology="bacteria", size=64), every second row and column.
GOLDEN = [[0.0, 13.3, 110.1, 0.0], [30.8, 37.7, 114.6, 77.1], [3.8, 83.3, 197.6, 89.3], [0.7, 136.4, 152.2, 124.2]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "deep" / "phantoms"
    write_phantoms(path, train=60, test=30, seed=3, size=48)
    return path


def names(folder: Path) -> dict[tuple[str, str], list[str]]:
    return {
        (split, label): sorted(path.name for path in (folder / split / label).iterdir())
        for split in ("train", "test")
        for label in ("NORMAL", "PNEUMONIA")
    }


def test_folders_and_counts(folder: Path) -> None:
    assert {key: len(file_names) for key, file_names in names(folder).items()} == {
        ("train", "NORMAL"): 24,
        ("train", "PNEUMONIA"): 36,
        ("test", "NORMAL"): 12,
        ("test", "PNEUMONIA"): 18,
    }
    assert sorted(path.name for path in folder.iterdir()) == ["PHANTOMS.txt", "test", "train"]


def test_file_names_are_those_of_the_public_set_and_patients_stay_in_one_split(folder: Path) -> None:
    splits: dict[tuple[str, str], set[str]] = defaultdict(set)
    images: Counter[tuple[str, str]] = Counter()
    for (split, label), file_names in names(folder).items():
        for name in file_names:
            parsed = (PNEUMONIA if label == "PNEUMONIA" else NORMAL).fullmatch(name)
            assert parsed, name
            key = (parsed["series"], parsed["patient"])
            splits[key].add(split)
            images[key] += 1
    assert all(len(names_of_splits) == 1 for names_of_splits in splits.values())
    assert {series for series, _ in splits} == {"bacteria", "virus", "IM", "NORMAL2-IM"}
    assert Counter(images.values()).keys() == {1, 2, 3}


def test_patients_have_several_images_and_no_image_occurs_twice(folder: Path) -> None:
    normal = folder / "train" / "NORMAL"
    images_of_one_patient = [
        sorted(normal.glob(path.name.replace("-0001.jpeg", "*"))) for path in normal.glob("*-0001-0001.jpeg")
    ]
    assert images_of_one_patient
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.jpeg")]
    assert len(set(hashes)) == len(hashes) == 90


def test_files_hold_the_drawn_images(folder: Path) -> None:
    plan = list(module._plan(np.random.Generator(np.random.PCG64(3)), {"train": 60, "test": 30}))
    item = next(item for item in plan if item.etiology == "virus" and item.image == 1)
    pixels = decode(folder / item.split / item.label / item.name).pixels
    drawn = draw_phantom(item.seed, True, etiology="virus", image=1, size=48)
    assert np.abs(pixels.astype(int) - drawn).mean() < 3  # JPEG
    with Image.open(folder / item.split / item.label / item.name) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (48, 48))


def test_the_folder_states_that_the_images_are_synthetic(folder: Path) -> None:
    text = (folder / "PHANTOMS.txt").read_text(encoding="utf-8")
    assert "Every image in this folder is synthetic" in text
    assert "seed 3, 48 x 48 pixels, 60 images in train, 30 in test" in text


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    summary = write_phantoms(tmp_path, train=60, test=30, seed=3, size=48)
    for path in sorted(folder.rglob("*.*")):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert summary.images == {"train": {"NORMAL": 24, "PNEUMONIA": 36}, "test": {"NORMAL": 12, "PNEUMONIA": 18}}
    patients = {re.sub(r"(-0001.*|_\d+\.jpeg)$", "", path.name) for path in (folder / "train").rglob("*.jpeg")}
    assert summary.patients["train"] == len(patients) < 60
    other = write_phantoms(tmp_path / "other", train=60, test=30, seed=4, size=48)
    assert other.patients != summary.patients or names(tmp_path / "other") != names(folder)


def test_progress_counts_all_images(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_phantoms(tmp_path / "few", train=3, test=2, size=32, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert {key: len(file_names) for key, file_names in names(tmp_path / "few").items()} == {
        ("train", "NORMAL"): 1,
        ("train", "PNEUMONIA"): 2,
        ("test", "NORMAL"): 1,
        ("test", "PNEUMONIA"): 1,
    }


def test_a_folder_that_is_not_empty_is_rejected_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "image.jpeg").write_bytes(b"a radiograph")
    with pytest.raises(UsageError, match=r"is not empty \(1 entries\)\. Name a folder that does not exist yet"):
        write_phantoms(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["image.jpeg"]


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="Not a directory"):
        write_phantoms(tmp_path / "file")
    with pytest.raises(UsageError, match="Not a directory"):
        write_phantoms(tmp_path / "file" / "below")


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(StorageError, match=r"cannot write phantoms to '.*x': No space left on device"):
        write_phantoms(tmp_path / "x", train=2, test=2, size=32)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"train": 1}, "not 1 in train and 100 in test"),
        ({"test": 0}, "not 200 in train and 0 in test"),
        ({"seed": -1}, "the seed must be 0 or more, not -1"),
        ({"size": 8}, "32 to 2,048 pixels, not 8"),
    ],
)
def test_numbers_out_of_range_are_rejected(numbers: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        write_phantoms(tmp_path / "x", **numbers)
    assert not (tmp_path / "x").exists()


# --- Drawing of one image ---


def test_drawings_have_the_size_and_the_range_of_a_radiograph() -> None:
    image = draw_phantom(0, False)
    assert (image.shape, image.dtype) == ((224, 224), np.dtype(np.uint8))
    assert image.min() < 10
    assert image.max() > 200
    assert draw_phantom(0, True, size=32).shape == (32, 32)


def test_the_same_seed_draws_the_same_image_on_every_machine() -> None:
    image = draw_phantom(7, True, etiology="bacteria", size=64)
    assert np.array_equal(image, draw_phantom(7, True, etiology="bacteria", size=64))
    blocks = image.reshape(8, 8, 8, 8).mean(axis=(1, 3))[::2, ::2]
    assert np.abs(blocks - GOLDEN).max() < 1.5


def test_seeds_images_and_etiologies_differ() -> None:
    images = [draw_phantom(1, True), draw_phantom(2, True), draw_phantom(1, True, image=1), draw_phantom(1, False)]
    images += [
        draw_phantom(
            1,
            True,
            etiology="bacteria" if np.array_equal(draw_phantom(1, True, etiology="virus"), images[0]) else "virus",
        )
    ]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert np.abs(one.astype(int) - other).mean() > 0.5


def test_the_seed_chooses_the_etiology_if_none_is_given() -> None:
    is_virus = [
        np.array_equal(draw_phantom(seed, True, size=32), draw_phantom(seed, True, etiology="virus", size=32))
        for seed in range(40)
    ]
    assert 10 <= sum(is_virus) <= 30
    assert all(
        is_virus[seed]
        or np.array_equal(draw_phantom(seed, True, size=32), draw_phantom(seed, True, etiology="bacteria", size=32))
        for seed in range(40)
    )


@pytest.mark.parametrize("etiology", ["bacteria", "virus"])
def test_pneumonia_changes_only_the_lungs(etiology: Any) -> None:
    for seed in range(6):
        without, with_pneumonia = (
            draw_phantom(seed, False).astype(int),
            draw_phantom(seed, True, etiology=etiology).astype(int),
        )
        changed = without != with_pneumonia
        assert 0.02 < changed.mean() < 0.4, seed
        border = np.ones((224, 224), dtype=bool)
        border[20:-20, 20:-20] = False
        assert not changed[border].any(), seed
        spine = changed[:, 108:116]
        assert spine.mean() < changed.mean(), seed


def test_bacterial_opacities_are_unilateral_and_viral_ones_bilateral() -> None:
    fractions = {"bacteria": [], "virus": []}
    for seed in range(30):
        without = draw_phantom(seed, False, size=64).astype(float)
        for etiology, smaller_side in fractions.items():
            added = draw_phantom(seed, True, etiology=etiology, size=64) - without
            halves = sorted((added[:, :32].sum(), added[:, 32:].sum()))
            smaller_side.append(halves[0] / sum(halves))
    assert np.median(fractions["bacteria"]) < 0.1
    assert np.median(fractions["virus"]) > 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1, "pneumonia": True}, "0 or more, not -1 and 0"),
        ({"seed": 0, "pneumonia": True, "image": -2}, "0 or more, not 0 and -2"),
        ({"seed": 0, "pneumonia": True, "size": 31}, "32 to 2,048 pixels, not 31"),
        ({"seed": 0, "pneumonia": True, "size": 2049}, "not 2049"),
        ({"seed": 0, "pneumonia": True, "etiology": "fungus"}, "unknown etiology 'fungus'"),
        (
            {"seed": 0, "pneumonia": False, "etiology": "virus"},
            "etiology 'virus' is given for an image without pneumonia",
        ),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw_phantom(**arguments)


@pytest.fixture(scope="module")
def images() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return one image each of 400 patients, averaged from 64 x 64 to 32 x 32 pixels, and the labels."""
    labels = np.arange(400) % 5 < 3
    pixels = np.stack([draw_phantom(1000 + i, bool(label), size=64) for i, label in enumerate(labels)])
    return pixels.reshape(400, 32, 2, 32, 2).mean(axis=(2, 4)), labels


def auroc(model: Any, features: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> float:
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(labels, scores))


def linear(strength: float = 0.01) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def test_the_border_does_not_predict_the_label(images: tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]) -> None:
    pixels, labels = images
    ring = np.ones((32, 32), dtype=bool)
    ring[5:-5, 5:-5] = False  # the outer 15% on each side
    assert 0.4 < auroc(linear(), pixels[:, ring], labels) < 0.6


def test_the_mean_gray_level_hardly_predicts_the_label(
    images: tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]],
) -> None:
    pixels, labels = images
    assert 0.4 < roc_auc_score(labels, pixels.mean(axis=(1, 2))) < 0.75


def test_the_lungs_predict_the_label(images: tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]) -> None:
    pixels, labels = images
    lungs = pixels[:, 6:24, 5:-5].reshape(len(pixels), -1)
    lungs = (lungs - lungs.mean(axis=1, keepdims=True)) / lungs.std(axis=1, keepdims=True)
    assert auroc(make_pipeline(PCA(60, random_state=0), linear(0.1)), lungs, labels) > 0.8


def test_mask_is_where_the_opacity_changes_the_image() -> None:
    for etiology in ("bacteria", "virus"):
        for seed in range(5):
            mask = draw_opacity_mask(seed, etiology=etiology, size=96)
            sick = draw_phantom(seed, True, etiology=etiology, size=96).astype(int)
            difference = np.abs(sick - draw_phantom(seed, False, size=96))
            assert mask.shape == (96, 96)
            assert 0.005 < mask.mean() < 0.4
            # Outside the mask the opacity is too faint to see; inside, it brightens the image, unless that is white already.
            assert difference[mask].mean() > 4 * difference[~mask].mean()
            assert difference[~mask].max() <= 30


def test_masks_are_written_for_images_with_pneumonia(tmp_path: Path) -> None:
    summary = write_phantoms(tmp_path / "images", train=10, test=5, size=48, masks=tmp_path / "masks")

    images = {
        path.relative_to(tmp_path / "images").with_suffix("") for path in (tmp_path / "images").glob("*/PNEUMONIA/*")
    }
    masks = {path.relative_to(tmp_path / "masks") for path in (tmp_path / "masks").rglob("*.*")}
    assert summary.masks == str(tmp_path / "masks")
    assert {path.with_suffix("") for path in masks} == images
    assert {path.suffix for path in masks} == {".png"}
    pixels = np.array(Image.open(tmp_path / "masks" / min(masks)))
    assert pixels.shape == (48, 48)
    assert pixels.any()
    assert not pixels.all()


def test_masks_need_an_empty_folder_outside_the_images(tmp_path: Path) -> None:
    for masks in (tmp_path / "images" / "masks", tmp_path / "images", tmp_path):
        with pytest.raises(UsageError, match="contain each other"):
            write_phantoms(tmp_path / "images", train=2, test=2, size=48, masks=masks)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UsageError, match="is not empty"):
        write_phantoms(tmp_path / "images", train=2, test=2, size=48, masks=tmp_path / "other")
    assert not (tmp_path / "images").exists()
