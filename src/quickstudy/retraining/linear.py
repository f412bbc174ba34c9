"""The linear head on frozen features, as the main job learns it of all training images, and races of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.cuts import LEVELS
from quickstudy.bottlenecks.extraction import Extraction
from quickstudy.errors import BackboneError
from quickstudy.learning.answers import MOST_PROBABLE, Answer, choose_thresholds
from quickstudy.learning.features import Floats, sample_of
from quickstudy.learning.links import Integers, link_of
from quickstudy.learning.prior import NamesCompared, mix_names
from quickstudy.learning.selection import Head, LevelsCompared, choose_head, fit_head
from quickstudy.learning.strangeness import Strangeness, fit_strangeness, learn_examples
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.models.roles import Roles
from quickstudy.retraining.config import RetrainConfig
from quickstudy.retraining.record import Unseen, cross_validated

if TYPE_CHECKING:
    from quickstudy.backbones.names import NamedClasses

_MOST_FOR_STRANGENESS = 100_000  # images
_MOST_AT_ONCE = 16_384  # images whose bottlenecks are in memory together


@dataclass(frozen=True)
class Linear:
    """A linear head on frozen features."""

    head: Head
    """The head at its optimum."""
    net: Backbone
    """Network, cut at what the head sees: `features` or `levels`."""
    extraction: Extraction
    """Bottlenecks of all images."""
    train: list[bytes]
    """Content hashes of the n images that it was fitted to."""
    targets: Integers
    """Class numbers of the training images (n), or marks of their labels (n×K)."""
    answer: Answer
    """What its probabilities are answered by."""
    compared: LevelsCompared | None = None
    """What was found of the last features and of all levels; None where they were not compared."""
    strangeness: Strangeness | None = None
    """What tells strange images from its own; None where there were too few images to tell, or nobody asked."""
    prior: NamesCompared | None = None
    """What was found of the head alone, and with the names of the classes; None where they were not compared."""

    @property
    def cut(self) -> str:
        """Name of the cut, `features` or `levels`."""
        return self.net.cut

    def stages(self) -> tuple[dict[str, Any], ...]:
        """Tell of no fine-tuning, as there was none."""
        return ()

    def features(self, digests: list[bytes]) -> NDArray[np.floating]:
        """Read what the head sees of images (n×d), given by content hash."""
        return self.extraction.gather(digests, levels=self.cut == LEVELS)

    def logits(self, digests: list[bytes]) -> Floats:
        """Work out the calibrated logits (n×K) of images, given by content hash."""
        parts = range(0, len(digests), _MOST_AT_ONCE)
        logits = [self.head.logits(self.features(digests[first : first + _MOST_AT_ONCE])) for first in parts]
        return np.concatenate(logits) if logits else np.empty((0, len(self.head.biases)), np.float32)

    def strange(self, digests: list[bytes]) -> NDArray[np.floating]:
        """Work out the strangeness (n) of images, given by content hash."""
        if self.strangeness is None:
            return np.zeros(len(digests))
        return self.strangeness.of(self.extraction.gather(digests), self.logits(digests))

    @property
    def unseen(self) -> tuple[Unseen, ...]:
        """What cross-validation said of the training images."""
        return (cross_validated(self.head, self.train),)

    @property
    def trained_on(self) -> Sequence[bytes]:
        """Content hashes of the training images."""
        return self.train

    @property
    def chosen_by(self) -> Sequence[bytes]:
        """Content hashes of no images: what chose is what was learned from."""
        return ()

    def write(self, path: Path, *, classes: Sequence[str], training: dict[str, Any], roles: Roles | None) -> None:
        """Write it as a model."""
        head = self.head
        linear = LinearHead(weights=head.weights, biases=head.biases, names=head.names, link=self.answer.link)
        write_model(
            path,
            self.net,
            linear,
            classes=classes,
            training=training,
            roles=roles,
            strangeness=self.strangeness,
            answer=self.answer,
        )

    def with_names(self, named: NamedClasses) -> Linear:
        """Mix the head with what the names of the classes say, as far as held-out images are the better for it.

        Args:
            named: the classes by name, those of the head among them, in the order of its columns.
        """
        held_out = self.head.held_out
        last = self.extraction.gather([self.train[row] for row in held_out.tolist()])
        head, prior = mix_names(self.head, named.as_weights, last, self.targets[held_out])
        return replace(self, head=head, prior=prior)

    def with_strangeness(self, examples: list[bytes]) -> Linear:
        """Learn, from the last features of the training images, what tells strange images from these.

        Where an image may have several labels there is nothing to learn: one of none of them simply has none.

        Args:
            examples: content hashes of images of none of the classes; empty where there are none.
        """
        if self.head.kind == "several":
            return self
        sampled, held_out = np.arange(len(self.train)), self.head.held_out
        if len(sampled) > _MOST_FOR_STRANGENESS:  # with an image of each class
            firsts = np.unique(self.targets, return_index=True)[1]
            sampled = np.union1d(sample_of(len(self.train), _MOST_FOR_STRANGENESS), firsts)
        alone = np.bincount(self.targets[sampled], minlength=len(self.head.biases)) < 2
        kept = np.isin(held_out, sampled) & ~alone[self.targets[held_out]]
        judged = np.searchsorted(sampled, held_out[kept])
        keys = [self.train[row] for row in sampled]
        last = self.extraction.gather(keys)
        learned = None
        if examples:
            learned = learn_examples(
                last,
                keys,
                self.extraction.gather(examples),
                examples,
                self.logits(examples),
                judged=judged,
                widths=self.extraction.backbone.widths,
            )
        strangeness = fit_strangeness(
            last,
            self.targets[sampled],
            self.head.held_out_logits[kept],
            classes=len(self.head.biases),
            held_out=judged,
            examples=learned,
        )
        return replace(self, strangeness=strangeness)


def learn_head(
    net: Backbone, extraction: Extraction, train: list[bytes], targets: Integers, config: RetrainConfig
) -> Linear:
    """Fit the head to its optimum, on the last features or on all levels, as the configuration says.

    Args:
        net: the network, cut at the features.
        extraction: has the images' bottlenecks.
        train: content hashes of the images (n), sorted.
        targets: their class numbers (n), each class with an image, or marks of their labels (n×K).
        config: what the head may see, and how it is fitted.

    Raises:
        BackboneError: levels were asked for of a network that has none.
    """
    views = range(extraction.views + 1)
    if config.levels == "all" and not net.levels:
        raise BackboneError(
            f"'{net.name}' has no feature maps, so it has no levels; leave out --levels, or use another backbone"
        )
    levels = config.seen != "last" and bool(net.levels)
    bottlenecks = extraction.rows(train, levels=levels)
    examples = np.concatenate([targets] * len(views)), train * len(views)
    options: dict[str, Any] = {
        "classes": int(targets.max()) + 1 if targets.ndim == 1 else targets.shape[1],
        "plain": np.repeat(np.array([view == 0 for view in views]), len(train)),
        "balanced": config.class_weight == "balanced",
        "l2": config.l2,
    }
    compared = None
    if levels and config.seen == "auto":
        head, compared = choose_head(bottlenecks, *examples, last=net.widths, widths=net.kept.widths, **options)
    else:
        head = fit_head(bottlenecks, *examples, widths=(net.kept if levels else net).widths, **options)
    answer, link = MOST_PROBABLE, link_of(targets)
    if link.kind == "several":
        unseen = link.probabilities(head.held_out_logits)
        answer = choose_thresholds(unseen, targets[head.held_out], precision=config.least_precision)
    seen = net.kept if len(head.weights) > net.cut_shape[0] else net
    return Linear(head, seen, extraction, train, targets, answer, compared)
