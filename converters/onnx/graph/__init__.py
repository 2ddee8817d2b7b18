"""ONNX graphs, constructed from the numbers of a model."""
