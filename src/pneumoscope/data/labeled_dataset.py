"""A labeled data set for library users: images are decoded when they are accessed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import MissingExtraError, UnknownNameError
from pneumoscope.core.messages import counted
from pneumoscope.core.result_forms import rows_dataframe
from pneumoscope.data.hashing import Progress, read_image
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import COLUMNS, Manifest
from pneumoscope.imaging.preprocess import Preprocessing, preprocess

if TYPE_CHECKING:
    import pandas as pd

    from pneumoscope.data.torch_dataset import TorchDataset

__all__ = ["LabeledDataset", "load_dataset"]


@dataclasses.dataclass(frozen=True, repr=False)
class LabeledDataset:
    """Labeled radiographs as a sequence of (image, label).

    An image is an array of gray levels, uint8, shape (height, width), or (size, size) with preprocessing. A label is the
    index of the class in `classes`: 0 for NORMAL and 1 for PNEUMONIA in a binary data set.

    Attributes:
        manifest: Paths, labels, patients and splits.
        preprocessing: Crop and size of the images; None for images in their original size.
    """

    manifest: Manifest
    preprocessing: Preprocessing | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Decode and return an image and its label.

        Raises:
            IndexError: There is no such image.
            UnreadableImageError: The image cannot be decoded.
        """
        image = self.manifest.images[index]
        if self.preprocessing is None:
            return read_image(self.manifest.root, image).pixels, self.manifest.target(image)
        radiograph = read_image(self.manifest.root, image, min_side=self.preprocessing.min_side)
        return preprocess(radiograph, self.preprocessing), self.manifest.target(image)

    def __repr__(self) -> str:
        """Return the number of images by split and label."""
        counts = "; ".join(
            f"{split or 'no split'}: " + ", ".join(f"{n} {label}" for label, n in labels.items())
            for split, labels in self.manifest.counts().items()
        )
        return f"<LabeledDataset of {counted(len(self), 'image')} ({counts})>"

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Labels of all images, shape (n,): the index in `classes`, so 0 for NORMAL and 1 for PNEUMONIA."""
        return np.array([self.manifest.target(image) for image in self.manifest], dtype=np.int64)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes: NORMAL and PNEUMONIA, or those of a data set with other classes."""
        return self.manifest.classes

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients of all images; "" if unknown."""
        return tuple(image.patient for image in self.manifest)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all images, relative to `manifest.root`."""
        return tuple(image.path for image in self.manifest)

    def split(self, name: str) -> LabeledDataset:
        """Return the images of one split, such as "train".

        Raises:
            UnknownNameError: No image has that split.
        """
        images = self.manifest.split(name)
        if not images:
            splits = [split for split in self.manifest.counts() if split]
            raise UnknownNameError("split", name, splits, hint="" if splits else "Split it: pneumoscope split DATA")
        return dataclasses.replace(self, manifest=dataclasses.replace(self.manifest, images=images))

    def to_dataframe(self) -> pd.DataFrame:
        """Return the manifest as a pandas DataFrame: path, label, etiology, patient, split, sha256.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = (dataclasses.astuple(image) for image in self.manifest)
        return rows_dataframe(rows, "LabeledDataset.to_dataframe()", COLUMNS)

    def as_torch_dataset(self) -> TorchDataset:
        """Return a torch Dataset of (uint8 tensor, label) for a DataLoader.

        Set `preprocessing` to batch images, because a batch needs images of one size.

        Raises:
            MissingExtraError: torch is not installed.
        """
        try:
            from pneumoscope.data.torch_dataset import TorchDataset
        except ModuleNotFoundError as error:
            raise MissingExtraError("train", "LabeledDataset.as_torch_dataset()", error.name or "") from error
        return TorchDataset(self)


def load_dataset(
    path: str | Path,
    *,
    root: str | Path | None = None,
    labels: LabelMapping | None = None,
    preprocessing: Preprocessing | None = None,
    progress: Progress | None = None,
) -> LabeledDataset:
    """Load a labeled data set from a folder, a manifest (CSV) or a MedMNIST archive.

    Args:
        path: The folder or file; see `data.layouts` for the supported layouts.
        root: For a CSV file, the folder that its paths are relative to; the CSV's folder if None.
        labels: Names of columns and labels of other data, such as `LabelMapping(label_column="Finding", positive="Pneumonia")`.
        preprocessing: Crop and size of the images; None for images in their original size.
        progress: Called with the number of hashed images and of all images.

    Raises:
        LayoutError: The path does not exist, or its layout is not supported.
        ManifestError: The CSV file is malformed or does not match the images.
        UnknownNameError: No image has a label that `labels` renames.
        DatasetError: The labels cannot be classes; see `data.classes`.
    """
    manifest = load_manifest(Path(path), root=None if root is None else Path(root), labels=labels, progress=progress)
    return LabeledDataset(manifest, preprocessing)
