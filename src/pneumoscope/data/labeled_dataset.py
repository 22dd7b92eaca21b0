"""Labeled data set of the Python API, which decodes images on access."""

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

    An image is an array of gray levels, uint8, shape (height, width), or (size, size) with preprocessing. A label is the index
    of the class in `classes`: 0 for NORMAL and 1 for PNEUMONIA in a binary data set.

    Attributes:
        manifest: Paths, labels, patients and splits.
        preprocessing: Crop and size of the images; None for the original size.
    """

    manifest: Manifest
    preprocessing: Preprocessing | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Decode and return an image and its label.

        Raises:
            IndexError: The index is out of range.
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
        """Labels of all images as indices into `classes`, shape (n,); 0 for NORMAL and 1 for PNEUMONIA in a binary data set."""
        return np.array([self.manifest.target(image) for image in self.manifest], dtype=np.int64)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names: NORMAL and PNEUMONIA, or the names in a multiclass data set."""
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

        Set `preprocessing` to collate images into batches, which need a common size.

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
        path: Folder or file; see `data.layouts` for the supported layouts.
        root: For a CSV file, the folder that its paths are relative to; None for the folder of the CSV file.
        labels: Column and label names of the data, such as `LabelMapping(label_column="Finding", positive="Pneumonia")`.
        preprocessing: Crop and size of the images; None for the original size.
        progress: Callback with the number of images hashed so far and the total.

    Raises:
        LayoutError: The path does not exist, or its layout is not supported.
        ManifestError: The CSV file is malformed or does not match the images.
        UnknownNameError: `labels` renames a label that no image has.
        DatasetError: The labels are not valid classes; see `data.classes`.
    """
    manifest = load_manifest(Path(path), root=None if root is None else Path(root), labels=labels, progress=progress)
    return LabeledDataset(manifest, preprocessing)
