"""Labeled data set as a torch Dataset; the only module of `data` that imports torch, loaded on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from pneumoscope.data.labeled_dataset import LabeledDataset

__all__ = ["TorchDataset"]


class TorchDataset(Dataset[tuple[Tensor, int]]):
    """Map-style dataset of images, uint8 tensors of shape (height, width), and class indices.

    Batches of these images, shape (n, size, size), need no further normalization for the networks of `create_model`.

    Args:
        source: Images and labels.
    """

    def __init__(self, source: LabeledDataset) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        image, label = self.source[index]
        return torch.from_numpy(image.copy()), label  # torch tensors must be writable
