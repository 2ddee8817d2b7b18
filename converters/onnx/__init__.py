"""ONNX folders: read, whoever exported them, and written."""
