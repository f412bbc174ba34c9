"""Names of a model file's metadata properties; each value is JSON."""

PREFIX = "quickstudy."
FORMAT = 3
"""Since 2, files end with a checksum; since 3, they carry the roles of the images that they were made from."""
