"""The manifest: CSV form, hash, and patient leaks."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from pneumoscope.core.errors import DatasetError, ManifestError, PatientLeakError, StorageError
from pneumoscope.data.manifest import LabeledImage, Manifest, images_sha256

Make = Callable[[Iterable[tuple[str, str, str]]], Manifest]


def test_csv_round_trip(make_manifest: Make) -> None:
    images = make_manifest(
        [('NORMAL/a, "b".png', "P-1", "train"), ("PNEUMONIA/ü\nx.png", "", ""), ("PNEUMONIA/c.png", "Q-2", "unused")]
    ).images
    manifest = Manifest(images, Path("images"), split_by="block")
    reloaded = Manifest.from_csv(manifest.to_csv(), Path("images"), "images.csv")
    assert reloaded == manifest
    assert reloaded.sha256() == manifest.sha256()
    assert len(manifest) == 3


def test_saved_manifest_is_a_plain_csv(make_manifest: Make) -> None:
    manifest = dataclasses.replace(make_manifest([("NORMAL/a.png", "P-1", "train")]), split_by="block")
    header, row = csv.reader(manifest.to_csv().splitlines())
    assert header == ["path", "label", "etiology", "patient", "split", "sha256", "split_by"]
    assert (row[0], row[-1]) == ("NORMAL/a.png", "block")


def test_rows_of_several_manifests_have_no_common_split() -> None:
    text = "path,label,split_by\na.png,normal,image\nb.png,normal,patient\n"
    assert Manifest.from_csv(text, Path("images"), "m.csv").split_by == "given"


def test_hash_depends_on_every_column_but_not_on_the_root() -> None:
    image = LabeledImage("a.png", "NORMAL", "normal", "P-1", "train", "0" * 64)
    same = Manifest((image,), Path("here"))
    assert same.sha256() == Manifest((image,), Path("there"), split_by="image").sha256()
    others = [
        LabeledImage("b.png", "NORMAL", "normal", "P-1", "train", "0" * 64),
        LabeledImage("a.png", "NORMAL", "normal", "P-1", "test", "0" * 64),
        LabeledImage("a.png", "NORMAL", "normal", "P-2", "train", "0" * 64),
        LabeledImage("a.png", "NORMAL", "normal", "P-1", "train", "1" * 64),
    ]
    assert len({same.sha256(), *(Manifest((other,), Path("here")).sha256() for other in others)}) == 5


def test_hash_of_a_set_of_images_is_independent_of_their_order() -> None:
    assert images_sha256(["b", "a"]) == images_sha256(("a", "b")) == hashlib.sha256(b"a\nb").hexdigest()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"m.csv has no column 'path' \(its columns: none\)"),
        ("path,class\na,b\n", r"m.csv has no column 'label' \(its columns: path, class\)"),
        ("path,label\n", "m.csv has a header and no rows"),
        ("path,label\na.png,1\nb.png\n", "m.csv, line 3: the label is empty"),
        ("# split by patient\npath,label\na.png,1\n", "m.csv has no column 'path'"),
        (
            "path,label,split\na.png,normal,dev\n",
            "m.csv, line 2: split is 'dev', not one of train, validation, test, unused",
        ),
        (
            "path,label,etiology\na.png,normal,flu\n",
            "m.csv, line 2: etiology is 'flu', not one of normal, bacteria, virus",
        ),
        ("path,label\n ,normal\n", "m.csv, line 2: ' ' is not a valid path"),
        ("path,label\na\0b,normal\n", r"m.csv, line 2: 'a\\x00b' is not a valid path"),
        ("path,label\na.png,normal\nb.png,normal\na.png,normal\n", "m.csv, line 2: 'a.png' is listed 2 times"),
        (
            "path,label\na.png,normal\nb.png,normal\na.png,pneumonia\n",
            "m.csv: 'a.png' is NORMAL in line 2 and PNEUMONIA in line 4. Keep the line with the correct label",
        ),
        (
            'path,label\n"a.png' + "x" * 140_000 + '",normal\n',
            r"m.csv, after line 1: field larger than field limit \(131072\)",
        ),
    ],
)
def test_malformed_csv_is_rejected(text: str, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        Manifest.from_csv(text, Path("images"), "m.csv")


@pytest.mark.parametrize(
    "column", ["patient", "patient_id", "PatientID", "Patient ID", "patientId", "subject_id", "Subject"]
)
def test_known_columns_identify_patients(column: str) -> None:
    text = f"path,label,{column}\na.png,normal,A\nb.png,normal,\n"
    manifest = Manifest.from_csv(text, Path("images"), "m.csv")
    assert [image.patient for image in manifest] == ["A", ""]
    assert manifest.notes == (() if column == "patient" else (f"the patients are those of the column {column!r}",))


def test_empty_patient_column_is_replaced_by_another_one() -> None:
    text = "path,label,patient,patient_id\na.png,normal,,A\n"
    assert Manifest.from_csv(text, Path("images"), "m.csv").images[0].patient == "A"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,label,patient_code\na.png,normal,A\n", "m.csv has a column 'patient_code' and no column patient"),
        ("path,label,PID\na.png,normal,A\n", "m.csv has a column 'PID' and no column patient"),
        ("path,label,MRN\na.png,normal,7\n", "m.csv has a column 'MRN' and no column patient"),
        (
            "path,label,patient,subject_id\na.png,normal,A,A\nb.png,normal,A,B\n",
            "in line 3 'patient' is 'A' and 'subject_id' is 'B'. Choose one with --patient-column patient, or remove one",
        ),
    ],
)
def test_unusable_patient_column_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        Manifest.from_csv(text, Path("images"), "m.csv")


@pytest.mark.parametrize("columns", ["patient_age,patient_sex", "Patient Age,Patient Gender", "subjective,note"])
def test_properties_of_patients_are_ignored(columns: str) -> None:
    manifest = Manifest.from_csv(f"path,label,{columns}\na.png,normal,3,F\n", Path("images"), "m.csv")
    assert manifest.images[0].patient == ""
    assert manifest.notes == ()


def test_identical_images_in_two_splits_or_with_two_labels_are_an_error() -> None:
    a = LabeledImage("a.png", "NORMAL", "", "P-1", "train", "0" * 64)
    b = LabeledImage("b.png", "NORMAL", "", "P-1", "validation", "0" * 64)
    unused = dataclasses.replace(b, split="unused", label="PNEUMONIA")
    Manifest((a, unused), Path()).check_identical_images("m.csv")
    for pair in ((a, b), (a, dataclasses.replace(b, split="test"))):
        message = rf"'a.png' in train and 'b.png' in {pair[1].split} are byte-identical \(1 such group in total, manifest m.csv"
        with pytest.raises(ManifestError, match=message):
            Manifest(pair, Path()).check_identical_images("m.csv")
    with pytest.raises(
        DatasetError, match=r"'a.png' is NORMAL and 'b.png' is PNEUMONIA, but the images are byte-identical"
    ):
        Manifest((a, dataclasses.replace(b, split="train", label="PNEUMONIA")), Path()).check_identical_images("m.csv")


def test_split_by_image_may_divide_identical_images_of_one_patient_but_not_of_the_test_split() -> None:
    a = LabeledImage("a.png", "NORMAL", "", "P-1", "train", "0" * 64)
    b = dataclasses.replace(a, path="b.png", split="validation")
    Manifest((a, b), Path()).check_identical_images("m.csv", by_image=True)
    for other in (dataclasses.replace(b, split="test"), dataclasses.replace(b, patient="P-2")):
        with pytest.raises(ManifestError, match="are byte-identical"):
            Manifest((a, other), Path()).check_identical_images("m.csv", by_image=True)


def test_patient_in_two_splits_is_an_error(make_manifest: Make) -> None:
    manifest = make_manifest(
        [
            ("NORMAL/a.png", "P-1", "train"),
            ("NORMAL/b.png", "P-1", "test"),
            ("NORMAL/c.png", "P-2", "unused"),
            ("NORMAL/d.png", "P-2", "test"),
            ("NORMAL/e.png", "", "train"),
            ("NORMAL/f.png", "", "test"),
        ]
    )
    assert manifest.leaks() == {"P-1": ["test", "train"]}
    with pytest.raises(
        PatientLeakError, match=r"'P-1' is in both test and train \(1 patient in total, manifest m.csv\)"
    ):
        manifest.check_patient_leaks("m.csv")
    Manifest(manifest.images[1:], Path("images")).check_patient_leaks("m.csv")


def _classes_of(*labels: str) -> tuple[str, ...]:
    text = "path,label\n" + "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    return Manifest.from_csv(text, Path("images"), "m.csv").classes


def test_labels_of_pneumonia_in_any_case_are_binary() -> None:
    manifest = Manifest.from_csv("path,label\na.png,Pneumonia\nb.png,normal\n", Path("images"), "m.csv")
    assert manifest.binary
    assert [(image.label, image.positive, manifest.target(image)) for image in manifest] == [
        ("PNEUMONIA", True, 1),
        ("NORMAL", False, 0),
    ]
    assert Manifest.from_csv("path,label\na.png,normal\n", Path("images"), "m.csv").binary
    manifest.check_binary("training")


def test_other_labels_are_classes_as_they_are_written() -> None:
    manifest = Manifest.from_csv("path,label\na.png,TB\nb.png,Normal\nc.png,covid\n", Path("images"), "m.csv")
    assert manifest.classes == ("Normal", "TB", "covid")
    assert [manifest.target(image) for image in manifest] == [1, 0, 2]
    assert manifest.counts() == {"": {"Normal": 1, "TB": 1, "covid": 1}}
    with pytest.raises(
        DatasetError, match=r"training needs images of NORMAL and PNEUMONIA; the classes are Normal, TB, covid"
    ) as raised:
        manifest.check_binary("training", hint="More.")
    assert raised.value.hint.startswith("Choose the class")
    assert raised.value.hint.endswith(". More.")


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        (("NORMAL", "PNEUMONA"), "Did you mean PNEUMONIA? Correct the labels, or give --map PNEUMONA=PNEUMONIA"),
        (
            ("NORMAL", "PNEUMONIA", "PNEUMONA"),
            "Did you mean PNEUMONIA? Correct the labels, or give --map PNEUMONA=PNEUMONIA",
        ),
        (
            ("norml", "pneumona"),
            "Did you mean NORMAL and PNEUMONIA? Correct the labels, or give --map norml=NORMAL --map pneumona=PNEUMONIA",
        ),
        (("NORML", "NORMLA"), ""),
        (("NORMAL", "abnormal", "PNEUMONIA"), ""),
        (("NORMAL", "no pneumonia", "PNEUMONIA"), ""),
        (("NORMAL", "PNEUMONA", "TB"), ""),
    ],
)
def test_misspelled_labels_of_pneumonia_are_named(labels: tuple[str, ...], hint: str) -> None:
    rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    manifest = Manifest.from_csv(f"path,label\n{rows}", Path("images"), "m.csv")
    with pytest.raises(DatasetError) as raised:
        manifest.check_binary("an evaluation", hint="More.")
    assert raised.value.hint == (hint or raised.value.hint)
    assert raised.value.hint.startswith("Did you mean") is bool(hint)


def test_saved_manifest_keeps_the_order_of_the_classes_and_those_without_images(tmp_path: Path) -> None:
    image = LabeledImage("a.png", "virus", "virus", "P-1", "train", "0" * 64)
    manifest = Manifest((image,), tmp_path, "patient", classes=("normal", "virus", "bacteria"))
    manifest.save(tmp_path / "m.csv")
    text = (tmp_path / "m.csv").read_text()
    assert text.splitlines()[0].endswith(",split_by,classes")
    assert Manifest.from_csv(text, tmp_path, "m.csv") == manifest
    assert manifest.sha256() != dataclasses.replace(manifest, classes=("normal", "bacteria", "virus")).sha256()
    with pytest.raises(DatasetError, match=r"m.csv: the label 'flu' is not one of the classes normal, virus, bacteria"):
        Manifest.from_csv(text.replace("a.png,virus", "a.png,flu"), tmp_path, "m.csv")


def test_column_classes_of_another_program_is_ignored() -> None:
    text = "path,label,classes\na.png,x,3\nb.png,y,3\n"
    assert Manifest.from_csv(text, Path("images"), "m.csv").classes == ("x", "y")


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (("No Finding", "Pneumonia"), "--map 'No Finding=NORMAL', or --positive Pneumonia"),
        (("pneumonia_yes", "pneumonia_no"), "--map pneumonia_no=NORMAL --map pneumonia_yes=PNEUMONIA, or --positive"),
        (("healthy", "PNEUMONIA"), "--map healthy=NORMAL, or --positive PNEUMONIA"),
        (("0", "1"), "--map 0=NORMAL --map 1=PNEUMONIA, or --positive 1"),
        (("yes", "no"), "--map no=NORMAL --map yes=PNEUMONIA, or --positive yes"),
        (("non-pneumonia", "pneumonia"), "--map non-pneumonia=NORMAL, or --positive pneumonia"),
    ],
)
def test_names_like_those_of_the_two_labels_are_an_error_that_names_the_mapping(
    labels: tuple[str, ...], options: str
) -> None:
    with pytest.raises(DatasetError, match="look like NORMAL and PNEUMONIA under other names") as caught:
        _classes_of(*labels)
    assert f"Map them with {options}" in caught.value.hint


@pytest.mark.parametrize(
    "labels", [("bacterial pneumonia", "viral pneumonia"), ("COVID", "normal"), ("0", "1", "2"), ("Pneumonia", "TB")]
)
def test_classes_that_differ_from_the_two_labels_need_no_mapping(labels: tuple[str, ...]) -> None:
    assert _classes_of(*labels) == labels


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (("COVID",), "m.csv has one class only, 'COVID'. Rename it, such as --map COVID=NORMAL"),
        (("no finding",), "m.csv has one class only, 'no finding'. Map them with --map 'no finding=NORMAL'"),
        (
            ("Covid", "COVID", "x"),
            "the classes 'COVID' and 'Covid' differ in case only. Merge them with --map Covid=COVID",
        ),
        (
            ("Mass|Edema", "x"),
            r"the label 'Mass\|Edema' has several classes, .* --positive CLASS; .* --map 'Mass\|Edema=CLASS'",
        ),
        (("Effusion|Pneumonia", "x"), r"'Effusion\|Pneumonia' has several classes, .* --positive Pneumonia;"),
        (tuple(f"P{n}" for n in range(101)), "has 101 different labels, such as 'P0' and 'P1'; the maximum is 100"),
    ],
)
def test_labels_that_cannot_be_classes_are_an_error(labels: tuple[str, ...], reason: str) -> None:
    with pytest.raises(DatasetError, match=reason):
        _classes_of(*labels)


def test_unwritable_file_is_an_error(make_manifest: Make, tmp_path: Path) -> None:
    manifest = make_manifest([("NORMAL/a.png", "P-1", "train")])
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write '.*taken/images.csv'"):
        manifest.save(tmp_path / "taken" / "images.csv")
    assert (tmp_path / "taken").read_text() == "a file"
