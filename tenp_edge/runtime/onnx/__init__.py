"""ONNX directories in onnxruntime."""
