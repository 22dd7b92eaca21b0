"""Images of patients outside the age range: reading, splitting and hashing."""

import csv
import hashlib
from pathlib import Path

import pytest
from PIL import Image

from pneumoscope.core.errors import DatasetError, ManifestError
from pneumoscope.data.outliers import load_outliers


def draw(folder: Path, name: str, level: int = 90) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (20, 20), level)
    if level == 90:  # different files
        image.putdata(list(hashlib.sha256(name.encode()).digest()) + [90] * 368)
    image.save(path)
    return name


def write_csv(folder: Path, text: str) -> Path:
    file = folder / "list.csv"
    file.write_text(text)
    return file


def test_folder_gives_sources_and_patients(tmp_path):
    for name in ("nih/00000013_001.png", "nih/00000013_002.png", "nih/nih-00000014_000.png", "x.png", ".hidden/y.png"):
        draw(tmp_path, name)
    (tmp_path / "notes.txt").write_text("no image")

    outliers = load_outliers(tmp_path)

    assert [(image.path, image.source, image.patient) for image in outliers.images] == [
        ("nih/00000013_001.png", "nih", "00000013"),
        ("nih/00000013_002.png", "nih", "00000013"),
        ("nih/nih-00000014_000.png", "nih", "nih-00000014"),
        ("x.png", "", "x.png"),
    ]


def test_a_fifth_of_the_patients_is_for_validation_and_a_patient_is_never_divided(tmp_path):
    names = [draw(tmp_path, f"{patient:08}_{image:03}.png") for patient in range(200) for image in range(2)]
    splits = {image.path: image.split for image in load_outliers(tmp_path).images}

    assert all(splits[a] == splits[b] for a, b in zip(names[::2], names[1::2], strict=True))
    assert 0.1 < sum(split == "validation" for split in splits.values()) / len(splits) < 0.3
    assert splits == {image.path: image.split for image in load_outliers(tmp_path).images}


def test_csv_columns_are_used(tmp_path):
    draw(tmp_path, "a.png"), draw(tmp_path, "b.png"), draw(tmp_path, "c.png")
    file = write_csv(
        tmp_path,
        "path,age,patient,source,split,view\na.png,61.5,p1,rsna,validation,PA\nb.png,9,p2,nih,train,AP\nc.png,,,,,\n",
    )
    a, b, c = load_outliers(file).images

    assert (a.age, a.patient, a.source, a.split, a.group) == (61.5, "p1", "rsna", "validation", "rsna")
    assert (b.age, b.split, b.group) == (9, "train", "nih, minors")
    assert (c.age, c.patient, c.group) == (None, "c.png", "unknown source")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,age\na.png,old\n", "line 2: age is 'old', not a number of years from 0 to 130"),
        ("path,age\na.png,nan\n", "line 2: age is 'nan'"),
        ("path,age\na.png,-1\n", "line 2: age is '-1'"),
        ("path,split\na.png,test\n", "line 2: split is 'test', not one of train, validation"),
        ("path\na.png\na.png\n", "line 2: 'a.png' is listed 2 times"),
        ("path,age\n,4\n", "line 2: '' is not a valid path"),
        ("file,age\na.png,4\n", "has no column 'path' \\(its columns: file, age\\)"),
        (f"path,sha256\na.png,{'0' * 64}\n", "image 'a.png' has changed"),
    ],
)
def test_malformed_csv_is_an_error(tmp_path, text, message):
    draw(tmp_path, "a.png")
    with pytest.raises(ManifestError, match=message):
        load_outliers(write_csv(tmp_path, text))


def test_missing_image_is_an_error_with_its_path(tmp_path):
    with pytest.raises(DatasetError, match=r"cannot read 1 image; the first is 'a.png': No such file"):
        load_outliers(write_csv(tmp_path, "path\na.png\n"))


def test_path_without_images_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="has no images"):
        load_outliers(tmp_path)
    with pytest.raises(DatasetError, match="is not a folder or a CSV file"):
        load_outliers(tmp_path / "missing")


def test_images_in_the_age_range_are_left_out_and_unknown_ages_stay(tmp_path):
    ages = ["0.9", "1", "5.9", "6", "40", ""]
    for i in range(len(ages)):
        draw(tmp_path, f"{i}.png")
    file = write_csv(tmp_path, "path,age\n" + "".join(f"{i}.png,{age}\n" for i, age in enumerate(ages)))

    outside = load_outliers(file).outside((1, 5))

    assert [image.path for image in outside.images] == ["0.png", "3.png", "4.png", "5.png"]


def test_saved_list_is_the_same_list_in_another_folder(tmp_path):
    ages = ["", "40", "0.08333333333333333", "7.999999999", "12", "61.5"]
    for i in range(6):
        draw(tmp_path / "images", f"s/{i}.png", level=60 + i)
    rows = "".join(f"s/{i}.png,{age},s\n" for i, age in enumerate(ages))
    outliers = load_outliers(write_csv(tmp_path / "images", "path,age,source\n" + rows))
    outliers.save(tmp_path / "run/outliers.csv")
    again = load_outliers(tmp_path / "run/outliers.csv")

    assert again.sha256() == outliers.sha256()
    assert [image.sha256 for image in again.images] == [image.sha256 for image in outliers.images]
    rows = list(csv.DictReader((tmp_path / "run/outliers.csv").read_text().splitlines()))
    assert rows[0]["path"] == (tmp_path / "images/s/0.png").as_posix()


@pytest.mark.parametrize(
    "text",
    [
        "path,patient,split\na.png,p1,train\nb.png,p1,validation\n",
        "path,patient,split\na.png,p1,train\ncopy.png,p2,validation\n",
    ],
)
def test_patient_or_file_in_both_splits_is_an_error(tmp_path, text):
    draw(tmp_path, "a.png", 60), draw(tmp_path, "copy.png", 60), draw(tmp_path, "b.png", 70)
    with pytest.raises(
        ManifestError, match="is in the split validation, but another image of its patient or with the same"
    ):
        load_outliers(write_csv(tmp_path, text))


def test_hash_depends_on_images_and_splits(tmp_path):
    draw(tmp_path, "a.png")
    first = load_outliers(write_csv(tmp_path, "path,split\na.png,train\n")).sha256()
    assert load_outliers(write_csv(tmp_path, "path,split\na.png,validation\n")).sha256() != first
    draw(tmp_path, "a.png", level=91)
    assert load_outliers(write_csv(tmp_path, "path,split\na.png,train\n")).sha256() != first


def test_known_columns_identify_patients_of_outliers(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path, name)
    file = write_csv(tmp_path, "path,patient_id\na.png,P\nb.png,P\n")
    assert [image.patient for image in load_outliers(file).images] == ["P", "P"]
    file = write_csv(tmp_path, "path,patient_code\na.png,P\nb.png,P\n")
    with pytest.raises(ManifestError, match="'patient_code' and no column patient"):
        load_outliers(file)
