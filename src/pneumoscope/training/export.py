"""From trained weights to a bundle: one ONNX file, checked against torch image by image, and its card.

Calibration, operating points and limits are fitted on what the exported file says of the validation images, not on what torch
says: what is described is what is shipped. Limits of what is refused are fitted on images each once a little askew and lit
otherwise, whatever the rest is fitted on: how an image was laid and lit is no reason to refuse it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logit

from pneumoscope import __version__
from pneumoscope.bundle.card import (
    CARD_FILE,
    FORMAT,
    INPUT_CLASSES,
    LABELS,
    NETWORK_FILE,
    Calibration,
    Card,
    Intervals,
    OperatingPoint,
    Parity,
    Proportion,
    ReferenceDistribution,
    RejectionLimits,
    UncertaintyBand,
    short_hash,
)
from pneumoscope.bundle.network_checks import self_test_image
from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.files import write_atomically
from pneumoscope.data.cache import preprocess_images
from pneumoscope.data.manifest import Manifest
from pneumoscope.inference.decision import calibrate, sigmoid
from pneumoscope.inference.session import BundleSession, Outputs, network_rejections
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.runs.recipe import Augmentation, Recipe, RejectionOptions
from pneumoscope.runs.record import machine, now, versions
from pneumoscope.statistics.calibration import at_prevalence, fit_platt
from pneumoscope.statistics.conformal import fit_venn_abers, uncertain_band
from pneumoscope.statistics.intervals import proportion
from pneumoscope.statistics.thresholds import at_sensitivity, at_specificity, highest_youden
from pneumoscope.training.augmentation import augment
from pneumoscope.training.data_module import ImageArrays, derive_seed
from pneumoscope.training.input_classifier import PLAUSIBLE
from pneumoscope.training.onnx_export import to_onnx
from pneumoscope.training.ood import fit_input_checks
from pneumoscope.training.parity import check_explanations, check_parity

__all__ = ["COVERAGE", "export"]

# Of images of either label that are to be called rightly or left uncertain.
COVERAGE = 0.95
# Above this probability a picture is an image as it should be, however sure the gate is of all validation images.
_SURELY_A_IMAGE = 0.5
_PARITY_IMAGES = 64
_BATCH = 32


def export(
    network: ClassifierNetwork,
    recipe: Recipe,
    manifest: Manifest,
    arrays: ImageArrays,
    folder: Path,
    *,
    best_epoch: int,
) -> Card:
    """Write a bundle.

    Args:
        network: with the weights kept, on the CPU, in evaluation mode.
        recipe, manifest, arrays: of the run.
        folder: of the bundle; what is there is replaced.
        best_epoch: counted from 1.
    Raises:
        ParityError: logits, heatmaps, kinds or distances of the exported network differ from torch's (see `check_parity` and
            `check_explanations`) on the validation images compared: 64, or all where there are fewer.
        StorageError: it cannot be written.
    """
    prepared = preprocess_images(arrays.root, (*arrays.train, *arrays.validation), arrays.preprocessing)
    rows, pixels = prepared.rows[: len(arrays.train)], prepared.pixels[prepared.rows[len(arrays.train) :]]
    screen = None
    if steps := recipe.rejection.steps:
        screen = fit_input_checks(prepared.pixels, rows, steps=steps, seed=recipe.training.seed)
    onnx = to_onnx(network, recipe.network.image_size, screen)
    labels = np.array([image.positive for image in arrays.validation])
    card = Card(
        format=FORMAT,
        labels=LABELS,
        name=recipe.name,
        network=recipe.network.name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        version=__version__,
        created=now(),
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        onnx_bytes=len(onnx),
        self_test_logit=0,
        preprocessing=arrays.preprocessing,
        calibration=Calibration(slope=1, intercept=0, method="none", n=0, prevalence=0.5),
        intervals=None,
        rejection_limits=None,
        reference_distribution=None,
        age_range=recipe.data.age_range,
        operating_points={},
        parity=Parity(images=0, largest=0),
        recipe=recipe.model_dump(mode="json"),
        seed=recipe.training.seed,
        manifest_sha256=manifest.sha256(),
        split_by=manifest.split_by,
        counts=manifest.counts(),
        seen={
            name: sorted(short_hash(image.sha256) for image in manifest.split(name)) for name in ("train", "validation")
        },
        best_epoch=best_epoch,
        machine=machine() | versions(),
    )
    session = BundleSession(card, onnx)
    outputs = [session.outputs(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)]
    logits = np.concatenate([part.logit for part in outputs])
    # A manifest is sorted: images from all over it are of both labels.
    spread = np.linspace(0, len(pixels) - 1, min(_PARITY_IMAGES, len(pixels))).astype(int)
    for part in (pixels[spread[i : i + _BATCH]] for i in range(0, len(spread), _BATCH)):
        check_explanations(network, part, session.outputs(part, heatmaps=session.explains), screen)
    patients = [image.patient for image in arrays.validation]
    augmented = recipe.training.calibrate == "augmented"
    fitted = logits
    if augmented:
        as_trained = _augmented(pixels, recipe.augmentation, recipe.training.seed)
        fitted = np.concatenate([session.logits(part) for part in as_trained])
    limits = None
    if screen:
        askew = [session.outputs(part) for part in _augmented(pixels, PLAUSIBLE, recipe.training.seed)]
        limits = _limits(outputs, askew, recipe.rejection, patients)
    prevalence = recipe.training.prevalence or float(labels.mean())
    card = msgspec.structs.replace(
        card,
        parity=check_parity(network, pixels[spread], logits[spread]),
        self_test_logit=float(session.logits(self_test_image(recipe.network.image_size))[0]),
        calibration=_calibrate(fitted, labels, prevalence),
        intervals=_intervals(fitted, labels, prevalence),
        rejection_limits=limits,
        operating_points=_points(sigmoid(fitted), labels, patients, bool(augmented)),
    )
    card = msgspec.structs.replace(card, reference_distribution=_spread(card, outputs, labels))
    write_atomically(folder / NETWORK_FILE, onnx)
    write_atomically(folder / CARD_FILE, card.to_json())
    return card


def _augmented(pixels: npt.NDArray[np.uint8], options: Augmentation, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Images in batches, each once as `options` may make it look."""
    for start in range(0, len(pixels), _BATCH):
        images = torch.from_numpy(np.array(pixels[start : start + _BATCH]))
        seeds = [derive_seed(seed, start + place, 9) for place in range(len(images))]
        yield augment(images, options, seeds).round().to(torch.uint8).numpy()


def _calibrate(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_], prevalence: float) -> Calibration:
    slope, intercept = fit_platt(logits, labels)
    # What `at_prevalence` does to probabilities adds the same to every logit.
    moved = intercept + float(logit(prevalence) - logit(labels.mean()))
    return Calibration(slope=slope, intercept=moved, method="platt", n=len(labels), prevalence=prevalence)


def _intervals(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_], prevalence: float) -> Intervals:
    found = fit_venn_abers(logits, labels)
    low, high = (at_prevalence(side, float(labels.mean()), prevalence).tolist() for side in (found.low, found.high))
    return Intervals(edges=tuple(found.edges), low=low, high=high, method="venn-abers", n=len(labels))


def _points(
    scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_], patients: Sequence[str], augmented: bool = False
) -> dict[str, OperatingPoint]:
    n, n_pneumonia = len(labels), int(labels.sum())
    chosen: dict[str, dict[str, Any]] = {
        "half": {"threshold": 0.5, "rule": "fixed"},
        "balanced": {"threshold": highest_youden(scores, labels), "rule": "youden", "n": n},
        "rule_out": {
            "threshold": at_sensitivity(scores, labels, 0.99), "rule": "sensitivity", "target": 0.99, "n": n_pneumonia,
        },
        "rule_in": {
            "threshold": at_specificity(scores, labels, 0.99), "rule": "specificity", "target": 0.99, "n": n - n_pneumonia,
        },
    }  # fmt: skip

    def share(threshold: float, positive: bool) -> Proportion:
        places = np.flatnonzero(labels == positive)
        return _share((scores[places] >= threshold) == positive, [patients[place] for place in places.tolist()])

    return {
        name: OperatingPoint(
            **facts,
            augmented=augmented and facts["rule"] != "fixed",
            sensitivity=share(facts["threshold"], True),
            specificity=share(facts["threshold"], False),
            # Ruling out and ruling in state which error is worse, so every image is decided there.
            uncertainty_band=_band(scores, labels, facts["threshold"]) if name == "balanced" else None,
        )
        for name, facts in chosen.items()
    }


def _share(what: npt.NDArray[np.bool_], patients: Sequence[str]) -> Proportion:
    found = proportion(what, patients)
    return msgspec.convert({field: getattr(found, field) for field in Proportion.__struct_fields__}, Proportion)


def _limits(
    plain: Sequence[Outputs], askew: Sequence[Outputs], shares: RejectionOptions, patients: Sequence[str]
) -> RejectionLimits:
    """Limits that at most these shares of images lie beyond, by what the network gives of them as they are and once askew."""

    def found(outputs: Sequence[Outputs]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        input_classes = [part.input_classes[:, 0] for part in outputs if part.input_classes is not None]
        return np.concatenate(input_classes), np.concatenate(
            [part.ood_distance for part in outputs if part.ood_distance is not None]
        )

    image, distance = found(askew)
    least = min(_SURELY_A_IMAGE, float(np.sort(image)[math.floor(shares.classifier_share * len(image) + 1e-9)]))
    greatest = float(np.sort(distance)[-1 - math.floor(shares.distance_share * len(distance) + 1e-9)])
    image, distance = found(plain)
    return RejectionLimits(
        input_classes=INPUT_CLASSES,
        min_upright=least,
        max_distance=greatest,
        classifier_share=shares.classifier_share,
        distance_share=shares.distance_share,
        rejected=_share((image < least) | (distance > greatest), patients),
    )


def _spread(card: Card, plain: Sequence[Outputs], labels: npt.NDArray[np.bool_]) -> ReferenceDistribution | None:
    """Of images as they are, by what the card says of them; None where it refuses all."""
    kept = np.array(
        [rejection is None for part in plain for rejection in network_rejections(card, part)], dtype=np.bool_
    )
    if not kept.any():
        return None
    probabilities = calibrate(card.calibration, np.concatenate([part.logit for part in plain])[kept])
    return ReferenceDistribution(
        deciles=tuple(np.quantile(probabilities, np.arange(1, 10) / 10).tolist()),
        n=int(kept.sum()),
        n_pneumonia=int(labels[kept].sum()),
    )


def _band(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_], threshold: float) -> UncertaintyBand | None:
    """The scores that are left uncertain; None where there are too few images for the coverage.

    It reaches to the threshold, so that a rising score goes from normal over uncertain to pneumonia and never back: more images
    are left uncertain than the coverage needs, and it holds all the more.
    """
    n_pneumonia = int(labels.sum())
    try:
        uncertainty_band = uncertain_band(scores, labels, COVERAGE)
    except UndefinedMetricError:
        return None
    return UncertaintyBand(
        low=min(uncertainty_band.low, threshold),
        high=max(uncertainty_band.high, threshold),
        coverage=COVERAGE,
        n_normal=len(labels) - n_pneumonia,
        n_pneumonia=n_pneumonia,
    )
