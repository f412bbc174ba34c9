"""Training everything after a cut, on cached activations; needs torch."""
