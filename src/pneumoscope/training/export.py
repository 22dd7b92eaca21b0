"""Write a bundle from trained weights: the ONNX file, verified against PyTorch, and its card.

All statistics on the card are fitted on outputs of the exported file. The rejection limits are fitted on augmented images, so
that plausible positioning and exposure are not rejected.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from pneumoscope import __version__
from pneumoscope.bundle.bundle_folder import write_bundle
from pneumoscope.bundle.card import (
    FORMAT,
    LABELS,
    Calibration,
    Card,
    OutlierSummary,
    Parity,
    RejectionLimits,
    short_hash,
)
from pneumoscope.bundle.network_checks import self_test_image
from pneumoscope.data.cache import preprocess_images
from pneumoscope.data.outliers import Outliers
from pneumoscope.evaluation.fitting import (
    fit_calibration,
    fit_intervals,
    fit_operating_points,
    fit_outlier_summary,
    fit_reference_distribution,
    fit_rejection_limits,
)
from pneumoscope.inference.decision import sigmoid
from pneumoscope.inference.network_session import NetworkOutputs, NetworkSession
from pneumoscope.inference.session import BundleSession
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.input_checks import InputChecks
from pneumoscope.runs.recipe import AugmentationOptions, Recipe
from pneumoscope.runs.record import machine, now, versions
from pneumoscope.training.age_classifier import train_age_classifier
from pneumoscope.training.augmentation import augment
from pneumoscope.training.data_module import ImageArrays, derive_seed
from pneumoscope.training.input_checks import ACCEPTED, fit_input_checks
from pneumoscope.training.inputs import TrainingInputs
from pneumoscope.training.onnx_export import check_logits, check_outputs, export_onnx

__all__ = [
    "augmented_batches",
    "common_fields",
    "export",
    "fit_limits",
    "image_batches",
    "parity_sample",
    "train_input_checks",
    "validation_pixels",
]

_PARITY_IMAGES = 64
_BATCH = 32


def export(
    inputs: TrainingInputs,
    network: ClassifierNetwork,
    arrays: ImageArrays,
    folder: Path,
    *,
    best_epoch: int,
    seen_before: Collection[str] = (),
) -> Card:
    """Write a bundle and return its card.

    Args:
        inputs: Recipe, images and outliers of the run.
        network: Network with its trained weights, on the CPU, in evaluation mode.
        arrays: Preprocessed images.
        folder: Bundle folder; existing files are replaced.
        best_epoch: Epoch of the weights, starting at 1.
        seen_before: Short hashes of the images that the initial weights were trained or validated on. The card lists them with
            the training images, so that no evaluation uses them.

    Raises:
        ParityError: Outputs of the exported network differ from PyTorch on up to 64 validation images; see `onnx_export`.
        StorageError: The bundle cannot be written.
    """
    recipe, outliers = inputs.recipe, inputs.outliers
    pixels = validation_pixels(arrays)
    labels = np.array([image.positive for image in arrays.validation])
    patients = [image.patient for image in arrays.validation]
    seed = recipe.training.seed

    input_checks = train_input_checks(recipe, arrays, outliers)
    onnx = export_onnx(network, recipe.network.image_size, input_checks)
    card = _initial_card(common_fields(inputs, network, onnx, best_epoch, seen_before))
    session = BundleSession(card, onnx)

    outputs = [session.outputs(batch) for batch in image_batches(pixels)]
    logits = np.concatenate([batch.logit for batch in outputs])
    sample = parity_sample(len(pixels))
    for batch in image_batches(pixels[sample]):
        check_outputs(network, batch, session.outputs(batch, heatmaps=session.has_heatmaps), input_checks)
    parity = check_logits(network, pixels[sample], logits[sample])

    augmented = None
    if recipe.training.calibrate == "augmented":
        batches = augmented_batches(pixels, recipe.augmentation, seed)
        augmented = np.concatenate([session.logits(batch) for batch in batches])
    fitted = logits if augmented is None else augmented
    limits = fit_limits(session, recipe, arrays, pixels, outputs, outliers) if input_checks else None
    prevalence = recipe.training.prevalence or float(labels.mean())
    card = msgspec.structs.replace(
        card,
        parity=parity,
        self_test_logit=float(session.logits(self_test_image(recipe.network.image_size))[0]),
        calibration=fit_calibration(fitted, labels, prevalence),
        intervals=fit_intervals(fitted, labels, prevalence),
        rejection_limits=limits,
        operating_points=fit_operating_points(
            sigmoid(logits), labels, patients, augmented=None if augmented is None else sigmoid(augmented)
        ),
    )
    card = msgspec.structs.replace(card, reference_distribution=fit_reference_distribution(card, outputs, labels))
    write_bundle(folder, card, onnx)
    return card


def train_input_checks(recipe: Recipe, arrays: ImageArrays, outliers: Outliers | None) -> InputChecks | None:
    """Return the trained input checks, or None if the recipe has none.

    Args:
        recipe, arrays, outliers: See `export`.
    """
    steps, seed = recipe.rejection.steps, recipe.training.seed
    if not steps:
        return None
    preprocessed = preprocess_images(arrays.root, (*arrays.train, *arrays.validation), arrays.preprocessing)
    rows = preprocessed.rows[: len(arrays.train)]
    checks = fit_input_checks(preprocessed.pixels, rows, steps=steps, seed=seed)
    if outliers is None:
        return checks
    images = outliers.split("train")
    age_classifier = train_age_classifier(
        preprocessed.pixels[rows],
        preprocess_images(outliers.root, images, arrays.preprocessing).requested(),
        [image.group for image in images],
        steps=recipe.rejection.age_steps,
        seed=seed,
    )
    return checks._replace(age_classifier=age_classifier)


def validation_pixels(arrays: ImageArrays) -> npt.NDArray[np.uint8]:
    """Return the preprocessed validation images, shape (n, size, size)."""
    preprocessed = preprocess_images(arrays.root, (*arrays.train, *arrays.validation), arrays.preprocessing)
    return preprocessed.pixels[preprocessed.rows[len(arrays.train) :]]


def image_batches(pixels: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield images (n, size, size) in batches."""
    for start in range(0, len(pixels), _BATCH):
        yield pixels[start : start + _BATCH]


def parity_sample(count: int) -> npt.NDArray[np.int64]:
    """Return indices of the images on which the exported network is compared with PyTorch.

    The indices are evenly spaced because manifests are sorted by label.
    """
    return np.linspace(0, count - 1, min(_PARITY_IMAGES, count)).astype(np.int64)


def fit_limits(
    session: NetworkSession[Any, Any, Any],
    recipe: Recipe,
    arrays: ImageArrays,
    pixels: npt.NDArray[np.uint8],
    outputs: Sequence[NetworkOutputs],
    outliers: Outliers | None,
) -> RejectionLimits:
    """Return the limits of the input checks, fitted on augmented validation images.

    Args:
        session: Session of the exported network.
        recipe, arrays, outliers: See `export`.
        pixels: Validation images, shape (n, size, size).
        outputs: Network outputs of the validation images, in batches.
    """
    seed, patients = recipe.training.seed, [image.patient for image in arrays.validation]
    augmented = [session.outputs(batch) for batch in augmented_batches(pixels, ACCEPTED, seed)]
    limits = fit_rejection_limits(outputs, augmented, recipe.rejection, patients)
    if outliers is None:
        return limits
    return msgspec.structs.replace(
        limits,
        outliers=_outlier_summaries(session, limits, outliers, arrays),
        outliers_sha256=outliers.sha256(),
    )


def _outlier_summaries(
    session: NetworkSession[Any, Any, Any], limits: RejectionLimits, outliers: Outliers, arrays: ImageArrays
) -> dict[str, OutlierSummary]:
    """Return a summary of the images outside the age range for each group."""
    n_train = Counter(image.group for image in outliers.split("train"))
    summaries = {}
    for group in sorted({image.group for image in outliers.images}):
        images = [image for image in outliers.split("validation") if image.group == group]
        outputs = []
        if images:
            pixels = preprocess_images(outliers.root, images, arrays.preprocessing).requested()
            outputs = [session.outputs(batch) for batch in image_batches(pixels)]
        patients = [image.patient for image in images]
        summaries[group] = fit_outlier_summary(limits, outputs, patients, n_train[group])
    return summaries


def _initial_card(fields: dict[str, Any]) -> Card:
    """Return a card without the statistics that are fitted on outputs of the exported network."""
    return Card(
        format=FORMAT,
        labels=LABELS,
        self_test_logit=0,
        calibration=Calibration(slope=1, intercept=0, method="none", n=0, prevalence=0.5),
        intervals=None,
        reference_distribution=None,
        operating_points={},
        **fields,
    )


def common_fields(
    inputs: TrainingInputs, network: ClassifierNetwork, onnx: bytes, best_epoch: int, seen_before: Collection[str]
) -> dict[str, Any]:
    """Return the card fields shared by all bundles, except statistics fitted on outputs of the exported network.

    Args:
        inputs, network, best_epoch, seen_before: See `export`.
        onnx: Content of the network file.
    """
    recipe, manifest = inputs.recipe, inputs.manifest
    seen = {name: [short_hash(image.sha256) for image in manifest.split(name)] for name in ("train", "validation")}
    return {
        "name": recipe.name,
        "network": recipe.network.name,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "version": __version__,
        "created": now(),
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
        "onnx_bytes": len(onnx),
        "preprocessing": recipe.preprocessing,
        "rejection_limits": None,
        "population": recipe.declared_population(),
        "age_range": recipe.data.age_range,
        "parity": Parity(images=0, largest=0),
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.training.seed,
        "manifest_sha256": manifest.sha256(),
        "split_by": manifest.split_by,
        "counts": manifest.counts(),
        "seen": {"train": sorted({*seen["train"], *seen_before}), "validation": sorted(seen["validation"])},
        "best_epoch": best_epoch,
        "machine": machine() | versions(),
    }


def augmented_batches(
    pixels: npt.NDArray[np.uint8], options: AugmentationOptions, seed: int
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the images in batches (n, size, size), each image augmented once."""
    for start in range(0, len(pixels), _BATCH):
        images = torch.from_numpy(np.array(pixels[start : start + _BATCH]))
        seeds = [derive_seed(seed, start + i, 9) for i in range(len(images))]
        yield augment(images, options, seeds).round().to(torch.uint8).numpy()
