"""Identifies pneumonia on chest radiographs with neural networks, and defends every number it prints.

    model = pneumoscope.load_model()
    model.predict("image.jpg").probability

Importing this package imports nothing else: no torch, no onnxruntime, no side effects.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from pathlib import Path

    from pneumoscope.inference.model import Model

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def load_model(bundle: str | Path | None = None, *, operating_point: str = "", threads: int = 0) -> Model:
    """Load the model that comes with the package, a bundle, or that of a run; see `pneumoscope.inference.model.load_model`."""
    from pneumoscope.inference.model import load_model as load

    return load(bundle, operating_point=operating_point, threads=threads)
