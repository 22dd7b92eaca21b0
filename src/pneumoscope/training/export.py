"""From trained weights to a bundle: one ONNX file, checked against torch film by film, and its card.

Calibration and operating points are fitted on what the exported file says of the validation films, not on what torch says:
what is described is what is shipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pneumoscope import __version__
from pneumoscope.bundle.card import (
    CARD_FILE,
    NETWORK_FILE,
    Calibration,
    Card,
    OperatingPoint,
    Parity,
    Share,
    short_hash,
)
from pneumoscope.dataset.cache import prepare_films
from pneumoscope.dataset.manifest import Manifest
from pneumoscope.errors import ParityError
from pneumoscope.networks.network import Network
from pneumoscope.predictor.predictor import Predictor, sigmoid
from pneumoscope.statistics.calibration import fit_platt
from pneumoscope.statistics.intervals import proportion
from pneumoscope.statistics.operating_point import at_sensitivity, at_specificity, highest_youden
from pneumoscope.storage import write_atomically
from pneumoscope.training.films import FilmArrays
from pneumoscope.training.recipe import Recipe
from pneumoscope.training.run import machine, now, versions

__all__ = ["TOLERANCE", "export", "to_onnx"]

TOLERANCE = 1e-4
_PARITY_FILMS = 64
_BATCH = 32


def export(
    network: Network, recipe: Recipe, manifest: Manifest, arrays: FilmArrays, folder: Path, *, best_epoch: int
) -> Card:
    """Write a bundle.

    Args:
        network: with the weights kept, on the CPU, in evaluation mode.
        recipe, manifest, arrays: of the run.
        folder: of the bundle; what is there is replaced.
        best_epoch: counted from 1.
    Raises:
        ParityError: the exported network differs from torch by more than `TOLERANCE` on any of the
            validation films compared: 64, or all where there are fewer.
        StorageError: it cannot be written.
    """
    onnx = to_onnx(network, recipe.network.image_size)
    prepared = prepare_films(arrays.root, (*arrays.train, *arrays.validation), arrays.preparation)
    pixels = prepared.pixels[prepared.rows[len(arrays.train) :]]
    labels = np.array([film.positive for film in arrays.validation])
    card = Card(
        name=recipe.name,
        network=recipe.network.name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        version=__version__,
        created=now(),
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        onnx_bytes=len(onnx),
        preparation=arrays.preparation,
        calibration=Calibration(slope=1, intercept=0, method="none", n=0),
        points={},
        parity=Parity(films=0, largest=0),
        recipe=recipe.model_dump(mode="json"),
        seed=recipe.training.seed,
        manifest_sha256=manifest.sha256(),
        split_by=manifest.by,
        counts=manifest.counts(),
        seen={
            name: sorted(short_hash(film.sha256) for film in manifest.split(name)) for name in ("train", "validation")
        },
        best_epoch=best_epoch,
        machine=machine() | versions(),
    )
    predictor = Predictor(card, onnx)
    logits = np.concatenate([predictor.logits(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)])
    # A manifest is sorted: films from all over it are of both labels.
    spread = np.linspace(0, len(pixels) - 1, min(_PARITY_FILMS, len(pixels))).astype(int)
    card = card.model_copy(
        update={
            "parity": check_parity(network, pixels[spread], logits[spread]),
            "calibration": _calibrate(logits, labels),
            "points": _points(sigmoid(logits), labels, [film.patient for film in arrays.validation]),
        }
    )
    write_atomically(folder / NETWORK_FILE, onnx)
    write_atomically(folder / CARD_FILE, card.to_json())
    return card


def to_onnx(network: Network, image_size: int) -> bytes:
    """One ONNX file, weights inside: "film" uint8 (n, size, size) to "logit" float32 (n,)."""
    example = torch.zeros(2, image_size, image_size, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["film"],
            output_names=["logit"],
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise ParityError("torch made no ONNX program")
    content: bytes = program.model_proto.SerializeToString()
    return content


def check_parity(network: Network, pixels: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]) -> Parity:
    """Compare torch with what the exported network said.

    Logits are compared relative to their size where that is above 1: both compute in single precision. Scores then agree to
    2.5e-5 (the largest x sigmoid'(x) is 0.224).

    Args:
        network: in evaluation mode.
        pixels: shape (n, size, size).
        logits: of the exported network, shape (n,).
    Raises:
        ParityError: they differ by more than `TOLERANCE` on a film.
    """
    with torch.inference_mode():
        own = torch.cat([network(torch.from_numpy(np.array(part))) for part in np.array_split(pixels, 2)]).numpy()
    largest = float((np.abs(own - logits) / np.maximum(1, np.abs(own))).max())
    if not largest <= TOLERANCE:
        raise ParityError(
            f"the exported network's logits differ from torch's by up to {largest:.2g} of their size on {len(pixels)} films"
            f" (at most {TOLERANCE:g} is allowed)",
            advice="This is a fault of the export, not of the training; the checkpoints are kept",
        )
    return Parity(films=len(pixels), largest=largest)


def _calibrate(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_]) -> Calibration:
    slope, intercept = fit_platt(logits, labels)
    return Calibration(slope=slope, intercept=intercept, method="platt", n=len(labels))


def _points(
    scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_], patients: Sequence[str]
) -> dict[str, OperatingPoint]:
    n, positives = len(labels), int(labels.sum())
    chosen = {
        "half": (0.5, "score of 0.5, as in the report"),
        "balanced": (highest_youden(scores, labels), f"highest Youden index on {n} validation films"),
        "rule-out": (
            at_sensitivity(scores, labels, 0.99),
            f"highest threshold with sensitivity 0.99 on {positives} validation pneumonias",
        ),
        "rule-in": (
            at_specificity(scores, labels, 0.99),
            f"lowest threshold with specificity 0.99 on {n - positives} validation normals",
        ),
    }

    def share(threshold: float, positive: bool) -> Share:
        places = np.flatnonzero(labels == positive)
        right = (scores[places] >= threshold) == positive
        found = proportion(right, [patients[place] for place in places.tolist()])
        return Share.model_validate({field: getattr(found, field) for field in Share.model_fields})

    return {
        name: OperatingPoint(
            threshold=threshold,
            rule=rule,
            chosen_on="fixed" if name == "half" else "validation",
            sensitivity=share(threshold, True),
            specificity=share(threshold, False),
        )
        for name, (threshold, rule) in chosen.items()
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter logs each of its passes and warns of its own future.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
