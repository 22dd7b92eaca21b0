"""Batches of prepared images (or of their features, where the convolutions are frozen) for one or several devices.

Everything lies in one array mapped from disk, so that a batch is an index into it: no decoding and no worker process stands
between the images and the network. The order of an epoch depends on (seed, epoch) alone: a run that was interrupted goes on
with the batches that it would have had.
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
from pneumoscope.data.manifest import LabelledImage
from pneumoscope.imaging.preprocess import Preprocessing
from pneumoscope.runs.recipe import Augmentation
from pneumoscope.training.augmentation import augment

__all__ = ["Batch", "ImageArrays", "ImageDataModule", "KeptFeatures", "derive_seed", "epoch_order"]


class Batch(NamedTuple):
    """Images or features, 1.0 where pneumonia is present, and each image's place in its split.

    `weight` is what this device's mean loss counts beside the others', 1 on average: devices share a batch as evenly as it goes.
    """

    images: Tensor
    labels: Tensor
    places: Tensor
    weight: float


class _Draw(NamedTuple):
    places: list[int]
    epoch: int
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class KeptFeatures:
    """Where the features of frozen convolutions are kept, a row a distinct image."""

    name: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ImageArrays:
    """What a data module needs to open its arrays in any process.

    Attributes:
        root: the manifest's root.
        train, validation: images in order.
        preprocessing: how they are prepared.
        features: where frozen features are kept; None where images themselves are trained on.
    """

    root: Path
    train: tuple[LabelledImage, ...]
    validation: tuple[LabelledImage, ...]
    preprocessing: Preprocessing
    features: KeptFeatures | None = None


def derive_seed(*parts: int) -> int:
    """A seed of 63 bits from several numbers, the same everywhere (NumPy's SeedSequence, stable by its own promise)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def epoch_order(count: int, batch: int, seed: int, epoch: int, *, world: int = 1) -> list[list[int]]:
    """The batches of one epoch: every image once, shuffled.

    A last batch of one image, which batch normalisation cannot train on, or of fewer images than devices joins the one before.
    Otherwise the batches are the same on any number of devices.

    Args:
        count: images.
        batch: images a step over all devices.
        world: devices.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch, 1))
    order = torch.randperm(count, generator=generator).tolist()
    batches = [order[start : start + batch] for start in range(0, count, batch)]
    if len(batches) > 1 and len(batches[-1]) < max(2, world):
        tail = batches.pop()
        batches[-1] += tail
    return batches


class _Draws:
    """Batches of one epoch for one device, as the loader's batch sampler."""

    def __init__(self, draws: Sequence[_Draw]) -> None:
        self._draws = draws

    def __iter__(self) -> Iterator[_Draw]:
        return iter(self._draws)

    def __len__(self) -> int:
        return len(self._draws)


class _Rows(Dataset[Batch]):
    def __init__(
        self,
        array: npt.NDArray[Any],
        rows: npt.NDArray[np.int64],
        images: Sequence[LabelledImage],
        how: Augmentation,
        seed: int,
    ) -> None:
        self._array, self._rows, self._how, self._seed = array, rows, how, seed
        self._labels = torch.tensor([float(image.positive) for image in images])

    def __getitems__(self, draw: _Draw) -> Batch:
        places = torch.tensor(draw.places, dtype=torch.int64)
        images = torch.from_numpy(self._array[self._rows[draw.places]])
        if self._how.any:
            images = augment(
                images, self._how, [derive_seed(self._seed, draw.epoch, place, 2) for place in draw.places]
            )
        return Batch(images, self._labels[places], places, draw.weight)


def _as_it_is(batch: Batch) -> Batch:
    return batch


class ImageDataModule(pl.LightningDataModule):
    """Training and validation batches.

    Args:
        arrays: what to open.
        batch: images a step over all devices.
        seed: of the order and of the augmentation.
        augmentation: of training images.
    """

    def __init__(self, arrays: ImageArrays, *, batch: int, seed: int, augmentation: Augmentation) -> None:
        super().__init__()
        self.arrays, self.batch, self.seed, self.augmentation = arrays, batch, seed, augmentation
        self._train: _Rows | None = None
        self._validation: _Rows | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens its own arrays: a memory map would be copied whole."""
        return {**self.__dict__, "_train": None, "_validation": None}

    def setup(self, stage: str) -> None:
        """Open the arrays."""
        arrays = self.arrays
        prepared = preprocess_images(arrays.root, (*arrays.train, *arrays.validation), arrays.preprocessing)
        array: npt.NDArray[Any] = prepared.pixels
        if arrays.features is not None:
            kept = load_array(arrays.features.name, arrays.features.shape, np.float32)
            if kept is None:
                raise RuntimeError(f"features {arrays.features.name} vanished from the cache")
            array = kept
        count = len(arrays.train)
        self._train = _Rows(array, prepared.rows[:count], arrays.train, self.augmentation, self.seed)
        self._validation = _Rows(array, prepared.rows[count:], arrays.validation, Augmentation(), self.seed)

    def _where(self) -> tuple[int, int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size, trainer.current_epoch) if trainer else (0, 1, 0)

    def steps_an_epoch(self, world: int) -> int:
        """Training steps of every epoch."""
        return len(epoch_order(len(self.arrays.train), self.batch, self.seed, 0, world=world))

    def train_dataloader(self) -> DataLoader[Batch]:
        """This device's share of the epoch that begins."""
        rank, world, epoch = self._where()
        batches = epoch_order(len(self.arrays.train), self.batch, self.seed, epoch, world=world)
        draws = [
            _Draw(places[rank::world], epoch, len(places[rank::world]) * world / len(places)) for places in batches
        ]
        return self._loader(self._train, draws)

    def val_dataloader(self) -> DataLoader[Batch]:
        """This device's share of the validation images; shares are made equal by repeating images from the start."""
        rank, world, epoch = self._where()
        count = len(self.arrays.validation)
        padded = [place % count for place in range(-(-count // world) * world)]
        share, step = padded[rank::world], max(1, self.batch // world)
        return self._loader(
            self._validation, [_Draw(share[start : start + step], epoch) for start in range(0, len(share), step)]
        )

    def _loader(self, rows: _Rows | None, draws: Sequence[_Draw]) -> DataLoader[Batch]:
        if rows is None:
            raise RuntimeError("setup() comes before loaders")
        # torch's types say lists; what its fetcher does is hand each draw to __getitems__ and the result to collate_fn.
        sampler: Any = _Draws(draws)
        collate: Any = _as_it_is
        return DataLoader(rows, batch_sampler=sampler, collate_fn=collate, pin_memory=torch.cuda.is_available())
