"""Identifies pneumonia on chest radiographs with neural networks, and defends every number it prints.

Importing this package imports nothing else: no torch, no onnxruntime, no side effects.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
