"""The input pipeline: which images come in which step, distorted at random and ready before the step needs them.

What is in a batch is a function of (seed, step). Order and distortions are drawn by Philox generators that are keyed
with seed, purpose and step, so threads, replicas and resumption cannot change them, and nothing of the pipeline has to
be saved to go on with the same batches.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quickstudy.errors import OptionError
from quickstudy.images.pixels import PixelSet
from quickstudy.learning.averages import sent

_DRAWN_AHEAD = 10
"""Steps whose random numbers are sent to a GPU together, while it is busy with steps before: 0.7 MB at 2,000 images."""
_EVALUATED, _EVALUATED_VALUES = 500, 4_000_000
"""Images in a batch of an evaluation; on a GPU, values in one where that is more."""
_ORDER, _DISTORTION, _FIRST_FLIP = 1, 2, 3
"""Purposes of random numbers, so that no two draw from the same stream."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step trains on in one replica."""

    step: int
    """Number of the step, counted from 0."""
    images: Tensor
    """Distorted images, n×C×S×S in float32."""
    labels: Tensor
    """Numbers of their classes, n in int64."""


class Pipeline:
    """Batches of a training set, distorted by threads ahead of the steps (on a GPU: there, when they are needed)."""

    def __init__(
        self,
        data: PixelSet,
        augmentation: Augmentation,
        *,
        batch: int,
        seed: int,
        moments: Moments,
        rank: int = 0,
        world: int = 1,
        threads: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare to make batches.

        Args:
            data: images to train on.
            augmentation: how they are distorted.
            batch: number of images in a step, over all replicas.
            seed: seed of order and distortions.
            moments: mean and deviation of the channels of `data`.
            rank: number of this replica.
            world: number of replicas, which share each batch evenly.
            threads: number of threads that make batches ahead; 0: each is made when it is asked for.
            device: where batches are made.
        """
        self.augmentation, self.batch, self.seed, self.moments = augmentation, batch, seed, moments
        self.part = slice(rank * batch // world, (rank + 1) * batch // world)
        self.threads = threads
        self.pixels = torch.from_numpy(with_margin(data.pixels, augmentation.pad)).to(device)
        self.labels = torch.from_numpy(data.labels).to(device)
        self.side = data.pixels.shape[1]
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._ahead: dict[int, tuple[Tensor, Draws]] = {}
        """Rows and random numbers of the next steps, on a GPU; empty elsewhere."""
        self._first = _generator(seed, _FIRST_FLIP, 0).random(len(data)) < 0.5

    def with_seed(self, seed: int) -> Pipeline:
        """Give batches of the same images, which are not copied, by another seed."""
        other = copy.copy(self)
        other.seed, other._orders, other._ahead = seed, {}, {}
        other._first = _generator(seed, _FIRST_FLIP, 0).random(len(self.labels)) < 0.5
        return other

    def batches(self, steps: range) -> Iterator[Batch]:
        """Make the batches of these steps, in order."""
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
        """Make this replica's part of the batch of one step."""
        if self.pixels.device.type == "cpu":
            chosen, draws = self._draw(step)
        else:
            if step not in self._ahead:
                self._draw_ahead(step)
            chosen, draws = self._ahead.pop(step)
        side = self.augmentation.output_side(self.side)
        images = augment(self.pixels, chosen, draws, self.augmentation, self.moments, side=side)
        return Batch(step=step, images=images, labels=self.labels[chosen])

    def _draw(self, step: int) -> tuple[Tensor, Draws]:
        """Draw this replica's rows and random numbers of a step, on the processor."""
        epochs, rows = self._places(step)
        draws = draw(
            self.augmentation,
            _generator(self.seed, _DISTORTION, step),
            side=self.side,
            epochs=epochs,
            first=self._first[rows],
        )
        return torch.from_numpy(rows[self.part]), draws[self.part]

    def _draw_ahead(self, step: int) -> None:
        """Draw those of some steps, and send them to the GPU together."""
        device = self.pixels.device
        found = [self._draw(number) for number in range(step, step + _DRAWN_AHEAD)]
        size = len(found[0][0])
        rows = torch.split(sent(torch.cat([rows for rows, _ in found]), device), size)
        together = {
            name: torch.split(sent(torch.cat([vars(draws)[name] for _, draws in found]), device), size)
            for name in vars(found[0][1])
        }
        self._ahead = {
            step + number: (rows[number], Draws(**{name: values[number] for name, values in together.items()}))
            for number in range(_DRAWN_AHEAD)
        }

    def rows(self, step: int) -> NDArray[np.int64]:
        """Numbers of the training images in the batch of a step, over all replicas."""
        return self._places(step)[1]

    def _places(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Passes over the training set, and numbers of the images, at a batch's places; passes follow without a gap."""
        epochs, within = np.divmod(step * self.batch + np.arange(self.batch), len(self.labels))
        rows = np.empty(self.batch, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self._order(int(epoch))[within[chosen]]
        return epochs, rows

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Order of the training images in a pass; that of the last few passes is kept."""
        order = self._orders.get(epoch)
        if order is None:
            order = _generator(self.seed, _ORDER, epoch).permutation(len(self.labels))
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 2} | {epoch: order}
        return order


def evaluation_batches(
    pixels: NDArray[np.uint8],
    augmentation: Augmentation,
    moments: Moments,
    *,
    batch: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Give all images (N×H×H×C) in order and undistorted, as the network takes them; the last batch may be smaller.

    Without `batch`, there are 500 images in one on a processor, whose caches they suit, and more on a GPU, where asking
    for the next one costs more than that: as many as have some four million values.
    """
    device = torch.device(device)
    if batch is None:
        batch = _EVALUATED if device.type == "cpu" else max(_EVALUATED, _EVALUATED_VALUES // pixels[0].size)
    for start in range(0, len(pixels), batch):
        part = sent(torch.from_numpy(np.ascontiguousarray(pixels[start : start + batch])), device)
        rows = torch.arange(len(part), device=device)
        side = part.shape[1]
        draws = centred(augmentation, len(part), side=side).on(device)
        yield augment(part, rows, draws, augmentation, moments, side=augmentation.output_side(side))


def _generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    """Make the source of the random numbers for one purpose in one step or pass."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose << 48 | number], np.uint64)))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How images (uint8) become a network's input (float32) in training and in evaluation."""

    crop: int = 0
    """Side of the random crop, in pixels; evaluation takes it from the centre. 0: the whole image."""
    random_crop: bool = True
    """Whether training cuts the crop out at a random place; off: at the centre, as evaluation does."""
    pad: int = 0
    """Number of pixels mirrored at each border before the random crop; 0: none. Evaluation does without."""
    flip: bool = True
    """Whether training mirrors images left to right at random."""
    alternate: bool = False
    """Whether images are mirrored every other epoch, after a random first one (Jordan, 2024, section 3.6)."""
    brightness: float = 0.0
    """Largest value, of 255, that is added to or taken from all pixels of an image; 0: none."""
    contrast: tuple[float, float] = (1.0, 1.0)
    """Range of the factor of each channel's difference from its mean; 1,1: contrast stays."""
    cutout: int = 0
    """Side of the square at a random place of each image whose values training sets to 0, in pixels: their mean where
    they are standardised, else black (DeVries & Taylor, 2017, with squares that lie wholly inside); 0: none."""
    standardise: str = "image"
    """What brings values to mean 0 and deviation 1: image (each image's own mean and deviation, at least 1/√N), set
    (the training set's, for each channel), or none (values are from 0 to 1)."""

    def check(self, side: int) -> None:
        """Raise an OptionError unless images of `side` pixels can be distorted so."""
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
        if not 0 <= self.cutout <= self.output_side(side):
            raise OptionError(
                f"cutout is {self.cutout}; expected 0 (none) to {self.output_side(side)}, the side in pixels of "
                "what the network gets"
            )

    def output_side(self, side: int) -> int:
        """Side of what the network gets from images of this side, in pixels."""
        return self.crop or side


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one batch of n images, on the device where it is made."""

    tops: Tensor
    """First row of each crop, in pixels from the upper end of the margin."""
    lefts: Tensor
    """First column of each crop, in pixels from the left end of the margin."""
    mirrored: Tensor
    """Whether each image is mirrored."""
    brightness: Tensor
    """Value that is added to each image's pixels, of 255."""
    contrast: Tensor
    """Factor of each image's differences from the means of its channels."""
    cutouts: Tensor
    """First row and column of each image's square of `cutout`, in pixels of what the network gets; n×2 in int16."""

    def __getitem__(self, part: slice) -> Draws:
        """Take the numbers of some of the images."""
        return Draws(**{name: values[part] for name, values in vars(self).items()})

    def on(self, device: torch.device) -> Draws:
        """Give the same numbers on a device."""
        return Draws(**{name: sent(values, device) for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and deviation of each channel over a set of images, in 0 to 255."""

    mean: tuple[float, ...]
    """Mean of each channel."""
    deviation: tuple[float, ...]
    """Standard deviation of each channel; 1 where it would be 0."""

    @staticmethod
    def of(pixels: NDArray[np.uint8]) -> Moments:
        """Work out the moments of N×H×W×C images from their histograms: exactly, and in little memory."""
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
    augmentation: Augmentation,
    generator: np.random.Generator,
    *,
    side: int,
    epochs: NDArray[np.int64],
    first: NDArray[np.bool_],
) -> Draws:
    """Draw the random numbers of a batch.

    Args:
        augmentation: what to draw.
        generator: source of the numbers.
        side: height and width of the images, in pixels.
        epochs: number of the pass over the training set that each image of the batch belongs to.
        first: whether each of these images is mirrored in pass 0; used by `alternate`.
    """
    n, room = len(epochs), side + 2 * augmentation.pad - augmentation.output_side(side) + 1
    tops, lefts = generator.integers(0, room, n), generator.integers(0, room, n)
    if not augmentation.random_crop:
        tops = lefts = np.full(n, (room - 1) // 2)
    coins = generator.random(n) < 0.5
    if augmentation.alternate:
        coins = first ^ (epochs % 2 == 1)
    low, high = augmentation.contrast
    brightness = generator.uniform(-augmentation.brightness, augmentation.brightness, n).astype(np.float32)
    factors = generator.uniform(low, high, n).astype(np.float32)
    places = augmentation.output_side(side) - augmentation.cutout + 1 if augmentation.cutout else 1  # of a square
    return Draws(
        tops=torch.from_numpy(tops),
        lefts=torch.from_numpy(lefts),
        mirrored=torch.from_numpy(coins & augmentation.flip),
        brightness=torch.from_numpy(brightness),
        contrast=torch.from_numpy(factors),
        cutouts=torch.from_numpy(generator.integers(0, places, (n, 2), np.int16)),
    )


def centred(augmentation: Augmentation, n: int, *, side: int) -> Draws:
    """Give what evaluation uses instead of random numbers, for n images of this side: the plain centre."""
    inner = augmentation.output_side(side)
    offset = torch.full((n,), (side - inner) // 2)
    return Draws(
        tops=offset,
        lefts=offset,
        mirrored=torch.zeros(n, dtype=torch.bool),
        brightness=torch.zeros(n),
        contrast=torch.ones(n),
        cutouts=torch.full((n, 2), inner, dtype=torch.int16),  # beyond the image
    )


def with_margin(pixels: NDArray[np.uint8], pad: int) -> NDArray[np.uint8]:
    """Give images (N×H×W×C) `pad` more pixels at each border, mirrored at the border pixel."""
    if not pad:
        return np.ascontiguousarray(pixels)
    return np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")


def augment(
    pixels: Tensor, rows: Tensor, draws: Draws, augmentation: Augmentation, moments: Moments, *, side: int
) -> Tensor:
    """Make a batch: pick images, then crop, flip, brightness, contrast, standardisation and cutout, in this order.

    The order is that of TensorFlow's "Deep CNN" tutorial (2015). Brightness, contrast and standardisation are affine in
    an image's channel, so they are applied together, with factors worked out from the crop's integer moments: one pass
    over the pixels instead of six. A batch of 128 of the classic recipe costs one core (Zen 5) half a millisecond.

    Args:
        pixels: all images, N×H×W×C with their margins, uint8, on any device.
        rows: numbers of the images to pick, n on the same device.
        draws: random numbers for these n, on the same device; their places count from the corner of the margin.
        augmentation: how the random numbers are used.
        moments: mean and deviation of the training set's channels, for `standardise="set"`.
        side: height and width of the squares that are cut out, in pixels.

    Returns:
        n×C×side×side float32, channels last in memory.
    """
    device, (_, height, width, channels) = pixels.device, pixels.shape
    # A line of a crop is one piece of memory: a view that has such a piece at every pixel makes picking them a copy of
    # whole lines, twenty times as fast as picking pixels.
    length = side * channels
    pieces = pixels.reshape(-1).as_strided((pixels.numel() // channels - side + 1, length), (channels, 1))
    lines = (rows * height + draws.tops)[:, None] + torch.arange(side, device=device)
    crops = pieces.index_select(0, (lines * width + draws.lefts[:, None]).reshape(-1))
    crops = crops.reshape(len(rows), side, side, channels)
    if device.type == "cpu":
        flipped = draws.mirrored.nonzero().flatten()
        if len(flipped):
            crops[flipped] = crops[flipped].flip(2)
    else:  # the number of those would have to be waited for
        crops = torch.where(draws.mirrored[:, None, None, None], crops.flip(2), crops)
    scale, offset = _affine(crops.reshape(len(rows), side * side, channels), draws, augmentation, moments)
    images = crops.reshape(len(rows), side, length).to(torch.float32)
    images.mul_(scale.repeat(1, side)[:, None]).add_(offset.repeat(1, side)[:, None])
    images = images.reshape(len(rows), side, side, channels).permute(0, 3, 1, 2)
    if augmentation.cutout:
        places = torch.arange(side, device=device) - draws.cutouts[:, :, None]
        inside = (places >= 0) & (places < augmentation.cutout)
        images.masked_fill_((inside[:, 0, :, None] & inside[:, 1, None, :])[:, None], 0.0)
    return images


def _affine(crops: Tensor, draws: Draws, augmentation: Augmentation, moments: Moments) -> tuple[Tensor, Tensor]:
    """Factors and offsets, n×C each, that amount to brightness, contrast and standardisation of n×(H·W)×C crops."""
    device = crops.device
    brightness, contrast = draws.brightness[:, None], draws.contrast[:, None]
    n, places, channels = crops.shape
    if augmentation.standardise == "image" or augmentation.contrast != (1.0, 1.0):
        # Exact sums, so that the result does not depend on the order in which a machine adds.
        values = crops.to(torch.int32)
        sums = values.sum(dim=1).double()
        squares = (values * values).sum(dim=1).double()
        mean, variance = sums / places, (squares / places - (sums / places) ** 2).clamp_(min=0)
    else:
        mean = variance = torch.zeros(n, channels, dtype=torch.float64, device=device)
    # Contrast keeps the mean of each channel; brightness moves it.
    scale, offset = contrast.double().expand(n, channels), mean * (1 - contrast) + brightness
    if augmentation.standardise == "image":
        means = mean + brightness
        overall = means.mean(dim=1, keepdim=True)
        deviation = ((scale**2 * variance + (means - overall) ** 2).mean(dim=1, keepdim=True)).sqrt()
        deviation = deviation.clamp(min=1 / math.sqrt(places * channels))
        scale, offset = scale / deviation, (offset - overall) / deviation
    elif augmentation.standardise == "set":
        centre, spread = _placed(moments, device)
        scale, offset = scale / spread, (offset - centre) / spread
    else:
        scale, offset = scale / 255, offset / 255
    return scale.float(), offset.float()


@functools.lru_cache(maxsize=16)
def _placed(moments: Moments, device: torch.device) -> tuple[Tensor, Tensor]:
    """Bring moments to a device, once."""
    mean, deviation = (torch.tensor(values, dtype=torch.float64) for values in (moments.mean, moments.deviation))
    return mean.to(device), deviation.to(device)
