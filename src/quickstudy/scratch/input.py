"""The input pipeline: which images come in which step, distorted and ready before the step needs them.

What is in a batch depends on (seed, step) alone, never on threads, replicas or where a run was resumed; so nothing has
to be stored to go on with the same batches.

Random distortions of a batch, all drawn from (seed, step), and the plain way that evaluation takes.

Order: crop, flip, brightness, contrast, standardisation, as in TensorFlow's "Deep CNN" tutorial (2015). Every one of
the last three is affine in an image's channel, so they are applied together, with the factors worked out from the
crop's moments: one pass over the pixels instead of six.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quickstudy.errors import OptionError
from quickstudy.images.pixels import PixelSet

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


@dataclass(frozen=True, kw_only=True)
class Distortions:
    """How images (uint8) become a network's input (float32) in training and in evaluation."""

    crop: int = 0
    """Side of the random crop, in pixels, centred in evaluation; 0: the whole image."""
    random_crop: bool = True
    """Cut the crop out at a random place; off: at the centre in training, too."""
    pad: int = 0
    """Pixels mirrored at each border before the random crop; not in evaluation."""
    flip: bool = True
    """Mirror left to right at random."""
    alternate: bool = False
    """Mirror every other epoch, the first at random (Jordan, 2024, section 3.6)."""
    brightness: float = 0.0
    """Largest value added to or taken from all pixels (of 255)."""
    contrast: tuple[float, float] = (1.0, 1.0)
    """Range of the factor of each channel's difference from its mean."""
    standardise: str = "image"
    """image: each image's own mean and deviation, at least 1/√N; set: the training set's, by channel; none: 0 to 1."""

    def check(self, side: int) -> None:
        """Raise a OptionError unless images of `side` pixels can be distorted so."""
        if len(self.contrast) != 2 or not 0 <= self.contrast[0] <= self.contrast[1] < math.inf:
            shown = ",".join(f"{factor:g}" for factor in self.contrast)
            raise OptionError(f"contrast is {shown}; expected two factors, the lower one first")
        if self.standardise not in ("image", "set", "none"):
            raise OptionError(f"standardise is '{self.standardise}'; expected image, set or none")
        if not 0 <= self.crop <= side:
            raise OptionError(f"crop is {self.crop}; expected 0 (no crop) to {side}, the images' side in pixels")
        if not 0 <= self.pad < side:
            raise OptionError(f"pad is {self.pad}; expected 0 to {side - 1}, less than the images' side in pixels")
        if not 0 <= self.brightness < math.inf:
            raise OptionError(f"brightness is {self.brightness:g}; expected 0 or more, of 255")

    def output_side(self, side: int) -> int:
        """Side of what the network gets, from images of this side."""
        return self.crop or side


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one batch of n images."""

    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]

    def __getitem__(self, part: slice) -> Draws:
        """Those of some of the images."""
        return Draws(**{name: values[part] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and deviation of each channel over a set of images, in 0 to 255."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def to_dict(self) -> dict[str, list[float]]:
        """As JSON values."""
        return {"mean": list(self.mean), "deviation": list(self.deviation)}

    @staticmethod
    def from_dict(values: Mapping[str, Sequence[float]]) -> Moments:
        """From what `to_dict` gave."""
        return Moments(mean=tuple(values["mean"]), deviation=tuple(values["deviation"]))

    @staticmethod
    def of(pixels: NDArray[np.uint8]) -> Moments:
        """Of N×H×W×C images, from their histograms: exact, and in little memory."""
        values = np.arange(256, dtype=np.float64)
        means, deviations = [], []
        for channel in range(pixels.shape[3]):
            counts = np.zeros(256, np.int64)
            for start in range(0, len(pixels), 1000):
                counts += np.bincount(pixels[start : start + 1000, :, :, channel].reshape(-1), minlength=256)
            mean = counts @ values / counts.sum()
            means.append(float(mean))
            deviations.append(float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum())) or 1.0)
        return Moments(mean=tuple(means), deviation=tuple(deviations))


def draw(
    distortions: Distortions,
    generator: np.random.Generator,
    *,
    side: int,
    epochs: NDArray[np.int64],
    first: NDArray[np.bool_],
) -> Draws:
    """Draw what a batch needs.

    Args:
        distortions: what to draw.
        generator: where from.
        side: of the images, in pixels.
        epochs: in which pass over the training set each image of the batch is.
        first: whether each of these images is mirrored in pass 0; used by `alternate`.
    """
    n, room = len(epochs), side + 2 * distortions.pad - distortions.output_side(side) + 1
    tops, lefts = generator.integers(0, room, n), generator.integers(0, room, n)
    if not distortions.random_crop:
        tops = lefts = np.full(n, (room - 1) // 2)
    coins = generator.random(n) < 0.5
    if distortions.alternate:
        coins = first ^ (epochs % 2 == 1)
    low, high = distortions.contrast
    return Draws(
        tops=tops,
        lefts=lefts,
        mirrored=coins & distortions.flip,
        brightness=generator.uniform(-distortions.brightness, distortions.brightness, n).astype(np.float32),
        contrast=generator.uniform(low, high, n).astype(np.float32),
    )


def centred(distortions: Distortions, n: int, *, side: int) -> Draws:
    """What evaluation uses for n images of this side, without a margin: the centre, and no distortion."""
    offset = np.full(n, (side - distortions.output_side(side)) // 2)
    return Draws(
        tops=offset,
        lefts=offset,
        mirrored=np.zeros(n, np.bool_),
        brightness=np.zeros(n, np.float32),
        contrast=np.ones(n, np.float32),
    )


def with_margin(pixels: NDArray[np.uint8], pad: int) -> NDArray[np.uint8]:
    """Images (N×H×W×C) with `pad` more pixels at each border, mirrored at the border pixel."""
    if not pad:
        return np.ascontiguousarray(pixels)
    return np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")


def distort(
    pixels: Tensor, rows: Tensor, draws: Draws, distortions: Distortions, moments: Moments, *, side: int
) -> Tensor:
    """Make a batch: pick images, distort, standardise.

    Args:
        pixels: all images, N×H×W×C with their margins, uint8, on any device.
        rows: which of them, n indices on the same device.
        draws: the random numbers for these n; their places count from the corner of the margin.
        distortions: how they are used.
        moments: of the training set, for `standardise="set"`.
        side: of the squares that are cut out.

    Returns:
        n×C×side×side float32, channels last in memory.
    """
    device, (_, height, width, channels) = pixels.device, pixels.shape
    tops, lefts = torch.from_numpy(draws.tops).to(device), torch.from_numpy(draws.lefts).to(device)
    # A line of a crop is one piece of memory: a view that has such a piece at every pixel makes picking them a copy of
    # whole lines, twenty times as fast as picking pixels.
    length = side * channels
    pieces = pixels.reshape(-1).as_strided((pixels.numel() // channels - side + 1, length), (channels, 1))
    lines = (rows * height + tops)[:, None] + torch.arange(side, device=device)
    crops = pieces.index_select(0, (lines * width + lefts[:, None]).reshape(-1))
    crops = crops.reshape(len(rows), side, side, channels)
    flipped = torch.from_numpy(np.flatnonzero(draws.mirrored)).to(device)
    if len(flipped):
        crops[flipped] = crops[flipped].flip(2)
    scale, offset = _affine(crops.reshape(len(rows), side * side, channels), draws, distortions, moments)
    images = crops.reshape(len(rows), side, length).to(torch.float32)
    images.mul_(scale.repeat(1, side)[:, None]).add_(offset.repeat(1, side)[:, None])
    return images.reshape(len(rows), side, side, channels).permute(0, 3, 1, 2)


def _affine(crops: Tensor, draws: Draws, distortions: Distortions, moments: Moments) -> tuple[Tensor, Tensor]:
    """Factor and offset, n×C each, that amount to brightness, contrast and standardisation of n×(H·W)×C crops."""
    device = crops.device
    brightness = torch.from_numpy(draws.brightness).to(device)[:, None]
    contrast = torch.from_numpy(draws.contrast).to(device)[:, None]
    n, places, channels = crops.shape
    if distortions.standardise == "image" or distortions.contrast != (1.0, 1.0):
        # Exact sums, so that the result does not depend on the order in which a machine adds.
        values = crops.to(torch.int32)
        sums = values.sum(dim=1).double()
        squares = (values * values).sum(dim=1).double()
        mean, variance = sums / places, (squares / places - (sums / places) ** 2).clamp_(min=0)
    else:
        mean = variance = torch.zeros(n, channels, dtype=torch.float64, device=device)
    # Contrast keeps the mean of each channel; brightness moves it.
    scale, offset = contrast.double().expand(n, channels), mean * (1 - contrast) + brightness
    if distortions.standardise == "image":
        means = mean + brightness
        overall = means.mean(dim=1, keepdim=True)
        deviation = ((scale**2 * variance + (means - overall) ** 2).mean(dim=1, keepdim=True)).sqrt()
        deviation = deviation.clamp(min=1 / math.sqrt(places * channels))
        scale, offset = scale / deviation, (offset - overall) / deviation
    elif distortions.standardise == "set":
        centre = torch.tensor(moments.mean, dtype=torch.float64, device=device)
        spread = torch.tensor(moments.deviation, dtype=torch.float64, device=device)
        scale, offset = scale / spread, (offset - centre) / spread
    else:
        scale, offset = scale / 255, offset / 255
    return scale.float(), offset.float()
