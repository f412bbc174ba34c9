"""Names of a model file's metadata properties; each value is JSON."""

PREFIX = "quickstudy."
FORMAT = 1
