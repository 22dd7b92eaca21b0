"""Splits: no image is lost, no patient is in two splits, and a seed gives the same split everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pneumoscope.core.errors import DatasetError, UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LABELS, LabeledImage, Manifest, identical_images
from pneumoscope.data.patients import parse_patient
from pneumoscope.data.split import expected_leak_rate, split_manifest

Make = Callable[[Iterable[tuple[str, str, str]]], Manifest]
# Hashes of the splits in `test_split_of_a_seed_never_changes`.
EXPECTED = {"patient": "65ddaf69301ce17b", "block": "563f41715f32c9b7", "image": "4468613e4c015aa2"}
SERIES = {"NORMAL": ("IM", "NORMAL2-IM"), "PNEUMONIA": ("bacteria", "virus")}


@st.composite
def manifests(draw: st.DrawFn, *, test: bool | None = None) -> Manifest:
    """Patients of one to five images in four series, some of them in a test split."""
    has_test = draw(st.booleans()) if test is None else test
    images = []
    for label, series in SERIES.items():
        for name in series:
            numbers = draw(st.lists(st.integers(1, 10_000), min_size=8, max_size=40, unique=True))
            sizes = draw(st.lists(st.integers(1, 5), min_size=len(numbers), max_size=len(numbers)))
            for position, (number, size) in enumerate(zip(numbers, sizes, strict=True)):
                where = "test" if has_test and position % 5 == 0 else "train" if has_test else ""
                for image in range(size):
                    path = f"{where or 'all'}/{label}/{name}-{number}-{image}.png"
                    images.append(
                        LabeledImage(
                            path, label, "", f"{name}-{number}", where, hashlib.sha256(path.encode()).hexdigest()
                        )
                    )
    return Manifest(tuple(images), Path("images"))


def _divided(manifest: Manifest, **options: object) -> Manifest:
    try:
        return split_manifest(manifest, **options)  # type: ignore[arg-type]
    except DatasetError:
        assume(False)
        raise


def _where(manifest: Manifest) -> dict[str, str]:
    return {image.path: image.split for image in manifest}


@settings(max_examples=30, deadline=None)
@given(manifests(), st.sampled_from(["patient", "block", "image"]), st.integers(0, 5))
def test_split_changes_nothing_but_the_split(manifest: Manifest, by: str, seed: int) -> None:
    divided = _divided(manifest, by=by, seed=seed)
    assert [dataclasses.replace(image, split="") for image in divided] == [
        dataclasses.replace(image, split="") for image in manifest
    ]
    assert divided.split_by == by
    assert {image.split for image in divided} == {"train", "validation", "test"}
    for before, after in zip(manifest, divided, strict=True):
        if before.split == "test":
            assert after.split == "test"
        elif before.split == "train":
            assert after.split != "test"


@settings(max_examples=30, deadline=None)
@given(manifests(), st.sampled_from(["patient", "block"]), st.integers(0, 5))
def test_split_keeps_patients_together(manifest: Manifest, by: str, seed: int) -> None:
    assert _divided(manifest, by=by, seed=seed).leaks() == {}


@settings(max_examples=20, deadline=None)
@given(manifests(), st.sampled_from(["patient", "block", "image"]), st.randoms())
def test_split_is_independent_of_the_order_of_the_images(manifest: Manifest, by: str, shuffler: random.Random) -> None:
    images = list(manifest.images)
    shuffler.shuffle(images)
    assert _where(_divided(manifest, by=by)) == _where(_divided(Manifest(tuple(images), manifest.root), by=by))


@settings(max_examples=20, deadline=None)
@given(manifests(), st.sampled_from(["patient", "block", "image"]))
def test_split_is_idempotent(manifest: Manifest, by: str) -> None:
    once = _divided(manifest, by=by)
    assert _where(split_manifest(once, by=by)) == _where(once)


@settings(max_examples=30, deadline=None)
@given(manifests(test=True), st.floats(0.05, 0.5))
def test_fractions_are_exact_by_image_and_approximate_by_patient(manifest: Manifest, fraction: float) -> None:
    pooled = Counter(image.label for image in manifest.split("train"))
    by_image = _divided(manifest, by="image", validation=fraction)
    assert abs(len(by_image.split("validation")) - fraction * pooled.total()) <= 0.5
    by_patient = _divided(manifest, by="patient", validation=fraction)
    for label in LABELS:
        for divided, tolerance in ((by_image, 1.0), (by_patient, 3.5)):
            drawn = sum(image.label == label for image in divided.split("validation"))
            assert abs(drawn - fraction * pooled[label]) <= tolerance


@settings(max_examples=30, deadline=None)
@given(manifests(test=True), st.integers(0, 5))
def test_block_is_contiguous_in_each_series(manifest: Manifest, seed: int) -> None:
    divided = _divided(manifest, by="block", seed=seed)
    numbers: dict[str, dict[int, str]] = defaultdict(dict)
    for image in divided:
        found = parse_patient(image.patient)
        assert found is not None
        if image.split != "test":
            numbers[found[0]][found[1]] = image.split
    for series in numbers.values():
        ordered = [series[number] for number in sorted(series)]
        assert sum(a != b for a, b in pairwise(ordered)) <= 2
        assert ordered.count("validation") < len(ordered)


def test_split_by_image_takes_the_first_images_by_hash(make_manifest: Make) -> None:
    names = [f"{label}/{number}.png" for label in LABELS for number in range(40)]
    manifest = make_manifest(
        [(f"train/{name}", "", "train") for name in names] + [(f"test/{label}/t.png", "", "test") for label in LABELS]
    )
    divided = split_manifest(manifest, by="image", validation=0.1, seed=7)
    expected = set()
    for label in LABELS:
        candidates = [name for name in names if name.startswith(label)]
        # Both labels have a 0.png, so the key is the whole path.
        candidates.sort(key=lambda name: hashlib.sha256(f"7\nvalidation\ntrain/{name}".encode()).digest())
        expected |= {f"train/{name}" for name in candidates[:4]}
    assert {image.path for image in divided.split("validation")} == expected


def test_moved_images_have_the_same_split(make_manifest: Make) -> None:
    rows = [(f"{label}/{label}{number}.png", f"P{label}{number // 2}", "") for label in LABELS for number in range(40)]
    for by in ("patient", "image"):
        here = split_manifest(make_manifest(rows), by=by)
        there = split_manifest(
            make_manifest([(f"/elsewhere/{path}", patient, where) for path, patient, where in rows]), by=by
        )
        assert [image.split for image in here] == [image.split for image in there]


def test_split_of_a_seed_never_changes(make_manifest: Make) -> None:
    manifest = make_manifest(
        (f"{label}/{SERIES[label][number % 2]}-{number}-{image}.png", f"{SERIES[label][number % 2]}-{number}", "")
        for label in LABELS
        for number in range(50)
        for image in range(1 + number % 3)
    )
    found = {by: split_manifest(manifest, by=by, seed=0).sha256()[:16] for by in ("patient", "block", "image")}
    assert found == EXPECTED, "published results depend on this split"
    assert split_manifest(manifest, seed=1).sha256() != split_manifest(manifest, seed=0).sha256()


def _with_copies(manifest: Manifest, every: int) -> Manifest:
    """Return the manifest with every n-th image byte-identical to the next one of its label in another unit."""
    images = list(manifest.images)
    for label in LABELS:
        positions = [i for i, image in enumerate(images) if image.label == label][::every]
        for a, b in zip(positions[::2], positions[1::2], strict=False):
            images[b] = dataclasses.replace(images[b], sha256=images[a].sha256)
    return dataclasses.replace(manifest, images=tuple(images))


@settings(max_examples=40, deadline=None)
@given(manifests(), st.sampled_from(["patient", "block", "image"]), st.integers(0, 5), st.integers(2, 9))
def test_split_keeps_identical_images_on_one_side(manifest: Manifest, by: str, seed: int, every: int) -> None:
    if by == "image":
        manifest = dataclasses.replace(
            manifest, images=tuple(dataclasses.replace(image, patient="") for image in manifest)
        )
    divided = _divided(_with_copies(manifest, every), by=by, seed=seed)
    for group in identical_images(divided):
        assert len({image.split for image in group} - {"unused"}) <= 1
    if by != "image":
        assert divided.leaks() == {}


def test_patients_with_identical_images_stay_together(make_manifest: Make) -> None:
    rows = [(f"{label}/{n}.png", f"{label}-{n}", "") for label in LABELS for n in range(100)]
    images = make_manifest(rows).images
    # The last 50 patients of each label have the images of the first 50 again.
    copies = [
        dataclasses.replace(image, sha256=images[index - 50].sha256) if index % 100 >= 50 else image
        for index, image in enumerate(images)
    ]
    for by in ("patient", "block", "image"):
        divided = split_manifest(Manifest(tuple(copies), Path()), by=by)
        assert all(len({image.split for image in group}) == 1 for group in identical_images(divided))
        for counts in divided.counts().values():
            assert all(count >= 10 for count in counts.values())


def test_split_by_image_divides_identical_images_of_one_patient(make_manifest: Make) -> None:
    rows = [(f"{label}/{n}.png", f"{label}-{n // 2}", "") for label in LABELS for n in range(100)]
    images = make_manifest(rows).images
    copies = [dataclasses.replace(image, sha256=images[index - index % 2].sha256) for index, image in enumerate(images)]
    before = split_manifest(Manifest(images, Path()), by="image")
    after = split_manifest(Manifest(tuple(copies), Path()), by="image")
    assert _where(after) == _where(before)  # published results depend on this
    assert any(len({image.split for image in group}) > 1 for group in identical_images(after))


@pytest.mark.parametrize("by", ["patient", "image"])
def test_copies_of_test_images_are_set_aside(make_manifest: Make, by: str) -> None:
    rows = [(f"train/{label}/{n}.png", f"{label}-{n}", "train") for label in LABELS for n in range(20)]
    rows += [(f"test/{label}/t.png", f"{label}-t", "test") for label in LABELS]
    manifest = make_manifest(rows)
    images = [dataclasses.replace(manifest.images[0], sha256=manifest.split("test")[0].sha256), *manifest.images[1:]]
    divided = split_manifest(Manifest(tuple(images), Path()), by=by)
    assert [image.path for image in divided.split("unused")] == ["train/NORMAL/0.png"]
    assert "set aside 1 image byte-identical to a test image" in divided.notes


def test_identical_images_with_different_labels_are_an_error(make_manifest: Make) -> None:
    manifest = make_manifest((f"{label}/{n}.png", "", "") for label in LABELS for n in range(20))
    images = [*manifest.images[:-1], dataclasses.replace(manifest.images[-1], sha256=manifest.images[0].sha256)]
    with pytest.raises(
        DatasetError,
        match=r"'NORMAL/0.png' is NORMAL and 'PNEUMONIA/19.png' is PNEUMONIA, but the images are byte-identical",
    ):
        split_manifest(Manifest(tuple(images), Path()))


def test_missing_test_split_is_drawn(make_manifest: Make) -> None:
    manifest = make_manifest((f"{label}/{label}{n}.png", f"{label}-{n}", "") for label in LABELS for n in range(100))
    assert split_manifest(manifest).counts() == {
        "train": {"NORMAL": 72, "PNEUMONIA": 72},
        "validation": {"NORMAL": 13, "PNEUMONIA": 13},  # 0.15 of 170 is 25.5
        "test": {"NORMAL": 15, "PNEUMONIA": 15},
    }
    assert len(split_manifest(manifest, test=0.3).split("test")) == 60


def test_few_given_validation_images_are_set_aside_and_many_are_pooled(make_manifest: Make) -> None:
    rows = [(f"{label}/{label}{n}.png", f"{label}-{n}", "train") for label in LABELS for n in range(200)]
    rows += [(f"test/{label}.png", f"T{label}-1", "test") for label in LABELS]
    few = [(f"val/{label}.png", f"V{label}-1", "validation") for label in LABELS]
    many = [(f"val/{label}{n}.png", f"V{label}-{n}", "validation") for label in LABELS for n in range(10)]
    for by in ("patient", "block", "image"):
        divided = split_manifest(make_manifest(rows + few), by=by)
        assert [image.path for image in divided.split("unused")] == ["val/NORMAL.png", "val/PNEUMONIA.png"]
        assert divided.notes == ("set aside 2 given validation images: too few to choose anything on",)
        assert len(divided.split("validation")) == 60
        divided = split_manifest(make_manifest(rows + many), by=by)
        assert divided.split("unused") == ()
        assert len(divided.split("validation")) == 63  # 0.15 of 420


def test_images_of_test_patients_are_set_aside_unless_split_by_image(make_manifest: Make) -> None:
    rows = [(f"{label}/{label}{n}.png", f"{label}-{n}", "train") for label in LABELS for n in range(40)]
    rows += [(f"test/{label}.png", f"{label}-{n}", "test") for n, label in enumerate(LABELS)]
    manifest = make_manifest(rows)
    for by in ("patient", "block"):
        divided = split_manifest(manifest, by=by)
        assert {image.path for image in divided.split("unused")} == {"NORMAL/NORMAL0.png", "PNEUMONIA/PNEUMONIA1.png"}
        assert divided.notes == ("set aside 2 images of 2 patients also in the test split",)
        assert divided.leaks() == {}
    assert split_manifest(manifest, by="image").split("unused") == ()


def test_images_of_unknown_patients_are_split_as_single_patients(make_manifest: Make) -> None:
    manifest = make_manifest((f"{label}/{label}{n}.png", "", "") for label in LABELS for n in range(40))
    divided = split_manifest(manifest, by="patient")
    assert divided.notes == ("split 80 images without a known patient as if each were a patient",)
    assert len(divided.split("test")) == 12
    assert split_manifest(manifest, by="image").notes == ()


def test_patient_with_both_labels_is_kept_together(make_manifest: Make) -> None:
    rows = [(f"{label}/{label}{n}.png", f"P-{n}", "") for label in LABELS for n in range(60)]
    divided = split_manifest(make_manifest(rows), by="patient")
    assert divided.leaks() == {}
    assert divided.counts()["test"] == {"NORMAL": 9, "PNEUMONIA": 9}


def test_equal_file_names_in_different_folders_are_drawn_separately(make_manifest: Make) -> None:
    """Images called 001.png in one folder per patient must not share one key."""
    manifest = make_manifest((f"{label}/{n}/001.png", "", "") for label in LABELS for n in range(100))
    drawn = sorted(int(image.path.split("/")[1]) for image in split_manifest(manifest, by="image").split("test"))
    assert drawn != sorted([*range(15), *range(15)])
    assert len({number // 20 for number in drawn}) == 5


def test_unknown_method_is_an_error(make_manifest: Make) -> None:
    with pytest.raises(UsageError, match=r"unknown split method 'hospital'\. Choose one of: patient, block, image"):
        split_manifest(make_manifest([]), by="hospital")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_fraction_outside_0_to_1_is_an_error(make_manifest: Make, fraction: float) -> None:
    with pytest.raises(UsageError, match=f"validation is {fraction}; it must be a fraction between 0 and 1"):
        split_manifest(make_manifest([]), validation=fraction)
    with pytest.raises(UsageError, match=f"test is {fraction}; it must be a fraction between 0 and 1"):
        split_manifest(make_manifest([]), test=fraction)


def test_second_test_split_is_an_error(make_manifest: Make) -> None:
    with pytest.raises(UsageError, match=r"cannot draw a test split of 0.2: the data already has one \(1 image\)"):
        split_manifest(make_manifest([("test/NORMAL/a.png", "", "test")]), test=0.2)


@pytest.mark.parametrize("patient", ["", "anna"])
def test_block_split_of_patients_without_numbers_is_an_error(make_manifest: Make, patient: str) -> None:
    with pytest.raises(
        DatasetError, match=f"a block split needs patients with numbers; 'NORMAL/a.png' has the patient '{patient}'"
    ):
        split_manifest(make_manifest([("NORMAL/a.png", patient, "")]), by="block")


def test_split_with_one_label_is_an_error(make_manifest: Make) -> None:
    rows = [(f"NORMAL/{n}.png", f"P-{n}", "") for n in range(30)]
    with pytest.raises(DatasetError, match=r"30 images of NORMAL, and none of PNEUMONIA\. Add images of PNEUMONIA$"):
        split_manifest(make_manifest(rows))
    rows += [("PNEUMONIA/a.png", "Q-1", "")]
    with pytest.raises(
        DatasetError,
        match=r"the validation split would have 4 NORMAL, 0 PNEUMONIA images; .* Add images of PNEUMONIA, or",
    ):
        split_manifest(make_manifest(rows))


@pytest.mark.real_data
def test_public_data_set(real_images: Path) -> None:
    manifest = load_manifest(real_images)
    for by in ("patient", "block", "image"):
        divided = split_manifest(manifest, by=by)
        assert {name: len(divided.split(name)) for name in ("train", "validation", "test", "unused")} == {
            "train": 4434,
            "validation": 782,
            "test": 624,
            "unused": 16,
        }
        assert divided.counts()["validation"] == {"NORMAL": 201, "PNEUMONIA": 581}
        assert (len(divided.leaks()) == 0) == (by != "image")


# --- leaks of a split by image ---------------------------------------------------------------------------------------


def test_leak_rate_matches_a_calculation_by_hand(make_manifest: Make) -> None:
    """20 normal images of 20 patients, 20 pneumonias of 10 patients; 3 of each 20 are drawn for validation.

    A drawn pneumonia's sibling is among the other 2 drawn of 19 with 2/19, else in training: 3 x 17/19 of 6 images.
    """
    rows = [(f"train/NORMAL/{n}.png", f"IM-{n}", "train") for n in range(20)]
    rows += [(f"train/PNEUMONIA/p{n}.png", f"virus-{n // 2}", "train") for n in range(20)]
    rows += [(f"test/{label}/t.png", f"T{label}-1", "test") for label in LABELS]
    rate, reason = expected_leak_rate(make_manifest(rows))
    assert reason == ""
    assert rate == pytest.approx(17 / 38, abs=1e-12)


@pytest.mark.parametrize("given_test", [True, False])
def test_leak_rate_matches_a_simulation(make_manifest: Make, given_test: bool) -> None:
    """Patients of 1 to 5 images, some with images of both labels, drawn at random many times."""
    generator = np.random.default_rng(1)
    rows = []
    for patient in range(70):
        for image in range(1 + patient % 5):
            label = LABELS[patient % 2 if image < 3 else 1]
            rows.append((f"{label}/{patient}-{image}.png", f"P-{patient}", "train" if given_test else ""))
    if given_test:
        rows += [(f"test/{label}/t.png", f"T{label}-1", "test") for label in LABELS]
    expected, _ = expected_leak_rate(make_manifest(rows))
    pool = [row for row in rows if row[2] != "test"]
    labels = np.array(["PNEUMONIA" in path for path, _, _ in pool])
    patients = np.array([int(patient[2:]) for _, patient, _ in pool])
    rates = []
    for _ in range(3000):
        splits = np.full(len(pool), "train", dtype="U10")
        for label in (False, True):
            shuffled = generator.permutation(np.flatnonzero(labels == label))
            drawn = _drawn(len(shuffled), labels, label, given_test)
            splits[shuffled[: drawn[0]]] = "test"
            splits[shuffled[drawn[0] : drawn[0] + drawn[1]]] = "validation"
        trained = np.bincount(patients[splits == "train"], minlength=70) > 0
        rates.append(trained[patients[splits == "validation"]].mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert expected == pytest.approx(np.mean(rates), abs=4 * error)
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


def test_leak_rate_is_0_for_single_images_and_1_for_one_patient_per_label(make_manifest: Make) -> None:
    tests = [(f"test/{label}/t.png", f"T{label}-1", "test") for label in LABELS]
    alone = [(f"{label}/{n}.png", f"{label}-{n}", "train") for label in LABELS for n in range(30)]
    assert expected_leak_rate(make_manifest(alone + tests)) == (0.0, "")
    one = [(f"{label}/{n}.png", f"{label}-0", "train") for label in LABELS for n in range(30)]
    assert expected_leak_rate(make_manifest(one + tests)) == (1.0, "")


def test_leak_rate_of_one_label_is_undefined(make_manifest: Make) -> None:
    manifest = make_manifest((f"NORMAL/{n}.png", f"P-{n}", "train") for n in range(9))
    rate, reason = expected_leak_rate(manifest)
    assert rate is None
    assert reason == "9 images of NORMAL, and none of PNEUMONIA"


@pytest.mark.real_data
def test_leak_rate_of_the_public_images_matches_a_simulation(real_images: Path) -> None:
    manifest = load_manifest(real_images)
    images = manifest.split("train")
    generator = np.random.default_rng(0)
    patients = np.unique([image.patient for image in images], return_inverse=True)[1]
    rates = []
    for _ in range(200):
        drawn = np.zeros(len(images), dtype=bool)
        for label, count in (("NORMAL", 201), ("PNEUMONIA", 581)):
            candidates = np.flatnonzero([image.label == label for image in images])
            drawn[generator.choice(candidates, count, replace=False)] = True
        rates.append(np.isin(patients[drawn], patients[~drawn]).mean())
    assert expected_leak_rate(manifest)[0] == pytest.approx(np.mean(rates), abs=0.005)


def test_split_of_several_classes_keeps_their_proportions_and_patients_together() -> None:
    classes = ("normal", "virus", "bacteria")
    images = [
        LabeledImage(f"{label}-{patient}-{n}.png", label, "", f"{label}-{patient}", "", "")
        for label, patients in zip(classes, (40, 20, 20), strict=True)
        for patient in range(patients)
        for n in range(2)
    ]
    result = split_manifest(Manifest(tuple(images), Path(), classes=classes), validation=1 / 3, test=0.25)
    assert result.classes == classes
    assert result.leaks() == {}
    counts = result.counts()
    assert counts["test"] == {"normal": 20, "virus": 10, "bacteria": 10}
    assert counts["validation"] == {"normal": 20, "virus": 10, "bacteria": 10}
    only = tuple(image for image in images if image.label != "virus")
    with pytest.raises(DatasetError, match="120 images of bacteria and normal, and none of virus"):
        split_manifest(Manifest(only, Path(), classes=classes))
