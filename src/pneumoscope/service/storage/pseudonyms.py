"""Replace the identity of patients by pseudonyms, which only the holder of the key can compute again."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pneumoscope.core.errors import UsageError
from pneumoscope.core.identity import Identity, search_words

__all__ = ["Pseudonymizer", "read_key"]

_MIN_KEY_BYTES = 32
_LENGTH = 20  # hexadecimal digits of a pseudonym: 80 bits
_TEXTS = ("patient_id", "issuer_of_patient_id", "patient_name", "accession_number", "station_name")
_UIDS = ("study_instance_uid", "series_instance_uid", "sop_instance_uid")
_REMOVED = ("patient_birth_date", "study_date", "study_description")
_SOURCE = "Source"  # chunk of a PNG


def read_key(file: Path) -> bytes:
    """Return the key in a file, without surrounding white space.

    Raises:
        UsageError: The file cannot be read, is readable by others, or is too short.
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
    """Computes pseudonyms with a key.

    A pseudonym is the HMAC-SHA-256 (RFC 2104) of a value without case, accents and separators. The same value has the same
    pseudonym in every field.

    Args:
        key: The secret key.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def pseudonym(self, text: str) -> str:
        """Return the pseudonym of a text, 20 hexadecimal digits; "" for an empty one."""
        return self._digest(" ".join(search_words(text)).encode()).hex()[:_LENGTH] if text else ""

    def identity(self, identity: Identity) -> Identity:
        """Return an identity with pseudonyms: names, numbers and UIDs are replaced; dates and descriptions are removed."""
        return dataclasses.replace(
            identity,
            **{name: self.pseudonym(getattr(identity, name)) for name in _TEXTS},
            **{name: self._uid(getattr(identity, name)) for name in _UIDS},
            **dict.fromkeys(_REMOVED, ""),
        )

    def image(self, pixels: npt.NDArray[np.uint8], source: bytes) -> bytes:
        """Return a PNG of the gray levels, to be stored instead of a file whose header may name the patient.

        Args:
            pixels: Gray levels, shape (height, width).
            source: The file. The PNG contains its keyed hash, so that another header of the image makes another file.
        """
        information, file = PngInfo(), io.BytesIO()
        information.add_text(_SOURCE, self._digest(source).hex())
        Image.fromarray(pixels).save(file, "PNG", compress_level=1, pnginfo=information)
        return file.getvalue()

    def _uid(self, uid: str) -> str:
        """Return a UID derived from a UUID (PS3.5 section B.2)."""
        return f"2.25.{int.from_bytes(self._digest(uid.encode())[:16])}" if uid else ""

    def _digest(self, value: bytes) -> bytes:
        return hmac.new(self._key, value, hashlib.sha256).digest()
