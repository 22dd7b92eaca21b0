"""The laws of splitting: nothing is lost, no patient is in two places, the same seed gives the same split anywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pneumoscope.core.errors import DatasetError, UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LABELS, LabelledImage, Manifest
from pneumoscope.data.patients import series_and_number
from pneumoscope.data.split import split

Make = Callable[[Iterable[tuple[str, str, str]]], Manifest]
# Of the synthetic manifest in `test_the_split_of_a_seed_never_changes`, as first released.
GOLDEN = {"patient": "65ddaf69301ce17b", "block": "563f41715f32c9b7", "image": "4468613e4c015aa2"}
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
            for place, (number, size) in enumerate(zip(numbers, sizes, strict=True)):
                where = "test" if has_test and place % 5 == 0 else "train" if has_test else ""
                for image in range(size):
                    path = f"{where or 'all'}/{label}/{name}-{number}-{image}.png"
                    images.append(
                        LabelledImage(
                            path, label, "", f"{name}-{number}", where, hashlib.sha256(path.encode()).hexdigest()
                        )
                    )
    return Manifest(tuple(images), Path("images"))


def _divided(manifest: Manifest, **options: object) -> Manifest:
    try:
        return split(manifest, **options)  # type: ignore[arg-type]
    except DatasetError:
        assume(False)
        raise


def _where(manifest: Manifest) -> dict[str, str]:
    return {image.path: image.split for image in manifest}


@settings(max_examples=30, deadline=None)
@given(manifests(), st.sampled_from(["patient", "block", "image"]), st.integers(0, 5))
def test_every_image_keeps_everything_but_its_split(manifest: Manifest, by: str, seed: int) -> None:
    divided = _divided(manifest, by=by, seed=seed)
    assert [dataclasses.replace(image, split="") for image in divided] == [
        dataclasses.replace(image, split="") for image in manifest
    ]
    assert divided.by == by
    assert {image.split for image in divided} == {"train", "validation", "test"}
    for before, after in zip(manifest, divided, strict=True):
        if before.split == "test":
            assert after.split == "test"
        elif before.split == "train":
            assert after.split != "test"


@settings(max_examples=30, deadline=None)
@given(manifests(), st.sampled_from(["patient", "block"]), st.integers(0, 5))
def test_no_patient_is_in_two_splits(manifest: Manifest, by: str, seed: int) -> None:
    assert _divided(manifest, by=by, seed=seed).leaks() == {}


@settings(max_examples=20, deadline=None)
@given(manifests(), st.sampled_from(["patient", "block", "image"]), st.randoms())
def test_the_order_of_the_images_does_not_matter(manifest: Manifest, by: str, shuffler: random.Random) -> None:
    images = list(manifest.images)
    shuffler.shuffle(images)
    assert _where(_divided(manifest, by=by)) == _where(_divided(Manifest(tuple(images), manifest.root), by=by))


@settings(max_examples=20, deadline=None)
@given(manifests(), st.sampled_from(["patient", "block", "image"]))
def test_dividing_again_changes_nothing(manifest: Manifest, by: str) -> None:
    once = _divided(manifest, by=by)
    assert _where(split(once, by=by)) == _where(once)


@settings(max_examples=30, deadline=None)
@given(manifests(test=True), st.floats(0.05, 0.5))
def test_shares_by_image_are_exact_and_by_patient_near(manifest: Manifest, share: float) -> None:
    pooled = Counter(image.label for image in manifest.split("train"))
    by_image = _divided(manifest, by="image", validation=share)
    assert abs(len(by_image.split("validation")) - share * pooled.total()) <= 0.5
    by_patient = _divided(manifest, by="patient", validation=share)
    for label in LABELS:
        for divided, most in ((by_image, 1.0), (by_patient, 3.5)):
            drawn = sum(image.label == label for image in divided.split("validation"))
            assert abs(drawn - share * pooled[label]) <= most


@settings(max_examples=30, deadline=None)
@given(manifests(test=True), st.integers(0, 5))
def test_a_block_is_contiguous_in_each_series(manifest: Manifest, seed: int) -> None:
    divided = _divided(manifest, by="block", seed=seed)
    numbers: dict[str, dict[int, str]] = defaultdict(dict)
    for image in divided:
        found = series_and_number(image.patient)
        assert found is not None
        if image.split != "test":
            numbers[found[0]][found[1]] = image.split
    for series in numbers.values():
        ordered = [series[number] for number in sorted(series)]
        assert sum(a != b for a, b in pairwise(ordered)) <= 2
        assert ordered.count("validation") < len(ordered)


def test_by_image_is_the_order_of_hashes(make_manifest: Make) -> None:
    names = [f"{label}/{number}.png" for label in LABELS for number in range(40)]
    manifest = make_manifest(
        [(f"train/{name}", "", "train") for name in names] + [(f"test/{label}/t.png", "", "test") for label in LABELS]
    )
    divided = split(manifest, by="image", validation=0.1, seed=7)
    expected = set()
    for label in LABELS:
        ours = [name for name in names if name.startswith(label)]
        # Both labels have a 0.png, so the key is the whole path.
        ours.sort(key=lambda name: hashlib.sha256(f"7\nvalidation\ntrain/{name}".encode()).digest())
        expected |= {f"train/{name}" for name in ours[:4]}
    assert {image.path for image in divided.split("validation")} == expected


def test_images_that_were_moved_are_split_the_same_way(make_manifest: Make) -> None:
    rows = [(f"{label}/{label}{number}.png", f"P{label}{number // 2}", "") for label in LABELS for number in range(40)]
    for by in ("patient", "image"):
        here = split(make_manifest(rows), by=by)
        there = split(make_manifest([(f"/elsewhere/{path}", patient, where) for path, patient, where in rows]), by=by)
        assert [image.split for image in here] == [image.split for image in there]


def test_the_split_of_a_seed_never_changes(make_manifest: Make) -> None:
    manifest = make_manifest(
        (f"{label}/{SERIES[label][number % 2]}-{number}-{image}.png", f"{SERIES[label][number % 2]}-{number}", "")
        for label in LABELS
        for number in range(50)
        for image in range(1 + number % 3)
    )
    found = {by: split(manifest, by=by, seed=0).sha256()[:16] for by in ("patient", "block", "image")}
    assert found == GOLDEN, "a released split must not change: someone's results depend on it"
    assert split(manifest, seed=1).sha256() != split(manifest, seed=0).sha256()


def test_without_a_test_split_one_is_drawn(make_manifest: Make) -> None:
    manifest = make_manifest((f"{label}/{label}{n}.png", f"{label}-{n}", "") for label in LABELS for n in range(100))
    assert split(manifest).counts() == {
        "train": {"NORMAL": 72, "PNEUMONIA": 72},
        "validation": {"NORMAL": 13, "PNEUMONIA": 13},  # 0.15 of 170 is 25.5
        "test": {"NORMAL": 15, "PNEUMONIA": 15},
    }
    assert len(split(manifest, test=0.3).split("test")) == 60


def test_a_few_given_validation_images_are_set_aside_and_many_are_pooled(make_manifest: Make) -> None:
    rows = [(f"{label}/{label}{n}.png", f"{label}-{n}", "train") for label in LABELS for n in range(200)]
    rows += [(f"test/{label}.png", f"T{label}-1", "test") for label in LABELS]
    few = [(f"val/{label}.png", f"V{label}-1", "validation") for label in LABELS]
    many = [(f"val/{label}{n}.png", f"V{label}-{n}", "validation") for label in LABELS for n in range(10)]
    for by in ("patient", "block", "image"):
        divided = split(make_manifest(rows + few), by=by)
        assert [image.path for image in divided.split("unused")] == ["val/NORMAL.png", "val/PNEUMONIA.png"]
        assert divided.notes == ("the 2 given validation images are set aside: too few to choose anything on",)
        assert len(divided.split("validation")) == 60
        divided = split(make_manifest(rows + many), by=by)
        assert divided.split("unused") == ()
        assert len(divided.split("validation")) == 63  # 0.15 of 420


def test_images_of_test_patients_are_set_aside_unless_by_image(make_manifest: Make) -> None:
    rows = [(f"{label}/{label}{n}.png", f"{label}-{n}", "train") for label in LABELS for n in range(40)]
    rows += [(f"test/{label}.png", f"{label}-{n}", "test") for n, label in enumerate(LABELS)]
    manifest = make_manifest(rows)
    for by in ("patient", "block"):
        divided = split(manifest, by=by)
        assert {image.path for image in divided.split("unused")} == {"NORMAL/NORMAL0.png", "PNEUMONIA/PNEUMONIA1.png"}
        assert divided.notes == ("2 images of 2 patients who are also in the test split are set aside",)
        assert divided.leaks() == {}
    assert split(manifest, by="image").split("unused") == ()


def test_unknown_patients_are_patients_of_their_own_and_said_so(make_manifest: Make) -> None:
    manifest = make_manifest((f"{label}/{label}{n}.png", "", "") for label in LABELS for n in range(40))
    divided = split(manifest, by="patient")
    assert divided.notes == ("80 images of unknown patients were divided as if each were a patient of its own",)
    assert len(divided.split("test")) == 12
    assert split(manifest, by="image").notes == ()


def test_a_patient_with_both_labels_stays_whole(make_manifest: Make) -> None:
    rows = [(f"{label}/{label}{n}.png", f"P-{n}", "") for label in LABELS for n in range(60)]
    divided = split(make_manifest(rows), by="patient")
    assert divided.leaks() == {}
    assert divided.counts()["test"] == {"NORMAL": 9, "PNEUMONIA": 9}


def test_names_that_are_not_unique_are_not_drawn_together(make_manifest: Make) -> None:
    """Images called 001.png in a folder a patient would otherwise all share one key."""
    manifest = make_manifest((f"{label}/{n}/001.png", "", "") for label in LABELS for n in range(100))
    drawn = sorted(int(image.path.split("/")[1]) for image in split(manifest, by="image").split("test"))
    assert drawn != sorted([*range(15), *range(15)])
    assert len({number // 20 for number in drawn}) == 5


def test_an_unknown_way_is_refused(make_manifest: Make) -> None:
    with pytest.raises(UsageError, match="a split is by patient, block, image, not by 'hospital'"):
        split(make_manifest([]), by="hospital")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(make_manifest: Make, share: float) -> None:
    with pytest.raises(UsageError, match=f"validation is a share between 0 and 1, not {share}"):
        split(make_manifest([]), validation=share)
    with pytest.raises(UsageError, match=f"test is a share between 0 and 1, not {share}"):
        split(make_manifest([]), test=share)


def test_a_second_test_split_is_refused(make_manifest: Make) -> None:
    with pytest.raises(UsageError, match=r"has a test split of its own \(1 images\); test=0.2 cannot be drawn"):
        split(make_manifest([("test/NORMAL/a.png", "", "test")]), test=0.2)


@pytest.mark.parametrize("patient", ["", "anna"])
def test_a_block_of_patients_without_numbers_is_refused(make_manifest: Make, patient: str) -> None:
    with pytest.raises(
        DatasetError, match=f"a block needs patients with numbers; 'NORMAL/a.png' has the patient '{patient}'"
    ):
        split(make_manifest([("NORMAL/a.png", patient, "")]), by="block")


def test_a_split_of_one_label_is_refused(make_manifest: Make) -> None:
    rows = [(f"NORMAL/{n}.png", f"P-{n}", "") for n in range(30)]
    with pytest.raises(
        DatasetError, match="the train split would hold 21 NORMAL, 0 PNEUMONIA: nothing can be learned there"
    ):
        split(make_manifest(rows))
    rows += [("PNEUMONIA/a.png", "Q-1", "")]
    with pytest.raises(
        DatasetError, match="the validation split would hold 4 NORMAL, 0 PNEUMONIA: nothing can be measured"
    ):
        split(make_manifest(rows))
    with pytest.raises(DatasetError, match="the train split would hold 0 NORMAL, 0 PNEUMONIA"):
        split(make_manifest([]))


@pytest.mark.real_data
def test_the_public_images(real_images: Path) -> None:
    manifest = load_manifest(real_images)
    for by in ("patient", "block", "image"):
        divided = split(manifest, by=by)
        assert {name: len(divided.split(name)) for name in ("train", "validation", "test", "unused")} == {
            "train": 4434,
            "validation": 782,
            "test": 624,
            "unused": 16,
        }
        assert divided.counts()["validation"] == {"NORMAL": 201, "PNEUMONIA": 581}
        assert (len(divided.leaks()) == 0) == (by != "image")
