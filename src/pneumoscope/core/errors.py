"""Every error that pneumoscope raises on purpose.

One tree, so that it is mapped once to exit statuses (here) and once to HTTP statuses (in a service)::

    PneumoscopeError                  1  our fault, unless a branch below says otherwise
    ├── CallerError                   2  something the caller gave cannot be used
    │   ├── UsageError                   options that do not go together
    │   ├── UnknownNameError             no network, recipe, run, ... of that name
    │   ├── MissingExtraError            an optional dependency is not installed
    │   ├── UnreadableImageError          a file is not a radiograph that can be decoded
    │   ├── LayoutError                  a folder or file is in no layout that we know
    │   ├── ManifestError                a manifest is malformed or does not fit its images
    │   │   └── PatientLeakError         a patient is in more than one split
    │   ├── DatasetError                 images that cannot be trained on or evaluated: one class, none, too few
    │   ├── RecipeError                  an unknown or impossible field of a recipe
    │   ├── WeightsError                 starting weights are missing, of another shape, or refused
    │   ├── BundleError                  a bundle is missing, damaged, newer than this version, or refused
    │   ├── RunError                     a run folder is missing, unfinished or another run's
    │   ├── ThresholdError               a threshold would be chosen on the images that it is judged on
    │   ├── DownloadError                a download is incomplete, altered or unsafe to unpack
    │   ├── AuthenticationError                  a request to the service has no token, or a wrong one
    │   ├── TooLargeError                a request to the service holds more than it takes
    │   └── GoneError                    an image was removed from the service, and its numbers kept
    ├── UndefinedMetricError          2  a statistic does not exist for these images
    ├── PartialFailureError           3  some inputs failed and the others were done
    ├── DivergedError                 1  the loss is not a number any more
    ├── StorageError                  1  the disk is full or cannot be written
    ├── BusyError                     1  more images wait to be scored than the service lets wait
    ├── AuditLogError                    1  the audit log of a service, or what it tells of, was altered
    └── ParityError                   1  an exported network does not agree with the trained one

A message says what is wrong, with which value and where; `hint` says what to do next.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = [
    "AuditLogError",
    "AuthenticationError",
    "BundleError",
    "BusyError",
    "CallerError",
    "DatasetError",
    "DivergedError",
    "DownloadError",
    "GoneError",
    "LayoutError",
    "ManifestError",
    "MissingExtraError",
    "ParityError",
    "PartialFailureError",
    "PatientLeakError",
    "PneumoscopeError",
    "RecipeError",
    "RunError",
    "StorageError",
    "ThresholdError",
    "TooLargeError",
    "UndefinedMetricError",
    "UnknownNameError",
    "UnreadableImageError",
    "UsageError",
    "WeightsError",
]


class PneumoscopeError(Exception):
    """Base of every error raised on purpose.

    Args:
        message: what is wrong, with which value, and where.
        hint: what to do next; printed after the message.
    """

    exit_status = 1
    code = "internal_error"

    def __init_subclass__(cls) -> None:
        """Derive the stable code from the class name: "UnknownNameError" is "unknown_name"."""
        super().__init_subclass__()
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__.removesuffix("Error")).lower()

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """The message, and the hint in the same breath."""
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip between processes (a keyword argument would otherwise be lost)."""
        return (_rebuild, (type(self), self.message, self.hint, self.__dict__))


def _rebuild(kind: type[PneumoscopeError], message: str, hint: str, state: dict[str, object]) -> PneumoscopeError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    error.message, error.hint = message, hint
    return error


class CallerError(PneumoscopeError):
    """Something the caller gave cannot be used."""

    exit_status = 2


class UsageError(CallerError):
    """Options that do not go together, or a value outside what an option takes."""


class UnknownNameError(CallerError):
    """No such network, recipe, run or metric.

    Args:
        kind: what was looked up, in words: "recipe".
        name: what was asked for.
        known: the names that exist; the nearest is suggested.
        hint: what to do next where no name is near.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else hint or f"Known: {', '.join(names)}"
        super().__init__(f"there is no {kind} {name!r}", hint=hint)
        self.kind, self.name, self.known = kind, name, names


class MissingExtraError(CallerError):
    """An optional dependency is not installed.

    Args:
        extra: the extra of this package that brings it: "train".
        task: what needs it, in words: "training".
    """

    def __init__(self, extra: str, task: str, module: str = "") -> None:
        found = f" (no module {module!r})" if module else ""
        super().__init__(
            f"{task} needs the extra [{extra}]{found}",
            hint=f"Install it: pip install 'pneumoscope[{extra}]'",
        )
        self.extra = extra


class UnreadableImageError(CallerError):
    """A file is not a radiograph that can be decoded: damaged, empty, too large, or not an image.

    Args:
        path: the file, as the caller named it.
        why: the reason, in words.
        hint: what to do next.
    """

    def __init__(self, path: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"cannot read {path!r}: {why}", hint=hint)
        self.path, self.why = path, why


class LayoutError(CallerError):
    """A folder or file is in no layout that we know."""


class ManifestError(CallerError):
    """A manifest is malformed or does not fit the images that it lists."""


class PatientLeakError(ManifestError):
    """A patient is in more than one split."""


class DatasetError(CallerError):
    """Images that cannot be trained on or evaluated: one class only, none, or too few."""


class RecipeError(CallerError):
    """An unknown or impossible field of a recipe."""


class WeightsError(CallerError):
    """Starting weights are missing, of another shape, or in a format that is refused."""


class BundleError(CallerError):
    """A bundle is missing, damaged, newer than this version, or refused."""


class RunError(CallerError):
    """A run folder is missing, unfinished, or belongs to another run."""


class ThresholdError(CallerError):
    """A threshold would be chosen on the images that it is judged on."""


class DownloadError(CallerError):
    """A download is incomplete, altered, or unsafe to unpack."""


class AuthenticationError(CallerError):
    """A request to the service has no token, or a wrong one."""


class TooLargeError(CallerError):
    """A request to the service holds more bytes or images than it takes."""


class GoneError(CallerError):
    """An image was removed from the service; what was said of it is kept."""


class UndefinedMetricError(PneumoscopeError):
    """A statistic does not exist for these images, such as sensitivity without a pneumonia."""

    exit_status = 2


class PartialFailureError(PneumoscopeError):
    """Some inputs failed and the others were done."""

    exit_status = 3


class DivergedError(PneumoscopeError):
    """The loss is not a number any more; the last good checkpoint is kept."""


class StorageError(PneumoscopeError):
    """The disk is full or cannot be written; what was there before is kept."""


class ParityError(PneumoscopeError):
    """An exported network does not give the same logits as the trained one."""


class BusyError(PneumoscopeError):
    """More images wait to be scored than the service lets wait, or it is stopping; nothing was kept."""


class AuditLogError(PneumoscopeError):
    """The audit log of a service was altered, or a record or image is not what it tells."""
