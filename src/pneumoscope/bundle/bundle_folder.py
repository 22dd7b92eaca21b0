"""Read, check, copy and write bundle folders: `network.onnx`, `card.json` and, optionally, `evidence/`.

Bundles of format 2 have a network for NORMAL and PNEUMONIA; bundles of format 3 have a multiclass network. Multiclass bundles
are trained by `train`, `sweep` and `lr-find`, and accepted by `predict`, `evaluate`, `compare`, `report`, `export` and `models
--card`. All other commands call `read_bundle`, which rejects them.

To change the format after the first release, raise `card.FORMAT`, keep a bundle of the previous format for the tests, and
convert it in `read_bundle`.
"""

from __future__ import annotations

import errno
import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pneumoscope.bundle.card import INPUT_CLASSES, Card
from pneumoscope.bundle.evidence import evidence_file, evidence_paths
from pneumoscope.bundle.multiclass_card import MULTICLASS_FORMAT, MulticlassCard
from pneumoscope.bundle.network_checks import MAX_BYTES, check_onnx
from pneumoscope.core.errors import BundleError, MulticlassBundleError, UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.population import Population
from pneumoscope.imaging.preprocess import PREPROCESSING_VERSION, Preprocessing

__all__ = [
    "CARD_FILE",
    "DEFAULT_BUNDLE",
    "NETWORK_FILE",
    "export_bundle",
    "is_included",
    "is_multiclass",
    "read_any_bundle",
    "read_any_card",
    "read_bundle",
    "read_card",
    "read_multiclass_bundle",
    "write_bundle",
]

CARD_FILE = "card.json"
NETWORK_FILE = "network.onnx"
DEFAULT_BUNDLE = Path(__file__).parent / "default"
_MAX_CARD_BYTES = 10_000_000


def export_bundle(
    source: Path, out: Path, population: Population | None = None, *, evaluation: Path | None = None
) -> Card | MulticlassCard:
    """Check a bundle of any format, copy it with its evidence to a new folder and return its card in the current format.

    The card is written last, so an interrupted copy is not a valid bundle.

    Args:
        source: Folder of the bundle.
        out: Target folder; must be empty if it exists.
        population: Population for the new card; None to keep the original one.
        evaluation: See `evidence.read_evidence`; copied to `evidence/evaluation.json`.

    Raises:
        BundleError: See `read_bundle`; or the evidence belongs to another network.
        UsageError: `out` exists and is not an empty folder.
        StorageError: `out` cannot be written.
    """
    card, network = read_any_bundle(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{str(out)!r} exists and is not an empty folder", hint="Choose another folder with --out")
    found = evidence_paths(source, card, evaluation)
    if population is not None:
        card = msgspec.structs.replace(card, population=population)
    for name, path in found.items():
        write_atomically(evidence_file(out, name), path.read_bytes())
    write_bundle(out, card, network)
    return card


def write_bundle(folder: Path, card: Card | MulticlassCard, network: bytes) -> None:
    """Write the files of a bundle, the card last: a folder without a card is not a valid bundle.

    Args:
        folder: Bundle folder; existing files are replaced.
        card: Card of the bundle.
        network: Content of the ONNX file.

    Raises:
        StorageError: A file cannot be written.
    """
    write_atomically(folder / NETWORK_FILE, network)
    write_atomically(folder / CARD_FILE, card.to_json())


def read_bundle(folder: Path) -> tuple[Card, bytes]:
    """Read and check a bundle for NORMAL and PNEUMONIA; return its card and the content of its network file.

    Raises:
        BundleError: A file is missing; the card is malformed or has a newer format; the preprocessing version differs; or the
            network does not match the size and hash on the card or is unsafe (see `bundle.network_checks`).
        MulticlassBundleError: The bundle has several classes.
    """
    card, network = read_any_bundle(folder)
    return _binary(card), network


def read_multiclass_bundle(folder: Path) -> tuple[MulticlassCard, bytes]:
    """Read and check a multiclass bundle; return its card and the content of its network file.

    Raises:
        BundleError: See `read_bundle`; or the bundle is for NORMAL and PNEUMONIA.
    """
    card, network = read_any_bundle(folder)
    if isinstance(card, Card):
        raise BundleError(
            f"bundle {card.name!r} is one for NORMAL and PNEUMONIA, not for several classes",
            hint="Use it beside other models for NORMAL and PNEUMONIA only; in Python, with load_model and evaluate",
        )
    return card, network


def is_multiclass(folder: Path) -> bool:
    """Return whether a folder is a multiclass bundle; False if it is not a readable bundle."""
    try:
        data = msgspec.json.decode(_read_file(folder / CARD_FILE, _MAX_CARD_BYTES))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("format") == MULTICLASS_FORMAT


def is_included(card: Card | MulticlassCard) -> bool:
    """Return whether the card belongs to the network in the package, in any folder."""
    return card.onnx_sha256 == read_any_card(DEFAULT_BUNDLE / CARD_FILE).onnx_sha256


def _binary(card: Card | MulticlassCard) -> Card:
    if isinstance(card, Card):
        return card
    raise MulticlassBundleError(card.name, card.classes)


def read_any_bundle(folder: Path) -> tuple[Card | MulticlassCard, bytes]:
    """Read and check a bundle of any format; return its card and the content of its network file.

    Raises:
        BundleError: See `read_bundle`.
    """
    if not folder.exists():
        raise BundleError(f"{str(folder)!r} does not exist", hint="Name the folder of a bundle or of a run")
    try:
        text = _read_file(folder / CARD_FILE, _MAX_CARD_BYTES).decode()
        network = _read_file(folder / NETWORK_FILE, MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{str(folder)!r} is not a bundle: {_describe(error)}",
            hint=f"A bundle is a folder with {CARD_FILE} and {NETWORK_FILE}; a finished run has one in RUN/bundle",
        ) from error
    card = _parse_card(text, folder)
    if card.preprocessing.version != PREPROCESSING_VERSION:
        raise BundleError(
            f"{str(folder)!r} needs version {card.preprocessing.version} of the preprocessing; this is version"
            f" {PREPROCESSING_VERSION}",
            hint="Train and export the model with this version of pneumoscope",
        )
    if len(network) != card.onnx_bytes or hashlib.sha256(network).hexdigest() != card.onnx_sha256:
        raise BundleError(
            f"{str(folder / NETWORK_FILE)!r} does not match its card: it has {len(network)} bytes, expected"
            f" {card.onnx_bytes}, or another hash",
            hint="It was altered or truncated: copy the bundle again",
        )
    check_onnx(network, card.name)
    return card, network


def _read_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of limited size.

    Raises:
        OSError: The file is missing, too large or not a regular file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, at most {max_bytes:,} are allowed", str(path))
    return path.read_bytes()


def read_card(file: Path) -> Card:
    """Read and check a card without its network, such as the card of an archive.

    Raises:
        BundleError: The file cannot be read or is malformed.
        MulticlassBundleError: The card belongs to a multiclass bundle.
    """
    return _binary(read_any_card(file))


def read_any_card(file: Path) -> Card | MulticlassCard:
    """Read and check a card of any format.

    Raises:
        BundleError: The file cannot be read or is malformed.
    """
    try:
        return _parse_card(_read_file(file, _MAX_CARD_BYTES).decode(), file.parent)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read the card {str(file)!r}: {_describe(error)}") from error


def _parse_card(text: str, folder: Path) -> Card | MulticlassCard:
    try:
        data = msgspec.json.decode(text)
        version = data.get("format") if isinstance(data, dict) else None
        if isinstance(version, int) and version > MULTICLASS_FORMAT:
            raise BundleError(
                f"{str(folder)!r} has format {version}; this version reads formats up to {MULTICLASS_FORMAT}",
                hint="Upgrade: pip install -U pneumoscope",
            )
        multiclass = version == MULTICLASS_FORMAT
        card = msgspec.convert(data, MulticlassCard) if multiclass else msgspec.convert(data, Card)
    except (ValueError, RecursionError) as error:  # not JSON, invalid fields, or too deeply nested
        raise _malformed(folder, str(error)) from error
    # These strings are displayed in terminals and web pages, where control characters could forge output.
    if not all(string.isprintable() for string in _strings(data)):
        raise _malformed(folder, "it contains characters that are not printable")
    if card.rejection_limits and card.rejection_limits.input_classes != INPUT_CLASSES:
        expected = ", ".join(INPUT_CLASSES)
        raise _malformed(folder, f"expected {expected}, in this order - at `$.rejection_limits.input_classes`")
    # The defaults of Preprocessing are for new models; a card must contain every field.
    for name in Preprocessing.__struct_fields__:
        if name not in data["preprocessing"]:
            raise _malformed(folder, f"Object missing required field `{name}` - at `$.preprocessing`")
    return card


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from _strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from _strings(value)


def _describe(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename).name}: {error.strerror}" if error.filename and error.strerror else str(error)
    return f"{CARD_FILE} is not UTF-8 text"


def _malformed(folder: Path, reason: str) -> BundleError:
    return BundleError(f"{str(folder / CARD_FILE)!r} is malformed: {reason}", hint="Export the bundle again")
