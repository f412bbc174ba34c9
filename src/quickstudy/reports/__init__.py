"""Bottlenecks tell of the data they were computed from: what is wrong with it, and how far to trust a number."""
