"""Choices that cross-validation makes on some of the training images, before all pass: the backbone, and the fit.

Candidates race: the same images, as many of each class as its share, go through each, and a head is fitted to what
comes out, as it will be in the end. They are compared by the log losses of the held-out images, image by image. The
cheapest is taken unless a dearer one is better by more than chance: by 2.5 standard errors, since the best of several
looks better than it is. (Folds share images, so the standard error is a little too small, too.) What was computed is in
the store, and what of it belongs to the winner is not computed again.

The images are the first of each class by content hash, so the same set makes the same choice, wherever its files lie.
Only a race of backbones that its time cuts short depends on the machine; it says what it did not try.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import JOINED, Backbone, backbone_names
from quickstudy.backbones.cuts import FEATURES
from quickstudy.backbones.loading import load_backbone
from quickstudy.errors import BackboneError, InstallationError, UnusableImageError
from quickstudy.images.census import Census
from quickstudy.images.decoding import size_of
from quickstudy.images.fits import FITS, Fit, tiles_for, tiles_in
from quickstudy.images.identity import read_image_file
from quickstudy.learning.links import Integers
from quickstudy.learning.strengths import log_losses
from quickstudy.process import usable_cores
from quickstudy.retraining.config import PRESETS, RetrainConfig
from quickstudy.retraining.linear import learn_head
from quickstudy.retraining.passes import Passes

SAMPLE = 500
"""Number of images that candidates are compared on, or a few more where classes are many: two of each at least."""
FEWEST = 50
"""Smallest number of held-out images that can tell candidates apart."""
NEARLY_SQUARE = 1.15
"""Aspect ratio of the median image, longer side by shorter, below which fits are not compared: 13 % of it is lost."""
_BEYOND = 2.5  # standard errors
_INTERVAL = 1.96  # standard errors either way: 95 %


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What came of one candidate."""

    name: str
    """Name of the candidate."""
    log_loss: float
    """Mean log loss of the held-out images, in nats, after calibration."""
    accuracy: float
    """Share of the held-out images that were predicted right, 0 to 1."""
    behind: float
    """Log loss less that of the chosen candidate, in nats; below 0 where it is better, but by no more than chance."""
    standard_error: float
    """Standard error of `behind`, in nats, from the differences image by image."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `behind`, in nats."""
        return self.behind - _INTERVAL * self.standard_error, self.behind + _INTERVAL * self.standard_error


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and by what."""

    what: Literal["backbone", "fit"]
    """What there was to choose."""
    chosen: str
    """Name of the candidate."""
    images: int
    """Number of images that were held out, once each; 0 where nothing was compared."""
    runners: tuple[Runner, ...] = ()
    """The candidates that were compared, cheapest first; empty where none were."""
    not_tried: tuple[str, ...] = ()
    """Names of candidates for which there was no time."""
    why: str = ""
    """What it was chosen by, in words, where nothing was compared; empty where something was."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        runners = [{**asdict(runner), "interval_95": list(runner.interval)} for runner in self.runners]
        return {**asdict(self), "runners": runners, "not_tried": list(self.not_tried)}

    @property
    def told(self) -> str:
        """The choice and what it was made by, in a line."""
        won = next((runner for runner in self.runners if runner.name == self.chosen), None)
        if won is None:
            return f"{self.chosen} ({self.why})"
        others = [
            f"{one.name} {one.behind:+.3f}, 95 % interval {one.interval[0]:+.3f} to {one.interval[1]:+.3f}"
            for one in self.runners
            if one is not won
        ]
        late = f"; not tried for lack of time: {', '.join(self.not_tried)}" if self.not_tried else ""
        return f"{self.chosen} (log loss {won.log_loss:.3f} on {self.images} images; {'; '.join(others)}{late})"


def choose(
    net: Backbone | None, census: Census, config: RetrainConfig, passes: Passes, *, bits: int, cache: Path
) -> tuple[Backbone, tuple[Choice, ...]]:
    """Choose backbone and fit, as far as the configuration leaves them to cross-validation or to the images' shapes.

    Args:
        net: the network; None where it is to be chosen.
        census: the images, of which those to train on are asked.
        config: what is left to be chosen, and how the head is fitted.
        passes: what sends images through networks.
        bits: number of significant bits of levels that have more than 8.
        cache: folder of the backbones.

    Returns:
        The network, cut at the features, with its input as it was chosen, and the choices.

    Raises:
        BackboneError: no network that can be had has levels, and they were asked for.
        InstallationError: no network can be had.
    """
    sample = _sample(census, config)
    choices: list[Choice] = []
    if net is None:
        net, choice = _choose_backbone(sample, census, config, passes, bits=bits, cache=cache)
        choices.append(choice)
    net = net.at(FEATURES).reading(bits, config.named_fit)
    if config.chooses_fit:
        fit, choice = _choose_fit(net, sample, census, config, passes)
        net = net.reading(bits, fit)
        choices.append(choice)
    return net, tuple(choices)


def own_fit(net: Backbone, config: RetrainConfig) -> tuple[Choice, ...]:
    """Tell that a network has a fit of its own, where nobody named another one and it is not the usual one."""
    if config.fit is not None or net.input.fit == "crop":
        return ()
    why = "as the network was trained; --fit crop takes the centred square"
    return (Choice(what="fit", chosen=net.input.fit, images=0, why=why),)


def fit_by_shape(census: Census, config: RetrainConfig) -> tuple[Fit, Choice]:
    """Choose two or three squares an image by how long the median of some images to train on is, from their headers."""
    ratio = _median_ratio(census, list(_sample(census, config)))
    fit = tiles_for(ratio)
    why = f"{tiles_in(fit)} passes an image; the median image is {ratio:.2f} times as long as wide"
    return fit, Choice(what="fit", chosen=fit, images=0, why=why)


def _choose_fit(
    net: Backbone, sample: _Sample, census: Census, config: RetrainConfig, passes: Passes
) -> tuple[Fit, Choice]:
    if config.fit == "tiles":
        return fit_by_shape(census, config)
    ratio = _median_ratio(census, list(sample))
    if ratio < NEARLY_SQUARE:
        why = f"the median image is {ratio:.2f} times as long as wide; fits are compared from {NEARLY_SQUARE} on"
        return net.input.fit, Choice(what="fit", chosen=net.input.fit, images=0, why=why)
    fits: dict[str, Fit] = {fit: fit for fit in FITS if tiles_in(fit) == 1}
    if config.may_tile:
        fits[tiles_for(ratio)] = tiles_for(ratio)
    candidates = [
        _Candidate(name=name, net=net.reading(net.input.bits, fit), cost=float(tiles_in(fit)))
        for name, fit in fits.items()
    ]
    choice = _race("fit", candidates, sample, census, config, passes)
    return fits[choice.chosen], choice


def _choose_backbone(
    sample: _Sample, census: Census, config: RetrainConfig, passes: Passes, *, bits: int, cache: Path
) -> tuple[Backbone, Choice]:
    nets: dict[str, Backbone] = {}
    usual = PRESETS[config.preset].backbone
    added = [name for name in backbone_names(cache) if JOINED not in name]
    for name in dict.fromkeys((*added, *(preset.backbone for preset in PRESETS.values()))):
        try:
            net = load_backbone(name, cache).reading(bits, config.named_fit)
        except (BackboneError, InstallationError):
            continue  # the weights of one of quickstudy's own are not installed, or what was added is damaged
        if net.levels or config.levels != "all":
            nets[name] = net
    if not nets:
        load_backbone(usual, cache)  # says what is missing
        raise BackboneError("None of the backbones has levels; leave out --levels, or name a backbone")
    candidates = sorted(
        (_Candidate(name=name, net=net, cost=float(net.cuts[-1].multiply_adds)) for name, net in nets.items()),
        key=lambda one: (one.cost, one.name),
    )
    choice = _race("backbone", candidates, sample, census, config, passes, seconds=config.race_seconds)
    return nets[choice.chosen], choice


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    name: str
    net: Backbone
    cost: float
    """What an image costs, in any unit that is the same for all candidates."""


def _race(
    what: Literal["backbone", "fit"],
    candidates: Sequence[_Candidate],
    sample: _Sample,
    census: Census,
    config: RetrainConfig,
    passes: Passes,
    *,
    seconds: float = math.inf,
) -> Choice:
    """Compare candidates, given cheapest first, of which the first always runs."""
    if len(sample) < FEWEST:
        why = f"{len(sample)} images to learn from are too few to compare by; expected {FEWEST}"
        return Choice(what=what, chosen=candidates[0].name, images=0, why=why)
    started = time.perf_counter()
    losses: dict[str, NDArray[np.float64]] = {}
    right: dict[str, float] = {}
    late: list[str] = []
    pace = spent_on_head = 0.0  # seconds a pass and unit of cost, and seconds of the last head
    for one in candidates:
        expected = pace * one.cost * passes.missing(one.net, list(sample)) + spent_on_head
        if losses and time.perf_counter() - started + expected > seconds:
            late.append(one.name)
            continue
        before, began = passes.computed, time.perf_counter()
        extraction = passes.of(one.net, census, list(sample))
        if (computed := passes.computed - before) > 0:
            pace = (time.perf_counter() - began) / (computed * one.cost)
        began = time.perf_counter()
        usable = [d for d in extraction.digests if d is not None]
        targets = _renumbered(np.array([sample[d] for d in usable], np.intp))
        head = learn_head(one.net, extraction, usable, targets, config).head
        spent_on_head = time.perf_counter() - began
        truth = targets[head.held_out]
        losses[one.name] = log_losses(head.held_out_logits, truth)
        right[one.name] = head.held_out_right / max(len(truth), 1)
    chosen = _best([one for one in candidates if one.name in losses], losses)
    runners = []
    for name, found in losses.items():
        behind = found - losses[chosen]
        runners.append(
            Runner(
                name=name,
                log_loss=float(found.mean()),
                accuracy=right[name],
                behind=float(behind.mean()),
                standard_error=_standard_error(behind),
            )
        )
    return Choice(
        what=what,
        chosen=chosen,
        images=len(losses[chosen]),
        runners=tuple(runners),
        not_tried=tuple(late),
    )


def _best(candidates: Sequence[_Candidate], losses: Mapping[str, NDArray[np.float64]]) -> str:
    """Name the best: the first, unless one is better by more than chance; of equal cost, the one of the least loss."""
    chosen = candidates[0].name
    for cost in sorted({one.cost for one in candidates}):
        better = []
        for one in candidates:
            gain = losses[chosen] - losses[one.name]
            if one.cost == cost and gain.mean() > _BEYOND * _standard_error(gain):
                better.append(one.name)
        chosen = min(better, key=lambda name: float(losses[name].mean()), default=chosen)
    return chosen


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


_Sample = Mapping[bytes, int | list[int]]
"""Images to train on with their class numbers, or marks of their labels, in the order of the hashes."""


def _sample(census: Census, config: RetrainConfig) -> _Sample:
    """Take images to train on, the first of each class by content hash; of several labels an image, the first of all.

    Where something is fine-tuned, the validation images are left for what they are for.
    """
    if census.several:
        digests, marks = census.targets("train", "validation")
        return dict(zip(digests[:SAMPLE], marks[:SAMPLE].tolist(), strict=True))
    numbered = census.numbered("train") if config.tunes else census.numbered("train", "validation")
    counts = np.bincount(np.array(list(numbered.values()), np.intp))
    quotas = np.maximum(2, np.rint(counts * min(1.0, SAMPLE / max(len(numbered), 1))).astype(np.intp))
    taken: dict[bytes, int] = {}
    for digest, number in numbered.items():
        if quotas[number]:
            quotas[number] -= 1
            taken[digest] = number
    return taken


def _renumbered(targets: Integers) -> Integers:
    """Number classes anew, so that none is without an image, nor a label on none or all: some may be unusable."""
    if targets.ndim == 2:
        on = targets.sum(axis=0)
        return targets[:, (on > 0) & (on < len(targets))]
    renumbered: Integers = np.unique(targets, return_inverse=True)[1]
    return renumbered


def _median_ratio(census: Census, digests: Sequence[bytes]) -> float:
    """Find the median aspect ratio of images, longer side by shorter, from their headers; 1 where none can be read."""

    def ratio(digest: bytes) -> float | None:
        try:
            width, height = size_of(read_image_file(census.contents[digest].path)[0])
        except UnusableImageError:
            return None
        return max(width, height) / max(min(width, height), 1)

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = [one for one in pool.map(ratio, digests) if one is not None]
    return statistics.median(found) if found else 1.0
