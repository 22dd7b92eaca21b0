"""Replace patient identities by pseudonyms, which only the holder of the key can recompute."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import io
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.uid import AllTransferSyntaxes

from pneumoscope.core.errors import StorageError, UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.identity import Identity, search_words
from pneumoscope.core.prediction import Failure, Parameters, Prediction
from pneumoscope.core.unreadable import reason_hint, reason_message

__all__ = ["Pseudonymizer", "read_key", "require_no_pseudonyms"]

_MIN_KEY_BYTES = 32
_LENGTH = 20  # hexadecimal digits of a pseudonym: 80 bits
_NUMBERS = ("patient_id", "issuer_of_patient_id", "accession_number", "station_name")
_UIDS = ("study_instance_uid", "series_instance_uid", "sop_instance_uid")
_REMOVED = ("patient_birth_date", "study_date", "study_description")
_PSEUDONYM = re.compile(rf"^[0-9a-f]{{{_LENGTH}}}$")
_SEXES = ("F", "M", "O")
# Parameters of rejections and reasons that do not come from the header
_OWN_TEXTS = ("element", "type", "mode", "function", "signal", "dtype", "shape", "rule", "code")
_STANDARD_TEXTS = frozenset(each.name for each in AllTransferSyntaxes)
_SOURCE = "Source"  # text chunk of a PNG
_FINGERPRINT_FILE = "pseudonym-key"  # a keyed hash, from which the key cannot be computed


def read_key(file: Path) -> bytes:
    """Return the key in a file, without surrounding white space.

    Raises:
        UsageError: The file cannot be read, is readable by other users, or is too short.
    """
    try:
        mode, key = file.stat().st_mode, file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"cannot read the key file {str(file)!r}: {error.strerror or error}") from error
    if mode & 0o077:
        raise UsageError(f"the key file {str(file)!r} is readable by other users", hint=f"chmod 600 {file}")
    if len(key) < _MIN_KEY_BYTES:
        raise UsageError(
            f"the key in {str(file)!r} has {len(key)} bytes; the minimum is {_MIN_KEY_BYTES}",
            hint=f"Create one: openssl rand -hex 32 > {file}; and keep a copy: without it, pseudonyms cannot be computed again",
        )
    return key


class Pseudonymizer:
    """Pseudonyms computed with a key: the truncated HMAC-SHA-256 (RFC 2104) of a value.

    Identifiers are replaced as a whole; names are replaced word by word, ignoring case, accents and separators, so that
    parts of a name can be found and compared.

    Args:
        key: The secret key.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def number(self, text: str) -> str:
        """Return the pseudonym of an identifier, 20 hexadecimal digits; empty for an empty identifier."""
        return self._digest(text.encode()).hex()[:_LENGTH] if text else ""

    def name(self, text: str) -> str:
        """Return the pseudonyms of the words of a name, separated by ^."""
        return "^".join(self._word(word) for word in search_words(text))

    def search(self, text: str) -> tuple[tuple[str, ...], ...]:
        """Return the forms of each search word: as an identifier, part of an identifier with spaces, name, or pseudonym."""
        whole = self.number(text.strip())
        return tuple(
            (self.number(word), whole, *([self.name(word)] if search_words(word) else []), *_PSEUDONYM.findall(word))
            for word in text.split()
        )

    def prediction(self, prediction: Prediction) -> Prediction:
        """Return a prediction with pseudonyms for the identity and the file name, and without text from the header.

        Dates and descriptions are removed. In header text quoted by a rejection or failure, digits become 9 and letters
        x.
        """
        identity, rejection, failure = prediction.identity, prediction.rejection, prediction.failure
        if rejection:
            rejection = dataclasses.replace(rejection, parameters=_masked(rejection.parameters))
        return dataclasses.replace(
            prediction,
            path=self.number(prediction.path),
            identity=identity and self.identity(identity),
            rejection=rejection,
            failure=failure and _without_quotes(failure),
        )

    def identity(self, identity: Identity) -> Identity:
        """Return an identity with pseudonyms, without dates, descriptions and unknown values of the sex."""
        return dataclasses.replace(
            identity,
            **{name: self.number(getattr(identity, name)) for name in _NUMBERS},
            **{name: self._uid(getattr(identity, name)) for name in _UIDS},
            **dict.fromkeys(_REMOVED, ""),
            patient_name=self.name(identity.patient_name),
            patient_sex=identity.patient_sex if identity.patient_sex in _SEXES else "",
        )

    def require_key_of(self, folder: Path, *, is_empty: bool) -> None:
        """Record the key for an empty data directory; otherwise, check that it is the recorded one.

        Raises:
            UsageError: The data directory contains another key's pseudonyms, or identities.
            StorageError: The record cannot be read or written.
        """
        file, fingerprint = folder / _FINGERPRINT_FILE, self._digest(_FINGERPRINT_FILE.encode()).hex()
        try:
            if not file.exists():
                if not is_empty:
                    raise UsageError(
                        f"the data directory {str(folder)!r} was created without --pseudonymize and has identities",
                        hint="Choose another --data-dir, or delete its predictions first",
                    )
                write_atomically(file, fingerprint.encode("ascii"))
            known = file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"cannot use {str(file)!r}: {error}") from error
        if not hmac.compare_digest(known.encode(), fingerprint.encode()):
            raise UsageError(
                f"the data directory {str(folder)!r} has the pseudonyms of another key",
                hint="Pass the key file with which it was created, or another --data-dir",
            )

    def image(self, pixels: npt.NDArray[np.uint8], source: bytes) -> bytes:
        """Return a PNG of the gray levels, stored in place of a file whose header may identify the patient.

        Args:
            pixels: Gray levels, shape (height, width).
            source: The file. The PNG contains its keyed hash, so that another header of the same image gives a
                different file.
        """
        information, file = PngInfo(), io.BytesIO()
        information.add_text(_SOURCE, self._digest(source).hex())
        Image.fromarray(pixels).save(file, "PNG", compress_level=1, pnginfo=information)
        return file.getvalue()

    def _word(self, word: str) -> str:
        return self._digest(f"word {word}".encode()).hex()[:_LENGTH]

    def _uid(self, uid: str) -> str:
        """Return a UID derived from a UUID (PS3.5 B.2)."""
        return f"2.25.{int.from_bytes(self._digest(uid.encode())[:16])}" if uid else ""

    def _digest(self, value: bytes) -> bytes:
        return hmac.new(self._key, value, hashlib.sha256).digest()


def require_no_pseudonyms(folder: Path) -> None:
    """Check that a data directory contains no pseudonyms, so that identities are not stored beside them.

    Raises:
        UsageError: It contains pseudonyms.
    """
    if (folder / _FINGERPRINT_FILE).exists():
        raise UsageError(
            f"the data directory {str(folder)!r} has pseudonyms", hint="Pass --pseudonymize, or another --data-dir"
        )


def _without_quotes(failure: Failure) -> Failure:
    """Return a failure whose message quotes neither the header nor the file name."""
    if failure.reason is None:
        return Failure(failure.code, "the file cannot be read")
    parameters = {name: value for name, value in _masked(failure.reason.parameters).items() if name != "error"}
    reason = dataclasses.replace(failure.reason, parameters=parameters)
    return Failure(failure.code, f"the file cannot be read: {reason_message(reason)}", reason_hint(reason), reason)


def _masked(parameters: Parameters) -> Parameters:
    """Return parameters without header text: digits become 9, and letters x."""
    return {
        name: _mask(value)
        if isinstance(value, str) and name not in _OWN_TEXTS and value not in _STANDARD_TEXTS
        else value
        for name, value in parameters.items()
    }


def _mask(text: str) -> str:
    return "".join("9" if mark.isdigit() else "x" if mark.isalpha() else mark for mark in text)
