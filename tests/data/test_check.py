"""The audit as a whole, on small sets with known faults and on the public images."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.core.errors import DatasetError
from pneumoscope.core.results import Interval, to_json
from pneumoscope.data import check as module
from pneumoscope.data.check import DatasetAudit, check_data, siblings_across_validation
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LABELS, Manifest
from pneumoscope.data.shortcuts import CONTROLS

Draw = Callable[..., Path]
Make = Callable[[Iterable[tuple[str, str, str]]], Manifest]


@pytest.fixture
def faulty(tmp_path: Path, draw_image: Draw) -> Path:
    """Six patients a label in train, two in test, one of them leaked; a copy, a re-saved copy, and three bad files."""
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


def test_every_fault_is_found(faulty: Path) -> None:
    said: list[tuple[str, int, int]] = []
    found = check_data(load_manifest(faulty), progress=lambda what, done, total: said.append((what, done, total)))
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
    assert (near.pairs, near.identical, near.of_two_patients) == (2, 1, 2)
    assert dict(near.across) == {"train/val": 0, "train/test": 2, "val/test": 0}
    assert {(file.path, file.why) for file in found.unreadable} == {
        ("train/NORMAL/IM-0300-0001.png", "not an image (8 bytes)"),
        ("train/NORMAL/IM-0301-0001.png", "empty (0 bytes)"),
        ("train/NORMAL/read.me", "not an image by its name (.me)"),
    }
    assert (found.sizes["NORMAL"].n, found.sizes["NORMAL"].width.p50) == (9, 90.0)
    assert found.sizes["PNEUMONIA"].aspect.p25 == pytest.approx(1.2)
    assert found.sizes["PNEUMONIA"].modes == {"L": 9, "RGB": 1}
    assert set(found.shortcuts) == {"metadata", "border", "centre_blanked"}
    assert said[-1] == ("measuring shortcuts", 19, 19)


def test_the_json_has_the_keys_that_were_promised(faulty: Path) -> None:
    document = json.loads(to_json(check_data(load_manifest(faulty))))
    assert document["schema"] == 1
    promised = (
        "images etiology patients patients_in_several_splits siblings_across_validation exact_duplicate_groups"
        " near_duplicates unreadable shortcuts"
    )
    assert set(promised.split()) <= set(document)
    assert document["unreadable"][0] == {"path": "train/NORMAL/IM-0300-0001.png", "why": "not an image (8 bytes)"}
    assert document["near_duplicates"]["listed"][0]["split_a"] == "test"


def test_a_set_without_splits_or_patients(tmp_path: Path, draw_image: Draw) -> None:
    for number in range(3):
        draw_image(tmp_path / "NORMAL" / f"{number}.png", seed=number)
        draw_image(tmp_path / "PNEUMONIA" / f"{number}.png", seed=10 + number)
    found = check_data(load_manifest(tmp_path))
    assert found.images == {"all": {"NORMAL": 3, "PNEUMONIA": 3}}
    assert found.etiology == {"all": {"normal": 3, "bacteria": 0, "virus": 0, "unknown": 3}}
    assert found.patients == {"all": 0}
    assert found.unknown_patients == 6
    assert found.patients_in_several_splits == {}
    assert (found.siblings_across_validation, found.siblings_reason) == (None, "no patient is known")
    assert found.shortcuts["border"].value is None
    assert "the patient of 6 of 6 images is unknown" in found.notes[-1]


def test_a_folder_called_validation_keeps_its_name(tmp_path: Path, draw_image: Draw) -> None:
    for split in ("train", "validation", "test"):
        draw_image(tmp_path / split / "NORMAL" / "a.png")
        draw_image(tmp_path / split / "PNEUMONIA" / "b.png")
    assert list(check_data(load_manifest(tmp_path)).images) == ["train", "validation", "test"]


def test_not_one_image_that_can_be_decoded_is_an_error(tmp_path: Path) -> None:
    for label in LABELS:
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").write_text("no image")
    with pytest.raises(
        DatasetError, match=r"none of the 2 images can be decoded; the first: NORMAL/a.png: not an image"
    ):
        check_data(load_manifest(tmp_path))


# --- siblings --------------------------------------------------------------------------------------------------------


def test_siblings_by_hand(make_manifest: Make) -> None:
    """20 normal images of 20 patients, 20 pneumonias of 10 patients; 3 of each 20 validate.

    A drawn pneumonia's sibling is among the other 2 drawn of 19 with 2/19, else in training: 3 x 17/19 of 6 images.
    """
    rows = [(f"train/NORMAL/{n}.png", f"IM-{n}", "train") for n in range(20)]
    rows += [(f"train/PNEUMONIA/p{n}.png", f"virus-{n // 2}", "train") for n in range(20)]
    rows += [(f"test/{label}/t.png", f"T{label}-1", "test") for label in LABELS]
    share, reason = siblings_across_validation(make_manifest(rows))
    assert reason == ""
    assert share == pytest.approx(17 / 38, abs=1e-12)


@pytest.mark.parametrize("given_test", [True, False])
def test_siblings_as_in_a_simulation(make_manifest: Make, given_test: bool) -> None:
    """Patients of 1 to 5 images, some with images of both labels, drawn at random many times."""
    random = np.random.default_rng(1)
    rows = []
    for patient in range(70):
        for image in range(1 + patient % 5):
            label = LABELS[patient % 2 if image < 3 else 1]
            rows.append((f"{label}/{patient}-{image}.png", f"P-{patient}", "train" if given_test else ""))
    if given_test:
        rows += [(f"test/{label}/t.png", f"T{label}-1", "test") for label in LABELS]
    expected, _ = siblings_across_validation(make_manifest(rows))
    pool = [row for row in rows if row[2] != "test"]
    labels = np.array(["PNEUMONIA" in path for path, _, _ in pool])
    patients = np.array([int(patient[2:]) for _, patient, _ in pool])
    shares = []
    for _ in range(3000):
        place = np.full(len(pool), "train", dtype="U10")
        for label in (False, True):
            shuffled = random.permutation(np.flatnonzero(labels == label))
            drawn = _drawn(len(shuffled), labels, label, given_test)
            place[shuffled[: drawn[0]]] = "test"
            place[shuffled[drawn[0] : drawn[0] + drawn[1]]] = "validation"
        trained = np.bincount(patients[place == "train"], minlength=70) > 0
        shares.append(trained[patients[place == "validation"]].mean())
    error = np.std(shares) / np.sqrt(len(shares))
    assert expected == pytest.approx(np.mean(shares), abs=4 * error)
    assert error < 0.003


def _drawn(n: int, labels: np.ndarray, label: bool, given_test: bool) -> tuple[int, int]:
    """Test and validation images of one label: 15% of all, then 15% of the rest, largest remainder rounded up."""
    sizes = {False: int((~labels).sum()), True: int(labels.sum())}

    def draw(sizes: dict[bool, int]) -> dict[bool, int]:
        exact = {key: 0.15 * size for key, size in sizes.items()}
        taken = {key: int(value) for key, value in exact.items()}
        for key in sorted(exact, key=lambda key: taken[key] - exact[key])[
            : round(sum(exact.values())) - sum(taken.values())
        ]:
            taken[key] += 1
        return taken

    tested = dict.fromkeys(sizes, 0) if given_test else draw(sizes)
    validated = draw({key: sizes[key] - tested[key] for key in sizes})
    assert n == sizes[label]
    return tested[label], validated[label]


def test_no_siblings_where_each_patient_has_one_image_and_all_where_all_have_many(make_manifest: Make) -> None:
    tests = [(f"test/{label}/t.png", f"T{label}-1", "test") for label in LABELS]
    alone = [(f"{label}/{n}.png", f"{label}-{n}", "train") for label in LABELS for n in range(30)]
    assert siblings_across_validation(make_manifest(alone + tests)) == (0.0, "")
    one = [(f"{label}/{n}.png", f"{label}-0", "train") for label in LABELS for n in range(30)]
    assert siblings_across_validation(make_manifest(one + tests)) == (1.0, "")


def test_siblings_of_one_label_have_no_share(make_manifest: Make) -> None:
    manifest = make_manifest((f"NORMAL/{n}.png", f"P-{n}", "train") for n in range(9))
    share, reason = siblings_across_validation(manifest)
    assert share is None
    assert "split would hold" in reason


# --- the public images ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def public(real_images: Path) -> tuple[DatasetAudit, float]:
    start = time.perf_counter()
    found = check_data(load_manifest(real_images))
    return found, time.perf_counter() - start


@pytest.mark.real_data
def test_the_public_images(public: tuple[DatasetAudit, float]) -> None:
    found, seconds = public
    assert found.images == {
        "train": {"NORMAL": 1341, "PNEUMONIA": 3875},
        "val": {"NORMAL": 8, "PNEUMONIA": 8},
        "test": {"NORMAL": 234, "PNEUMONIA": 390},
    }
    assert found.etiology["train"] == {"normal": 1341, "bacteria": 2530, "virus": 1345}
    assert found.etiology["test"] == {"normal": 234, "bacteria": 242, "virus": 148}
    assert found.patients_in_several_splits == {"train/val": 0, "train/test": 0, "val/test": 0}
    assert found.siblings_across_validation == pytest.approx(0.40, abs=0.01)
    assert found.exact_duplicate_groups == 30
    assert not any({"train", "test"} == {path.split("/")[0] for path in group} for group in found.exact_duplicates)
    near = found.near_duplicates
    assert near.pairs >= sum(len(group) * (len(group) - 1) // 2 for group in found.exact_duplicates) == near.identical
    assert near.across["train/test"] == 0
    strange = [pair for pair in near.listed if pair.of_two_patients]
    assert [(Path(pair.a).name, Path(pair.b).name) for pair in strange] == [
        ("NORMAL2-IM-0095-0001.jpeg", "NORMAL2-IM-0096-0001.jpeg")
    ]
    assert found.unreadable == ()
    for interval in found.shortcuts.values():
        assert interval.value is not None
        assert 0.8 < interval.value < 0.98, "the public images have shortcuts, and no control sees a lung"
        assert interval.n == 5856
    assert seconds < 150, "about 30 s on two idle cores"


@pytest.mark.real_data
def test_the_share_of_siblings_is_what_a_split_by_image_does(
    real_images: Path, public: tuple[DatasetAudit, float]
) -> None:
    manifest = load_manifest(real_images)
    images = manifest.split("train")
    random = np.random.default_rng(0)
    patients = np.unique([image.patient for image in images], return_inverse=True)[1]
    shares = []
    for _ in range(200):
        drawn = np.zeros(len(images), dtype=bool)
        for label, count in (("NORMAL", 201), ("PNEUMONIA", 581)):
            ours = np.flatnonzero([image.label == label for image in images])
            drawn[random.choice(ours, count, replace=False)] = True
        shares.append(np.isin(patients[drawn], patients[~drawn]).mean())
    assert public[0].siblings_across_validation == pytest.approx(np.mean(shares), abs=0.005)


def test_what_gives_the_answer_away_is_a_finding_the_surest_first():
    def interval(value, low, high):
        return Interval(value, low, high, "delong", 40)

    shortcuts = {
        "metadata": interval(0.8, 0.6, 0.9),
        "border": interval(0.978, 0.9, 0.995),
        "centre_blanked": interval(0.55, 0.5, 0.7),
    }
    found = list(module._giveaways(shortcuts))
    assert [line.split(":")[1].split(" alone")[0].strip() for line in found] == [
        CONTROLS["border"],
        CONTROLS["metadata"],
    ]
    assert "alone give an AUROC of 0.978 (0.900 to 0.995)" in found[0]
    undefined = {name: Interval(None, None, None, "delong", 4, reason="too few") for name in shortcuts}
    assert not list(module._giveaways(undefined))


def test_the_folder_is_named_and_where_it_lies_is_not(faulty: Path) -> None:
    found = check_data(load_manifest(faulty))
    assert found.data == "images"
    assert str(faulty.parent) not in to_json(found)
