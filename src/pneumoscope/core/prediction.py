"""The prediction record, from which the CLI, CSV, JSON, HTTP API and database formats are derived.

Records contain codes and numbers, never sentences; `core.messages` renders them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pneumoscope.core.errors import PneumoscopeError, UnreadableImageError
from pneumoscope.core.identity import IDENTITY_FIELDS, Identity
from pneumoscope.core.interval import Interval
from pneumoscope.core.prediction_codes import ClassDecision, Decision, RejectionCode, WarningCode
from pneumoscope.core.unreadable import UnreadableReason

__all__ = [
    "MAX_AGE",
    "Failure",
    "ImageInfo",
    "ImageStatistics",
    "ModelInfo",
    "Parameters",
    "PatientAge",
    "Prediction",
    "Rejection",
    "Uncertainty",
]

MAX_AGE = 130  # years

Parameters = Mapping[str, str | int | float]


@dataclasses.dataclass(frozen=True, slots=True)
class Rejection:
    """Why the model makes no prediction for an image.

    Attributes:
        code: Stable code, such as "out_of_distribution".
        parameters: Measured values and limits, such as {"distance": 1.9, "limit": 1.4}.
    """

    code: RejectionCode
    parameters: Parameters = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class PatientAge:
    """Age of the patient, from the file or entered by a person.

    Attributes:
        years: Age, years; None if the value cannot be parsed.
        source: "header" or "entered".
        stated: If the value cannot be parsed, its element and its pattern (digits as 9, letters as x); empty otherwise.
    """

    years: float | None
    source: Literal["header", "entered"] = "header"
    stated: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Uncertainty:
    """The uncertainty band that contains the score.

    Attributes:
        low, high: Ends of the band as calibrated probabilities, both included, 0 to 1.
        coverage: Coverage of the conformal prediction that determined the band, 0 to 1.
    """

    low: float
    high: float
    coverage: float


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why an image could not be read.

    Attributes:
        code: Stable error code, such as "unreadable_image".
        message: The cause, with the file and the invalid value, in English.
        hint: What to do next, in English; may be empty.
        reason: The cause as a code with parameters; None for an internal error and in records of earlier versions.
    """

    code: str
    message: str
    hint: str = ""
    reason: UnreadableReason | None = None

    @classmethod
    def from_error(cls, error: PneumoscopeError) -> Failure:
        """Return the record for an error."""
        reason = error.reason if isinstance(error, UnreadableImageError) else None
        return cls(error.code, error.message, error.hint, reason)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Failure:
        """Return the failure from a row of `Prediction.to_row`."""
        code = row.get("failure_reason")
        reason = UnreadableReason(code, json.loads(row["failure_parameters"])) if code else None
        return cls(row["failure_code"], row["failure_message"], row["failure_hint"], reason)

    def __str__(self) -> str:
        """Return the message followed by the hint."""
        return f"{self.message}. {self.hint}" if self.hint else self.message


@dataclasses.dataclass(frozen=True, slots=True)
class ImageInfo:
    """Properties of an image file.

    Attributes:
        width, height: Size in pixels, as displayed.
        format: "JPEG", "PNG", "DICOM", ...
        pixel_sha256: SHA-256 of the decoded gray levels, independent of the header. A JPEG may be decoded at a reduced
            size.
    """

    width: int
    height: int
    format: str
    pixel_sha256: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageStatistics:
    """Statistics of a preprocessed image, in gray levels from 0 to 255.

    Attributes:
        brightness: Mean.
        contrast: Standard deviation.
        sharpness: Mean absolute difference of neighboring pixels.
        border: Mean of the outer 5% on each side.
    """

    brightness: float
    contrast: float
    sharpness: float
    border: float


class _Noticed:
    """A record displayed with a notice, which is not a field: JSON and tables contain it once for all records."""

    __slots__ = ("_notice",)
    _notice: str


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo(_Noticed):
    """The bundle that made a prediction.

    Attributes:
        name: Name on the card.
        version: Version of pneumoscope that exported the bundle.
        sha256: Hash of the network file.
        site: Name and short hash of the site profile; "" without one.
        prevalence: User-specified prevalence that the probabilities refer to, above 0 and below 1; None for the
            prevalence of the model or the site profile.
    """

    name: str
    version: str
    sha256: str
    site: str = ""
    prevalence: float | None = None

    def with_notice(self, notice: str) -> ModelInfo:
        """Return a copy of the model with the notice displayed with its predictions."""
        noticed = dataclasses.replace(self)
        object.__setattr__(noticed, "_notice", notice)
        return noticed

    @property
    def notice(self) -> str:
        """The notice, including the population of the model; "" for a prediction that was made in another process."""
        return getattr(self, "_notice", "")

    @property
    def is_site_specific(self) -> bool:
        """Whether a site profile or a user-specified prevalence modifies the model."""
        return bool(self.site) or self.prevalence is not None

    def matches(self, other: ModelInfo) -> bool:
        """Return whether network, site profile and user-specified prevalence are the same."""
        return (self.sha256, self.site, self.prevalence) == (other.sha256, other.site, other.prevalence)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Prediction:
    """The prediction for one image.

    Attributes:
        path: The image, as named by the caller.
        decision: None if the image could not be read.
        probability: Calibrated probability of pneumonia, 0 to 1; None if the image is rejected or unreadable.
        interval: Venn-Abers interval of the probability; None without a probability, or if the bundle has no intervals.
        threshold: Threshold of the operating point, on the scale of `probability`; None if the image is unreadable. At
            or above it the decision is "pneumonia".
        operating_point: Name of the operating point.
        rejection: Set if and only if the decision is "rejected".
        uncertainty: Set if and only if the decision is "uncertain".
        failure: Set if and only if the image could not be read.
        age: Age of the patient; None if neither in the file nor entered.
        warnings: Codes of warnings, such as "age_not_stated" if the model has an age range and the age is unknown;
            empty if the image is rejected or unreadable.
        identity: Patient, study, series and instance; None if neither in the file nor entered.
        image: Properties of the file; None if it could not be read.
        image_statistics: For monitoring; None without a site profile to compare them with.
        model: The bundle that made the prediction.
    """

    path: str
    decision: Decision | ClassDecision | None
    probability: float | None = None
    interval: Interval | None = None
    threshold: float | None = None
    operating_point: str
    rejection: Rejection | None = None
    uncertainty: Uncertainty | None = None
    failure: Failure | None = None
    age: PatientAge | None = None
    warnings: tuple[WarningCode, ...] = ()
    identity: Identity | None = None
    image: ImageInfo | None = None
    image_statistics: ImageStatistics | None = None
    model: ModelInfo

    def __repr__(self) -> str:
        """Return the path, the decision and the probability with its interval."""
        parts = [repr(self.path), str(self.decision or (self.failure and self.failure.code))]
        if self.probability is not None:
            parts.append(f"probability={self.interval or f'{self.probability:.3f}'}")
        if self.rejection:
            parts.append(f"rejection={self.rejection.code}")
        return f"Prediction({', '.join(parts)}, operating_point={self.operating_point!r})"

    def _repr_html_(self) -> str:
        from pneumoscope.core.display import prediction_html

        return prediction_html(self)

    def to_row(self) -> dict[str, Any]:
        """Return the prediction as one flat row, the format of CSV files, data frames and the database.

        Nested records become prefixed columns such as `interval_low`; missing values are None.
        """
        interval, image, statistics, model = self.interval, self.image, self.image_statistics, self.model
        identity = self.identity
        rejection, uncertainty, failure = self.rejection, self.uncertainty, self.failure
        return {
            "path": self.path,
            "decision": self.decision,
            "probability": self.probability,
            "interval_low": interval and interval.low,
            "interval_high": interval and interval.high,
            "interval_method": interval and interval.method,
            "interval_n": interval and interval.n,
            "threshold": self.threshold,
            "operating_point": self.operating_point,
            "rejection_code": rejection and rejection.code,
            "rejection_parameters": rejection and json.dumps(dict(rejection.parameters)),
            "uncertainty_low": uncertainty and uncertainty.low,
            "uncertainty_high": uncertainty and uncertainty.high,
            "uncertainty_coverage": uncertainty and uncertainty.coverage,
            "failure_code": failure and failure.code,
            "failure_message": failure and failure.message,
            "failure_hint": failure and failure.hint,
            "failure_reason": failure and failure.reason and failure.reason.code,
            "failure_parameters": failure and failure.reason and json.dumps(dict(failure.reason.parameters)),
            "age": self.age and self.age.years,
            "age_source": self.age and self.age.source,
            "warnings": " ".join(self.warnings),
            **{name: identity and getattr(identity, name) for name in IDENTITY_FIELDS},
            "width": image and image.width,
            "height": image and image.height,
            "format": image and image.format,
            "pixel_sha256": image and image.pixel_sha256,
            "image_brightness": statistics and statistics.brightness,
            "image_contrast": statistics and statistics.contrast,
            "image_sharpness": statistics and statistics.sharpness,
            "image_border": statistics and statistics.border,
            "model_name": model.name,
            "model_version": model.version,
            "model_sha256": model.sha256,
            "model_site": model.site,
            "model_prevalence": model.prevalence,
        }

    @classmethod
    def fields_from_row(cls, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor arguments for a row of `to_row`."""

        def present(name: str) -> bool:
            return row.get(name) is not None

        rejection = (
            Rejection(row["rejection_code"], json.loads(row["rejection_parameters"]))
            if present("rejection_code")
            else None
        )
        stated = str(rejection.parameters.get("stated", "")) if rejection else ""
        return {
            "path": row["path"],
            "decision": row["decision"],
            "probability": row["probability"],
            "interval": Interval(
                row["probability"],
                row["interval_low"],
                row["interval_high"],
                method=row["interval_method"],
                n=row["interval_n"],
                level=None,
            )
            if present("interval_low")
            else None,
            "threshold": row["threshold"],
            "operating_point": row["operating_point"],
            "rejection": rejection,
            "uncertainty": Uncertainty(row["uncertainty_low"], row["uncertainty_high"], row["uncertainty_coverage"])
            if present("uncertainty_low")
            else None,
            "failure": Failure.from_row(row) if present("failure_code") else None,
            "age": PatientAge(row["age"], row["age_source"], stated) if present("age_source") else None,
            "warnings": tuple((row["warnings"] or "").split()),
            "identity": Identity(**{name: row[name] or "" for name in IDENTITY_FIELDS})
            if any(row.get(name) for name in IDENTITY_FIELDS)
            else None,
            "image": ImageInfo(row["width"], row["height"], row["format"], row["pixel_sha256"])
            if present("width")
            else None,
            "image_statistics": ImageStatistics(
                row["image_brightness"], row["image_contrast"], row["image_sharpness"], row["image_border"]
            )
            if present("image_brightness")
            else None,
            "model": ModelInfo(
                row["model_name"], row["model_version"], row["model_sha256"], row["model_site"], row["model_prevalence"]
            ),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the prediction from a row of `to_row`."""
        return cls(**cls.fields_from_row(row))
