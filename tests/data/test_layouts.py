"""Loading manifests from all supported layouts; other layouts are errors that show the content."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.images import dicom, png

from pneumoscope.core.errors import DatasetError, LayoutError, ManifestError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.split import split_manifest

Draw = Callable[..., Path]


@pytest.fixture
def kaggle(tmp_path: Path, draw_image: Draw) -> Path:
    """The Kaggle layout with two images per folder."""
    root = tmp_path / "chest_xray"
    names = {
        "train": ("IM-0115-0001.jpeg", "IM-0115-0002.jpeg", "person1_bacteria_1.jpeg", "person1_virus_6_2.jpeg"),
        "val": (
            "NORMAL2-IM-1427-0001.jpeg",
            "NORMAL2-IM-1430-0001.jpeg",
            "person1946_bacteria_4874.jpeg",
            "person2_virus_7.jpeg",
        ),
        "test": (
            "IM-0001-0001.jpeg",
            "NORMAL2-IM-0007-0001.jpeg",
            "person78_bacteria_378.jpeg",
            "person3_virus_15.jpeg",
        ),
    }
    for number, (split, images) in enumerate(names.items()):
        for image, name in enumerate(images):
            draw_image(root / split / ("NORMAL" if image < 2 else "PNEUMONIA") / name, seed=10 * number + image)
    return root


def test_kaggle_layout(kaggle: Path) -> None:
    manifest = load_manifest(kaggle)
    assert manifest.root == kaggle.resolve()
    assert [image.path for image in manifest] == sorted(image.path for image in manifest)
    assert manifest.counts() == {split: {"NORMAL": 2, "PNEUMONIA": 2} for split in ("train", "validation", "test")}
    image = next(image for image in manifest if image.path == "train/PNEUMONIA/person1_virus_6_2.jpeg")
    assert (image.label, image.etiology, image.patient, image.split) == ("PNEUMONIA", "virus", "virus-1", "train")
    assert image.sha256 == hashlib.sha256((kaggle / image.path).read_bytes()).hexdigest()
    assert manifest.notes == ()
    assert manifest.unreadable == ()


def test_nested_layout_without_val(kaggle: Path) -> None:
    for image in (kaggle / "val").rglob("*.jpeg"):
        image.unlink()
    for folder in (kaggle / "val" / "NORMAL", kaggle / "val" / "PNEUMONIA", kaggle / "val"):
        folder.rmdir()
    outer = kaggle.parent / "outer" / "inner"
    outer.parent.mkdir()
    kaggle.rename(outer)
    manifest = load_manifest(outer.parent)
    assert manifest.root == outer.resolve()
    assert set(manifest.counts()) == {"train", "test"}


def test_class_folders_in_any_case_and_with_etiology(tmp_path: Path, draw_image: Draw) -> None:
    draw_image(tmp_path / "normal" / "a.PNG")
    draw_image(tmp_path / "Pneumonia" / "virus" / "b.png")
    draw_image(tmp_path / "Pneumonia" / "c.png")
    draw_image(tmp_path / "BACTERIA" / "d.png")
    manifest = load_manifest(tmp_path)
    found = {image.path: (image.label, image.etiology, image.split) for image in manifest}
    assert found == {
        "normal/a.PNG": ("NORMAL", "normal", ""),
        "Pneumonia/virus/b.png": ("PNEUMONIA", "virus", ""),
        "Pneumonia/c.png": ("PNEUMONIA", "", ""),
        "BACTERIA/d.png": ("PNEUMONIA", "bacteria", ""),
    }
    (note,) = manifest.notes
    assert "the patient of 4 of 4 images is unknown" in note


def test_mendeley_version_3_layout(tmp_path: Path, draw_image: Draw) -> None:
    draw_image(tmp_path / "train" / "NORMAL" / "NORMAL-28501-0001.jpeg")
    draw_image(tmp_path / "train" / "PNEUMONIA" / "BACTERIA-1008087-0001.jpeg")
    draw_image(tmp_path / "test" / "PNEUMONIA" / "VIRUS-1058959-0001.jpeg")
    found = [(image.split, image.patient, image.etiology) for image in load_manifest(tmp_path)]
    assert found == [
        ("test", "VIRUS-1058959", "virus"),
        ("train", "NORMAL-28501", "normal"),
        ("train", "BACTERIA-1008087", "bacteria"),
    ]


def test_etiology_that_contradicts_the_label_is_ignored(tmp_path: Path, draw_image: Draw) -> None:
    draw_image(tmp_path / "PNEUMONIA" / "IM-0115-0001.jpeg")
    draw_image(tmp_path / "NORMAL" / "IM-0116-0001.jpeg")
    found = {image.patient: (image.label, image.etiology) for image in load_manifest(tmp_path)}
    assert found == {"IM-0115": ("PNEUMONIA", ""), "IM-0116": ("NORMAL", "normal")}


def test_skipped_files_are_listed_with_the_reason(kaggle: Path, tmp_path: Path, draw_image: Draw) -> None:
    folder = kaggle / "train" / "NORMAL"
    (folder / ".DS_Store").touch()
    (folder / "notes.txt").write_text("x")
    (folder / "IM-0200-0001.jpeg").touch()
    (folder / "IM-0201-0001.jpeg").symlink_to(folder / "gone.jpeg")
    (folder / "empty").mkdir()
    (folder / "IM-0202-0001.jpeg").symlink_to(draw_image(tmp_path / "outside.jpeg"))
    (kaggle / "test" / "PNEUMONIA" / "away").symlink_to(tmp_path)
    os.mkfifo(folder / "IM-0203-0001.jpeg")
    (kaggle / "__MACOSX").mkdir()
    (kaggle / "chest_xray").mkdir()
    (kaggle / "train" / "readme.md").touch()
    manifest = load_manifest(kaggle)
    assert len(manifest) == 12
    assert dict(manifest.unreadable) == {
        "train/NORMAL/IM-0200-0001.jpeg": "empty (0 bytes)",
        "train/NORMAL/IM-0201-0001.jpeg": "a broken link or not a file",
        "train/NORMAL/IM-0203-0001.jpeg": "a broken link or not a file",
        "train/NORMAL/IM-0202-0001.jpeg": "a link to outside the folder",
    }
    assert dict(manifest.skipped) == {
        "train/NORMAL/.DS_Store": "hidden",
        "train/NORMAL/notes.txt": "not an image",
        "train/NORMAL/empty": "empty folder",
        "test/PNEUMONIA/away": "a link to outside the folder",
        "chest_xray": "outside the split and class folders",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_listed(kaggle: Path) -> None:
    image = kaggle / "train" / "NORMAL" / "IM-0115-0001.jpeg"
    image.chmod(0)
    assert load_manifest(kaggle).unreadable == (("train/NORMAL/IM-0115-0001.jpeg", "Permission denied"),)


def test_links_inside_the_folder_are_followed(kaggle: Path) -> None:
    link = kaggle / "train" / "NORMAL" / "IM-0300-0001.jpeg"
    link.symlink_to(kaggle / "train" / "NORMAL" / "IM-0115-0001.jpeg")
    assert len(load_manifest(kaggle)) == 13


def test_class_folder_that_links_outside_is_skipped(kaggle: Path, tmp_path: Path, draw_image: Draw) -> None:
    draw_image(tmp_path / "elsewhere" / "IM-0400-0001.jpeg")
    (kaggle / "train" / "BACTERIA").symlink_to(tmp_path / "elsewhere")
    manifest = load_manifest(kaggle)
    assert manifest.skipped == (("train/BACTERIA", "a link to outside the folder"),)
    assert len(manifest) == 12


def test_images_are_recognized_by_content_under_any_name(tmp_path: Path) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        (tmp_path / label).mkdir()
        for name in ("a.dcm", "b.dicom", "IM0001", "d.ima"):
            (tmp_path / label / name).write_bytes(dicom(100, PatientID=""))
        (tmp_path / label / "scan.xyz").write_bytes(png(100))
    manifest = load_manifest(tmp_path)
    assert (len(manifest), manifest.unreadable, manifest.skipped) == (10, (), ())


def test_patient_of_a_dicom_file_is_that_of_its_header(tmp_path: Path) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        (tmp_path / label).mkdir()
        for i in range(20):
            content = dicom(100 + i, PatientID=f"{label}{i // 2}", IssuerOfPatientID="North")
            (tmp_path / label / f"{i}.dcm").write_bytes(content)
        (tmp_path / label / f"IM-000{len(label)}-0001.png").write_bytes(png(100 + len(label)))
    manifest = load_manifest(tmp_path)
    patients = [image.patient for image in manifest]
    assert len(set(patients)) == 22
    assert {"IM-0006", "IM-0009"} < set(patients)
    assert manifest.notes == ("the patients of 40 images are those of the DICOM headers, as hashes",)
    split = split_manifest(manifest, by="patient", validation=0.3, test=0.3, seed=0)
    splits: dict[str, set[str]] = {}
    for image in split:
        splits.setdefault(image.patient, set()).add(image.split)
    assert all(len(each) == 1 for each in splits.values())


def test_one_patient_id_in_all_files_identifies_no_patient(tmp_path: Path) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        (tmp_path / label).mkdir()
        for i in range(5):
            (tmp_path / label / f"{i}.dcm").write_bytes(dicom(100 + i, PatientID="ANONYMOUS"))
    manifest = load_manifest(tmp_path)
    assert {image.patient for image in manifest} == {""}
    assert manifest.notes[0] == "all 10 DICOM files have the same PatientID, so that it identifies no patient"
    (tmp_path / "NORMAL" / "0.dcm").unlink()
    assert len({image.patient for image in load_manifest(tmp_path)}) == 1
    assert "" not in {image.patient for image in load_manifest(tmp_path)}


def test_patients_of_a_csv_come_before_those_of_the_headers(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.dcm").write_bytes(dicom(100 + i, PatientID=f"P{i}"))
    (tmp_path / "stated.csv").write_text("path,label,patient\n0.dcm,normal,A\n1.dcm,pneumonia,\n")
    (tmp_path / "unstated.csv").write_text("path,label\n0.dcm,normal\n1.dcm,pneumonia\n")
    assert [image.patient for image in load_manifest(tmp_path / "stated.csv")] == ["A", ""]
    assert all(len(image.patient) == 16 for image in load_manifest(tmp_path / "unstated.csv"))


def test_class_folder_without_images_is_an_error_that_shows_the_content(kaggle: Path) -> None:
    (kaggle / "train" / "COVID").mkdir()
    (kaggle / "train" / "COVID" / "x.txt").write_text("x")
    with pytest.raises(
        LayoutError, match=r"chest_xray/train/: 'COVID' is not a class folder, because it has no images"
    ) as caught:
        load_manifest(kaggle)
    assert "COVID/\n    x.txt" in str(caught.value)
    assert "Expected train/, test/" in str(caught.value)


def test_class_folders_of_other_names_are_the_classes(kaggle: Path, draw_image: Draw) -> None:
    draw_image(kaggle / "train" / "COVID" / "patient-1" / "x.png")
    manifest = load_manifest(kaggle)
    assert manifest.classes == ("COVID", "NORMAL", "PNEUMONIA")
    assert manifest.counts()["train"] == {"COVID": 1, "NORMAL": 2, "PNEUMONIA": 2}
    assert manifest.notes[0] == "the data have 3 classes: COVID, NORMAL, PNEUMONIA"
    image = next(image for image in manifest if image.path == "train/PNEUMONIA/person1_bacteria_1.jpeg")
    assert (image.etiology, manifest.target(image)) == ("bacteria", 2)


def test_folders_of_any_names_are_classes_if_each_has_images(tmp_path: Path, draw_image: Draw) -> None:
    draw_image(tmp_path / "data" / "covid" / "a.png")
    draw_image(tmp_path / "data" / "tuberculosis" / "site-1" / "b.png", seed=1)
    assert load_manifest(tmp_path).classes == ("covid", "tuberculosis")
    (tmp_path / "data" / "docs").mkdir()
    with pytest.raises(LayoutError, match="has an unsupported layout"):
        load_manifest(tmp_path)


def test_folders_named_like_the_two_labels_are_an_error_that_names_the_mapping(
    tmp_path: Path, draw_image: Draw
) -> None:
    draw_image(tmp_path / "No Finding" / "a.png")
    draw_image(tmp_path / "Pneumonia" / "b.png", seed=1)
    with pytest.raises(DatasetError, match=r"--map 'No Finding=NORMAL', or --positive Pneumonia"):
        load_manifest(tmp_path)


def test_split_without_class_folders_is_an_error(tmp_path: Path, draw_image: Draw) -> None:
    draw_image(tmp_path / "train" / "x.png")
    with pytest.raises(LayoutError, match="train/: there are no class folders"):
        load_manifest(tmp_path)


def test_unknown_layout_is_an_error_that_shows_the_content(tmp_path: Path, draw_image: Draw) -> None:
    for number in range(9):
        draw_image(tmp_path / f"image{number}.png")
    with pytest.raises(LayoutError, match=r"has an unsupported layout. It contains:\n  image0.png\n") as caught:
        load_manifest(tmp_path)
    assert "... and 3 more" in str(caught.value)
    assert "\nExpected " in str(caught.value)


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"^'.*' is empty"):
        load_manifest(tmp_path)


def test_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"'.*nowhere' does not exist"):
        load_manifest(tmp_path / "nowhere")


def test_other_file_type_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images.zip").touch()
    with pytest.raises(LayoutError, match=r"images.zip' is neither a folder, nor a .csv, nor a .npz"):
        load_manifest(tmp_path / "images.zip")


def test_data_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "NORMAL").mkdir()
    (tmp_path / "PNEUMONIA").mkdir()
    (tmp_path / "PNEUMONIA" / "a.png").touch()
    with pytest.raises(
        LayoutError, match=r"no image can be read .*\(skipped 2 files; the first: PNEUMONIA/a.png: empty \(0 bytes\)\)"
    ):
        load_manifest(tmp_path)


def test_progress_reaches_the_number_of_images(kaggle: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_manifest(kaggle, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (12, 12)


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_with_path_and_label(kaggle: Path, tmp_path: Path) -> None:
    file = tmp_path / "images.csv"
    file.write_text(
        "\ufefflabel,path,remark\n"
        "Normal,chest_xray/train/NORMAL/IM-0115-0001.jpeg,first\n"
        "pneumonia,chest_xray/train/PNEUMONIA/person1_virus_6_2.jpeg,\n",
        encoding="utf-8",
    )
    manifest = load_manifest(file)
    found = [(image.label, image.etiology, image.patient, image.split) for image in manifest]
    assert found == [("NORMAL", "normal", "IM-0115", ""), ("PNEUMONIA", "virus", "virus-1", "")]


def test_patients_in_the_csv_replace_those_in_file_names(kaggle: Path, tmp_path: Path) -> None:
    file = tmp_path / "images.csv"
    file.write_text(
        "path,label,patient,split\n"
        "train/NORMAL/IM-0115-0001.jpeg,NORMAL,P1,train\n"
        "train/NORMAL/IM-0115-0002.jpeg,NORMAL,,val\n"
    )
    manifest = load_manifest(file, root=kaggle)
    assert [(image.patient, image.split) for image in manifest] == [("P1", "train"), ("", "validation")]
    assert "the patient of 1 of 2 images is unknown" in manifest.notes[0]


def test_saved_manifest_loads_again_from_any_folder(kaggle: Path, tmp_path: Path) -> None:
    listed = load_manifest(kaggle)
    for file in (kaggle / "images.csv", tmp_path / "images.csv", tmp_path / "far" / "away" / "images.csv"):
        listed.save(file)
        again = load_manifest(file)
        absolute = file.parent.name == "away"
        assert again.images[0].path.startswith("/") == absolute
        contents = [(again.root / image.path).read_bytes() for image in again]
        assert contents == [(listed.root / image.path).read_bytes() for image in listed]
        rest = [(image.label, image.etiology, image.patient, image.split, image.sha256) for image in again]
        assert rest == [(image.label, image.etiology, image.patient, image.split, image.sha256) for image in listed]
        file.unlink()


def test_changed_image_is_an_error(kaggle: Path, tmp_path: Path, draw_image: Draw) -> None:
    file = tmp_path / "images.csv"
    load_manifest(kaggle).save(file)
    draw_image(kaggle / "test" / "NORMAL" / "IM-0001-0001.jpeg", seed=99)
    with pytest.raises(
        ManifestError, match=r"'chest_xray/test/NORMAL/IM-0001-0001.jpeg' has changed since .*images.csv"
    ):
        load_manifest(file)


def test_missing_images_of_a_csv_are_listed(kaggle: Path, tmp_path: Path) -> None:
    file = tmp_path / "images.csv"
    file.write_text(
        "path,label\nchest_xray/train/NORMAL/IM-0115-0001.jpeg,NORMAL\ngone.png,NORMAL\nchest_xray,PNEUMONIA\n"
    )
    manifest = load_manifest(file)
    assert len(manifest) == 1
    assert manifest.unreadable == (("gone.png", "No such file or directory"), ("chest_xray", "not a regular file"))


@pytest.mark.parametrize("path", ["../outside.png", "link.png", "folder/outside.png"])
def test_relative_path_outside_the_root_is_an_error(tmp_path: Path, draw_image: Draw, path: str) -> None:
    outside = draw_image(tmp_path / "outside.png")
    home = tmp_path / "home"
    home.mkdir()
    (home / "link.png").symlink_to(outside)
    (home / "folder").symlink_to(tmp_path)
    file = home / "images.csv"
    file.write_text(f"path,label\n{path},NORMAL\n")
    with pytest.raises(ManifestError, match=f"'{path}' is outside"):
        load_manifest(file)
    file.write_text(f"path,label\n{outside},NORMAL\n")
    assert len(load_manifest(file)) == 1


def test_csv_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "images.csv"
    file.write_bytes(b"\xff\xfe\x00path,label")
    with pytest.raises(ManifestError, match=r"cannot read '.*images.csv'"):
        load_manifest(file)


@pytest.mark.real_data
def test_public_data_set(real_images: Path) -> None:
    manifest = load_manifest(real_images)
    assert manifest.counts() == {
        "train": {"NORMAL": 1341, "PNEUMONIA": 3875},
        "validation": {"NORMAL": 8, "PNEUMONIA": 8},
        "test": {"NORMAL": 234, "PNEUMONIA": 390},
    }
    assert manifest.unreadable == ()
    assert manifest.notes == ()
    assert manifest.leaks() == {}
    patients = Counter(image.patient for image in manifest.split("train"))
    several = [count for count in patients.values() if count > 1]
    assert (len(several), sum(several)) == (643, 2205)
