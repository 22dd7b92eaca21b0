"""Model bundles: one ONNX file and its card. Needs neither torch nor ONNX Runtime."""
