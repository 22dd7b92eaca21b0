"""Names of other data sets: columns, labels, classes and patients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.images import dicom

from pneumoscope import LabelMapping, load_dataset
from pneumoscope.core.errors import DatasetError, ManifestError, UnknownNameError, UsageError
from pneumoscope.data.classes import resolve_classes
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import Manifest

Draw = Callable[..., Path]

TABLE = """Image Index,Finding,Patient,age
a.png,No Finding,7,40
b.png,Pneumonia,8,50
c.png,Infiltration|Pneumonia,8,51
d.png,Mass,9,52
"""


def _read(text: str, *, recorded: bool = False, **options: Any) -> Manifest:
    return Manifest.from_csv(text, Path("images"), "t.csv", LabelMapping(**options), recorded=recorded)


@pytest.fixture
def folder(tmp_path: Path, draw_image: Draw) -> Path:
    """Three images of two patients without and with pneumonia, in folders with the names of another hospital."""
    root = tmp_path / "hospital"
    draw_image(root / "No Finding" / "P1_0.png", seed=1)
    draw_image(root / "No Finding" / "P1_1.png", seed=2)
    draw_image(root / "Pneumonia" / "P2_0.png", seed=3)
    return root


def test_an_option_that_names_no_column_is_not_its_own_solution() -> None:
    text = "path,label,sex\na.png,NORMAL,F\n"
    with pytest.raises(ManifestError) as caught:
        _read(text, patient_column="qqq")
    assert str(caught.value) == (
        "t.csv has no column 'qqq' (its columns: path, label, sex). Give --patient-column one of these columns, or leave it out"
        " if none identifies patients"
    )


# --- columns ---------------------------------------------------------------------------------------------------------


def test_columns_of_other_names_are_read() -> None:
    manifest = _read(TABLE, path_column="Image Index", label_column="Finding", positive="Pneumonia")
    assert [(image.path, image.label, image.patient) for image in manifest] == [
        ("a.png", "NORMAL", "7"),
        ("b.png", "PNEUMONIA", "8"),
        ("c.png", "PNEUMONIA", "8"),
        ("d.png", "NORMAL", "9"),
    ]
    assert manifest.path_column == "Image Index"
    assert manifest.notes == (
        "the patients are those of the column 'Patient'",
        "'Pneumonia' counts as PNEUMONIA (2 images), and all other labels count as NORMAL (2 images: 'Mass', 'No Finding')",
    )


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,Label", "t.csv has no column 'label' (its columns: path, Label). Did you mean --label-column Label?"),
        ("path,Finding Labels", "Did you mean --label-column 'Finding Labels'?"),
        ("path,diagnosis", "Did you mean --label-column diagnosis?"),
        ("path,lable", "Did you mean --label-column lable?"),
        (
            "file_name,label",
            "t.csv has no column 'path' (its columns: file_name, label). Did you mean --path-column file_name?",
        ),
        ("Image Index,label", "Did you mean --path-column 'Image Index'?"),
        ("path,zz", "Name the column with --label-column. Required columns: path, label."),
    ],
)
def test_missing_column_is_an_error_that_names_the_option_for_a_similar_one(header: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        _read(f"{header}\na.png,x\n")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"path_column": "Image Index", "label_column": "Findings"},
            "has no column 'Findings' .* Did you mean --label-column Finding?",
        ),
        ({"path_column": "image index"}, "has no column 'image index' .* Did you mean --path-column 'Image Index'"),
        (
            {"path_column": "Image Index", "label_column": "Finding", "patient_column": "patient"},
            "--patient-column Patient",
        ),
    ],
)
def test_misspelt_column_is_an_error_that_names_the_nearest(options: dict[str, str], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        _read(TABLE, **options)


def test_named_patient_column_is_used_instead_of_the_one_with_the_known_name() -> None:
    text = "path,label,patient,mrn\na.png,normal,1,X\nb.png,normal,2,X\n"
    assert [image.patient for image in _read(text, patient_column="mrn")] == ["X", "X"]


def test_error_on_an_unknown_patient_column_names_the_option() -> None:
    with pytest.raises(ManifestError, match="add --patient-column patient_code, or rename it"):
        _read("path,label,patient_code\na.png,normal,A\n")
    assert _read("path,label,patient_code\na.png,normal,A\n", patient_column="patient_code").images[0].patient == "A"
    both = "path,label,patient,subject\na.png,normal,A,B\n"
    with pytest.raises(ManifestError, match="Choose one with --patient-column patient"):
        _read(both)
    assert _read(both, patient_column="subject").images[0].patient == "B"


def test_columns_of_data_other_than_a_csv_file_are_an_error(folder: Path) -> None:
    for option in ("label_column", "path_column", "patient_column"):
        with pytest.raises(
            UsageError, match=rf"--{option.replace('_', '-')} x is given, and .*hospital' is not a CSV file"
        ):
            load_manifest(folder, labels=LabelMapping(**{option: "x"}))


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_are_renamed_before_the_positive_one_is_chosen(folder: Path) -> None:
    binary = load_manifest(folder, labels=LabelMapping(renamed=(("No Finding", "NORMAL"),)))
    assert binary.binary
    assert binary.counts() == {"": {"NORMAL": 2, "PNEUMONIA": 1}}
    assert "the label 'No Finding' is NORMAL (2 images)" in binary.notes
    mapping = LabelMapping(renamed=(("no finding", "clear"), ("Pneumonia", "ill")), positive="ILL")
    assert load_manifest(folder, labels=mapping).counts() == binary.counts()


def test_labels_are_merged_into_classes() -> None:
    text = "path,label\na.png,viral\nb.png,bacterial\nc.png,fungal\nd.png,no\n"
    renamed = (("fungal", "other"), ("viral", "other"), ("no", "normal"))
    manifest = _read(text, renamed=renamed)
    assert manifest.classes == ("bacterial", "normal", "other")
    assert [manifest.target(image) for image in manifest] == [2, 0, 2, 1]
    ordered = _read(text, renamed=renamed, classes=("normal", "bacterial", "other", "covid"))
    assert [ordered.target(image) for image in ordered] == [2, 1, 2, 0]
    assert ordered.counts()[""]["covid"] == 0


def test_stated_classes_may_have_the_names_of_any_labels() -> None:
    manifest = _read("path,label\na.png,0\nb.png,1\n", classes=("0", "1"))
    assert manifest.classes == ("0", "1")


@pytest.mark.parametrize("classes", [("normal", "pneumonia"), ("Pneumonia", "Normal")])
def test_stated_classes_normal_and_pneumonia_are_binary_in_any_case_and_order(classes: tuple[str, ...]) -> None:
    manifest = _read("path,label\na.png,Normal\nb.png,PNEUMONIA\n", classes=classes)
    assert manifest.binary
    assert [image.label for image in manifest] == ["NORMAL", "PNEUMONIA"]


def test_label_that_no_image_has_is_an_error_that_names_the_nearest() -> None:
    text = "path,label\na.png,No Finding\nb.png,Pneumonia\n"
    with pytest.raises(
        UnknownNameError, match=r"no image has the label 'No Findings' of --map. Did you mean 'No Finding'"
    ):
        _read(text, renamed=(("No Findings", "NORMAL"),))
    with pytest.raises(
        UnknownNameError, match=r"no image has the label 'Pneumnia' of --positive. Did you mean 'Pneumonia'"
    ):
        _read(text, positive="Pneumnia")


THREE = "path,label\na.png,bacteria\nb.png,normal\nc.png,virus\n"


def test_labels_in_another_case_are_found_and_named() -> None:
    manifest = _read(THREE, renamed=(("BACTERIA", "PNEUMONIA"), ("Virus", "PNEUMONIA")))
    assert manifest.counts() == {"": {"NORMAL": 1, "PNEUMONIA": 2}}
    assert "the label 'bacteria' (given as 'BACTERIA') is PNEUMONIA (1 image)" in manifest.notes
    (note,) = _read(THREE, positive="BACTERIA").notes
    assert note.startswith("'bacteria' (given as 'BACTERIA') counts as PNEUMONIA (1 image)")


@pytest.mark.parametrize("source", ["BACTERI", "Bacterial"])
def test_the_nearest_label_is_named_whatever_its_case(source: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"the label '{source}' of --map. Did you mean 'bacteria'"):
        _read(THREE, renamed=((source, "PNEUMONIA"),))
    with pytest.raises(UnknownNameError, match=rf"the label '{source}' of --positive. Did you mean 'bacteria'"):
        _read(THREE, positive=source)


def test_new_name_that_differs_in_case_from_a_class_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match=r"makes a class 'BACTERIA' beside 'bacteria'. Did you mean 'bacteria'"):
        _read(THREE, renamed=(("virus", "BACTERIA"),))
    assert _read(THREE, renamed=(("virus", "Normal"),), positive="bacteria").binary
    stated = _read(THREE, renamed=(("virus", "BACTERIA"),), classes=("bacteria", "normal"))
    assert stated.classes == ("bacteria", "normal")


def test_new_name_that_resembles_a_class_is_remarked_on() -> None:
    manifest = _read(THREE, renamed=(("virus", "bacteri"),))
    assert manifest.classes == ("bacteri", "bacteria", "normal")
    assert (
        "'bacteri' is a separate class beside 'bacteria'; if that one is meant, give --map virus=bacteria"
        in manifest.notes
    )
    assert not any("separate class" in note for note in _read(THREE, renamed=(("virus", "viral"),)).notes)


@pytest.mark.parametrize(
    ("kept", "made", "similar"),
    [
        ("grade1", "grade2", False),
        ("class_1", "class_10", False),
        ("type I", "type II", False),
        ("Type_IV", "type_v", False),
        ("grade1", "grad1", True),
        ("mild pneumonia", "milx pneumonia", True),  # no Roman numeral, but a mistake
    ],
)
def test_names_that_differ_in_their_number_only_are_not_remarked_on(kept: str, made: str, similar: bool) -> None:
    text = f"path,label\na.png,{kept}\nb.png,other\nc.png,normal\n"
    manifest = _read(text, renamed=(("other", made),))
    assert {*manifest.classes} == {kept, made, "normal"}
    assert any("is a separate class" in note for note in manifest.notes) == similar


def test_label_that_resembles_a_stated_class_is_mapped_to_it_in_the_hint() -> None:
    with pytest.raises(
        DatasetError, match="the label 'bacteria' is not one of the classes normal, Bacterial, virus"
    ) as error:
        _read(THREE, classes=("normal", "Bacterial", "virus"))
    assert error.value.hint is not None
    assert error.value.hint.startswith("Rename it with --map bacteria=Bacterial; ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patient_column": "a", "patients_from": "folder"}, "both --patient-column and --patients-from are given"),
        ({"patients_from": "name"}, "patients cannot be read from 'name'"),
        ({"patient_pattern": "("}, "is not a regular expression"),
        ({"patient_pattern": "P"}, "has 0 groups, and needs one"),
        ({"renamed": (("a", "x"), ("a", "y"))}, "the label 'a' is renamed twice"),
        ({"renamed": (("a", ""),)}, "a label or class to rename is empty"),
    ],
)
def test_invalid_mapping_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LabelMapping(**options)


def test_class_that_is_stated_twice_is_an_error() -> None:
    with pytest.raises(DatasetError, match="the classes 'a, A' are not two or more different names"):
        LabelMapping(classes=("a", "A"))


# --- etiology --------------------------------------------------------------------------------------------------------


@pytest.fixture
def public(tmp_path: Path, draw_image: Draw) -> Path:
    """The layout and file names of the public data set."""
    root = tmp_path / "chest_xray"
    for split, number in (("train", 1), ("test", 2)):
        draw_image(root / split / "NORMAL" / f"IM-000{number}-0001.jpeg", seed=number)
        draw_image(root / split / "PNEUMONIA" / f"person{number}_bacteria_1.jpeg", seed=10 + number)
        draw_image(root / split / "PNEUMONIA" / f"person{number}_virus_1.jpeg", seed=20 + number)
    return root


def test_etiology_is_the_class_of_the_public_images(public: Path, tmp_path: Path) -> None:
    mapping = LabelMapping(label_column="etiology")
    manifest = load_manifest(public, labels=mapping)
    assert manifest.classes == ("bacteria", "normal", "virus")
    assert manifest.counts() == {split: {"bacteria": 1, "normal": 1, "virus": 1} for split in ("train", "test")}
    # From a saved manifest that is binary, and from a list of paths only.
    load_manifest(public).save(tmp_path / "binary.csv")
    assert load_manifest(tmp_path / "binary.csv", labels=mapping).counts() == manifest.counts()
    lines = [f"chest_xray/{image.path}" for image in manifest]
    (tmp_path / "paths.csv").write_text("path\n" + "\n".join(lines) + "\n")
    listed = load_manifest(tmp_path / "paths.csv", labels=mapping)
    assert [image.label for image in listed] == [image.label for image in manifest]
    assert [image.patient for image in listed] == [image.patient for image in manifest]


def test_etiology_of_other_names_is_an_error(folder: Path) -> None:
    mapping = LabelMapping(label_column="etiology", renamed=(("No Finding", "NORMAL"),))
    with pytest.raises(ManifestError, match=r"the etiology of 3 images is unknown; the first is 'No Finding/P1_0.png'"):
        load_manifest(folder, labels=mapping)


def test_one_etiology_can_count_as_pneumonia(public: Path) -> None:
    manifest = load_manifest(public, labels=LabelMapping(label_column="etiology", positive="virus"))
    assert manifest.counts()["test"] == {"NORMAL": 2, "PNEUMONIA": 1}


# --- patients --------------------------------------------------------------------------------------------------------


def test_pattern_finds_patients_in_paths(folder: Path) -> None:
    mapping = LabelMapping(positive="Pneumonia", patient_pattern=r"(P\d+)_")
    manifest = load_manifest(folder, labels=mapping)
    assert [image.patient for image in manifest] == ["P1", "P1", "P2"]
    assert "the patients of 3 images are those of the file names (2 patients)" in manifest.notes
    with pytest.raises(
        ManifestError, match=r"no path matches the pattern '\(X\)' of patients; the first is 'No Finding/P1_0"
    ):
        load_manifest(folder, labels=dataclasses.replace(mapping, patient_pattern="(X)"))


def test_image_that_the_pattern_does_not_match_has_no_known_patient(folder: Path) -> None:
    manifest = load_manifest(folder, labels=LabelMapping(positive="Pneumonia", patient_pattern=r"(P1)_"))
    assert [image.patient for image in manifest] == ["P1", "P1", ""]
    assert any("the patient of 1 of 3 images is unknown" in note for note in manifest.notes)


def test_folders_identify_patients_if_they_are_not_those_of_classes(folder: Path, draw_image: Draw) -> None:
    mapping = LabelMapping(positive="Pneumonia", patients_from="folder")
    with pytest.raises(
        ManifestError, match=r"'No Finding/P1_0.png' is not in a folder of its patient, but in 'No Finding'"
    ):
        load_manifest(folder, labels=mapping)
    other = folder.parent / "other"
    for number, path in enumerate(
        ("No Finding/A/1.png", "No Finding/A/2.png", "Pneumonia/B/1.png", "Pneumonia/A/9.png")
    ):
        draw_image(other / path, seed=number)
    assert [image.patient for image in load_manifest(other, labels=mapping)] == ["A", "A", "A", "B"]


def test_headers_identify_patients_instead_of_the_column(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.dcm").write_bytes(dicom(90 * number, PatientID=f"P{number}"))
    (tmp_path / "t.csv").write_text("path,label,patient\n1.dcm,normal,X\n2.dcm,pneumonia,X\n")
    from_column = load_manifest(tmp_path / "t.csv")
    from_header = load_manifest(tmp_path / "t.csv", labels=LabelMapping(patients_from="header"))
    assert [image.patient for image in from_column] == ["X", "X"]
    assert len({image.patient for image in from_header} - {"", "X"}) == 2


# --- recorded mappings -----------------------------------------------------------------------------------------------

RECORDED = LabelMapping(
    label_column="Finding",
    path_column="Image Index",
    patient_column="Patient",
    positive="Pneumonia",
    renamed=(("Mass", "other"),),
)


def test_recorded_mapping_is_applied_as_far_as_it_fits() -> None:
    same = Manifest.from_csv(TABLE, Path(), "t.csv", RECORDED, recorded=True)
    assert same.counts() == {"": {"NORMAL": 2, "PNEUMONIA": 2}}
    plain = Manifest.from_csv("path,label\na.png,normal\nb.png,pneumonia\n", Path(), "t.csv", RECORDED, recorded=True)
    assert plain.counts() == {"": {"NORMAL": 1, "PNEUMONIA": 1}}
    with pytest.raises(DatasetError, match="look like NORMAL and PNEUMONIA"):
        Manifest.from_csv("path,label\na.png,healthy\nb.png,yes\n", Path(), "t.csv", RECORDED, recorded=True)


def test_recorded_etiology_is_the_label_column_if_file_names_state_none() -> None:
    """An external test set has the classes in its column `label`; the run was trained on the public images."""
    text = "path,label\na.png,bacteria\nb.png,normal\nc.png,virus\n"
    manifest = _read(text, label_column="etiology", recorded=True)
    assert [(image.label, image.etiology) for image in manifest] == [
        (each, each) for each in ("bacteria", "normal", "virus")
    ]
    with pytest.raises(ManifestError, match="the label is empty"):
        _read(text, label_column="etiology")
    public = "path,label\nperson1_bacteria_1.jpeg,PNEUMONIA\nIM-0001-0001.jpeg,NORMAL\n"
    again = _read(public, label_column="etiology", recorded=True)
    assert [image.label for image in again] == ["bacteria", "normal"]


def test_recorded_mapping_does_not_change_the_classes_of_a_saved_manifest(folder: Path, tmp_path: Path) -> None:
    swapped = LabelMapping(renamed=(("No Finding", "Pneumonia"), ("Pneumonia", "Normal")), patient_pattern=r"(P\d)")
    manifest = load_manifest(folder, labels=swapped)
    manifest.save(tmp_path / "m.csv")
    again = load_manifest(tmp_path / "m.csv", labels=swapped, recorded=True)
    assert [image.label for image in again] == [image.label for image in manifest]
    assert [image.patient for image in again] == ["P1", "P1", "P2"]


def test_recorded_mapping_of_a_csv_file_fits_a_folder(folder: Path) -> None:
    assert load_manifest(folder, labels=RECORDED, recorded=True).counts() == {"": {"NORMAL": 2, "PNEUMONIA": 1}}


def test_classes_that_differ_in_case_only_are_refused_also_for_two_labels() -> None:
    assert resolve_classes(["Normal", "PNEUMONIA"], "t.csv", ("pneumonia", "normal"))[0] == ("NORMAL", "PNEUMONIA")
    with pytest.raises(DatasetError, match="'NORMAL, normal, pneumonia' are not two or more different names"):
        resolve_classes(["NORMAL", "PNEUMONIA"], "t.csv", ("NORMAL", "normal", "pneumonia"))


def test_load_dataset_takes_a_mapping(folder: Path) -> None:
    dataset = load_dataset(folder, labels=LabelMapping(positive="Pneumonia", patient_pattern=r"(P\d+)_"))
    assert dataset.classes == ("NORMAL", "PNEUMONIA")
    assert (dataset.labels.tolist(), dataset.patients) == ([0, 0, 1], ("P1", "P1", "P2"))


@pytest.mark.real_data
def test_etiologies_of_the_public_images(real_images: Path) -> None:
    manifest = load_manifest(real_images, labels=LabelMapping(label_column="etiology"))
    counts = manifest.counts()
    assert counts["train"] == {"bacteria": 2530, "normal": 1341, "virus": 1345}
    assert counts["test"] == {"bacteria": 242, "normal": 234, "virus": 148}
