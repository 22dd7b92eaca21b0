"""Render errors for people: a title, advice, and the details, in every language of `core.i18n`."""

from __future__ import annotations

from typing import NamedTuple

from pneumoscope.core import errors
from pneumoscope.core.errors import PneumoscopeError, UnreadableImageError
from pneumoscope.core.i18n import N_, translations
from pneumoscope.core.messages import full_stop, join_sentences
from pneumoscope.core.unreadable import reason_hint, reason_message

__all__ = ["ErrorDetail", "error_detail", "error_text", "error_texts"]

# Title and advice for a person at the browser; other errors have those of the nearest base class.
_ERRORS: dict[type[PneumoscopeError], tuple[str, str]] = {
    errors.PneumoscopeError: (
        N_("Internal error"),
        N_("Contact the administrator. The server log has the time and the cause."),
    ),
    errors.InputError: (N_("Invalid request"), N_("Go back to the worklist and try again.")),
    errors.UnknownNameError: (N_("Not found"), N_("The image was deleted, or the address is wrong.")),
    errors.AuthenticationError: (N_("Not signed in"), N_("Sign in again.")),
    errors.ForbiddenError: (
        N_("Not permitted"),
        N_(
            "Your role does not allow this, or the request did not come from a page of this service. Ask an administrator."
        ),
    ),
    errors.TooManyRequestsError: (N_("Too many failed attempts"), N_("Wait a minute, then try again.")),
    errors.TooLargeError: (N_("Too large"), N_("Send smaller files, or fewer at a time.")),
    errors.UnreadableImageError: (N_("Unreadable image"), N_("Export the image again, or choose another file.")),
    errors.InvalidIdentityError: (
        N_("Invalid patient or study data"),
        N_("Correct the marked fields. Nothing was saved."),
    ),
    errors.GoneError: (N_("Image removed"), N_("The retention period has ended. The prediction is kept.")),
    errors.ConflictError: (N_("Changed in the meantime"), N_("Open the image again. Nothing was saved.")),
    errors.ImageOfTwoPatientsError: (
        N_("Image of two patients"),
        N_("Open the image, and choose its patient. Nothing was deleted."),
    ),
    errors.BundleError: (N_("Model unavailable"), N_("Contact the administrator.")),
    errors.StorageError: (N_("Storage unavailable"), N_("Nothing was saved. Contact the administrator.")),
    errors.BusyError: (N_("Service busy"), N_("Try again in a few seconds.")),
}


def error_text(error: PneumoscopeError, language: str = "en") -> tuple[str, str]:
    """Return the title of an error and what a person at the browser can do about it."""
    gettext = translations(language).gettext
    title, advice = next(_ERRORS[kind] for kind in type(error).__mro__ if kind in _ERRORS)
    return gettext(title), gettext(advice)


class ErrorDetail(NamedTuple):
    """The problem and the next step as sentences, and their language: most details are in English only."""

    text: str
    language: str


def error_detail(error: PneumoscopeError, language: str = "en") -> ErrorDetail:
    """Return the message and the hint of an error in a language, or in English if they are not translated."""
    if language != "en":
        if isinstance(error, UnreadableImageError) and error.reason:
            sentences = reason_message(error.reason, language), reason_hint(error.reason, language)
            return ErrorDetail(join_sentences(sentences, language) + full_stop(language), language)
        gettext = translations(language).gettext
        if gettext(error.message) != error.message:
            sentences = gettext(error.message), gettext(error.hint) if error.hint else ""
            return ErrorDetail(join_sentences(sentences, language) + full_stop(language), language)
    return ErrorDetail(str(error), "en")


def error_texts(language: str = "en") -> dict[str, tuple[str, str]]:
    """Return title and advice of every error by its code, as `error_text`, the advice without its last full stop."""
    gettext = translations(language).gettext
    kinds = (getattr(errors, name) for name in errors.__all__)
    texts = {kind.code: next(_ERRORS[base] for base in kind.__mro__ if base in _ERRORS) for kind in kinds}
    return {
        code: (gettext(title), gettext(advice).rstrip(full_stop(language))) for code, (title, advice) in texts.items()
    }
