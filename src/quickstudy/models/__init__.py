"""The one-file ONNX model: assemble, load, predict, verify."""
