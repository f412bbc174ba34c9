"""The main job makes a verified classifier from a folder of photos.

It reads top to bottom as it happens: list the images, decide who is held out, make sure that each has its bottleneck,
fit the head to its optimum, or from there everything after a cut, score it on what it has not seen, write the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.cuts import FEATURES, stages
from quickstudy.backbones.engines.engine import Engine
from quickstudy.backbones.engines.named import ONNX_RUNTIME, engine_for
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import Extraction
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import ModelError, OptionError
from quickstudy.files import as_path, cache_folder, require_folder_of
from quickstudy.images.archives import set_name
from quickstudy.images.census import Census, take_census
from quickstudy.images.depth import significant_bits
from quickstudy.images.drawn_roles import RolesBefore
from quickstudy.learning.answers import Answer
from quickstudy.learning.features import Floats
from quickstudy.learning.prior import NamesCompared
from quickstudy.learning.scores import Score, Scores
from quickstudy.learning.selection import Head, LevelsCompared
from quickstudy.learning.strangeness import Strangeness
from quickstudy.models.format import model_path
from quickstudy.models.loading import roles_of_file, roles_of_named
from quickstudy.models.roles import Roles, require_drawn
from quickstudy.options import with_arguments_of
from quickstudy.progress import Progress, silent
from quickstudy.retraining.config import RetrainConfig
from quickstudy.retraining.linear import learn_head
from quickstudy.retraining.passes import Passes
from quickstudy.retraining.previous import Predecessor
from quickstudy.retraining.race import Choice, choose, own_fit
from quickstudy.retraining.record import NOT_CALIBRATED, Record, Unseen, save_record
from quickstudy.retraining.result import RetrainResult

if TYPE_CHECKING:
    from quickstudy.backbones.names import NamedClasses
    from quickstudy.retraining.on_cluster import ClusterPasses
    from quickstudy.retraining.planning import Plan


@with_arguments_of(RetrainConfig())
def retrain(
    images: str | Path,
    output: str | Path | None = None,
    config: RetrainConfig | None = None,
    *,
    ray: str | None = None,
    store: str | None = None,
    cache: str | Path | None = None,
    progress: Progress = silent,
    **options: Any,
) -> RetrainResult:
    """Train a classifier on a folder of images and write it as one `.onnx` file.

    Args:
        images: class folders, split folders with class folders in them, an archive of these, or a CSV or Parquet
            manifest.
        output: the model to write; `<name of images>.onnx` in the working folder if left out.
        config: what to do; `RetrainConfig()` if left out.
        ray: address of a Ray cluster, or `auto`, whose workers compute bottlenecks and add up sums over them for a
            ridge head; left out, this machine does all.
        store: where a cluster keeps bottlenecks: a folder that all nodes see, or a URI that pyarrow.fs knows; the
            folder of `cache` if left out.
        cache: folder of the store and the backbones; see `quickstudy.files.cache_folder`.
        progress: is told how far things are.
        options: values that differ from the configuration's, by the names of its fields or of its parts' fields, such
            as `cut="block_12", epochs=20, seed=1`.

    Raises:
        ImageSetError: there is too little to learn from, or with `strict` a file that cannot be used.
        OptionError: an option is unknown, has a value that it cannot have, or would do nothing beside the others.
        PlanError: no fine-tuning fits the budget.
        ClusterError: there is no such cluster, or it was lost.
        QuickstudyError: the store, the backbone or the model's place cannot be used; see the message.
    """
    config = RetrainConfig.told(options, config)
    if ray is None:
        if store is not None:
            raise OptionError("--store is for clusters; add --ray auto, or name a folder with --cache instead")
        return _retrain(images, output, config, None, cache, progress)
    from quickstudy.cluster import connected
    from quickstudy.retraining.on_cluster import require_cluster_can

    require_cluster_can(config)
    with connected(ray):
        place = store or str(cache_folder(cache) / "bottlenecks")
        return _retrain(images, output, config, place, cache, progress)


def _retrain(
    images: str | Path,
    output: str | Path | None,
    config: RetrainConfig,
    place: str | None,
    cache: str | Path | None,
    progress: Progress,
) -> RetrainResult:
    """Carry out `retrain`, on a Ray cluster that is connected where the place of a shared store is given."""
    started = time.perf_counter()
    images, folder = as_path(images), cache_folder(cache)
    model_path = _model_path(images, output)
    engine, clock, plan = _engine(config), _Clock(), None
    with clock.stage("census"):
        net = None if config.chooses_backbone else load_backbone(config.network, folder).at(config.cut)
        local = Store(folder / "bottlenecks")
        before = None if config.test_share is not None else _roles_before(config.roles_of, model_path)
        census = take_census(
            images,
            local.index_path,
            to_learn=True,
            hold_out=config.tunes,
            before=before,
            test_share=config.test_share,
            labelling=config.labelling,
            progress=progress,
        )
        if config.roles_of is not None:
            require_drawn(census)
        census.require_enough(strict=config.strict)
        bits = significant_bits(census, local.index_path, told=config.bits)
        passes = Passes(local, config, engine, progress)
        spread = _cluster_passes(place, config, progress)
        choices: tuple[Choice, ...] = ()
    if net is None or config.chooses_fit:
        with clock.stage("choices"):
            net, choices = choose(net, census, config, passes, bits=bits, cache=folder)
    net = net.at(config.cut).reading(bits, config.named_fit)
    choices = (*choices, *own_fit(net, config))
    named = None
    if config.prior == "names":
        from quickstudy.backbones.names import embed_names

        with clock.stage("names"):
            named = embed_names(net, census.classes)
    if config.budget_seconds is not None:
        with clock.stage("planning"):
            plan, config = _plan(census, net, config, started, progress)
    with clock.stage("bottlenecks"):
        nets = _cuts(net, config)
        extraction = (spread or passes).at(nets[0], census)
        census = census.without(extraction.unusable)
        census.require_enough(strict=config.strict)
    with clock.stage("fine-tuning" if config.tunes else "head"):
        learned = _learn(
            nets,
            extraction,
            partial(passes.at, census=census),
            census,
            config,
            place,
            named,
            cache=folder,
            progress=progress,
        )
    with clock.stage("evaluation"):
        tested, scores = _judge(learned, census)
    with clock.stage("model"):
        training = _describe(census, learned, extraction, scores, choices, config)
        examples = census.examples_of_none("train", "validation")
        trained_on = (*learned.trained_on, *examples)
        roles = Roles.of(trained_on, learned.chosen_by, census.digests("test")) if config.keep_roles else None
        predecessor = Predecessor(model_path, folder)
        learned.write(model_path, classes=census.classes, training=training, roles=roles)
        save_record(folder, model_path, Record(images=images.resolve(), unseen=(*learned.unseen, *tested)))
        previous = predecessor.keep_and_compare(tested, census.classes, learned.answer, census.labels)
    if config.keep_thumbnails:
        from quickstudy.models.neighbours import keep_neighbours

        with clock.stage("thumbnails"):
            train = census.digests("train", "validation")
            shown = [census.contents[digest] for digest in train]
            keep_neighbours(model_path, shown, features=learned.features(train), cache=folder, progress=progress)
    return RetrainResult(
        model=model_path,
        config=config,
        census=census,
        cross_validation=_cross_validated(learned.head),
        answer=learned.answer,
        test=scores,
        cross_validated=None if scores else _score_unseen(learned, census),
        head=learned.head,
        compared=learned.compared,
        prior=learned.prior,
        choices=choices,
        refusal=learned.strangeness.refusal(config.refuse) if learned.strangeness else None,
        examples=_refused_examples(learned, census, config),
        cut=learned.cut,
        tuning=learned.stages(),
        plan=plan.to_dict() if plan else None,
        computed=(spread or passes).computed,
        cached=(spread or passes).cached,
        previous=previous,
        seconds=clock.seconds,
        extraction=extraction.timings,
    )


def _model_path(images: Path, output: str | Path | None) -> Path:
    if output is None:
        return Path(f"{set_name(images)}.onnx")
    path = model_path(output)
    require_folder_of(path, "model")
    return path


def _cluster_passes(place: str | None, config: RetrainConfig, progress: Progress) -> ClusterPasses | None:
    if place is None:
        return None
    from quickstudy.retraining.on_cluster import ClusterPasses

    return ClusterPasses(place, config, progress)


def _engine(config: RetrainConfig) -> Engine:
    engine = engine_for(config.engine)
    if config.budget_seconds is not None and engine is not ONNX_RUNTIME:
        raise OptionError(
            f"--budget plans for the engine onnxruntime only; with '{config.engine}', give --cut and --epochs instead"
        )
    return engine


def _roles_before(named: Path | None, model: Path) -> RolesBefore | None:
    """Find the roles that stand: those of the model that was named, or else of the one that will be written over."""
    if named is not None:
        return roles_of_named(as_path(named)).role
    if not model.is_file():
        return None
    try:
        roles = roles_of_file(model)
    except ModelError:
        return None  # another file, or an earlier version's: it says nothing that could stand
    if roles is None or not roles.tested:
        return None  # without a test, nothing there is tested on again
    return roles.role


def _plan(
    census: Census, net: Backbone, config: RetrainConfig, started: float, progress: Progress
) -> tuple[Plan, RetrainConfig]:
    """Choose what fits the budget, and the configuration that says so instead of a budget."""
    from quickstudy.retraining.planning import plan_for

    plan = plan_for(census, net, config, started=started, progress=progress)
    return plan, config.planned(cut=plan.cost.cut.name, views=plan.views, epochs=plan.epochs)


def _cuts(net: Backbone, config: RetrainConfig) -> list[Backbone]:
    """Give the network at the cut, or at all those that it is unfrozen at step by step, shallowest first."""
    if not config.progressive:
        return [net.at(config.cut)]
    return [net.at(name) for name in stages(net.cuts, None if config.cut == FEATURES else config.cut)]


class Learned(Protocol):
    """What has been learned from the training images: a linear head, or what fine-tuning made."""

    @property
    def head(self) -> Head:
        """The linear head at its optimum; fine-tuning, if there was any, began from it."""

    @property
    def answer(self) -> Answer:
        """What its probabilities are answered by: the most probable class, or several labels by thresholds."""

    @property
    def cut(self) -> str:
        """Name of the cut at which freezing ended."""

    @property
    def compared(self) -> LevelsCompared | None:
        """What cross-validation found of the last features and of all levels; None where they were not compared."""

    @property
    def prior(self) -> NamesCompared | None:
        """What cross-validation found of the names of the classes; None where they were not compared."""

    def stages(self) -> tuple[dict[str, Any], ...]:
        """Tell how fine-tuning went, as JSON values; empty where there was none."""

    def features(self, digests: list[bytes]) -> NDArray[np.floating]:
        """Compute what the head of the written model sees of images (n×d), given by content hash."""

    def logits(self, digests: list[bytes]) -> Floats:
        """Compute the calibrated logits (n×K) of images, given by content hash."""

    def strange(self, digests: list[bytes]) -> NDArray[np.floating]:
        """Compute the strangeness (n) of images, given by content hash; 0 where it cannot be told."""

    @property
    def unseen(self) -> tuple[Unseen, ...]:
        """What training images were said to be by fits that had not seen them; what calibrated the model comes last."""

    @property
    def strangeness(self) -> Strangeness | None:
        """What tells strange images from its own; None where there were too few images to tell."""

    @property
    def trained_on(self) -> Sequence[bytes]:
        """Content hashes of the images that it was fitted to."""

    @property
    def chosen_by(self) -> Sequence[bytes]:
        """Content hashes of the images that it was not fitted to, but chosen or calibrated by."""

    def write(self, path: Path, *, classes: Sequence[str], training: dict[str, Any], roles: Roles | None) -> None:
        """Write what was learned as a model."""


class _Clock:
    """Notes the wall time of stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def _learn(
    nets: Sequence[Backbone],
    extraction: Extraction,
    extract_at: Callable[[Backbone], Extraction],
    census: Census,
    config: RetrainConfig,
    place: str | None,
    named: NamedClasses | None,
    *,
    cache: Path,
    progress: Progress,
) -> Learned:
    """Fit the head to its optimum, and from there everything after a cut where that was asked for."""
    if not config.tunes:
        train, targets = census.targets("train", "validation")
        if place is not None:
            from quickstudy.retraining.on_cluster import learn_on_cluster

            linear = learn_on_cluster(nets[0], extraction, train, targets, config, place=place, progress=progress)
        else:
            linear = learn_head(nets[0], extraction, train, targets, config)
        if named is not None:
            linear = linear.with_names(named.of(census.classes))
        return linear.with_strangeness(census.examples_of_none("train", "validation"))
    from quickstudy.retraining.finetune import fine_tune_in_stages

    return fine_tune_in_stages(nets, extraction, extract_at, census, config, cache=cache, progress=progress)


def _judge(learned: Learned, census: Census) -> tuple[list[Unseen], Scores | None]:
    """Look at the test images, once: what is said of those whose class is known, and the scores; None without any."""
    digests = census.digests("test")
    known = [d for d in digests if census.several or census.labels[d] in census.classes]
    logits = learned.logits(known) if known else np.empty((0, len(census.classes)), np.float32)
    tested = [Unseen(by="test", digests=tuple(known), logits=logits)] if known else []
    if not digests:
        return tested, None
    return tested, learned.answer.score(
        learned.answer.link.probabilities(logits),
        [census.names[digest] for digest in known],
        census.classes,
        unknown=census.strangers,
    )


def _score_unseen(learned: Learned, census: Census) -> Scores | None:
    """Score what cross-validation said of images of several labels; None where each has one, or none were judged."""
    unseen = learned.unseen[0]
    if not census.several or not unseen.digests:
        return None
    labels = [census.names[digest] for digest in unseen.digests]
    return learned.answer.score(learned.answer.link.probabilities(unseen.logits), labels, census.classes)


def _refused_examples(learned: Learned, census: Census, config: RetrainConfig) -> Score | None:
    """Count the test's examples of none of the classes that are refused; None where there are none."""
    digests = census.examples_of_none("test")
    if not digests or not learned.strangeness:
        return None
    threshold = learned.strangeness.refusal(config.refuse).threshold
    return Score(right=int((learned.strange(digests) > threshold).sum()), n=len(digests))


def _cross_validated(head: Head) -> Score:
    return Score(right=head.held_out_right, n=head.held_out_count)


def _describe(
    census: Census,
    learned: Learned,
    extraction: Extraction,
    scores: Scores | None,
    choices: tuple[Choice, ...],
    config: RetrainConfig,
) -> dict[str, Any]:
    """Summarise what was learned, from what, for the model file; the same data give the same text."""
    numbers = {} if census.several else census.numbered("train", "validation")
    return {
        "data_fingerprint": census.fingerprint,
        "split": "given" if census.given else "by content" if census.test_share else "by content, none for the test",
        "train_counts": dict(sorted(census.counts("train", "validation").items())),
        "engine": extraction.source.spec.engine,
        "views": extraction.views,
        "l2": learned.head.l2,
        "temperature": learned.head.temperature,
        "levels": learned.compared.to_dict() if learned.compared else None,
        **({"prior": learned.prior.to_dict()} if learned.prior else {}),
        "choices": [choice.to_dict() for choice in choices],
        "cross_validation": _cross_validated(learned.head).to_dict(),
        **({"never_held_out": alone} if (alone := learned.head.never_held_out) else {}),
        "options": config.recorded(),
        **(learned.unseen[-1].calibrated(numbers, len(census.classes)) if numbers else NOT_CALIBRATED),
        "strangeness": learned.strangeness.refusal(config.refuse).to_dict() if learned.strangeness else None,
        "test": scores.score.to_dict() if scores else None,
        **({"figures": scores.several.to_dict()} if scores and scores.several else {}),
        # Without what differs from run to run.
        "fine_tuning": [{k: v for k, v in stage.items() if k != "seconds"} for stage in learned.stages()],
    }
