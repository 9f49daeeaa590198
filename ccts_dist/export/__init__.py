"""Students for other programs: a folder for transformers, ONNX."""
