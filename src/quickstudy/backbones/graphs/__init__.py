"""Graphs: read, cleaned, cut, compared, given levels, run in ONNX Runtime, interpreted in PyTorch."""
