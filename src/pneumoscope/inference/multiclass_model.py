"""The multiclass model of the Python API and the command line: images in, predictions out."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.display import facts_html
from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.multiclass_prediction import MulticlassPrediction
from pneumoscope.core.prediction import Failure, ImageInfo, ModelInfo
from pneumoscope.core.prediction_codes import AgeRequirement, Assumption
from pneumoscope.core.prediction_messages import notice
from pneumoscope.imaging.preprocess import PreprocessedImage
from pneumoscope.inference.decision import find_warnings
from pneumoscope.inference.image_model import ImageModel
from pneumoscope.inference.multiclass_decision import decide_class
from pneumoscope.inference.multiclass_session import MulticlassOutputs, MulticlassScored, MulticlassSession
from pneumoscope.inference.providers import Provider
from pneumoscope.runs.run_folder import find_bundle

if TYPE_CHECKING:
    from pneumoscope.imaging.sandbox.pool import DecodePool

__all__ = ["MulticlassModel", "load_multiclass_model", "relative_to_others"]


class MulticlassModel(ImageModel[MulticlassCard, MulticlassOutputs, MulticlassScored, MulticlassPrediction]):
    """Multiclass model of a bundle, without operating points or site profiles.

    Attributes:
        card: Card of the bundle.
        facts: Name, version and hash of the bundle, as reported in predictions.
        notice: Notice shown with every result, including the training population.
        folder: Folder of the bundle; None if it has none.
    """

    def __init__(
        self, session: MulticlassSession, *, pool: DecodePool | None = None, folder: Path | None = None
    ) -> None:
        """Prepare to predict; see `ImageModel`."""
        super().__init__(session, pool=pool, folder=folder)
        self.notice = notice(self.card.population)
        facts = ModelInfo(self.card.name, self.card.version, self.card.onnx_sha256)
        self.facts = facts.with_notice(self.notice)

    def __repr__(self) -> str:
        """Return the name, network and classes."""
        return f"MulticlassModel({self.card.name!r}, network={self.card.network!r}, classes={self.card.classes!r})"

    def _repr_html_(self) -> str:
        card = self.card
        sets, calibration = card.prediction_sets, card.calibration
        facts = {
            "Network": f"{card.network}, {card.parameters:,} parameters, {card.preprocessing.size} pixels",
            "Classes": ", ".join(card.classes),
            "Calibration": f"temperature {calibration.temperature:.3f}, fitted on {calibration.n} validation images",
            "Prediction sets": "none"
            if sets is None
            else f"coverage of {sets.coverage:.0%} of the images of each class",
            "Age range": "not stated"
            if card.age_range is None
            else f"{card.age_range[0]:g} to {card.age_range[1]:g} years",
        }
        return facts_html(f"Model {card.name}", facts, self.notice)

    def _draw(
        self, image: PreprocessedImage, heatmap: npt.NDArray[np.float32], prediction: MulticlassPrediction
    ) -> bytes:
        from pneumoscope.inference.saliency import Heatmap, draw_class_explanation

        assert image.radiograph is not None
        assert prediction.predicted_class is not None
        relative = relative_to_others(heatmap, self.card.classes.index(prediction.predicted_class))
        return draw_class_explanation(
            Heatmap(image.radiograph, relative, self.card.preprocessing.crop), prediction, self.card
        )

    def _predict(self, image: PreprocessedImage, scored: MulticlassScored) -> MulticlassPrediction:
        result = decide_class(self.card, scored.logits, scored.rejection)
        return MulticlassPrediction(
            path=image.source,
            decision=result.decision,
            operating_point="",
            rejection=scored.rejection,
            age=image.age,
            warnings=()
            if scored.rejection
            else find_warnings(self.card, image.warnings, image.rejections, image.age, self.assumptions),
            identity=image.identity,
            image=ImageInfo(image.width, image.height, image.format, image.pixel_sha256),
            model=self.facts,
            classes=self.card.classes,
            class_probabilities=result.probabilities,
            predicted_class=result.predicted_class,
            prediction_set=result.prediction_set,
        )

    def failed(self, error: UnreadableImageError) -> MulticlassPrediction:
        """Return the prediction for an unreadable image."""
        return MulticlassPrediction(
            path=error.path,
            decision=None,
            operating_point="",
            failure=Failure.from_error(error),
            model=self.facts,
            classes=self.card.classes,
        )


def relative_to_others(maps: npt.NDArray[np.float32], index: int) -> npt.NDArray[np.float32]:
    """Return the contributions to one class's logit minus the mean contributions to the other logits.

    Probabilities depend only on differences between logits; a contribution to all of them has no effect.

    Args:
        maps: Contributions to the logit of each class, shape (K, height, width).
        index: Index of the class.

    Returns:
        Relative contributions, shape (height, width).
    """
    others = np.delete(maps, index, axis=0)
    return np.asarray(maps[index] - others.mean(axis=0), dtype=np.float32)


def load_multiclass_model(
    bundle: str | Path,
    *,
    threads: int = 0,
    isolated: bool = False,
    require_age: AgeRequirement = "never",
    assume: Collection[Assumption] = (),
    provider: Provider = "cpu",
) -> MulticlassModel:
    """Return a multiclass model that is ready to predict.

    Args:
        bundle: Folder of a bundle or run.
        threads, isolated, require_age, assume, provider: See `load_model`.

    Raises:
        BundleError: The bundle is missing or invalid, or is for NORMAL and PNEUMONIA.
        RunError: The run has no bundle.
        UsageError: See `load_model`.
    """
    folder = find_bundle(Path(bundle))
    pool = None
    if isolated:
        from pneumoscope.imaging.sandbox.pool import DecodePool

        pool = DecodePool()
        pool.start()  # while the network is loaded
    session = MulticlassSession.load(folder, threads=threads, require_age=require_age, assume=assume, provider=provider)
    return MulticlassModel(session, pool=pool, folder=folder)
