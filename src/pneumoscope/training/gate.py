"""Trains the gate: films as they should be against the same films turned, mirrored, inverted and cut, and other pictures.

What is wrong with a film is made from films that are right, so that the gate can look at nothing else. Turns between those of a
film that lies a little askew and those of one that lies on its side are never shown: there the gate may say either.
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

from pneumoscope.bundle.card import KINDS, Kind
from pneumoscope.networks.gate import Gate
from pneumoscope.training.augment import augment
from pneumoscope.training.films import derive_seed
from pneumoscope.training.others import other_picture
from pneumoscope.training.recipe import Augmentation

__all__ = ["PLAUSIBLE", "SIDE", "draw_pictures", "train_gate"]

# At this side pictures are made, which `Gate` halves: quick enough to make a new one for each step.
SIDE = 112
_BATCH = 64
# How often each kind is drawn: as it should be as often as three others.
_ODDS: dict[Kind, int] = {
    "film": 6, "inverted": 2, "upside down": 2, "on its side": 2, "mirrored": 2, "cropped": 2, "other": 3,
}  # fmt: skip
# What a film may look like and still be one: wider than in clinics, so that a film at the edge of it is safe.
PLAUSIBLE = Augmentation(
    rotation=15, translation=0.06, scale=0.3, aspect=0.2, brightness=0.35, contrast=0.4, gamma=0.6, blur=1, noise=0.06
)
_TURNED = PLAUSIBLE.model_copy(update={"rotation": 30.0})
_CUT = 0.35  # of the area, at most, is left of a cropped film


def train_gate(
    pixels: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    *,
    steps: int,
    seed: int,
) -> Gate:
    """Train a gate on the CPU.

    Args:
        pixels: prepared films, shape (n, size, size).
        rows: of the training films among them.
        steps: batches of 64 pictures.
        seed: of its weights and of every picture.
    Returns:
        In evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 7))
        gate = Gate(len(KINDS))
    optimizer = torch.optim.AdamW(gate.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    gate.train()
    console, hidden = Console(stderr=True), not sys.stderr.isatty()
    for step in track(range(steps), "learning what to refuse", console=console, transient=True, disable=hidden):
        pictures, kinds = draw_pictures(pixels, rows, _BATCH, derive_seed(seed, step, 8))
        optimizer.zero_grad()
        F.cross_entropy(gate(pictures), kinds).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return gate.eval()


def draw_pictures(
    pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Pictures of every kind.

    Args:
        pixels, rows: as for `train_gate`.
        count: pictures.
        seed: of everything that is drawn.
    Returns:
        Grey levels 0 to 255, float32, shape (count, SIDE, SIDE); places in `KINDS`, shape (count,).
    """
    random = np.random.default_rng(seed)
    odds = np.array([_ODDS[kind] for kind in KINDS], dtype=float)
    kinds = random.choice(len(KINDS), count, p=odds / odds.sum())
    films = pixels[random.choice(rows, count)]
    cut = [_cut(film, random) if KINDS[kind] == "cropped" else film for film, kind in zip(films, kinds, strict=True)]
    small = torch.stack([_shrink(film) for film in cut])
    for place in np.flatnonzero(kinds == KINDS.index("other")).tolist():
        small[place] = torch.from_numpy(other_picture(random, small[place].numpy()).copy())
    seeds = random.integers(2**62, size=count).tolist()
    askew = np.isin(kinds, [KINDS.index(kind) for kind in ("upside down", "on its side")])
    made = torch.where(
        torch.from_numpy(askew).view(-1, 1, 1), augment(small, _TURNED, seeds), augment(small, PLAUSIBLE, seeds)
    )
    for place, kind in enumerate(kinds.tolist()):
        made[place] = _spoil(made[place], KINDS[kind], random)
    return made, torch.from_numpy(kinds)


def _shrink(film: npt.NDArray[np.uint8]) -> Tensor:
    grey = torch.from_numpy(np.array(film, dtype=np.float32))[None, None]
    small = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)[0, 0]
    return small.round().clamp(0, 255).to(torch.uint8)


def _cut(film: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A piece of a film, up to a third of its area, less than half as wide again as it is high."""
    area, ratio = random.uniform(0.06, _CUT), np.exp(random.uniform(-0.4, 0.4))
    height, width = (int(len(film) * np.sqrt(area * factor)) for factor in (1 / ratio, ratio))
    top, left = (int(random.integers(len(film) - side + 1)) for side in (height, width))
    return film[top : top + height, left : left + width]


def _spoil(film: Tensor, kind: Kind, random: np.random.Generator) -> Tensor:
    mirror = bool(random.random() < 0.5)
    if kind == "mirrored":
        return film.flip(1)
    if kind == "inverted":
        film = torch.rot90(film, int(random.choice([0, 0, 0, 1, 2, 3])))
        return 255 - (film.flip(1) if mirror else film)
    if kind in {"upside down", "on its side"}:
        turns = 2 if kind == "upside down" else int(random.choice([1, 3]))
        return torch.rot90(film.flip(1) if mirror else film, turns)
    return film
