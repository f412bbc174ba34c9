"""Image sets, their census, decoding, identity and views; named data sets and pixel sets."""
