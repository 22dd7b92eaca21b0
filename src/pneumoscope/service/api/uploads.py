"""Read the images of a request from a multipart form or from the body itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pneumoscope.core.errors import StorageError, TooLargeError, UsageError
from pneumoscope.core.identity import IDENTITY_FIELDS, MAX_IDENTITY_LENGTH, Identity, normalize_field

__all__ = ["MAX_NAME_LENGTH", "UPLOAD_BODY", "Upload", "read_identity", "read_upload", "wait_for_disconnect"]

MAX_NAME_LENGTH = 255  # characters of an image name
_MAX_SHOWN = 64  # characters of client input that an error message repeats
_MULTIPART = "multipart/form-data"
_IMAGE_TYPES = (
    "application/dicom",
    "application/octet-stream",
    "image/jpeg",
    "image/png",
    "image/tiff",
    "image/bmp",
    "image/webp",
)
_BINARY = {"type": "string", "format": "binary"}
_FIELD = {"type": "string", "maxLength": MAX_IDENTITY_LENGTH}
_MAX_FIELDS = 32
# Request body of `POST /v1/predictions` in OpenAPI. FastAPI cannot derive it, because `read_upload` parses the body.
UPLOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        _MULTIPART: {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {
                    "images": {"type": "array", "minItems": 1, "items": _BINARY},
                    **dict.fromkeys(IDENTITY_FIELDS, _FIELD),
                },
                "additionalProperties": False,
            }
        },
        **{media_type: {"schema": _BINARY} for media_type in _IMAGE_TYPES},
    },
}


class Upload(NamedTuple):
    """The images and the identity in a request.

    Attributes:
        images: Bytes and name of each image.
        identity: Identity of all images; None if the request contains none.
    """

    images: list[tuple[bytes, str]]
    identity: Identity | None = None


async def read_upload(request: Request, name: str, max_images: int) -> Upload:
    """Return the images of a request and their identity.

    Args:
        request: The body is an image, or a form with parts named "images" and fields named after those of `Identity`.
        name: Name of the image if the body is an image.
        max_images: Maximum number of images in a form.
    Raises:
        UsageError: The request contains no image, or the form is malformed or has an unknown or invalid field.
        TooLargeError: There are too many images.
        StorageError: The form does not fit into the temporary folder.
        HTTPException: The content type is not supported (415), or the body exceeds its limit (413).
    """
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type == _MULTIPART:
        images, identity = await _read_form(request, max_images)
        named = [(image, _checked(name) or f"image {number}") for number, (image, name) in enumerate(images, 1)]
        return Upload(named, identity)
    if media_type in _IMAGE_TYPES:
        body = await request.body()
        if not body:
            raise UsageError("the body is empty", hint="Send an image")
        return Upload([(body, _checked(name) or "image 1")])
    supported = ", ".join((_MULTIPART, *_IMAGE_TYPES))
    raise HTTPException(415, f"the Content-Type {media_type[:64]!r} is not supported; use one of: {supported}")


async def _read_form(request: Request, max_images: int) -> Upload:
    try:
        async with request.form(max_files=max_images, max_fields=_MAX_FIELDS) as form:
            parts = [part for part in form.getlist("images") if isinstance(part, UploadFile)]
            images = [(await part.read(), (part.filename or "")[:MAX_NAME_LENGTH]) for part in parts]
            fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    except HTTPException as error:
        if error.status_code != 400:  # the body exceeds its limit
            raise
        if "Too many files" in error.detail:
            raise TooLargeError(
                f"too many images; the limit per request is {max_images}", hint="Send them in several requests"
            ) from error
        raise _malformed_form() from error
    except UnicodeError as error:  # unknown character encoding in the form
        raise _malformed_form() from error
    except OSError as error:  # parts over 1 MB are written to temporary files
        raise StorageError(
            f"the form cannot be written to the temporary folder: {error.strerror or error}",
            hint="Free some space there, or set TMPDIR to another folder and restart the service",
        ) from error
    if not images:
        raise UsageError("the form contains no image", hint='Send each image as a part named "images" with a file name')
    return Upload(images, read_identity(fields))


def read_identity(fields: Iterable[tuple[str, str]]) -> Identity | None:
    """Return the identity in the fields of a form; None if all are empty.

    Raises:
        UsageError: A field is unknown, repeated, too long, or contains an unpaired surrogate. The message contains no
            value.
    """
    values: dict[str, str] = {}
    for name, value in fields:
        if name not in IDENTITY_FIELDS:
            raise UsageError(
                f"unknown field {name[:_MAX_SHOWN]!r} of the form", hint=f"Use one of: {', '.join(IDENTITY_FIELDS)}"
            )
        if name in values:
            raise UsageError(f"the field {name!r} is repeated", hint="Send it once")
        if len(value) > MAX_IDENTITY_LENGTH or any("\ud800" <= character <= "\udfff" for character in value):
            raise UsageError(f"the field {name!r} is not a text of at most {MAX_IDENTITY_LENGTH} characters")
        values[name] = normalize_field(name, value)
    return Identity(**values) if any(values.values()) else None


def _malformed_form() -> UsageError:
    return UsageError("the form cannot be parsed", hint='Send each image as a part named "images"')


def _checked(name: str) -> str:
    """Return an image name after checking that SQLite and PostgreSQL can store it.

    Raises:
        UsageError: The name contains a null character or an unpaired surrogate.
    """
    if "\0" in name:
        raise UsageError("an image's name contains the character U+0000", hint="Send it under another name")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise UsageError("an image's name contains half of a surrogate pair", hint="Send it under another name")
    return name


async def wait_for_disconnect(request: Request) -> None:
    """Wait until the client disconnects. The body must have been read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
