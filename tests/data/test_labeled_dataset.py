"""`load_dataset`: images and labels for library users, as arrays, a DataFrame or a torch Dataset."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.core.errors import LayoutError, MissingExtraError, UnknownNameError, UnreadableImageError
from pneumoscope.data.labeled_dataset import LabeledDataset, load_dataset
from pneumoscope.imaging.preprocess import Preprocessing

Draw = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, draw_image: Draw) -> Path:
    """Two training images and one test image per label, of different sizes."""
    root = tmp_path / "images"
    for number, (split, label, name) in enumerate(
        [
            ("test", "NORMAL", "IM-0003-0001.png"),
            ("test", "PNEUMONIA", "person3_virus_1.png"),
            ("train", "NORMAL", "IM-0001-0001.png"),
            ("train", "NORMAL", "IM-0002-0001.png"),
            ("train", "PNEUMONIA", "person1_bacteria_1.png"),
            ("train", "PNEUMONIA", "person2_virus_1.png"),
        ]
    ):
        draw_image(root / split / label / name, seed=number, size=(60 + number, 50))
    return root


def test_items_are_gray_images_with_labels(folder: Path) -> None:
    dataset = load_dataset(folder)

    assert len(dataset) == 6
    for path, (image, label) in zip(dataset.paths, dataset, strict=True):
        assert np.array_equal(image, np.asarray(Image.open(folder / path)))
        assert image.dtype == np.uint8
        assert label == ("PNEUMONIA" in path)
    assert dataset[-1][1] == 1
    with pytest.raises(IndexError):
        dataset[6]


def test_columns_are_in_the_order_of_the_images(folder: Path) -> None:
    dataset = load_dataset(str(folder))

    assert dataset.labels.tolist() == [0, 1, 0, 0, 1, 1]
    assert dataset.patients == ("IM-0003", "virus-3", "IM-0001", "IM-0002", "bacteria-1", "virus-2")
    assert dataset.paths[0] == "test/NORMAL/IM-0003-0001.png"


def test_images_are_decoded_on_access(folder: Path) -> None:
    dataset = load_dataset(folder)
    (folder / dataset.paths[1]).write_text("not an image")

    assert dataset[0][0].shape == (50, 60)
    with pytest.raises(UnreadableImageError, match=r"person3_virus_1\.png"):
        dataset[1]


def test_preprocessing_gives_images_of_one_size(folder: Path) -> None:
    dataset = load_dataset(folder, preprocessing=Preprocessing(size=32))

    assert [image.shape for image, _ in dataset] == [(32, 32)] * 6
    expected = Image.open(folder / dataset.paths[3]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(dataset[3][0], np.asarray(expected))


def test_split_returns_the_images_of_one_split(folder: Path) -> None:
    dataset = load_dataset(folder, preprocessing=Preprocessing(size=16))

    assert dataset.split("test").paths == dataset.paths[:2]
    assert dataset.split("train").labels.tolist() == [0, 0, 1, 1]
    assert dataset.split("train")[0][0].shape == (16, 16)
    with pytest.raises(UnknownNameError, match=r"there is no split 'validation'\. Known: test, train"):
        dataset.split("validation")


def test_data_without_splits_says_how_to_split_it(tmp_path: Path, draw_image: Draw) -> None:
    draw_image(tmp_path / "NORMAL" / "a.png")
    with pytest.raises(UnknownNameError, match="pneumoscope split DATA"):
        load_dataset(tmp_path).split("train")


def test_manifest_is_loaded_with_its_root(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "other" / "images.csv"
    file.parent.mkdir()
    file.write_text("path,label\ntest/NORMAL/IM-0003-0001.png,NORMAL\n")

    dataset = load_dataset(file, root=folder)

    assert len(dataset) == 1
    assert dataset[0][0].shape == (50, 60)


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="does not exist"):
        load_dataset(tmp_path / "absent")


def test_repr_states_the_number_of_images(folder: Path) -> None:
    expected = "<LabeledDataset of 6 images (train: 2 NORMAL, 2 PNEUMONIA; test: 1 NORMAL, 1 PNEUMONIA)>"
    assert repr(load_dataset(folder)) == expected


def test_dataframe_has_the_columns_of_the_manifest(folder: Path) -> None:
    pytest.importorskip("pandas")
    dataset = load_dataset(folder)

    frame = dataset.to_dataframe()

    assert list(frame.columns) == ["path", "label", "etiology", "patient", "split", "sha256"]
    assert frame["path"].tolist() == list(dataset.paths)
    assert (frame["label"] == "PNEUMONIA").astype(int).tolist() == dataset.labels.tolist()
    assert frame.groupby("split").size().to_dict() == {"train": 4, "test": 2}


@pytest.mark.parametrize(
    ("module", "method", "extra"), [("pandas", "to_dataframe", "pandas"), ("torch", "as_torch_dataset", "train")]
)
def test_missing_dependency_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, method: str, extra: str
) -> None:
    dataset = load_dataset(folder)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "pneumoscope.data.torch_dataset", raising=False)

    with pytest.raises(MissingExtraError, match=rf"{method}\(\) needs .*pip install 'pneumoscope\[{extra}\]'"):
        getattr(dataset, method)()


@pytest.mark.training
@pytest.mark.parametrize("workers", [0, 1])
def test_torch_dataset_gives_batches_for_a_network(folder: Path, workers: int) -> None:
    torch = pytest.importorskip("torch")
    dataset = load_dataset(folder, preprocessing=Preprocessing(size=32))

    torch_dataset = dataset.as_torch_dataset()
    loader = torch.utils.data.DataLoader(torch_dataset, batch_size=4, num_workers=workers, multiprocessing_context=None)
    batches = list(loader)

    assert isinstance(torch_dataset, torch.utils.data.Dataset)
    assert len(torch_dataset) == 6
    assert [tuple(images.shape) for images, _ in batches] == [(4, 32, 32), (2, 32, 32)]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert images.dtype == torch.uint8
    assert labels.tolist() == dataset.labels.tolist()
    assert np.array_equal(images.numpy(), np.stack([image for image, _ in dataset]))


def test_dataset_can_be_pickled_for_worker_processes(folder: Path) -> None:
    dataset = pickle.loads(pickle.dumps(load_dataset(folder)))

    assert isinstance(dataset, LabeledDataset)
    assert dataset[0][0].shape == (50, 60)


def test_labels_of_several_classes_are_their_indexes(tmp_path: Path) -> None:
    for number, name in enumerate(("covid", "tb", "normal")):
        file = tmp_path / name / f"{number}.png"
        file.parent.mkdir()
        Image.linear_gradient("L").rotate(90 * number).save(file)
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("covid", "normal", "tb")
    assert dataset.labels.tolist() == [0, 1, 2]
    assert [label for _, label in dataset] == [0, 1, 2]
