"""Records of stored predictions and unreadable files, and their database rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, get_args

from sqlalchemy import RowMapping

from pneumoscope.core.identity import ConflictCode, Identity, contradicts
from pneumoscope.core.prediction import Failure, Prediction
from pneumoscope.core.prediction_codes import OVERRIDES, Decision
from pneumoscope.service.storage.blob_store import content_hash
from pneumoscope.service.storage.identity_columns import CONFLICT_COLUMNS, OtherIdentity
from pneumoscope.service.storage.reviews import Review
from pneumoscope.service.storage.tables import predictions

__all__ = [
    "Row",
    "StoredPrediction",
    "UnreadableFile",
    "compute_id",
    "encode_others",
    "encode_reviews",
    "format_time",
    "is_id",
    "new_row",
    "new_unreadable_row",
    "result_hash",
]

Row = RowMapping | Mapping[str, Any]  # of the predictions table
# Immutable columns that the audit log does not contain directly. The order is part of the hash.
_RESULT_COLUMNS = (
    "image_bytes", "interval_low", "interval_high", "interval_method", "interval_n", "threshold", "rejection_code",
    "rejection_parameters", "uncertainty_low", "uncertainty_high", "uncertainty_coverage", "width", "height", "format",
    "model_name", "model_version",
)  # fmt: skip
# Rejections caused by the header; the same image with another header may not be rejected.
_HEADER_REJECTIONS = {
    *OVERRIDES, "age_required", "age_not_understood", "outside_age_range", "modality_not_supported", "lateral_view",
    "for_processing", "presentation_intent_not_understood", "excluded_by_site_rule",
}  # fmt: skip
# The subset included in ids of images that are identified by their file.
_FILE_REJECTIONS = {*OVERRIDES, "age_required", "age_not_understood"}
# Immutable columns of later revisions, hashed only if set, so that hashes of earlier predictions remain the same.
_LATER_RESULT_COLUMNS = (
    "age", "age_source", "warnings", "model_site", "image_brightness", "image_contrast", "image_sharpness", "image_border",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StoredPrediction(Prediction):
    """A prediction in the database. `path` is the client's name for the image.

    Attributes:
        id: Derived from the image's content, the model, the operating point and an entered age.
        created: Time of the prediction, ISO 8601 in UTC.
        last_predicted: Last time the image received this prediction; later than `created` if it had another one in
            between.
        image_sha256: SHA-256 of the uploaded file.
        image_bytes: Size of the uploaded file in bytes.
        image_removed: Time when retention removed the image, ISO 8601 in UTC; None while it is stored.
        reviews: Reviews of the image, one per reader, oldest first.
        study_key: Key of the study, for `GET /v1/studies/{study_key}` and filters; None without an identity.
        patient_key: Key of the patient; None if the patient is unknown.
        conflicts: Identifiers shared with another image, study or patient, and other contradictions.
        other_identities: Identities of other patients under which the same pixels were received, at most 20; empty once
            a person has decided.
        other_identity_count: Total number of identities of other patients.
    """

    decision: Decision | None  # never "classified", since the service does not accept multi-class models
    id: str
    created: str
    last_predicted: str
    image_sha256: str
    image_bytes: int
    image_removed: str | None
    reviews: tuple[Review, ...]
    study_key: str | None = None
    patient_key: str | None = None
    conflicts: tuple[ConflictCode, ...] = ()
    other_identities: tuple[OtherIdentity, ...] = ()
    other_identity_count: int = 0

    def to_row(self) -> dict[str, Any]:
        """Return the prediction as a flat row: `Prediction.to_row` and the other columns of the table."""
        # `super()` without arguments fails in a dataclass with slots.
        return Prediction.to_row(self) | {
            "id": self.id,
            "created": self.created,
            "last_predicted": self.last_predicted,
            "image_sha256": self.image_sha256,
            "image_bytes": self.image_bytes,
            "image_removed": self.image_removed,
            "reviewed": max((review.time for review in self.reviews), default=None),
            "reviews": encode_reviews(self.reviews),
            "study_key": self.study_key,
            "patient_key": self.patient_key,
            **{code: code in self.conflicts for code in get_args(ConflictCode)},
            "other_identities": encode_others(self.other_identities),
            "other_identity_count": self.other_identity_count,
        }

    def review_of(self, reviewer: str) -> Review | None:
        """Return the review by a reviewer, or None."""
        return next((review for review in self.reviews if review.reviewer == reviewer), None)

    def identity_before(self, entered: Identity) -> Identity | None:
        """Return the identity before a person's change: the chosen other patient's identity, or else that of the image."""
        return next((each.identity for each in self.other_identities if each.identity == entered), self.identity)

    @property
    def report_id(self) -> str:
        """Id of the FHIR resources of the prediction; it includes the study key if the image belongs to several patients."""
        return f"{self.id}{self.study_key}" if self.other_identities else self.id

    @property
    def image_key(self) -> str:
        """Identifier of the image: its pixel hash, or its file hash if that is unknown."""
        return (self.image and self.image.pixel_sha256) or self.image_sha256

    @property
    def etag(self) -> str:
        """The entity tag (RFC 9110), which changes with the prediction's reviews, image and identity."""
        identity = self.identity and dataclasses.astuple(self.identity)
        changing = (
            [dataclasses.astuple(each) for each in self.reviews],
            self.image_removed,
            identity,
            self.last_predicted,
            [dataclasses.astuple(each.identity) for each in self.other_identities],
            self.other_identity_count,
        )
        state = json.dumps(changing)
        return f'"{hashlib.sha256(f"{self.id} {state}".encode()).hexdigest()[:32]}"'

    @classmethod
    def fields_from_row(cls, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor arguments contained in a table row."""
        fields = Prediction.fields_from_row(row)
        conflicts: list[ConflictCode] = [column.name for column in CONFLICT_COLUMNS if row[column.name]]
        if fields["age"] and contradicts(fields["age"].years, fields["identity"]):
            conflicts.append("age_contradicts_dates")
        return fields | {
            "id": row["id"],
            "created": row["created"],
            "last_predicted": row["last_predicted"],
            "image_sha256": row["image_sha256"],
            "image_bytes": row["image_bytes"],
            "image_removed": row["image_removed"],
            "reviews": tuple(Review(**each) for each in json.loads(row["reviews"])),
            "study_key": row["study_key"],
            "patient_key": row["patient_key"],
            "conflicts": tuple(conflicts),
            "other_identities": tuple(
                OtherIdentity(**each | {"identity": Identity(**each["identity"])})
                for each in json.loads(row["other_identities"])
            ),
            "other_identity_count": row["other_identity_count"],
        }


@dataclasses.dataclass(frozen=True, slots=True)
class UnreadableFile:
    """A record of a file that could not be read. The file itself is not stored.

    Attributes:
        id: Derived from content, name and failure, so that a file that is sent again is listed once.
        path: The client's name for the file.
        created: Time of the first attempt, ISO 8601 in UTC.
        sender: User or DICOM peer that sent it first; "local" without authentication, empty if unknown.
        image_sha256: SHA-256 of the file.
        image_bytes: Size of the file in bytes.
        failure: The failure to read it.
    """

    id: str
    path: str
    created: str
    sender: str
    image_sha256: str
    image_bytes: int
    failure: Failure

    @classmethod
    def from_row(cls, row: Row) -> UnreadableFile:
        """Return the record in a table row."""
        failure = Failure.from_row(dict(row))
        return cls(
            row["id"], row["path"], row["created"], row["sender"], row["image_sha256"], row["image_bytes"], failure
        )


def encode_reviews(reviews: Sequence[Review]) -> str:
    """Return reviews as JSON for the row's `reviews`."""
    return json.dumps([dataclasses.asdict(review) for review in reviews], ensure_ascii=False)


def encode_others(others: Sequence[OtherIdentity]) -> str:
    """Return the identities of other patients as JSON."""
    return json.dumps([dataclasses.asdict(each) for each in others], ensure_ascii=False)


def is_id(text: str) -> bool:
    """Return whether a text has the form of a prediction id."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


def compute_id(row: Row) -> str:
    """Return the id of the prediction in a row, 32 hexadecimal digits.

    It is derived from the image's pixels, the model, the site profile or prevalence, the operating point, the entered
    age or the presence of an age in the header, the header overrides that the prediction depends on, and a rejection
    due to the header. So an image gets a new prediction when its header is corrected or overridden, or an age is
    entered.
    """
    parts = [row["pixel_sha256"], row["model_sha256"], row["operating_point"]]
    if site := _site_and_prevalence(row):
        parts.append(f"site {site}")
    if row["age_source"] == "entered":
        parts.append(f"age {row['age']}")
    by_file = row["pixel_sha256"] == row["image_sha256"]  # as in earlier revisions of the database
    if row["age_source"] == "header" and row["age"] is not None and not by_file:
        parts.append("age stated")
    if row["rejection_code"] in (_FILE_REJECTIONS if by_file else _HEADER_REJECTIONS):
        parts.append(row["rejection_code"])
    parts += [warning for warning in row["warnings"].split() if warning.startswith("assumed_")]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def _site_and_prevalence(row: Row) -> str:
    """Return the site profile or prevalence of a row as text, in the form used for ids and hashes."""
    prevalence = row["model_prevalence"]
    return row["model_site"] or ("" if prevalence is None else f"prevalence={prevalence!r}")


def format_time(time: datetime) -> str:
    """Return a time in the database format, which sorts as text."""
    return f"{time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def new_row(prediction: Prediction, image: bytes) -> dict[str, Any]:
    """Return the row of a new prediction, without `created`.

    Args:
        prediction: Prediction of a readable image.
        image: Bytes of the file.
    """
    if prediction.decision is None:
        raise ValueError("a prediction of an unreadable image cannot be stored")
    sha256 = content_hash(image)
    row = {name: value for name, value in prediction.to_row().items() if name in predictions.c}
    row |= {
        "image_sha256": sha256,
        # Blank images are identified by their file, because all of the same size have the same pixels.
        "pixel_sha256": sha256 if row["rejection_code"] == "blank" else row["pixel_sha256"] or sha256,
        "age": None if row["age"] is None else float(row["age"]) + 0.0,
    }  # + 0.0 turns -0.0 into 0.0, as the database returns it
    return row | {
        "id": compute_id(row),
        "image_bytes": len(image),
        "image_removed": None,
        "reviewed": None,
    }


def new_unreadable_row(prediction: Prediction, file: bytes) -> dict[str, Any]:
    """Return the row of an unreadable file, without `created` and `sender`.

    Args:
        prediction: Prediction with a failure.
        file: Bytes of the file.
    """
    if prediction.failure is None:
        raise ValueError("the file was read")
    sha256, failure = content_hash(file), prediction.failure
    key = json.dumps([sha256, prediction.path, failure.code, failure.message])
    return {
        "id": hashlib.sha256(key.encode()).hexdigest()[:32],
        "path": prediction.path,
        "image_sha256": sha256,
        "image_bytes": len(file),
        **{name: value or "" for name, value in prediction.to_row().items() if name.startswith("failure_")},
    }


def result_hash(row: Row) -> str:
    """Return the SHA-256 of the immutable columns that the audit log does not contain directly.

    The image name is excluded, because it could be guessed from a hash.
    """
    values = [row[name] for name in _RESULT_COLUMNS]
    row = {**row, "model_site": _site_and_prevalence(row)}
    if later := {name: row[name] for name in _LATER_RESULT_COLUMNS if row[name] not in (None, "")}:
        values.append(later)
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
