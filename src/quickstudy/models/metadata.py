"""Names of a model file's metadata properties; each value is JSON."""

PREFIX = "quickstudy."
FORMAT = 2
"""Since 2, files end with a checksum."""
