"""Inference on ONNX Runtime, from a bundle and images to predictions: all predictions after training are made here."""

from pneumoscope.inference.session import BundleSession

__all__ = ["BundleSession"]
