"""The binary model of the Python API and the command line: images in, predictions out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.card import Card
from pneumoscope.core.display import facts_html
from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.prediction import Failure, ImageInfo, ModelInfo, Prediction
from pneumoscope.core.prediction_codes import AgeRequirement, Assumption
from pneumoscope.core.prediction_messages import notice
from pneumoscope.imaging.image import Acquisition
from pneumoscope.imaging.preprocess import PreprocessedImage
from pneumoscope.imaging.statistics import image_statistics
from pneumoscope.inference.decision import (
    DEFAULT_OPERATING_POINT,
    decide,
    find_operating_point,
    find_warnings,
    threshold_probability,
)
from pneumoscope.inference.image_model import BATCH_SIZE, ImageModel
from pneumoscope.inference.providers import Provider
from pneumoscope.inference.session import BundleSession, Outputs, Scored
from pneumoscope.runs.run_folder import find_bundle

if TYPE_CHECKING:
    from pneumoscope.bundle.site_profile import SiteProfile
    from pneumoscope.imaging.sandbox.pool import DecodePool
    from pneumoscope.inference.image_loader import ImageSource
    from pneumoscope.inference.saliency import Heatmap, Layer

__all__ = ["BATCH_SIZE", "Model", "ScoredImage", "load_model"]


class ScoredImage(NamedTuple):
    """Prediction with additional values for archives and research.

    Attributes:
        prediction: Prediction of the image.
        logit: Output of the network; None if there is no probability.
        acquisition: View and manufacturer from the header; None if it contains neither.
        heatmap: Heatmap as a layer over the image; None if not requested or if there is no probability.
    """

    prediction: Prediction
    logit: float | None
    acquisition: Acquisition | None
    heatmap: Layer | None = None


class Model(ImageModel[Card, Outputs, Scored, Prediction]):
    """Binary model of a bundle at one operating point.

    Attributes:
        card: Card of the bundle, updated by the site profile or prevalence.
        profile: Site profile, or None.
        bundle_limits: Rejection limits of the bundle before the site profile changes them; None without input checks.
        facts: Name, version and hash of the bundle, as reported in predictions.
        notice: Notice shown with every result, including the training population.
        point, operating_point_name: Operating point and its name.
        threshold: Threshold of the operating point as a calibrated probability.
        folder: Folder of the bundle, with the evidence of its model card; None if it has none.
    """

    def __init__(
        self,
        session: BundleSession,
        *,
        operating_point: str = "",
        pool: DecodePool | None = None,
        folder: Path | None = None,
    ) -> None:
        """Select the operating point.

        Args:
            session: Session that runs the network.
            operating_point: Name on the card; "balanced" if empty.
            pool: Pool that decodes every image. If None, a few images are decoded in this process, and many in a pool created
                on first use.
            folder: Folder of the bundle; None if it has none.

        Raises:
            UnknownNameError: The card does not contain that operating point.
        """
        super().__init__(session, pool=pool, folder=folder)
        self._session = session
        self.profile: SiteProfile | None = session.profile
        self.bundle_limits = session.bundle_limits
        self.point = find_operating_point(self.card, operating_point)
        self.operating_point_name = operating_point or DEFAULT_OPERATING_POINT
        self.threshold = threshold_probability(self.card, self.point)
        self.notice = notice(self.card.population)
        facts = ModelInfo(self.card.name, self.card.version, self.card.onnx_sha256, session.site, session.prevalence)
        self.facts = facts.with_notice(self.notice)

    def __repr__(self) -> str:
        """Return the name, network and operating point."""
        return (
            f"Model({self.card.name!r}, network={self.card.network!r}, operating_point={self.operating_point_name!r},"
            f" threshold={self.threshold:.3f})"
        )

    def _repr_html_(self) -> str:
        point, card = self.point, self.card
        sensitivity, specificity = point.sensitivity, point.specificity
        ages = "not stated" if card.age_range is None else f"{card.age_range[0]:g} to {card.age_range[1]:g} years"
        images = "site, cross-fitted" if point.site else "validation"
        facts = {
            "Network": f"{card.network}, {card.parameters:,} parameters, {card.preprocessing.size} pixels",
            "Operating point": f"{self.operating_point_name}: {point.rule_text()}",
            "Threshold": f"probability of {self.threshold:.3f}",
            f"Sensitivity ({images})": f"{sensitivity.value:.3f} [{sensitivity.low:.3f}, {sensitivity.high:.3f}]",
            f"Specificity ({images})": f"{specificity.value:.3f} [{specificity.low:.3f}, {specificity.high:.3f}]",
            "Age range": ages,
        }
        if self.facts.site:
            facts["Site profile"] = self.facts.site
        if self.facts.prevalence is not None:
            facts["Prevalence"] = f"{100 * self.facts.prevalence:.3g}%"
        return facts_html(f"Model {card.name}", facts, self.notice)

    @property
    def settings(self) -> tuple[str | float | None, ...]:
        """All settings that affect a prediction.

        These are the network, site profile, prevalence, operating point, required ages and assumptions.
        """
        facts = self.facts
        return (
            facts.sha256,
            facts.site,
            facts.prevalence,
            self.operating_point_name,
            self.require_age,
            *self.assumptions,
        )

    def score_batch(self, images: Sequence[ImageSource], *, heatmaps: bool = False) -> list[ScoredImage]:
        """Return predictions like `predict_batch`, each with its logit and acquisition.

        Args:
            images: See `predict`.
            heatmaps: Whether to return heatmaps from the same run of the network.

        Raises:
            BundleError: The network has no heatmaps.
        """
        preprocessed = self._loader.preprocess_many(images, self._loader.pool)
        scored = iter(
            self._score([each for each in preprocessed if isinstance(each, PreprocessedImage)], heatmaps=heatmaps)
        )
        return [
            next(scored) if isinstance(each, PreprocessedImage) else ScoredImage(self.failed(each), None, None)
            for each in preprocessed
        ]

    def heatmap_layer(self, image: ImageSource) -> Layer:
        """Return the heatmap of one image as a transparent layer, ignoring rejections.

        Args:
            image: See `predict`.

        Raises:
            BundleError: The network has no heatmaps.
            UnreadableImageError: The image cannot be decoded.
        """
        from pneumoscope.inference.saliency import heatmap_layer

        return heatmap_layer(*self.heatmap(image))

    def draw_heatmap(self, image: ImageSource, prediction: Prediction) -> bytes:
        """Return a PNG of an image with its heatmap and a legend for an existing prediction.

        Args:
            image: See `predict`.
            prediction: Prediction of the image by this model, possibly at a different operating point; not a rejection.

        Raises:
            BundleError: The network has no heatmaps.
            UnreadableImageError: The image cannot be decoded.
            ValueError: The prediction has no probability.
        """
        from pneumoscope.inference.saliency import draw_explanation

        return draw_explanation(self.heatmap(image), prediction, self.card)

    def heatmap(self, image: ImageSource) -> Heatmap:
        """Return an image with the contributions to its logit, ignoring rejections.

        Args:
            image: See `predict`.

        Raises:
            BundleError: The network has no heatmaps.
            UnreadableImageError: The image cannot be decoded.
        """
        from pneumoscope.inference.saliency import Heatmap

        self._session.require_heatmaps()
        preprocessed = self._loader.preprocess(image, keep_radiograph=True)
        heatmap = self._session.outputs(preprocessed.pixels[None], heatmaps=True).heatmap
        assert heatmap is not None
        assert preprocessed.radiograph is not None
        return Heatmap(preprocessed.radiograph, heatmap[0], self.card.preprocessing.crop)

    def _score(self, images: Sequence[PreprocessedImage], *, heatmaps: bool) -> list[ScoredImage]:
        if not images:
            return []
        outputs = self._session.outputs(np.stack([image.pixels for image in images]), heatmaps=heatmaps)
        contributions = [None] * len(images) if outputs.heatmap is None else outputs.heatmap
        results = []
        for image, scored, heatmap in zip(images, self._session.score(images, outputs), contributions, strict=True):
            prediction, layer = self._predict(image, scored), None
            if heatmap is not None and prediction.probability is not None:
                from pneumoscope.inference.saliency import heatmap_layer

                layer = heatmap_layer(image, heatmap, self.card.preprocessing.crop)
            logit = None if scored.rejection else scored.logit
            results.append(ScoredImage(prediction, logit, image.acquisition, layer))
        return results

    def _draw(self, image: PreprocessedImage, heatmap: npt.NDArray[np.float32], prediction: Prediction) -> bytes:
        from pneumoscope.inference.saliency import Heatmap, draw_explanation

        assert image.radiograph is not None
        return draw_explanation(Heatmap(image.radiograph, heatmap, self.card.preprocessing.crop), prediction, self.card)

    def _predict(self, image: PreprocessedImage, scored: Scored) -> Prediction:
        result = decide(self.card, self.point, scored.logit, scored.rejection)
        assumptions = self._session.assumptions
        return Prediction(
            path=image.source,
            decision=result.decision,
            probability=result.probability,
            interval=result.interval,
            threshold=result.threshold,
            operating_point=self.operating_point_name,
            rejection=result.rejection,
            uncertainty=result.uncertainty,
            age=image.age,
            warnings=()
            if result.rejection
            else find_warnings(self.card, image.warnings, image.rejections, image.age, assumptions),
            identity=image.identity,
            image=ImageInfo(image.width, image.height, image.format, image.pixel_sha256),
            image_statistics=image_statistics(image.pixels) if self.profile and self.profile.monitoring else None,
            model=self.facts,
        )

    def failed(self, error: UnreadableImageError) -> Prediction:
        """Return the prediction for an unreadable image."""
        return Prediction(
            path=error.path,
            decision=None,
            operating_point=self.operating_point_name,
            failure=Failure.from_error(error),
            model=self.facts,
        )


def load_model(
    bundle: str | Path | None = None,
    *,
    operating_point: str = "",
    threads: int = 0,
    isolated: bool = False,
    require_age: AgeRequirement = "never",
    assume: Collection[Assumption] = (),
    site: str | Path | None = None,
    prevalence: float | None = None,
    provider: Provider = "cpu",
) -> Model:
    """Return a model that is ready to predict.

    Args:
        bundle: Folder of a bundle or run; None for the packaged model.
        operating_point: Name on the card; "balanced" if empty.
        threads: Threads per network call; 0 for one per core. With 1, `predict_many` is slightly faster and `predict` slower.
        isolated: Decode all images, even single ones, in worker processes with memory and time limits. Use this for untrusted
            images. Linux and macOS only.
        require_age: Reject images if the age of the patient is unknown: "always", or "dicom" for DICOM files only. No effect if
            the card has no age range.
        assume: Overrides of DICOM headers for all images: "chest" if they are chest radiographs, "frontal" if they are frontal
            views of both lungs. Predictions that rely on one have a warning.
        site: Site profile of `pneumoscope accept`, with calibration, thresholds and limits for a hospital.
        prevalence: Prevalence of pneumonia among the images, strictly between 0 and 1, for which probabilities, intervals and
            thresholds are reported; decisions are unaffected. None for the card's prevalence. Cannot be combined with `site`.
        provider: Processor that runs the network: "cpu", or "cuda" for a GPU with onnxruntime-gpu.

    Raises:
        BundleError: The bundle is missing or invalid; see `bundle_folder.read_bundle`.
        MulticlassBundleError: The bundle has several classes; see `load_multiclass_model`.
        SiteProfileError: The site profile cannot be read, was modified, or belongs to another model.
        RunError: The run has no bundle.
        UnknownNameError: The card does not contain that operating point.
        UsageError: `isolated` or `provider` is not available, `require_age` or `assume` has an unknown value, or `prevalence`
            is invalid.
    """
    folder = find_bundle(None if bundle is None else Path(bundle))
    pool = None
    if isolated:
        from pneumoscope.imaging.sandbox.pool import DecodePool

        pool = DecodePool()
        pool.start()  # while the network is loaded
    session = BundleSession.load(
        folder,
        threads=threads,
        require_age=require_age,
        assume=assume,
        site=None if site is None else Path(site),
        prevalence=prevalence,
        provider=provider,
    )
    return Model(session, operating_point=operating_point, pool=pool, folder=folder)
