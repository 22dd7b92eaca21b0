"""A bundle from where it was made to where it is used."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.bundle.card import CARD_FILE, NETWORK_FILE, Card, read_bundle
from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import write_atomically

__all__ = ["export_bundle"]


def export_bundle(source: Path, out: Path) -> Card:
    """Check a bundle and write it elsewhere, the card last: a copy that was cut short has none.

    Args:
        source: the bundle's folder.
        out: the new folder.
    Raises:
        BundleError: see `read_bundle`.
        UsageError: `out` exists and is not empty.
        StorageError: it cannot be written.
    """
    card, network = read_bundle(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{str(out)!r} exists and is not an empty folder", hint="Choose another folder with --out")
    write_atomically(out / NETWORK_FILE, network)
    write_atomically(out / CARD_FILE, card.to_json())
    return card
