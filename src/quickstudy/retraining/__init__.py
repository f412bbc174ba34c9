"""The main job: from a folder of photos to a verified classifier."""
