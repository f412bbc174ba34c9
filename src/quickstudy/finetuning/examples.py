"""What fine-tuning learns from: cached activations of images and their views, with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Gather = Callable[[Sequence[bytes], int], NDArray[np.floating]]
"""Activations (n × shape of the cut) of images, by content hash, in one view; 0 is the plain image."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Images by content hash, their classes, and how to get at their activations."""

    digests: tuple[bytes, ...]
    labels: NDArray[np.intp]
    """Class numbers, one an image."""
    gather: Gather
    views: int = 0
    """Distorted views an image, besides the plain one."""

    def __len__(self) -> int:
        return len(self.digests)

    def plain(self, *, batch: int = 64) -> Iterator[Tensor]:
        """The activations of all plain images, in order, in float32."""
        for start in range(0, len(self), batch):
            yield _tensor(self.gather(self.digests[start : start + batch], 0))

    def batch(self, step: int, *, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """The activations (size × shape, float32) and labels (size) of a step, a function of seed and step alone.

        Each epoch goes through all images once, in an order of its own, and takes one view of each.
        """
        per_epoch = self.steps_per_epoch(size)
        epoch, place = divmod(step, per_epoch)
        draws = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        order = draws.permutation(len(self))
        views = draws.integers(0, self.views + 1, len(self))
        rows = order[place * size : (place + 1) * size]
        activations = None
        for view in np.unique(views[rows]):
            places = np.flatnonzero(views[rows] == view)
            found = self.gather([self.digests[row] for row in rows[places]], int(view))
            if activations is None:
                activations = np.empty((len(rows), *found.shape[1:]), np.float32)
            activations[places] = found
        assert activations is not None  # noqa: S101 (an epoch has no empty steps)
        return torch.from_numpy(activations), torch.from_numpy(self.labels[rows].astype(np.int64))

    def steps_per_epoch(self, size: int) -> int:
        """Batches of this size in an epoch, the last of which may be smaller."""
        return -(-len(self) // size)


def _tensor(values: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
