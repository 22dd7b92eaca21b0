"""Write a multiclass bundle from trained weights; see `export`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec
import numpy as np

from pneumoscope.bundle.bundle_folder import write_bundle
from pneumoscope.bundle.multiclass_card import MULTICLASS_FORMAT, MulticlassCard, TemperatureScaling
from pneumoscope.bundle.network_checks import self_test_image
from pneumoscope.evaluation.multiclass.fitting import fit_prediction_sets, fit_temperature_scaling
from pneumoscope.inference.multiclass_session import MulticlassSession
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.statistics.probabilities import softmax
from pneumoscope.training.data_module import ImageArrays
from pneumoscope.training.export import (
    augmented_batches,
    common_fields,
    fit_limits,
    image_batches,
    parity_sample,
    train_input_checks,
    validation_pixels,
)
from pneumoscope.training.inputs import TrainingInputs
from pneumoscope.training.onnx_export import check_logits, check_outputs, export_onnx

__all__ = ["export_multiclass"]


def export_multiclass(
    inputs: TrainingInputs,
    network: ClassifierNetwork,
    arrays: ImageArrays,
    folder: Path,
    *,
    best_epoch: int,
    seen_before: Collection[str] = (),
) -> MulticlassCard:
    """Write a multiclass bundle and return its card.

    The temperature and the prediction sets are fitted on the validation images. If the recipe calibrates on augmented images,
    the temperature is fitted on those only, and the prediction sets reach their coverage on both augmented and original images.

    Args:
        inputs, network, arrays, folder, best_epoch, seen_before: See `export.export`.

    Raises:
        ParityError: Outputs of the exported network differ from PyTorch on up to 64 validation images; see `onnx_export`.
        StorageError: The bundle cannot be written.
    """
    recipe, outliers = inputs.recipe, inputs.outliers
    pixels = validation_pixels(arrays)
    targets = arrays.targets(arrays.validation)

    input_checks = train_input_checks(recipe, arrays, outliers)
    onnx = export_onnx(network, recipe.network.image_size, input_checks)
    card = MulticlassCard(
        format=MULTICLASS_FORMAT,
        self_test_logits=(0.0,) * len(arrays.classes),
        classes=arrays.classes,
        activation="softmax",
        calibration=TemperatureScaling(temperature=1, method="none", n=0),
        prediction_sets=None,
        **common_fields(inputs, network, onnx, best_epoch, seen_before),
    )
    session = MulticlassSession(card, onnx)

    outputs = [session.outputs(batch) for batch in image_batches(pixels)]
    logits = np.concatenate([batch.logits for batch in outputs])
    sample = parity_sample(len(pixels))
    for batch in image_batches(pixels[sample]):
        check_outputs(network, batch, session.outputs(batch, heatmaps=session.has_heatmaps), input_checks)
    parity = check_logits(network, pixels[sample], logits[sample])

    variants = [logits]
    if recipe.training.calibrate == "augmented":
        batches = augmented_batches(pixels, recipe.augmentation, recipe.training.seed)
        variants.append(np.concatenate([session.logits(batch) for batch in batches]))
    calibration = fit_temperature_scaling(variants[-1], targets)
    probabilities = [softmax(variant, calibration.temperature) for variant in variants]
    card = msgspec.structs.replace(
        card,
        parity=parity,
        self_test_logits=tuple(session.logits(self_test_image(recipe.network.image_size))[0].tolist()),
        calibration=calibration,
        prediction_sets=fit_prediction_sets(probabilities, targets, arrays.classes),
        rejection_limits=fit_limits(session, recipe, arrays, pixels, outputs, outliers) if input_checks else None,
    )
    write_bundle(folder, card, onnx)
    return card
