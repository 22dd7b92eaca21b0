"""Match the predictions of another tool to labeled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from scipy import special

from pneumoscope.core.errors import DatasetError
from pneumoscope.core.messages import counted
from pneumoscope.data.manifest import LabeledImage, Manifest
from pneumoscope.data.prediction_matching import match_images, read_id_column
from pneumoscope.data.predictions_file import PredictionColumns, PredictionRow, PredictionsFile, read_predictions_file
from pneumoscope.evaluation.split_images import SplitImages
from pneumoscope.statistics.inputs import BoolArray, FloatArray

__all__ = [
    "HIGHEST_LOGIT",
    "UNKNOWN_TRAINING",
    "MatchedPredictions",
    "PredictedImages",
    "check_predicted",
    "match_validation",
    "read_predicted_images",
    "select_predicted_images",
]

# Logits for probabilities of exactly 0 and 1, beyond those of the adjacent floating-point numbers, so that the ranking
# is unchanged. The calibration clips both sides to HIGHEST_LOGIT; otherwise a single rounded 0 would dominate it.
_LOWEST_LOGIT, HIGHEST_LOGIT = -745.0, 40.0
_MAX_LISTED = 3
UNKNOWN_TRAINING = "It is unknown whether the model was trained or tuned on these images or patients."


@dataclasses.dataclass(frozen=True)
class PredictedImages:
    """Images with their predictions.

    Attributes:
        images: The images.
        logits: Logits, shape (n,).
        scores: Probabilities as given, or the sigmoid of the logits, shape (n,).
    """

    images: tuple[LabeledImage, ...]
    logits: FloatArray
    scores: FloatArray

    @property
    def labels(self) -> BoolArray:
        """True for pneumonia, shape (n,)."""
        return np.array([image.positive for image in self.images])

    @property
    def patients(self) -> list[str]:
        """Patient identifier of each image."""
        return [image.patient for image in self.images]


@dataclasses.dataclass(frozen=True)
class MatchedPredictions:
    """A file with predictions, matched to the images of a data set.

    Attributes:
        file: The file.
        data: The data set: folder, manifest CSV or archive.
        manifest: Manifest of the data set.
        rows: Row by image path, for the images that have one.
    """

    file: PredictionsFile
    data: Path
    manifest: Manifest
    rows: Mapping[str, PredictionRow]

    @classmethod
    def match(cls, file: PredictionsFile, manifest: Manifest, data: Path) -> Self:
        """Return the predictions in a file matched to images.

        Args:
            file: The file.
            manifest: Manifest of the data set.
            data: The data set.

        Raises:
            DatasetError: Rows and images do not match; see `match_images`.
        """
        ids = read_id_column(data, file.id_column, manifest.path_column) if file.id_column else {}
        found = match_images(file.rows, manifest.images, str(file.path), ids)
        return cls(file, data, manifest, {manifest.images[i].path: row for i, row in found.items()})

    def check_splits(self) -> None:
        """Raise if a row and the data assign an image to different splits.

        Raises:
            DatasetError: The splits of an image differ.
        """
        for image in self.manifest:
            row = self.rows.get(image.path)
            if row and row.split and image.split and row.split != image.split:
                raise DatasetError(
                    f"{self.file.path}, line {row.line}: {image.path!r} is a {row.split} image, and in the data a"
                    f" {image.split} image",
                    hint="Correct the split in one of the two",
                )

    def images(self, split: str | None = None) -> tuple[LabeledImage, ...]:
        """Return the images that have a row, in the order of the data.

        Args:
            split: Split given in the row; None for all rows.
        """
        rows = {path for path, row in self.rows.items() if split is None or row.split == split}
        return tuple(image for image in self.manifest if image.path in rows)

    def predicted(self, split: str | None = None) -> PredictedImages:
        """Return the result of `images` with the predictions."""
        return self.of_images(self.images(split))

    def values(self, images: Sequence[LabeledImage]) -> FloatArray:
        """Return the values for images, shape (n, k); k is 1 for binary predictions. Each image must have a row."""
        return np.array([self.rows[image.path].values for image in images], dtype=np.float64)

    def of_images(self, images: Sequence[LabeledImage]) -> PredictedImages:
        """Return images with their predictions. Each image must have a row."""
        values = self.values(images)[:, 0]
        if self.file.scale == "logit":
            return PredictedImages(tuple(images), values, special.expit(values))
        return PredictedImages(tuple(images), np.clip(special.logit(values), _LOWEST_LOGIT, HIGHEST_LOGIT), values)


def read_predicted_images(file: Path, columns: PredictionColumns, manifest: Manifest, data: Path) -> MatchedPredictions:
    """Return the predictions in a file for the images of a data set.

    Args:
        file: CSV file with one row per image.
        columns: Names of its columns.
        manifest, data: See `MatchedPredictions.match`.

    Raises:
        LayoutError: The file is not a CSV file with these columns.
        DatasetError: Rows and images do not match, or have different splits.
    """
    matched = MatchedPredictions.match(read_predictions_file(file, columns), manifest, data)
    matched.check_splits()
    return matched


def select_predicted_images(
    matched: MatchedPredictions, evaluated: SplitImages, note: Callable[[str], None] | None = None
) -> PredictedImages:
    """Return the predictions for all images of a split of the data; see `check_predicted`."""
    check_predicted(matched, evaluated, note)
    return matched.of_images(evaluated.images)


def check_predicted(
    matched: MatchedPredictions, evaluated: SplitImages, note: Callable[[str], None] | None = None
) -> None:
    """Raise unless all images of a split of the data have a prediction.

    Args:
        matched: The predictions.
        evaluated: The images.
        note: Called if rows for images of other splits are ignored.

    Raises:
        DatasetError: An image has no prediction, or its row has another split.
    """
    file, rows, images, split = matched.file, matched.rows, evaluated.images, evaluated.split
    missing = [image.path for image in images if image.path not in rows]
    if missing:
        listed = ", ".join(map(repr, missing[:_MAX_LISTED])) + (", …" if len(missing) > _MAX_LISTED else "")
        raise DatasetError(
            f"{str(file.path)!r} has no prediction for {len(missing):,} of {len(images):,}"
            f" {'images' if split == 'all' else f'{split} images'}: {listed}",
            hint="Images are never skipped, because n would be wrong: predict them, or give a manifest without them as --data",
        )
    selected = {image.path for image in images}
    others = sum(path not in selected and row.split != "validation" for path, row in rows.items())
    if others and note:
        note(f"{counted(others, 'row')} of {str(file.path)!r} with images of other splits {_are(others)} left out")
    for image in images:
        row = rows[image.path]
        if row.split not in {"", split}:
            raise DatasetError(
                f"{file.path}, line {row.line}: {image.path!r} is one of the {split} images, and the row is of the split"
                f" {row.split!r}",
                hint="Correct the split of the row, or state the splits of the images in a manifest CSV",
            )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def match_validation(
    predictions: PredictionsFile,
    evaluated: MatchedPredictions,
    data: str | Path | None,
    load: Callable[[Path], Manifest],
) -> MatchedPredictions:
    """Return the predictions in a second file, which are for validation images.

    Args:
        predictions: The second file.
        evaluated: The first file, and its images.
        data: Labeled validation images; None if they are in the data of the first file.
        load: Returns the manifest of labeled images.

    Raises:
        DatasetError: Rows and images do not match, or one file has probabilities and the other one logits.
    """
    _check_scales(evaluated.file, predictions)
    if data is None:
        return MatchedPredictions.match(predictions, evaluated.manifest, evaluated.data)
    return MatchedPredictions.match(predictions, load(Path(data)), Path(data))


def _check_scales(a: PredictionsFile, b: PredictionsFile) -> None:
    """Raise unless both files have probabilities, or both logits."""
    if a.scale != b.scale:
        raise DatasetError(
            f"{str(a.path)!r} has a {a.scale} for each image, and {str(b.path)!r} a {b.scale}",
            hint="Give both files on the same scale",
        )
