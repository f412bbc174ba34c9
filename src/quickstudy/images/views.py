"""Views: deterministic augmentations of an image, so that distorted images can be cached like plain ones.

View 0 is the plain image. View k > 0 is drawn from a generator seeded with the image's content and k, so it is the same
on every machine and in every run, whatever the order of files or the number of workers. The distortions are the four of
TensorFlow's `retrain.py`: flip, crop, scale and brightness.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np

from quickstudy.images.decoding import InputSpec, Pixels, frame_of, to_input
from quickstudy.images.distortions import Distortions


def view_key(digest: bytes, view: int, distortions: Distortions) -> bytes:
    """Return the 32-byte store key of an image's view: the content's SHA-256 for view 0, else a hash of all."""
    if view == 0:
        return digest
    return hashlib.sha256(digest + _describe(view, distortions)).digest()


def render_view(pixels: Pixels, spec: InputSpec, digest: bytes, view: int, distortions: Distortions) -> Pixels:
    """Render the network's input (`spec.shape`): view number `view` of decoded pixels with content hash `digest`."""
    if view == 0:
        return to_input(pixels, spec)
    seed = int.from_bytes(view_key(digest, view, distortions)[:16], "little")
    # Drawn as raw 64-bit numbers, whose stream NumPy guarantees across versions, unlike its distributions.
    draws = np.random.PCG64(seed).random_raw(6) / 2**64
    left, top, width, height = frame_of(pixels.shape, spec)
    zoom = (1 + distortions.crop * draws[0]) * (1 + distortions.scale * draws[1])
    across, down = (max(1, round(side / zoom)) for side in (width, height))
    left, top = left + int(draws[2] * (width - across + 1)), top + int(draws[3] * (height - down + 1))
    view_pixels = to_input(pixels, spec, (left, top, across, down))
    if distortions.brightness:
        factor = 1 + distortions.brightness * (2 * draws[5] - 1)
        view_pixels = np.clip(np.rint(view_pixels * factor), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(view_pixels[:, ::-1]) if distortions.flip and draws[4] < 0.5 else view_pixels


def _describe(view: int, distortions: Distortions) -> bytes:
    return json.dumps({"view": view, **asdict(distortions)}, sort_keys=True).encode()
