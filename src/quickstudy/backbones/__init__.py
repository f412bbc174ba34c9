"""Pretrained networks: where they come from, cutting and merging their graphs, running them."""
