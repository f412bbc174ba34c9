"""Image sets, decoding, identity, splits and views."""
