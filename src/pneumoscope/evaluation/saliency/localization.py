"""Measure how well heatmaps coincide with masks of the disease.

The pointing game (Zhang 2018) tests whether the peak of the heatmap lies inside the mask; the energy-based pointing
game (Wang 2020) measures the fraction of the positive contributions inside. The baseline is the area of the mask.

Sources: Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop". Wang et al. 2020, "Score-CAM:
Score-Weighted Visual Explanations for Convolutional Neural Networks".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumoscope.core.errors import DatasetError
from pneumoscope.data.hashing import read_image
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.evaluation.saliency.metrics import explain_pixels, localize, mean_over_images
from pneumoscope.evaluation.saliency.results import Localization
from pneumoscope.evaluation.selection import count_patients, select_unreserved_images
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.session import BundleSession
from pneumoscope.statistics.inputs import count_unknown
from pneumoscope.statistics.intervals import proportion

__all__ = ["Localization", "measure_localization", "read_mask"]


def measure_localization(
    session: BundleSession,
    target: Path,
    data: Path,
    split: str,
    masks: Path,
    seed: int,
    progress: Callable[[str, int, int], None] | None,
    labels: LabelMapping | None = None,
) -> Localization:
    """Return the localization of heatmaps on all images of a split with a mask and pneumonia.

    Args:
        session: Session of the bundle.
        target: Run folder or bundle.
        data, split: See `selection.select_images`.
        masks: Folder of the masks; see `check.check_saliency`.
        seed: Seed of the bootstraps.
        progress: Called with (stage, steps done, total).
        labels: See `selection.select_images`.

    Raises:
        DatasetError: There is no mask, or a mask cannot be read, is empty or differs in size from its image.
    """
    root, images = select_unreserved_images(target, data, split, labels)
    paths = [masks / PurePosixPath(image.path).with_suffix(".png") for image in images]
    marked = [pair for pair in zip(images, paths, strict=True) if pair[0].positive and pair[1].is_file()]
    if not marked:
        raise DatasetError(
            f"{str(masks)!r} has no mask of a {split} image with pneumonia; the first would be {str(paths[-1])!r}",
            hint="A mask has the path of its image and the suffix .png",
        )
    peaks, energies, areas = [], [], []
    for done, (image, path) in enumerate(marked, start=1):
        radiograph = read_image(root, image)
        mask = read_mask(path, radiograph.pixels.shape)
        heatmap = explain_pixels(session, preprocess(radiograph, session.card.preprocessing)[None])[1][0]
        peak, energy = localize(heatmap, mask, session.card.preprocessing.crop)
        peaks.append(peak)
        energies.append(energy)
        areas.append(mask.mean())
        if progress:
            progress("localization", done, len(marked))
    patients, positive = [image.patient for image, _ in marked], [True] * len(marked)

    return Localization(
        masks=str(masks),
        n=len(marked),
        patients=count_patients(image for image, _ in marked),
        peak_inside=proportion(peaks, patients),
        energy_inside=mean_over_images(energies, positive, patients, seed),
        area=mean_over_images(areas, positive, patients, seed),
        unknown_patients=count_unknown(patients),
    )


def read_mask(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return a mask as a boolean array, True where it is nonzero.

    Args:
        path: The mask.
        shape: Rows and columns of its image.

    Raises:
        DatasetError: The mask cannot be read, is empty or differs in size from its image.
    """
    hint = "A mask is an image of the size of the radiograph, not 0 where the disease is"
    try:
        with Image.open(path) as image:
            if image.size != shape[::-1]:
                size = " x ".join(map(str, image.size))
                raise DatasetError(
                    f"the mask {str(path)!r} has {size} pixels, its image {shape[1]} x {shape[0]}", hint=hint
                )
            mask = np.asarray(image.convert("L")) > 0
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"cannot read the mask {str(path)!r}: {error}", hint=hint) from error
    if not mask.any():
        raise DatasetError(f"the mask {str(path)!r} is empty", hint=hint)
    return mask
