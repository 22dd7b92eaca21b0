"""A model with its settings as bytes, which lets other machines load it without a copy of its files."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.bundle.bundle_folder import CARD_FILE, NETWORK_FILE
from pneumoscope.core.errors import SiteProfileError
from pneumoscope.core.files import read_error_reason
from pneumoscope.inference.model import load_model
from pneumoscope.runs.run_folder import find_bundle

if TYPE_CHECKING:
    from pneumoscope.inference.model import Model

__all__ = ["ModelPackage", "pack_model"]

_SITE_FILE = "site.json"


@dataclasses.dataclass(frozen=True, slots=True)
class ModelPackage:
    """Files of a model and options for loading it.

    Attributes:
        files: Contents of the bundle, and of the site profile if there is one, by file name.
        options: Arguments of `inference.model.load_model` other than files.
    """

    files: Mapping[str, bytes]
    options: Mapping[str, Any]

    @property
    def uses_gpu(self) -> bool:
        """Whether the network runs on a GPU."""
        return bool(self.options.get("provider", "cpu") != "cpu")

    def load(self) -> Model:
        """Load the model with worker processes for decoding; the bundle is checked like any other.

        Raises:
            PneumoscopeError: See `inference.model.load_model`.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file, content in self.files.items():
                (folder / file).write_bytes(content)
            site = folder / _SITE_FILE if _SITE_FILE in self.files else None
            return load_model(folder, site=site, threads=1, isolated=True, **self.options)


def pack_model(options: Mapping[str, Any]) -> ModelPackage:
    """Return the package of a model that has already been loaded once.

    Args:
        options: Arguments of `inference.model.load_model`.

    Raises:
        SiteProfileError: The site profile can no longer be read.
    """
    others = dict(options)
    bundle, site = others.pop("bundle", None), others.pop("site", None)
    folder = find_bundle(None if bundle is None else Path(bundle))
    files = {name: (folder / name).read_bytes() for name in (CARD_FILE, NETWORK_FILE)}
    if site is not None:
        try:
            files[_SITE_FILE] = Path(site).read_bytes()
        except OSError as error:
            raise SiteProfileError(f"cannot read {str(site)!r}: {read_error_reason(error)}") from error
    return ModelPackage(files, others)
