"""Trains the gate: images as they should be against the same images turned, mirrored, inverted and cut, and other pictures.

What is wrong with an image is made from images that are right, so that the gate can look at nothing else. Turns between those of a
image that lies a little askew and those of one that lies on its side are never shown: there the gate may say either.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pneumoscope.bundle.card import INPUT_CLASSES, InputClass
from pneumoscope.models.input_checks import InputClassifier
from pneumoscope.runs.recipe import Augmentation
from pneumoscope.training.augmentation import augment
from pneumoscope.training.data_module import derive_seed
from pneumoscope.training.negative_images import negative_image

__all__ = ["PLAUSIBLE", "SIDE", "draw_examples", "train_input_classifier"]

# At this side pictures are made, which `InputClassifier` halves: quick enough to make a new one for each step.
SIDE = 112
_BATCH = 64
# How often each kind is drawn: as it should be as often as three others.
_ODDS: dict[InputClass, int] = {
    "upright": 6, "inverted": 2, "upside_down": 2, "rotated_90": 2, "mirrored": 2, "cropped": 2, "not_a_chest_radiograph": 3,
}  # fmt: skip
# What an image may look like and still be one: wider than in clinics, so that an image at the edge of it is safe.
PLAUSIBLE = Augmentation(
    rotation=15, translation=0.06, scale=0.3, aspect=0.2, brightness=0.35, contrast=0.4, gamma=0.6, blur=1, noise=0.06
)
_TURNED = PLAUSIBLE.model_copy(update={"rotation": 30.0})
_CUT = 0.35  # of the area, at most, is left of a cropped image


def train_input_classifier(
    pixels: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    *,
    steps: int,
    seed: int,
) -> InputClassifier:
    """Train a gate on the CPU.

    Args:
        pixels: prepared images, shape (n, size, size).
        rows: of the training images among them.
        steps: batches of 64 pictures.
        seed: of its weights and of every picture.
    Returns:
        In evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 7))
        gate = InputClassifier(len(INPUT_CLASSES))
    optimizer = torch.optim.AdamW(gate.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    gate.train()
    console, hidden = Console(stderr=True), not sys.stderr.isatty()
    for step in track(range(steps), "learning what to refuse", console=console, transient=True, disable=hidden):
        pictures, input_classes = draw_examples(pixels, rows, _BATCH, derive_seed(seed, step, 8))
        optimizer.zero_grad()
        F.cross_entropy(gate(pictures), input_classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return gate.eval()


def draw_examples(
    pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Pictures of every kind.

    Args:
        pixels, rows: as for `train_input_classifier`.
        count: pictures.
        seed: of everything that is drawn.
    Returns:
        Grey levels 0 to 255, float32, shape (count, SIDE, SIDE); places in `INPUT_CLASSES`, shape (count,).
    """
    random = np.random.default_rng(seed)
    odds = np.array([_ODDS[kind] for kind in INPUT_CLASSES], dtype=float)
    input_classes = random.choice(len(INPUT_CLASSES), count, p=odds / odds.sum())
    images = pixels[random.choice(rows, count)]
    cut = [
        _cut(image, random) if INPUT_CLASSES[kind] == "cropped" else image
        for image, kind in zip(images, input_classes, strict=True)
    ]
    small = torch.stack([_shrink(image) for image in cut])
    for place in np.flatnonzero(input_classes == INPUT_CLASSES.index("not_a_chest_radiograph")).tolist():
        small[place] = torch.from_numpy(negative_image(random, small[place].numpy()).copy())
    seeds = random.integers(2**62, size=count).tolist()
    askew = np.isin(input_classes, [INPUT_CLASSES.index(kind) for kind in ("upside_down", "rotated_90")])
    made = torch.where(
        torch.from_numpy(askew).view(-1, 1, 1), augment(small, _TURNED, seeds), augment(small, PLAUSIBLE, seeds)
    )
    for place, kind in enumerate(input_classes.tolist()):
        made[place] = _spoil(made[place], INPUT_CLASSES[kind], random)
    return made, torch.from_numpy(input_classes)


def _shrink(image: npt.NDArray[np.uint8]) -> Tensor:
    grey = torch.from_numpy(np.array(image, dtype=np.float32))[None, None]
    small = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)[0, 0]
    return small.round().clamp(0, 255).to(torch.uint8)


def _cut(image: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A piece of an image, up to a third of its area, less than half as wide again as it is high."""
    area, ratio = random.uniform(0.06, _CUT), np.exp(random.uniform(-0.4, 0.4))
    height, width = (int(len(image) * np.sqrt(area * factor)) for factor in (1 / ratio, ratio))
    top, left = (int(random.integers(len(image) - side + 1)) for side in (height, width))
    return image[top : top + height, left : left + width]


def _spoil(image: Tensor, kind: InputClass, random: np.random.Generator) -> Tensor:
    mirror = bool(random.random() < 0.5)
    if kind == "mirrored":
        return image.flip(1)
    if kind == "inverted":
        image = torch.rot90(image, int(random.choice([0, 0, 0, 1, 2, 3])))
        return 255 - (image.flip(1) if mirror else image)
    if kind in {"upside_down", "rotated_90"}:
        turns = 2 if kind == "upside_down" else int(random.choice([1, 3]))
        return torch.rot90(image.flip(1) if mirror else image, turns)
    return image
