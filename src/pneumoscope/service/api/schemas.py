"""Documents of the API; FastAPI derives the OpenAPI schemas from them.

The prediction documents inherit their fields from `core.prediction.Prediction` and `StoredPrediction`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from pneumoscope.core.identity import IDENTITY_FIELDS, MAX_IDENTITY_LENGTH, PATIENT_FIELDS, Identity
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.prediction_codes import Decision
from pneumoscope.core.prediction_messages import prediction_message
from pneumoscope.service.auth.tokens import Token
from pneumoscope.service.auth.users import Role
from pneumoscope.service.storage.inbox import InboxStatus
from pneumoscope.service.storage.outbox_status import OutboxStatus
from pneumoscope.service.storage.queries import Page
from pneumoscope.service.storage.records import StoredPrediction, UnreadableFile
from pneumoscope.service.storage.reviews import Label
from pneumoscope.service.storage.studies import Study, sorted_studies, summarize_study

__all__ = [
    "AddedTokenDocument",
    "ExchangeDocument",
    "HealthDocument",
    "IdentityRequest",
    "PatientDocument",
    "PredictionDocument",
    "PredictionListDocument",
    "PredictionPageDocument",
    "ReleaseDocument",
    "ReleaseRequest",
    "ReviewRequest",
    "SearchRequest",
    "SinglePredictionDocument",
    "StudyDocument",
    "TokenListDocument",
    "TokenRequest",
    "UnreadableImageDocument",
    "UnreadableListDocument",
    "list_document",
    "page_document",
    "patient_document",
    "single_document",
    "study_document",
]


class ReviewRequest(BaseModel):
    """A person's reading of an image."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    label: Label = Field(examples=["pneumonia"])
    """"unusable" if the image cannot be read."""
    finding: str = Field(default="", examples=[""], max_length=1000, pattern=r"^[^\x00]*$")
    """The other finding. Required with "other_finding"; must be empty with any other label."""
    note: str = Field(
        default="", examples=["infiltrate in the right lower field"], max_length=4000, pattern=r"^[^\x00]*$"
    )
    """The reviewer's note."""

    @model_validator(mode="after")
    def _finding_fits_label(self) -> Self:
        if (self.label == "other_finding") != bool(self.finding.strip()):
            raise ValueError("finding is required with the label 'other_finding', and only with it")
        return self


# Fields of `Identity`. The dataclass itself would accept unknown fields.
IdentityRequest: type[BaseModel] = create_model(
    "IdentityRequest",
    __config__=ConfigDict(extra="forbid"),
    __doc__="The complete identity of an image; empty and missing fields remove values.",
    **dict.fromkeys(
        IDENTITY_FIELDS,
        (Annotated[str, Field(max_length=MAX_IDENTITY_LENGTH, pattern=r"^[^\x00]*$", examples=[""])], ""),
    ),
)  # type: ignore[call-overload]


class SearchRequest(BaseModel):
    """A search text. It is sent in the body, because identifiers must not appear in URLs."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    text: str = Field(min_length=1, max_length=MAX_IDENTITY_LENGTH, pattern=r"^[^\x00]*$", examples=["doe jane"])
    """Words. Each must occur in the patient's name or identifier, the accession number or the file name."""


class TokenRequest(BaseModel):
    """A token to add."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    user: str = Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$", examples=["ward-3"])
    """User name in the audit log and in reviews."""
    role: Role = Field(examples=["reader"])
    """"sender": sends images and gets their predictions; "reader": also uses the web interface; "administrator": all rights."""


class ReleaseRequest(BaseModel):
    """The study whose quiet period is to end."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    study_instance_uid: str = Field(default="", pattern=r"^[0-9.]{0,64}$", examples=["1.2.840.113619.2.1"])
    """All studies if empty."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReleaseDocument:
    """The released instances.

    Attributes:
        instances: Number of instances that waited for the quiet period.
    """

    instances: int


@dataclasses.dataclass(frozen=True, slots=True)
class ExchangeDocument:
    """The exchange with other nodes.

    Attributes:
        inbox: Received instances waiting for a prediction.
        outbox: Results, by destination.
    """

    inbox: InboxStatus
    outbox: list[OutboxStatus]


@dataclasses.dataclass(frozen=True, slots=True)
class TokenListDocument:
    """The tokens of the service.

    Attributes:
        tokens: Active ones first.
    """

    tokens: list[Token]


@dataclasses.dataclass(frozen=True, slots=True)
class AddedTokenDocument:
    """A new token.

    Attributes:
        token: The token.
        secret: Secret that the client sends; it is not stored.
    """

    token: Token
    secret: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PredictionDocument(StoredPrediction):
    """A stored prediction.

    Attributes:
        message: Warnings, and an explanation of any decision other than pneumonia, in the language of the request; may
            be empty.
    """

    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class UnreadableImageDocument(Prediction):
    """The failure to read an image, which is not stored.

    Attributes:
        id: Always null.
        message: Explanation of the failure, in the language of the request.
    """

    decision: Decision | None
    id: None = None
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SinglePredictionDocument(PredictionDocument):
    """A single stored prediction.

    Attributes:
        notice: The notice in the language of the request.
    """

    notice: str


@dataclasses.dataclass(frozen=True, slots=True)
class PredictionListDocument:
    """The predictions of one request.

    Attributes:
        predictions: In the order of the images.
        notice: The notice in the language of the request.
    """

    predictions: list[PredictionDocument | UnreadableImageDocument]
    notice: str


@dataclasses.dataclass(frozen=True, slots=True)
class PredictionPageDocument:
    """A page of stored predictions.

    Attributes:
        predictions: In the requested order.
        total: Number of matching predictions on all pages.
        next: Value of `after` for the next page; empty on the last page.
        notice: The notice in the language of the request.
    """

    predictions: list[PredictionDocument]
    total: int
    next: str
    notice: str


@dataclasses.dataclass(frozen=True, slots=True)
class StudyDocument:
    """A study.

    Attributes:
        study: The study, with the decision for all its images.
        predictions: Its predictions, oldest first.
        priors: The patient's other studies, latest first.
        notice: The notice in the language of the request.
    """

    study: Study
    predictions: list[PredictionDocument]
    priors: list[Study]
    notice: str


@dataclasses.dataclass(frozen=True, slots=True)
class PatientDocument:
    """A patient.

    Attributes:
        patient_key: Key of the patient.
        identity: Identity of the patient; the study and image fields are empty.
        studies: Latest first.
        notice: The notice in the language of the request.
    """

    patient_key: str
    identity: Identity
    studies: list[Study]
    notice: str


@dataclasses.dataclass(frozen=True, slots=True)
class UnreadableListDocument:
    """Records of files that could not be read.

    Attributes:
        files: Newest first.
        total: Total number of records.
    """

    files: list[UnreadableFile]
    total: int


@dataclasses.dataclass(frozen=True, slots=True)
class HealthDocument:
    """Health of the service."""

    status: Literal["ok"] = "ok"


def _describe_inherited_fields(cls: type[Prediction]) -> None:
    """Copy the attributes of the base classes into a docstring, which OpenAPI uses as the schema's description."""
    documented = [inspect.cleandoc(base.__doc__ or "").partition("\n\nAttributes:\n") for base in cls.__mro__[:-1]]
    attributes = "\n".join(section.rstrip() for _, _, section in reversed(documented) if section)
    cls.__doc__ = f"{documented[0][0]}\n\nAttributes:\n{attributes}\n"


for _cls in (SinglePredictionDocument, PredictionDocument, UnreadableImageDocument):  # derived classes first
    _describe_inherited_fields(_cls)


def _fields(prediction: Prediction) -> dict[str, Any]:
    return {field.name: getattr(prediction, field.name) for field in dataclasses.fields(prediction)}


def single_document(prediction: StoredPrediction, language: str, notice: str) -> SinglePredictionDocument:
    """Return the document of one stored prediction."""
    return SinglePredictionDocument(
        **_fields(prediction), message=prediction_message(prediction, language), notice=notice
    )


def list_document(
    predictions: list[StoredPrediction | Prediction], language: str, notice: str
) -> PredictionListDocument:
    """Return the document of one request's predictions."""
    documents: list[PredictionDocument | UnreadableImageDocument] = [
        (PredictionDocument if isinstance(each, StoredPrediction) else UnreadableImageDocument)(
            **_fields(each), message=prediction_message(each, language)
        )
        for each in predictions
    ]
    return PredictionListDocument(documents, notice)


def page_document(page: Page, language: str, notice: str) -> PredictionPageDocument:
    """Return the document of a page."""
    documents = [
        PredictionDocument(**_fields(each), message=prediction_message(each, language)) for each in page.predictions
    ]
    return PredictionPageDocument(documents, page.total, page.next, notice)


def study_document(
    key: str, studies: Mapping[str, Sequence[StoredPrediction]], language: str, notice: str
) -> StudyDocument:
    """Return the document of a study.

    Args:
        key: Key of the study.
        studies: Predictions of the patient's studies, by study key.
        language: Language of the messages.
        notice: The notice in that language.
    """
    priors = sorted_studies({other: stored for other, stored in studies.items() if other != key})
    documents = [
        PredictionDocument(**_fields(each), message=prediction_message(each, language)) for each in studies[key]
    ]
    return StudyDocument(summarize_study(studies[key]), documents, priors, notice)


def patient_document(key: str, studies: Mapping[str, Sequence[StoredPrediction]], notice: str) -> PatientDocument:
    """Return the document of a patient, given the predictions of each study by key."""
    found = sorted_studies(studies)
    values = {name: getattr(found[0].identity, name) for name in PATIENT_FIELDS}
    return PatientDocument(key, Identity(**values), found, notice)
