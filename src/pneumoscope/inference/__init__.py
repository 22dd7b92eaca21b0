"""Bundle and images to predictions, on ONNX Runtime: the one way to a prediction after training."""

from pneumoscope.inference.session import BundleSession

__all__ = ["BundleSession"]
