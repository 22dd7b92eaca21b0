"""Errors that pneumoscope raises on purpose.

Each class has a stable `code`, derived from its name ("UnknownNameError" is "unknown_name"), and an exit status of the
command line. The HTTP API maps the classes to status codes in `service.api`::

    PneumoscopeError                  1  an internal error, unless a branch below states another status
    ├── InputError                    2  an input cannot be used
    │   ├── UsageError                   an option has an invalid value, or options conflict
    │   ├── UnknownNameError             a network, recipe, run or metric does not exist
    │   ├── MissingExtraError            an optional dependency is not installed
    │   ├── UnreadableImageError         a file cannot be decoded as a radiograph
    │   │   ├── DecodeCrashedError       the decoder crashed
    │   │   ├── DecodeMemoryError        decoding exceeds the memory limit
    │   │   └── DecodeTimeoutError       decoding exceeds the time limit
    │   ├── LayoutError                  a folder or file has an unsupported data layout
    │   ├── ManifestError                a manifest is malformed or does not match its images
    │   │   └── PatientLeakError         a patient is in more than one split
    │   ├── DatasetError                 the images are too few, or of one label only
    │   ├── RecipeError                  a field of a recipe is unknown or has an invalid value
    │   ├── WeightsError                 initial weights are missing, do not fit, or have an unsafe format
    │   ├── BundleError                  a bundle is missing, damaged, unsafe or too new for this version
    │   │   └── MulticlassBundleError        a bundle of several classes is given where one for pneumonia is needed
    │   ├── SiteProfileError             a site profile is damaged, was changed, or belongs to another model
    │   ├── RunError                     a run folder is missing, unfinished or belongs to another run
    │   ├── ThresholdError               a threshold would be evaluated on the images that it was chosen on
    │   ├── DownloadError                a download is incomplete, altered or unsafe to unpack
    │   ├── PullError                    images cannot be pulled from another node
    │   ├── AuthenticationError          a request to the service has no valid token
    │   ├── ForbiddenError               a request is not permitted by the role of the user, or it came from another site
    │   ├── TooManyRequestsError         too many attempts to sign in failed
    │   ├── TooLargeError                a request to the service has too many bytes or images
    │   ├── InvalidIdentityError         an entered date or sex of a patient or study is impossible
    │   ├── GoneError                    an image was deleted from the service
    │   ├── ConflictError                a record was changed in the meantime
    │   └── ImageOfTwoPatientsError      an image cannot be deleted with one of its two patients
    ├── UndefinedMetricError          2  a metric is undefined for these images
    ├── PartialFailureError           3  some inputs failed; the others were processed
    ├── DivergedError                 1  the training loss is not finite or too high
    ├── StorageError                  1  the disk, database or a file fails
    ├── BusyError                     1  the queue of the service is full
    ├── ArchiveError                  1  results of an archive are missing, doubled or altered
    ├── AuditLogError                 1  the audit log of the service does not match its records
    └── ParityError                   1  an exported network does not agree with the trained network

`message` states the problem, the value and the place; `hint` states what to do next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from pneumoscope.core.names import closest_name
from pneumoscope.core.unreadable import UnreadableReason, reason_hint, reason_message

__all__ = [
    "ArchiveError",
    "AuditLogError",
    "AuthenticationError",
    "BundleError",
    "BusyError",
    "ConflictError",
    "DatasetError",
    "DecodeCrashedError",
    "DecodeMemoryError",
    "DecodeTimeoutError",
    "DivergedError",
    "DownloadError",
    "ForbiddenError",
    "GoneError",
    "ImageOfTwoPatientsError",
    "InputError",
    "InvalidIdentityError",
    "LayoutError",
    "ManifestError",
    "MissingExtraError",
    "MulticlassBundleError",
    "ParityError",
    "PartialFailureError",
    "PatientLeakError",
    "PneumoscopeError",
    "PullError",
    "RecipeError",
    "RunError",
    "SiteProfileError",
    "StorageError",
    "ThresholdError",
    "TooLargeError",
    "TooManyRequestsError",
    "UndefinedMetricError",
    "UnknownNameError",
    "UnreadableImageError",
    "UsageError",
    "WeightsError",
]


class PneumoscopeError(Exception):
    """Base of all errors that pneumoscope raises on purpose.

    Args:
        message: The problem, with the offending value and its place.
        hint: What to do next; printed after the message.

    Attributes:
        code: Stable error code, such as "unknown_name".
        exit_status: Exit status of the command line.
    """

    exit_status = 1
    code = "internal_error"

    def __init_subclass__(cls) -> None:
        """Derive the error code from the class name."""
        super().__init_subclass__()
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__.removesuffix("Error")).lower()

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message followed by the hint; a message that ends in a listing has the hint on the next line."""
        if not self.hint:
            return self.message
        return f"{self.message}{'' if self.message.endswith(chr(10)) else '. '}{self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle all attributes: the default of `Exception` loses keyword arguments."""
        return (_rebuild, (type(self), self.message, self.__dict__))


def _rebuild(cls: type[PneumoscopeError], message: str, state: dict[str, object]) -> PneumoscopeError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class InputError(PneumoscopeError):
    """An input cannot be used."""

    exit_status = 2


class UsageError(InputError):
    """An option has an invalid value, or options conflict."""


class UnknownNameError(InputError):
    """A network, recipe, run or metric does not exist.

    Args:
        kind: Kind of thing that was looked up, such as "recipe".
        name: The unknown name.
        known: Existing names; the hint suggests the closest one.
        hint: What to do next if no name is close.
        message: The problem; "there is no KIND 'NAME'" if empty.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "", message: str = "") -> None:
        names = sorted(known)
        closest = closest_name(name, names)
        hint = f"Did you mean {closest!r}?" if closest else hint or f"Known: {', '.join(names)}"
        super().__init__(message or f"there is no {kind} {name!r}", hint=hint)
        self.kind, self.name, self.known = kind, name, names


class MissingExtraError(InputError):
    """An optional dependency is not installed.

    Args:
        extra: The extra of this package that installs it, such as "train".
        task: The task that needs it, such as "training".
        module: The module that could not be imported.
    """

    def __init__(self, extra: str, task: str, module: str = "") -> None:
        detail = f" (no module {module!r})" if module else ""
        super().__init__(
            f"{task} needs the extra [{extra}]{detail}",
            hint=f"Install it: pip install 'pneumoscope[{extra}]'",
        )
        self.extra = extra


class UnreadableImageError(InputError):
    """A file cannot be decoded as a radiograph: it is damaged, empty, too large or not an image.

    Args:
        path: The file, as the caller named it; empty to leave it out of the message.
        reason: The cause; or, in labeled data, a phrase without a full stop.
        hint: What to do next; that of the reason if empty.

    Attributes:
        reason: The cause; None if it is only a phrase.
        detail: The cause as a phrase in English.
    """

    def __init__(self, path: str, reason: UnreadableReason | str, *, hint: str = "") -> None:
        self.path, self.detail = path, str(reason)
        self.reason: UnreadableReason | None = None
        if isinstance(reason, UnreadableReason):
            self.reason, self.detail, hint = reason, reason_message(reason), hint or reason_hint(reason)
        where = f"cannot read {path!r}" if path else "the file cannot be read"
        super().__init__(f"{where}: {self.detail}", hint=hint)

    def renamed(self, path: str) -> Self:
        """Return the error for another name of the file."""
        return type(self)(path, self.reason or self.detail, hint=self.hint)


class DecodeCrashedError(UnreadableImageError):
    """The decoder crashed in its worker process."""


class DecodeMemoryError(UnreadableImageError):
    """Decoding exceeds the memory limit of one image."""


class DecodeTimeoutError(UnreadableImageError):
    """Decoding exceeds the time limit of one image."""


class LayoutError(InputError):
    """A folder or file has an unsupported data layout."""


class ManifestError(InputError):
    """A manifest is malformed or does not match its images."""


class PatientLeakError(ManifestError):
    """A patient is in more than one split."""


class DatasetError(InputError):
    """The images cannot be trained on or evaluated: there are too few, or they have one label only."""

    unknown_label = ""  # a label that is not one of the expected classes; "" for other errors
    labels: tuple[str, ...] = ()  # then, all labels of the data


class RecipeError(InputError):
    """A field of a recipe is unknown or has an invalid value."""


class WeightsError(InputError):
    """Initial weights are missing, do not fit the network, or have an unsafe format."""


class BundleError(InputError):
    """A bundle is missing, damaged, unsafe or too new for this version."""


class MulticlassBundleError(BundleError):
    """A bundle of several classes is given where one for NORMAL and PNEUMONIA is needed.

    Args:
        name: Name of the model.
        classes: Its classes.
    """

    def __init__(self, name: str, classes: Sequence[str]) -> None:
        super().__init__(
            f"model {name!r} has several classes ({', '.join(classes)}), and a model for NORMAL and PNEUMONIA is needed here",
            hint="Several classes work in train, sweep, lr-find, predict, evaluate, compare, report, export and models"
            " --card; in Python, see load_multiclass_model and evaluate_multiclass",
        )
        self.classes = tuple(classes)


class SiteProfileError(InputError):
    """A site profile is damaged, was changed, or belongs to another model."""


class RunError(InputError):
    """A run folder is missing, unfinished or belongs to another run."""


class ThresholdError(InputError):
    """A threshold would be evaluated on the images that it was chosen on."""


class DownloadError(InputError):
    """A download is incomplete, altered or unsafe to unpack."""


class PullError(InputError):
    """Images cannot be pulled from another node: it cannot be reached, or does not do what it is asked for."""


class AuthenticationError(InputError):
    """A request to the service has no valid token."""


class ForbiddenError(InputError):
    """A request is not permitted: the role of the user does not allow it, or it came from another site."""


class TooManyRequestsError(InputError):
    """Too many attempts to sign in failed; the client must wait.

    Args:
        message: See `PneumoscopeError`.
        retry_seconds: Seconds after which the next attempt is accepted.
    """

    def __init__(self, message: str, *, retry_seconds: int) -> None:
        super().__init__(message, hint=f"Try again in {retry_seconds} seconds")
        self.retry_seconds = retry_seconds


class TooLargeError(InputError):
    """A request to the service has too many bytes or images."""


class InvalidIdentityError(InputError):
    """A date or the sex that a person or a client entered is impossible; nothing was stored.

    Args:
        message: The problems, without values, which identify a patient.
        fields: Stable code of the problem by the name of the field.
        hint: What to do next.
    """

    def __init__(self, message: str, *, fields: Mapping[str, str], hint: str) -> None:
        super().__init__(message, hint=hint)
        self.fields = dict(fields)


class GoneError(InputError):
    """An image was deleted from the service; its predictions are kept."""


class ConflictError(InputError):
    """A prediction was changed after the client had read it; nothing was stored."""


class ImageOfTwoPatientsError(InputError):
    """An image was received under two patients, so it is not deleted with one of them before a person decides."""


class UndefinedMetricError(PneumoscopeError):
    """A metric is undefined for these images, such as sensitivity without images of pneumonia."""

    exit_status = 2


class PartialFailureError(PneumoscopeError):
    """Some inputs failed; the others were processed."""

    exit_status = 3


class DivergedError(PneumoscopeError):
    """The training loss is not finite, or so high that the network cannot be exported; the last good checkpoint is kept."""


class StorageError(PneumoscopeError):
    """The disk, the database or a stored file cannot be read or written."""


class BusyError(PneumoscopeError):
    """The queue of the service is full, or the service is stopping; nothing was stored."""


class ArchiveError(PneumoscopeError):
    """Results of an archive are missing, doubled or altered, or its listing is damaged."""


class AuditLogError(PneumoscopeError):
    """The audit log of the service was altered, or a record or image does not match it."""


class ParityError(PneumoscopeError):
    """An exported network does not give the same outputs as the trained network."""
