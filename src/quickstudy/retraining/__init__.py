"""The main job makes a verified classifier from a folder of photos: a linear head, or all layers after a cut."""
