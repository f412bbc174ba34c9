"""The networks that recipes train, and the layers that torch does not have."""
