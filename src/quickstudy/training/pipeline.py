"""The input pipeline: which images come in which step, distorted and ready before the step needs them.

What is in a batch depends on (seed, step) alone, never on threads, replicas or where a run was resumed; so nothing has
to be stored to go on with the same batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quickstudy.images.pixels import PixelSet
from quickstudy.training.distortions import Distortions, Moments, centred, distort, draw, with_margin

_ORDER, _DISTORTION, _FIRST_FLIP = 1, 2, 3
"""Purposes of random numbers, so that no two use the same stream."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step trains on."""

    step: int
    images: Tensor
    """n×C×S×S, float32."""
    labels: Tensor
    """n, int64."""


class Pipeline:
    """Batches of a training set, distorted by threads ahead of the steps (on a GPU: there, when they are needed)."""

    def __init__(
        self,
        data: PixelSet,
        distortions: Distortions,
        *,
        batch: int,
        seed: int,
        moments: Moments,
        rank: int = 0,
        world: int = 1,
        threads: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.distortions, self.batch, self.seed, self.moments = distortions, batch, seed, moments
        self.part = slice(rank * batch // world, (rank + 1) * batch // world)
        self.threads = threads
        self.pixels = torch.from_numpy(with_margin(data.pixels, distortions.pad)).to(device)
        self.labels = torch.from_numpy(data.labels).to(device)
        self.side = data.pixels.shape[1]
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._first = _generator(seed, _FIRST_FLIP, 0).random(len(data)) < 0.5

    def batches(self, steps: range) -> Iterator[Batch]:
        """The batches of these steps, in order."""
        if self.pixels.device.type != "cpu" or not self.threads:
            yield from map(self.make, steps)
            return
        # A thread of its own for each batch: torch's own threads belong to the network's layers. What one thread sets,
        # all that have not computed yet begin with; so this one settles its own count before, and the others' after.
        torch.get_num_threads()
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                for step in steps:
                    ahead.append(pool.submit(self.make, step))
                    if len(ahead) > 2 * self.threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                torch.set_num_threads(torch.get_num_threads())

    def make(self, step: int) -> Batch:
        """The batch of one step; this replica's part of it."""
        epochs, rows = self._places(step)
        draws = draw(
            self.distortions,
            _generator(self.seed, _DISTORTION, step),
            side=self.side,
            epochs=epochs,
            first=self._first[rows],
        )
        rows = rows[self.part]
        chosen = torch.from_numpy(rows).to(self.pixels.device)
        return Batch(
            step=step,
            images=distort(
                self.pixels,
                chosen,
                draws[self.part],
                self.distortions,
                self.moments,
                side=self.distortions.output_side(self.side),
            ),
            labels=self.labels[chosen],
        )

    def rows(self, step: int) -> NDArray[np.int64]:
        """Which images of the training set the batch of a step has, over all replicas."""
        return self._places(step)[1]

    def _places(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The pass over the training set, and the image, of each place in a batch; passes follow without a gap."""
        epochs, within = np.divmod(step * self.batch + np.arange(self.batch), len(self.labels))
        rows = np.empty(self.batch, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self._order(int(epoch))[within[chosen]]
        return epochs, rows

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order = self._orders.get(epoch)
        if order is None:
            order = _generator(self.seed, _ORDER, epoch).permutation(len(self.labels))
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 2} | {epoch: order}
        return order


def evaluation_batches(
    pixels: NDArray[np.uint8],
    distortions: Distortions,
    moments: Moments,
    *,
    batch: int = 500,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """All images (N×H×H×C), in order and undistorted, as the network takes them; the last batch may be smaller."""
    for start in range(0, len(pixels), batch):
        part = torch.from_numpy(np.ascontiguousarray(pixels[start : start + batch])).to(device)
        rows = torch.arange(len(part), device=device)
        side = part.shape[1]
        draws = centred(distortions, len(part), side=side)
        yield distort(part, rows, draws, distortions, moments, side=distortions.output_side(side))


def _generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose << 48 | number], np.uint64)))
