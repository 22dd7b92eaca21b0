"""Batches of preprocessed images, or of cached features of a frozen backbone, for one or more devices.

All images are in one memory-mapped array: a batch is an index into it and needs neither decoding nor worker processes. The
order within an epoch depends only on (seed, epoch), so a resumed run sees the same batches as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pneumoscope.data.cache import load_array, preprocess_images
from pneumoscope.data.manifest import LABELS, LabeledImage
from pneumoscope.imaging.preprocess import Preprocessing
from pneumoscope.runs.recipe import AugmentationOptions
from pneumoscope.training.augmentation import augment
from pneumoscope.training.frozen_features import CachedFeatures

__all__ = ["Batch", "ImageArrays", "ImageDataModule", "derive_seed", "epoch_batches"]


class Batch(NamedTuple):
    """One device's part of a batch.

    Attributes:
        images: Images (n, size, size) or features (n, channels, height, width). With several views, all images of the first
            view come first, then all of the second.
        labels: 1.0 for pneumonia, or the class index in a multiclass data set, shape (n,).
        indices: Index of each image in its split, shape (n,).
        weight: Weight of this device's mean loss, 1 on average over the devices; compensates for parts of unequal size.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    weight: float


class _BatchIndices(NamedTuple):
    indices: list[int]
    epoch: int
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class ImageArrays:
    """Description of a run's arrays, which any process can use to open them.

    Attributes:
        root: Root folder of the manifest.
        train, validation: Images of each split, in order.
        preprocessing: Preprocessing of the images.
        features: Cached features of the frozen backbone; None to train on images.
        classes: Class names of the data set.
    """

    root: Path
    train: tuple[LabeledImage, ...]
    validation: tuple[LabeledImage, ...]
    preprocessing: Preprocessing
    features: CachedFeatures | None = None
    classes: tuple[str, ...] = LABELS

    def targets(self, images: Sequence[LabeledImage]) -> npt.NDArray[np.int64]:
        """Return the class index of each image, shape (n,)."""
        return np.array([self.classes.index(image.label) for image in images], dtype=np.int64)


def derive_seed(*parts: int) -> int:
    """Return a 63-bit seed derived from several numbers with NumPy's SeedSequence, which is stable across versions."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def epoch_batches(count: int, batch: int, seed: int, epoch: int, *, world_size: int = 1) -> list[list[int]]:
    """Return the batches of one epoch as lists of image indices: each image once, in random order.

    A last batch that has a single image (batch normalization needs two) or fewer images than devices is merged into the
    previous batch. Apart from that, the batches do not depend on the number of devices.

    Args:
        count: Number of images.
        batch: Images per step over all devices.
        seed: Seed of the run.
        epoch: Epoch, starting at 0.
        world_size: Number of devices.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch, 1))
    order = torch.randperm(count, generator=generator).tolist()
    batches = [order[start : start + batch] for start in range(0, count, batch)]
    if len(batches) > 1 and len(batches[-1]) < max(2, world_size):
        tail = batches.pop()
        batches[-1] += tail
    return batches


class _BatchSampler:
    """Batches of one epoch on one device."""

    def __init__(self, batches: Sequence[_BatchIndices]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[_BatchIndices]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class _ArrayDataset(Dataset[Batch]):
    def __init__(
        self,
        array: npt.NDArray[Any],
        rows: npt.NDArray[np.int64],
        labels: Tensor,
        augmentation: AugmentationOptions,
        seed: int,
        views: int = 1,
    ) -> None:
        self._array, self._rows, self._augmentation, self._seed = array, rows, augmentation, seed
        self._views = views
        self._labels = labels

    def __getitems__(self, batch: _BatchIndices) -> Batch:
        indices = torch.tensor(batch.indices, dtype=torch.int64)
        images = torch.from_numpy(self._array[self._rows[batch.indices]])
        if self._augmentation.any:
            images = torch.cat([self._augmented(images, batch, view) for view in range(self._views)])
        return Batch(images, self._labels[indices], indices, batch.weight)

    def _augmented(self, images: Tensor, batch: _BatchIndices, view: int) -> Tensor:
        # The seeds of the first view do not depend on the number of views.
        parts = (view,) if view else ()
        seeds = [derive_seed(self._seed, batch.epoch, index, 2, *parts) for index in batch.indices]
        borders = None
        if self._augmentation.border_swap:
            others = [derive_seed(seed, 5) % len(self._rows) for seed in seeds]
            borders = torch.from_numpy(self._array[self._rows[others]])
        return augment(images, self._augmentation, seeds, borders)


def _identity(batch: Batch) -> Batch:
    return batch


class ImageDataModule(pl.LightningDataModule):
    """LightningDataModule with training and validation batches.

    Args:
        arrays: Arrays to open.
        batch: Images per step over all devices.
        seed: Seed of the image order and the augmentation.
        augmentation: Augmentation of training images.
        views: Augmented copies of each training image per batch.
    """

    def __init__(
        self, arrays: ImageArrays, *, batch: int, seed: int, augmentation: AugmentationOptions, views: int = 1
    ) -> None:
        super().__init__()
        self.arrays, self.batch, self.seed, self.augmentation, self.views = arrays, batch, seed, augmentation, views
        self._train: _ArrayDataset | None = None
        self._validation: _ArrayDataset | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the open arrays: pickling would copy the memory map, and other processes open the arrays themselves."""
        return {**self.__dict__, "_train": None, "_validation": None}

    def setup(self, stage: str) -> None:
        """Open the arrays."""
        arrays = self.arrays
        preprocessed = preprocess_images(arrays.root, (*arrays.train, *arrays.validation), arrays.preprocessing)
        array: npt.NDArray[Any] = preprocessed.pixels
        if arrays.features is not None:
            features = load_array(arrays.features.name, arrays.features.shape, np.float32)
            if features is None:
                raise RuntimeError(f"features {arrays.features.name} were deleted from the cache")
            array = features
        count = len(arrays.train)
        train, validation = (torch.from_numpy(arrays.targets(each)) for each in (arrays.train, arrays.validation))
        if arrays.classes == LABELS:
            train, validation = train.float(), validation.float()
        self._train = _ArrayDataset(array, preprocessed.rows[:count], train, self.augmentation, self.seed, self.views)
        self._validation = _ArrayDataset(array, preprocessed.rows[count:], validation, AugmentationOptions(), self.seed)

    def steps_per_epoch(self, world_size: int) -> int:
        """Return the number of training steps per epoch."""
        return len(epoch_batches(len(self.arrays.train), self.batch, self.seed, 0, world_size=world_size))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return this device's part of each batch of the current epoch."""
        rank, world_size, epoch = self._process()
        batches = epoch_batches(len(self.arrays.train), self.batch, self.seed, epoch, world_size=world_size)
        parts = [
            _BatchIndices(indices[rank::world_size], epoch, len(indices[rank::world_size]) * world_size / len(indices))
            for indices in batches
        ]
        return self._loader(self._train, parts)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return this device's part of the validation images; some images are repeated to make all parts equally long."""
        rank, world_size, epoch = self._process()
        count = len(self.arrays.validation)
        padded = [i % count for i in range(-(-count // world_size) * world_size)]
        part, step = padded[rank::world_size], max(1, self.batch // world_size)
        batches = [_BatchIndices(part[start : start + step], epoch) for start in range(0, len(part), step)]
        return self._loader(self._validation, batches)

    def _process(self) -> tuple[int, int, int]:
        """Return the rank of this process, the number of processes and the epoch."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size, trainer.current_epoch) if trainer else (0, 1, 0)

    def _loader(self, dataset: _ArrayDataset | None, batches: Sequence[_BatchIndices]) -> DataLoader[Batch]:
        if dataset is None:
            raise RuntimeError("call setup() first")
        # torch's type hints expect lists, but its fetcher passes any sampler element to __getitems__ and the result to
        # collate_fn.
        sampler: Any = _BatchSampler(batches)
        collate: Any = _identity
        return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, pin_memory=torch.cuda.is_available())
