"""Check that thresholds may be chosen on images: no test images, evaluated images or images of the same patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pneumoscope.core.errors import DatasetError, PatientLeakError, ThresholdError
from pneumoscope.core.messages import counted
from pneumoscope.data.manifest import LABELS, LabeledImage

__all__ = ["check_threshold_images"]


def check_threshold_images(
    validation: Sequence[LabeledImage],
    evaluated: Sequence[LabeledImage],
    source: Path,
    classes: Sequence[str] = LABELS,
) -> None:
    """Raise if thresholds cannot be chosen on these images, or would be evaluated on them.

    Args:
        validation: Images that choose the thresholds.
        evaluated: Images to evaluate.
        source: Data or file with the validation images, for the message.
        classes: Classes that each need an image.

    Raises:
        DatasetError: A class has no images.
        ThresholdError: An image is a test image, or one of the evaluated images (compared by content).
        PatientLeakError: A patient has images in both sets.
    """
    counts = {label: sum(image.label == label for image in validation) for label in classes}
    if not all(counts.values()):
        listed = ", ".join(f"{n} {label}" for label, n in counts.items())
        if tuple(classes) != LABELS:
            raise DatasetError(
                f"{str(source)!r} has {listed} validation images; calibration and prediction sets need images of each class",
                hint="Add validation images of the other classes, or evaluate without validation images",
            )
        raise DatasetError(
            f"{str(source)!r} has {listed} validation images; thresholds need both labels",
            hint="Add validation images of the other label, or evaluate the fixed threshold without validation images",
        )
    test = [image.path for image in validation if image.split == "test"]
    if test:
        raise ThresholdError(
            f"{len(test)} of {counted(len(validation), 'validation image')} in {str(source)!r} are test images in the"
            f" data; the first is {test[0]}",
            hint="Test images choose no threshold: choose thresholds on other images",
        )
    hashes = {image.sha256 for image in evaluated}
    shared = [image.path for image in validation if image.sha256 in hashes]
    if shared:
        raise ThresholdError(
            f"{len(shared)} of {counted(len(validation), 'validation image')} in {str(source)!r} are evaluated images"
            f" (compared by content); the first is {shared[0]}",
            hint="Choose thresholds on other images",
        )
    patients = {image.patient for image in evaluated} - {""}
    leaks = sorted({image.patient for image in validation if image.patient in patients})
    if leaks:
        raise PatientLeakError(
            f"patient {leaks[0]!r} has validation images and evaluated images ({counted(len(leaks), 'patient')} in total)",
            hint="Choose thresholds on images of other patients",
        )
