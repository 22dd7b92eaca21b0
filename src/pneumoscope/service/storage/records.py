"""Stored predictions and unreadable files: the records, and their rows in the database."""

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

Row = RowMapping | Mapping[str, Any]  # of the table of predictions
# Columns that never change and that the audit log does not contain itself. The order is part of the hash.
_RESULT_COLUMNS = (
    "image_bytes", "interval_low", "interval_high", "interval_method", "interval_n", "threshold", "rejection_code",
    "rejection_parameters", "uncertainty_low", "uncertainty_high", "uncertainty_coverage", "width", "height", "format",
    "model_name", "model_version",
)  # fmt: skip
# Rejections that another header of the same image may lack.
_HEADER_REJECTIONS = {
    *OVERRIDES, "age_required", "age_not_understood", "outside_age_range", "modality_not_supported", "lateral_view",
    "for_processing", "presentation_intent_not_understood", "excluded_by_site_rule",
}  # fmt: skip
# Those that were part of the id when an image was identified by its file.
_FILE_REJECTIONS = {*OVERRIDES, "age_required", "age_not_understood"}
# Such columns of later revisions: hashed if they are set, so that the hashes of earlier predictions stay the same.
_LATER_RESULT_COLUMNS = (
    "age", "age_source", "warnings", "model_site", "image_brightness", "image_contrast", "image_sharpness", "image_border",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StoredPrediction(Prediction):
    """A prediction in the database. `path` is the name that the client gave the image.

    Attributes:
        id: Derived from the image's content, the model, the operating point and an entered age.
        created: Time of the prediction, ISO 8601 in UTC.
        last_predicted: Time when the image last had this prediction: later than `created`, if it had another one in between.
        image_sha256: SHA-256 of the uploaded file.
        image_bytes: Size of the uploaded file in bytes.
        image_removed: Time when retention removed the image, ISO 8601 in UTC; None while it is stored.
        reviews: Reviews of the image, one of each reader, oldest first.
        study_key: Key of the study, for `GET /v1/studies/{study_key}` and filters; None without an identity.
        patient_key: Key of the patient; None if nothing is known of the patient.
        conflicts: Identifiers that another image, study or patient has as well, and other contradictions.
        other_identities: Those of other patients, under which the same pixels were received, 20 at most; empty once a person has
            decided.
        other_identity_count: Number of all identities of other patients.
    """

    decision: Decision | None  # never that of a model of several classes, which the service refuses
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
        """Return the prediction as one flat row: `Prediction.to_row`, and the other columns of the table."""
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
        """Return the review of a reviewer, or None."""
        return next((review for review in self.reviews if review.reviewer == reviewer), None)

    def identity_before(self, entered: Identity) -> Identity | None:
        """Return the identity that a person started from: that of another patient if it was chosen, or else that of the image."""
        return next((each.identity for each in self.other_identities if each.identity == entered), self.identity)

    @property
    def report_id(self) -> str:
        """Id of the FHIR resources of the prediction: with the key of the study, if the image is that of several patients."""
        return f"{self.id}{self.study_key}" if self.other_identities else self.id

    @property
    def image_key(self) -> str:
        """What identifies the image: the hash of its pixels, or of its file if that is unknown."""
        return (self.image and self.image.pixel_sha256) or self.image_sha256

    @property
    def etag(self) -> str:
        """The entity tag (RFC 9110) of the prediction with its reviews, image and identity: it changes when one of them does."""
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
        """Return the constructor arguments that a row of the table contains."""
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
        id: Derived from the content, the name and the failure, so that a file that is sent again is listed once.
        path: The name that the client gave the file.
        created: Time of the first attempt, ISO 8601 in UTC.
        sender: User, or name of the DICOM peer, that sent it first; "local" without authentication, "" if unknown.
        image_sha256: SHA-256 of the file.
        image_bytes: Size of the file in bytes.
        failure: Why it could not be read.
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
        """Return the record in a row of the table."""
        failure = Failure.from_row(dict(row))
        return cls(
            row["id"], row["path"], row["created"], row["sender"], row["image_sha256"], row["image_bytes"], failure
        )


def encode_reviews(reviews: Sequence[Review]) -> str:
    """Return reviews as the JSON of a row's `reviews`."""
    return json.dumps([dataclasses.asdict(review) for review in reviews], ensure_ascii=False)


def encode_others(others: Sequence[OtherIdentity]) -> str:
    """Return the identities of other patients as JSON."""
    return json.dumps([dataclasses.asdict(each) for each in others], ensure_ascii=False)


def is_id(text: str) -> bool:
    """Return whether a text has the form of a prediction's id."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


def compute_id(row: Row) -> str:
    """Return the id of the prediction in a row, 32 hexadecimal digits.

    It is derived from the image's pixels, the model, its site profile or stated prevalence, the operating point, the age that a
    person entered or whether the header states one, the overrides of the header that the prediction depends on, and a rejection
    by the header: such an image is predicted when the header is corrected or overridden, or the age is entered.
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
    """Return the site profile or the stated prevalence of a row as one text, in the form that ids and hashes contain."""
    prevalence = row["model_prevalence"]
    return row["model_site"] or ("" if prevalence is None else f"prevalence={prevalence!r}")


def format_time(time: datetime) -> str:
    """Return a time as the database stores it, so that times can be compared as text."""
    return f"{time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def new_row(prediction: Prediction, image: bytes) -> dict[str, Any]:
    """Return the row of a new prediction, all but `created`.

    Args:
        prediction: Of a readable image.
        image: The file's bytes.
    """
    if prediction.decision is None:
        raise ValueError("a prediction of an unreadable image cannot be stored")
    sha256 = content_hash(image)
    row = {name: value for name, value in prediction.to_row().items() if name in predictions.c}
    row |= {
        "image_sha256": sha256,
        # All blank images of a size have the same pixels.
        "pixel_sha256": sha256 if row["rejection_code"] == "blank" else row["pixel_sha256"] or sha256,
        "age": None if row["age"] is None else float(row["age"]) + 0.0,
    }  # as it is read: no -0.0
    return row | {
        "id": compute_id(row),
        "image_bytes": len(image),
        "image_removed": None,
        "reviewed": None,
    }


def new_unreadable_row(prediction: Prediction, file: bytes) -> dict[str, Any]:
    """Return the row of a file that could not be read, all but `created` and `sender`.

    Args:
        prediction: With a failure.
        file: Its bytes.
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
    """Return the SHA-256 of the columns that never change and that the audit log does not contain itself.

    The image's name is not included: it could be guessed from a hash.
    """
    values = [row[name] for name in _RESULT_COLUMNS]
    row = {**row, "model_site": _site_and_prevalence(row)}
    if later := {name: row[name] for name in _LATER_RESULT_COLUMNS if row[name] not in (None, "")}:
        values.append(later)
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
