"""The shipped unit: a folder with one ONNX file and its card. Nothing here needs torch or ONNX Runtime."""
