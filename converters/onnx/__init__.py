"""ONNX graphs, constructed from a model's description."""
