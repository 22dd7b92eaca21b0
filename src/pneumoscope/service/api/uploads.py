"""Read the images of a request: a multipart form, or one image as the body."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pneumoscope.core.errors import StorageError, TooLargeError, UsageError

__all__ = ["MAX_NAME_LENGTH", "UPLOAD_BODY", "read_images", "wait_for_disconnect"]

MAX_NAME_LENGTH = 255  # characters of an image's name
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
# Request body of `POST /v1/predictions` in OpenAPI; FastAPI does not see it, because `read_images` parses it.
UPLOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        _MULTIPART: {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": {"type": "array", "minItems": 1, "items": _BINARY}},
            }
        },
        **{media_type: {"schema": _BINARY} for media_type in _IMAGE_TYPES},
    },
}


async def read_images(request: Request, name: str, max_images: int) -> list[tuple[bytes, str]]:
    """Return the bytes and the name of each image of a request.

    Args:
        request: A form with parts named "images", or an image as the body.
        name: Name of an image that is the body.
        max_images: Limit on the images in a form.
    Raises:
        UsageError: The request contains no image, or the form is malformed.
        TooLargeError: There are too many images.
        StorageError: The form does not fit into the temporary folder.
        HTTPException: The content type is not supported (415), or the body exceeds its limit (413).
    """
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type == _MULTIPART:
        images = await _read_form(request, max_images)
        return [(image, _checked(name) or f"image {number}") for number, (image, name) in enumerate(images, 1)]
    if media_type in _IMAGE_TYPES:
        body = await request.body()
        if not body:
            raise UsageError("the body is empty", hint="Send an image")
        return [(body, _checked(name) or "image 1")]
    supported = ", ".join((_MULTIPART, *_IMAGE_TYPES))
    raise HTTPException(415, f"the Content-Type {media_type[:64]!r} is not supported; use one of: {supported}")


async def _read_form(request: Request, max_images: int) -> list[tuple[bytes, str]]:
    try:
        async with request.form(max_files=max_images, max_fields=8) as form:
            parts = [part for part in form.getlist("images") if isinstance(part, UploadFile)]
            images = [(await part.read(), (part.filename or "")[:MAX_NAME_LENGTH]) for part in parts]
    except HTTPException as error:
        if error.status_code != 400:  # the body exceeds its limit
            raise
        if "Too many files" in error.detail:
            raise TooLargeError(
                f"too many images; the limit per request is {max_images}", hint="Send them in several requests"
            ) from error
        raise _malformed_form() from error
    except UnicodeError as error:  # the form declares an unknown character encoding
        raise _malformed_form() from error
    except OSError as error:  # parts over 1 MB are written to temporary files
        raise StorageError(
            f"the form cannot be written to the temporary folder: {error.strerror or error}",
            hint="Free some space there, or set TMPDIR to another folder and restart the service",
        ) from error
    if not images:
        raise UsageError("the form contains no image", hint='Send each image as a part named "images" with a file name')
    return images


def _malformed_form() -> UsageError:
    return UsageError("the form cannot be parsed", hint='Send each image as a part named "images"')


def _checked(name: str) -> str:
    """Return an image's name if both databases can store it.

    Raises:
        UsageError: It has a null character or half of a surrogate pair.
    """
    if "\0" in name:
        raise UsageError("an image's name contains the character U+0000", hint="Send it under another name")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise UsageError("an image's name contains half of a surrogate pair", hint="Send it under another name")
    return name


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client disconnects; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
