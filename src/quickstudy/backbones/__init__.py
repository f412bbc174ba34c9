"""Pretrained networks: where they come from, cutting their graphs, running them, and running them in PyTorch."""
