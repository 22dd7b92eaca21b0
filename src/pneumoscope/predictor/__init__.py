"""Bundle and films to predictions, on ONNX Runtime: the one way to a prediction after training."""

from pneumoscope.predictor.predictor import Predictor

__all__ = ["Predictor"]
