"""Rows of predictions are matched with images by path, name, content or identifier."""

import hashlib

import pytest

from pneumoscope.core.errors import DatasetError
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.data.prediction_matching import match_images, read_id_column
from pneumoscope.data.predictions_file import PredictionRow


def image(path, sha256=""):
    return LabeledImage(path, "NORMAL", "", "", "test", sha256 or hashlib.sha256(path.encode()).hexdigest())


def rows(*names):
    return [PredictionRow(line, name, (0.5,), "") for line, name in enumerate(names, start=2)]


IMAGES = [image("test/NORMAL/a.png"), image("test/PNEUMONIA/b.1.png"), image("train/NORMAL/a2.png")]


@pytest.mark.parametrize(
    "name",
    [
        "test/NORMAL/a.png",
        "./test/NORMAL/a.png",
        "/data/chest_xray/test/NORMAL/a.png",
        "C:\\data\\test\\NORMAL\\a.png",
        "NORMAL/a.png",
        "a.png",
        "a",
        hashlib.sha256(b"test/NORMAL/a.png").hexdigest(),
    ],
)
def test_image_is_found_by_path_name_or_content(name):
    assert list(match_images(rows(name), IMAGES, "scores.csv", {})) == [0]


def test_names_with_dots_are_found_with_and_without_extension():
    assert list(match_images(rows("b.1"), IMAGES, "scores.csv", {})) == [1]
    assert list(match_images(rows("b.1.png"), IMAGES, "scores.csv", {})) == [1]


def test_images_of_an_archive_are_found():
    images = [image("pneumoniamnist.npz#test/17"), image("pneumoniamnist.npz#train/17")]
    assert list(match_images(rows("test/17"), images, "scores.csv", {})) == [0]


def test_folders_must_agree():
    with pytest.raises(
        DatasetError, match=r"1 row of 2 in scores.csv matches no image of the data: 'train/NORMAL/a.png'"
    ):
        match_images(rows("a2", "train/NORMAL/a.png"), IMAGES, "scores.csv", {})


def test_images_under_another_root_are_named_with_both_paths():
    with pytest.raises(
        DatasetError,
        match=r"names of 'mine/NORMAL/a.png' and of the image '.*/a.png' agree, and their folders do not\. Name",
    ):
        match_images(rows("mine/NORMAL/a.png"), IMAGES, "scores.csv", {})


def test_unknown_images_are_counted_and_the_closest_is_named():
    with pytest.raises(
        DatasetError, match=r"4 rows of 5 .* no image of the data: 'aa.png' \(line 2\), .*…\. The image .* is 'a.png'"
    ):
        match_images(rows("aa.png", "c.png", "d.png", "e.png", "a.png"), IMAGES, "scores.csv", {})


def test_images_that_are_listed_twice_are_an_error():
    with pytest.raises(DatasetError, match=r"lists 'a' in line 2 and in line 4 \(1 image listed more than once\)"):
        match_images(rows("test/NORMAL/a.png", "b.1", "a"), IMAGES, "scores.csv", {})


def test_names_of_several_images_are_an_error():
    images = [image("x/1.png"), image("y/1.png")]
    with pytest.raises(DatasetError, match=r"line 2: '1.png' names several images, such as 'x/1.png' and 'y/1.png'"):
        match_images(rows("1.png"), images, "scores.csv", {})
    assert list(match_images(rows("y/1.png"), images, "scores.csv", {})) == [1]


def test_identifiers_are_those_of_the_manifest(tmp_path):
    manifest = tmp_path / "images.csv"
    manifest.write_text("\ufeffpath,label,study\ntest/NORMAL/a.png,NORMAL,S1\ntrain/NORMAL/a2.png,NORMAL,S2\n")
    ids = read_id_column(manifest, "study")
    assert ids == {"test/NORMAL/a.png": "S1", "train/NORMAL/a2.png": "S2"}
    assert list(match_images(rows("S2", "S1"), IMAGES[::2], "scores.csv", ids)) == [1, 0]
    with pytest.raises(DatasetError, match=r"matches no image of the data: 'a.png'"):
        match_images(rows("a.png"), IMAGES[::2], "scores.csv", ids)
    assert read_id_column(manifest, "exam") == {}
    assert read_id_column(tmp_path, "study") == {}
