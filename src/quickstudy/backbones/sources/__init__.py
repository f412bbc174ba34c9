"""Makes backbones of networks from elsewhere: ONNX files, the hub, transformers, Keras, timm, packed files."""
