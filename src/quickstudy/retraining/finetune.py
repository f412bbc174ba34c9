"""Fine-tuning as a step of the main job: stage by stage, it trains what follows a cut and makes a model of the best.

It needs torch, as do `network.py`, `tuning.py` and `planning.py`, so `retrain` imports it only where something is
fine-tuned.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import device_of
from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.bottlenecks.extraction import Extraction
from quickstudy.errors import ImageSetError
from quickstudy.images.census import Census
from quickstudy.learning.answers import MOST_PROBABLE, Answer
from quickstudy.learning.averages import computing_on
from quickstudy.learning.checkpoints import Checkpoints
from quickstudy.learning.features import Floats
from quickstudy.learning.selection import Head, fit_head, fit_temperature
from quickstudy.learning.strangeness import Strangeness, fit_strangeness, learn_examples
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.models.roles import Roles
from quickstudy.progress import Progress
from quickstudy.retraining.config import RetrainConfig
from quickstudy.retraining.network import SuffixNetwork, features_of, suffix_graph
from quickstudy.retraining.record import Unseen, cross_validated
from quickstudy.retraining.tuning import Candidate, FineTuned, TuningImages, fine_tune, suffix_logits
from quickstudy.wording import as_percent


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A suffix and a head, as they were fine-tuned from one cut."""

    net: Backbone
    """Backbone, cut where training began."""
    head: Head
    """The linear head at its optimum, on the features of the network as it was before all fine-tuning."""
    result: FineTuned
    """What came of the training, and how it went."""
    temperature: float
    """Number above 0 that logits are divided by, fitted to the validation images; 1 leaves them as they are."""
    unseen: tuple[Unseen, ...]
    """What was said of images unseen: of those trained on, by the linear head's cross-validation; then of the
    validation images, by the network itself, unless the linear head has learned from all in the end."""
    validation_given: bool
    """Whether the images came with a validation split."""
    learned: tuple[bytes, ...]
    """Content hashes of the images that it was fitted to."""
    compared: tuple[bytes, ...]
    """Content hashes of the images that it was chosen and calibrated by, without being fitted to them."""
    extraction: Extraction
    """Bottlenecks of the images at the cut."""

    @property
    def is_better(self) -> bool:
        """Whether training has made anything better on the validation images."""
        return self.result.kept.right > self.result.start.right

    def to_dict(self) -> dict[str, Any]:
        """Describe the stage as JSON values, for result and model."""
        result = self.result
        return {
            "cut": self.net.cut,
            "epochs": [_describe(candidate) for candidate in result.candidates],
            "start": _describe(result.start),
            "kept": _describe(result.kept),
            "validation": "given" if self.validation_given else "held out",
            "stopped_early": result.stopped_early,
            "steps": result.steps,
            "seconds": result.seconds,
            "trained_parameters": sum(parameter.numel() for parameter in result.network.parameters()),
        }


@dataclass(frozen=True)
class FineTunedClassifier:
    """Holds what fine-tuning has learned: the last stage that made anything better, and the story of all stages."""

    kept: Stage
    """The last stage that made anything better; the first one where none did."""
    all_stages: tuple[Stage, ...]
    """All stages, in the order in which they were trained."""
    numbered: Mapping[bytes, int]
    """Class number of each training image, by content hash."""
    examples: Sequence[bytes] = ()
    """Content hashes of images to learn from that are of none of the classes."""

    @property
    def head(self) -> Head:
        """The linear head from which the first stage began."""
        return self.kept.head

    @property
    def answer(self) -> Answer:
        """The most probable class."""
        return MOST_PROBABLE

    @property
    def compared(self) -> None:
        """Nothing: fine-tuning goes by the last features."""
        return None

    @property
    def prior(self) -> None:
        """Nothing: names are mixed into linear heads only."""
        return None

    @property
    def cut(self) -> str:
        """Name of the cut at which freezing ended."""
        return self.kept.net.cut

    def stages(self) -> tuple[dict[str, Any], ...]:
        """Tell how fine-tuning went, stage by stage, as JSON values."""
        return tuple(stage.to_dict() for stage in self.all_stages)

    def logits(self, digests: list[bytes]) -> Floats:
        """Compute the calibrated logits (n×K) of images, given by content hash."""
        logits: Floats = suffix_logits(self.kept.result.network, self._unlabelled(digests)).numpy()
        logits /= np.float32(self.kept.temperature)
        return logits

    def features(self, digests: list[bytes]) -> NDArray[np.floating]:
        """Compute what the trained layers give of images (n×d), which is what the head of the written model sees."""
        return features_of(self.kept.result.network.suffix, self._unlabelled(digests).plain())

    def _unlabelled(self, digests: list[bytes]) -> TuningImages:
        none = np.zeros(len(digests), np.intp)
        return TuningImages(digests=tuple(digests), labels=none, gather=self.kept.extraction.gather)

    @property
    def unseen(self) -> tuple[Unseen, ...]:
        """What training images were said to be by fits that had not seen them."""
        return self.kept.unseen

    @cached_property
    def strangeness(self) -> Strangeness | None:
        """What tells strange images from its own, which are the validation images where the network was tuned."""
        learned = list(self.kept.learned)
        last = self.unseen[-1]
        beside = last.by == "validation"
        seen = self.features(learned)
        unseen = self.features(list(last.digests)) if beside else None
        examples = None
        if self.examples:
            keys = list(self.examples)
            held_out = None if beside else self.head.held_out
            examples = learn_examples(
                seen, learned, self.features(keys), keys, self.logits(keys), judged=held_out, beside=unseen
            )
        return fit_strangeness(
            seen,
            np.array([self.numbered[digest] for digest in learned], np.intp),
            last.logits,
            classes=last.logits.shape[1],
            held_out=None if beside else self.head.held_out,
            unseen=unseen,
            examples=examples,
        )

    def strange(self, digests: list[bytes]) -> NDArray[np.floating]:
        """Work out the strangeness (n) of images, given by content hash."""
        if self.strangeness is None:
            return np.zeros(len(digests))
        return self.strangeness.of(self.features(digests), self.logits(digests))

    @property
    def trained_on(self) -> Sequence[bytes]:
        """Content hashes of the images that it was fitted to."""
        return self.kept.learned

    @property
    def chosen_by(self) -> Sequence[bytes]:
        """Content hashes of the images that it was not fitted to, but chosen or calibrated by."""
        return self.kept.compared

    def write(self, path: Path, *, classes: Sequence[str], training: dict[str, Any], roles: Roles | None) -> None:
        """Write it as a model, with the trained weights in the graph."""
        network, temperature = self.kept.result.network, self.kept.temperature
        here = copy.deepcopy(network).cpu()  # in the processor's float32, with which the written model has to agree

        def probabilities(activations: NDArray[np.float32]) -> NDArray[np.float64]:
            with torch.inference_mode():
                logits = here(torch.from_numpy(activations)).double()
            calibrated: NDArray[np.float64] = (logits / temperature).softmax(1).numpy()
            return calibrated

        weights, biases = (p.detach().cpu().numpy() / temperature for p in (network.weights, network.biases))
        write_model(
            path,
            self.kept.net,
            LinearHead(weights=weights.astype(np.float32), biases=biases.astype(np.float32)),
            suffix=network.suffix.to_onnx(),
            tail=probabilities,
            classes=classes,
            training=training,
            roles=roles,
            strangeness=self.strangeness,
        )


def fine_tune_in_stages(
    nets: Sequence[Backbone],
    extraction: Extraction,
    extract_at: Callable[[Backbone], Extraction],
    census: Census,
    config: RetrainConfig,
    *,
    cache: Path,
    progress: Progress,
) -> FineTunedClassifier:
    """Fine-tune from one cut after the other, each from what the one before has come to, while it gets better.

    Args:
        nets: the backbone at each of its cuts; one, or several that go deeper and deeper.
        extraction: has the activations at the first cut, for all images and views.
        extract_at: makes those at another cut, when they are needed.
        census: the images: those to train on, and those of the validation, which tell what to keep.
        config: how to train, and where.
        cache: where checkpoints lie until a stage has ended.
        progress: is told how far it is.

    Raises:
        ImageSetError: too few images to hold any out.
        DeviceError: the device has too little memory.
    """
    done: list[Stage] = []
    device = torch.device(device_of(config.engine))
    for net in nets:
        at = extract_at(net) if done else extraction
        before = done[-1] if done else None
        with computing_on(device, otherwise="cut nearer to the features (--cut)"):
            done.append(_stage(net, at, census, config, before, cache=cache, progress=progress))
        if not done[-1].is_better:
            break
    kept = next((stage for stage in reversed(done) if stage.is_better), done[0])
    numbered, examples = census.numbered("train", "validation"), census.examples_of_none("train", "validation")
    return FineTunedClassifier(kept, tuple(done), numbered, tuple(examples))


def _stage(
    net: Backbone,
    extraction: Extraction,
    census: Census,
    config: RetrainConfig,
    before: Stage | None,
    *,
    cache: Path,
    progress: Progress,
) -> Stage:
    """Train everything after a cut, from the head at its optimum, or from what the stage before has come to."""
    method, classes = config.method, len(census.classes)
    learned = _examples(extraction, census.numbered("train"), extraction.views)
    compared = _examples(extraction, census.numbered("validation"), 0)
    if not len(compared) or len(set(learned.labels)) < classes:
        raise ImageSetError(
            f"{len(learned) + len(compared)} training images are too few to fine-tune: too few could be held out to "
            "tell whether it helps. Add images, or leave out --cut"
        )
    suffix = GraphModule(suffix_graph(net)).to(device_of(config.engine))
    if before is None:
        head = _fit_head(suffix, learned, classes, config)
        network = SuffixNetwork(suffix, head.weights, head.biases)
    else:
        head = before.head
        network = before.result.network.deepened(suffix)
    began = copy.deepcopy(network.state_dict())
    place = cache / "finetuning" / _identity(network, extraction, learned, compared, config)
    progress.start(f"fine-tuning after {net.cut}", method.epochs * learned.steps_per_epoch(method.batch))
    try:
        result = fine_tune(
            network,
            learned,
            compared,
            method,
            class_weights=_balancing(learned.labels, classes) if config.class_weight else None,
            checkpoints=Checkpoints(place, keep=1),
            report=lambda step, _steps, kept: progress.update(done=step, note=_shown(kept)),
        )
    finally:
        progress.finish()
    shutil.rmtree(place, ignore_errors=True)
    if result.kept.right <= result.start.right:  # no better than where it began, so there it stays
        network.load_state_dict(began)
        result = replace(result, kept=result.start)
    logits: Floats = suffix_logits(network, compared).numpy()
    temperature = fit_temperature(logits, compared.labels)
    validated = [Unseen(by="validation", digests=compared.digests, logits=logits / np.float32(temperature))]
    if before is None and result.kept.epoch == 0:
        # Nothing is left to be compared, so the linear head may learn from all images, and is calibrated as it comes.
        learned = _examples(extraction, census.numbered("train", "validation"), 0)
        compared = _examples(extraction, {}, 0)
        head = _fit_head(suffix, learned, classes, config)
        result = replace(result, network=SuffixNetwork(suffix, head.weights, head.biases))
        temperature, validated = 1.0, []
    return Stage(
        net=net,
        head=head,
        result=result,
        temperature=temperature,
        unseen=(cross_validated(head, learned.digests), *validated),
        validation_given=census.validation_given,
        learned=learned.digests,
        compared=compared.digests,
        extraction=extraction,
    )


def _fit_head(suffix: GraphModule, examples: TuningImages, classes: int, config: RetrainConfig) -> Head:
    """Fit the linear head to its optimum on the plain images' features."""
    return fit_head(
        features_of(suffix, examples.plain()),
        examples.labels,
        examples.digests,
        classes=classes,
        balanced=config.class_weight == "balanced",
        l2=config.l2,
    )


def _examples(extraction: Extraction, numbered: Mapping[bytes, int], views: int) -> TuningImages:
    numbers = np.array(list(numbered.values()), np.intp)
    return TuningImages(digests=tuple(numbered), labels=numbers, gather=extraction.gather, views=views)


def _balancing(labels: NDArray[np.intp], classes: int) -> NDArray[np.float32]:
    """Weigh classes inversely to how many images they have; the weights (K) are 1 on average over the images."""
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * counts)).astype(np.float32)


def _identity(
    network: SuffixNetwork,
    extraction: Extraction,
    learned: TuningImages,
    compared: TuningImages,
    config: RetrainConfig,
) -> str:
    """Hash everything that decides what fine-tuning gives, so that only the same run goes on from a checkpoint."""
    described = {
        "source": extraction.source.spec.identity,
        "views": extraction.views,
        "distortions": asdict(extraction.distortions),
        "method": asdict(config.method),
        "balanced": config.class_weight == "balanced",
        "images": [
            [[digest.hex(), int(label)] for digest, label in zip(part.digests, part.labels, strict=True)]
            for part in (learned, compared)
        ],
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for parameter in network.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _describe(candidate: Candidate) -> dict[str, Any]:
    return {**asdict(candidate), "accuracy": candidate.accuracy}


def _shown(kept: Candidate) -> str:
    return f"{as_percent(kept.accuracy)} of {kept.n:,} validation images after epoch {kept.epoch}"
