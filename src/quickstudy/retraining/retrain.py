"""The main job: from a folder of photos to a verified classifier.

Reads top to bottom as it happens: list the images, make sure that each has its bottleneck, decide who is held out, fit
the head to its optimum, or from there everything after a cut, score it on what it has not seen, write the model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone, load_backbone
from quickstudy.backbones.cuts import FEATURES, stages
from quickstudy.backbones.runtime import ONNX_RUNTIME, engine_for
from quickstudy.bottlenecks.extraction import Extraction, extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import ImageSetError, ModelError, PlanError
from quickstudy.files import cache_folder
from quickstudy.finetuning.method import VIEWS, Method
from quickstudy.heads.calibration import probabilities_of, suggest_abstention
from quickstudy.heads.selection import Head, fit_head
from quickstudy.heads.softmax import Floats
from quickstudy.images.imageset import load_image_set, require_classes
from quickstudy.images.splits import LOCK_NAME, Part
from quickstudy.images.views import Distortions
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.progress import Progress, silent
from quickstudy.retraining.evaluation import Evaluation, Score, score_predictions
from quickstudy.retraining.material import (
    Material,
    data_fingerprint,
    draw_parts,
    require_training_images,
    sort_material,
)
from quickstudy.retraining.record import Record, Unseen, cross_validated, save_record
from quickstudy.retraining.result import RetrainResult

ClassWeight = Literal["balanced"]


def retrain(
    images: str | Path,
    output: str | Path | None = None,
    *,
    backbone: str = "efficientnet_lite0",
    cut: str = FEATURES,
    progressive: bool = False,
    budget_seconds: float | None = None,
    disk_bytes: float | None = None,
    method: Method | None = None,
    views: int | None = None,
    distortions: Distortions | None = None,
    class_weight: ClassWeight | None = None,
    l2: float | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    device: str = "cpu",
    engine: Literal["onnxruntime", "openvino"] = "onnxruntime",
    cache: str | Path | None = None,
    strict: bool = False,
    keep_thumbnails: bool = False,
    progress: Progress = silent,
) -> RetrainResult:
    """Train a classifier on a folder of images and write it as one `.onnx` file.

    Args:
        images: class folders, split folders with class folders in them, or a CSV or Parquet manifest.
        output: the model to write; `<name of images>.onnx` in the working folder if left out.
        backbone: name of the pretrained network.
        cut: where freezing ends; what follows is fine-tuned. By default only the head is trained.
        progressive: fine-tune step by step, from a late cut to earlier ones, `cut` at the earliest, for as long as
            that makes the network better on the validation images.
        budget_seconds: let the planner choose cut, views and epochs that fit this time.
        disk_bytes: with a budget, how much the store may grow.
        method: how to fine-tune, where there is something to fine-tune.
        views: augmented views an image to train on besides the plain one; none if left out, or `VIEWS`
            where there is something to fine-tune.
        distortions: how views differ from the plain image.
        class_weight: `balanced` weighs all classes the same, however many images they have.
        l2: regularisation strength; chosen by cross-validation if left out.
        dtype: how bottlenecks are kept in the store.
        device: what the network runs on: `cpu`, or a GPU as PyTorch names it, such as `cuda`.
        engine: what computes bottlenecks on the processor. OpenVINO is nearly twice as fast where the processor has
            instructions for bfloat16; the model that comes of it runs in any ONNX runtime all the same.
        cache: folder of the store and the backbones; see `quickstudy.files.cache_folder`.
        strict: raise an error for the first file that cannot be used instead of leaving it out.
        keep_thumbnails: write thumbnails of the training images beside the model, for the page of `quickstudy serve` to
            show which are nearest; see `quickstudy.models.neighbours`.
        progress: is told how far things are.

    Raises:
        ImageSetError: there is too little to learn from, or with `strict` a file that cannot be used.
        PlanError: no fine-tuning fits the budget, or it is given with another device or engine than is planned for.
        QuickstudyError: the store, the backbone or the model's place cannot be used; see the message.
    """
    images, folder = Path(images), cache_folder(Path(cache) if cache else None)
    model_path = _model_path(images, output)
    method = method or Method()
    if views is not None and views < 0:
        raise ImageSetError(f"The number of views cannot be negative; got {views}")
    runner, clock = engine_for(device, engine), _Clock()
    if budget_seconds is not None and runner is not ONNX_RUNTIME:
        raise PlanError(
            "The planner measures ONNX Runtime on the processor; name a cut and epochs, not a budget, with "
            + (f"engine '{engine}'" if device == "cpu" else f"device '{device}'")
        )
    with clock.stage("listing"):
        found = load_image_set(images)
        require_classes(Counter(file.label for file in found.files), images)
        net = load_backbone(backbone, folder).at(cut)
    cuts, plan = [cut], None
    if budget_seconds is not None:
        from quickstudy.retraining.planning import plan_for

        with clock.stage("planning"):
            plan = plan_for(found, net, seconds=budget_seconds, disk_bytes=disk_bytes, method=method, dtype=dtype)
            cuts, views, method = [plan.cost.cut.name], plan.views, replace(method, epochs=plan.epochs)
    elif progressive:
        cuts = stages(net.cuts, None if cut == FEATURES else cut)
    tunes = cuts != [FEATURES]
    views = (VIEWS if tunes else 0) if views is None else views

    extractions: list[Extraction] = []

    def bottlenecks_at(net: Backbone) -> Extraction:
        paths, store = [file.path for file in found.files], Store(folder / "bottlenecks")
        extractions.append(
            extract(
                paths,
                net,
                store,
                views=views,
                distortions=distortions,
                dtype=dtype,
                engine=runner,
                progress=progress,
            )
        )
        return extractions[-1]

    net = net.at(cuts[0])
    with clock.stage("bottlenecks"):
        extraction = bottlenecks_at(net)
    with clock.stage("splitting"):
        material = sort_material(found, extraction, strict=strict)
        parts = material.given_parts or draw_parts(material.labels, model_path.parent / LOCK_NAME)
        train, test = (sorted(digest for digest, part in parts.items() if part == side) for side in ("train", "test"))
        train_counts = Counter(material.labels[digest] for digest in train)
        require_training_images(train_counts, material, images)
        classes = tuple(sorted(train_counts))
    learned: Learned
    if not tunes:
        with clock.stage("head"):
            learned = _fit(net, extraction, material.labels, train, classes, class_weight, l2)
    else:
        from quickstudy.retraining.finetune import Lesson, fine_tune_in_stages

        lesson = Lesson(
            train=train,
            labels=_numbered(material.labels, train, classes),
            validation=material.validation,
            classes=len(classes),
            balanced=class_weight == "balanced",
            l2=l2,
        )
        with clock.stage("fine-tuning"):
            learned = fine_tune_in_stages(
                [net.at(name) for name in cuts],
                extraction,
                bottlenecks_at,
                lesson,
                method,
                device=device,
                cache=folder,
                progress=progress,
            )
    with clock.stage("evaluation"):
        known = [digest for digest in test if material.labels[digest] in classes]
        tested = [Unseen(by="test", digests=tuple(known), logits=learned.logits(known))] if known else []
        evaluation = _evaluate(tested, material.labels, test, classes) if test else None
    with clock.stage("model"):
        abstention = _abstention(learned.unseen[-1], _numbered(material.labels, train, classes))
        training = {
            **_describe_training(material, parts, train_counts, learned, extraction),
            "class_weight": class_weight,
            "l2_given": l2 is not None,
            "abstention": abstention,
            "test": evaluation.score.to_dict() if evaluation else None,
        }
        learned.write(model_path, classes=classes, training=training)
        save_record(folder, model_path, Record(images=images.resolve(), unseen=(*learned.unseen, *tested)))
    if keep_thumbnails:
        from quickstudy.models.neighbours import keep_neighbours

        with clock.stage("thumbnails"):
            file_of = {digest: file.path for digest, file in zip(extraction.digests, found.files, strict=True)}
            shown = [(file_of[digest], material.labels[digest]) for digest in train]
            keep_neighbours(model_path, shown, features=learned.features(train), progress=progress)
    return RetrainResult(
        model=model_path,
        classes=classes,
        train_counts={name: train_counts[name] for name in classes},
        test_counts=dict(sorted(Counter(material.labels[d] for d in test).items())),
        skipped=material.skipped,
        conflicts=material.conflicts,
        copies=material.copies,
        leaks=material.leaks,
        cross_validation=_cross_validated(learned.head),
        test=evaluation,
        head=learned.head,
        cut=learned.cut,
        views=views,
        tuning=learned.stages(),
        plan=plan.to_dict() if plan else None,
        computed=sum(one.computed for one in extractions),
        cached=sum(one.cached for one in extractions),
        seconds=clock.seconds,
        extraction=extraction.timings,
    )


class Learned(Protocol):
    """What has been learned from the training images."""

    @property
    def head(self) -> Head:
        """The linear head at its optimum; where fine-tuning began if there was any."""

    @property
    def cut(self) -> str:
        """Where freezing ended."""

    def stages(self) -> tuple[dict[str, Any], ...]:
        """How fine-tuning went, as JSON values; nothing where there was none."""

    def features(self, digests: list[bytes]) -> NDArray[np.floating]:
        """What the head of the written model sees of images (n×d)."""

    def logits(self, digests: list[bytes]) -> Floats:
        """Calibrated logits (n×K) of images."""

    @property
    def unseen(self) -> tuple[Unseen, ...]:
        """What training images were said to be by fits that had not seen them; what calibrated the model comes last."""

    def write(self, path: Path, *, classes: Sequence[str], training: dict[str, Any]) -> None:
        """Write it as a model."""


@dataclass(frozen=True)
class _Linear:
    """A linear head on frozen features."""

    head: Head
    net: Backbone
    extraction: Extraction
    train: list[bytes]

    @property
    def cut(self) -> str:
        return self.net.cut

    def stages(self) -> tuple[dict[str, Any], ...]:
        return ()

    def features(self, digests: list[bytes]) -> NDArray[np.floating]:
        return self.extraction.gather(digests)

    def logits(self, digests: list[bytes]) -> Floats:
        return self.head.logits(self.extraction.gather(digests))

    @property
    def unseen(self) -> tuple[Unseen, ...]:
        return (cross_validated(self.head, self.train),)

    def write(self, path: Path, *, classes: Sequence[str], training: dict[str, Any]) -> None:
        linear = LinearHead(weights=self.head.weights, biases=self.head.biases)
        write_model(path, self.net, linear, classes=classes, training=training)


class _Clock:
    """Notes the wall time of stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def _model_path(images: Path, output: str | Path | None) -> Path:
    if output is None:
        return Path(f"{images.resolve().stem if images.is_file() else images.resolve().name}.onnx")
    path = Path(output)
    if path.suffix != ".onnx":
        raise ModelError(f"The model must be named *.onnx; got '{path}'")
    if not path.parent.is_dir():
        raise ModelError(f"There is no folder '{path.parent}' to write the model '{path.name}' to; make it first")
    return path


def _fit(
    net: Backbone,
    extraction: Extraction,
    labels: dict[bytes, str],
    train: list[bytes],
    classes: tuple[str, ...],
    class_weight: ClassWeight | None,
    l2: float | None,
) -> _Linear:
    views = range(extraction.views + 1)
    numbers = np.array(list(_numbered(labels, train, classes).values()), np.intp)
    head = fit_head(
        np.concatenate([extraction.gather(train, view) for view in views]),
        np.tile(numbers, len(views)),
        train * len(views),
        classes=len(classes),
        plain=np.repeat(np.array([view == 0 for view in views]), len(train)),
        balanced=class_weight == "balanced",
        l2=l2,
    )
    return _Linear(head, net, extraction, train)


def _evaluate(
    tested: Sequence[Unseen],
    labels: dict[bytes, str],
    test: list[bytes],
    classes: tuple[str, ...],
) -> Evaluation:
    return score_predictions(
        [labels[digest] for part in tested for digest in part.digests],
        [classes[number] for part in tested for number in part.logits.argmax(axis=1)],
        classes,
        unknown=tuple(sorted({labels[digest] for digest in test} - set(classes))),
    )


def _numbered(labels: dict[bytes, str], digests: list[bytes], classes: tuple[str, ...]) -> dict[bytes, int]:
    number_of = {name: number for number, name in enumerate(classes)}
    return {digest: number_of[labels[digest]] for digest in digests}


def _cross_validated(head: Head) -> Score:
    return Score(right=head.held_out_right, n=len(head.held_out))


def _abstention(unseen: Unseen, numbers: dict[bytes, int]) -> dict[str, Any] | None:
    """From which confidence on the model should answer, by images that calibrated it; None where they cannot tell."""
    probabilities = probabilities_of(unseen.logits)
    truth = np.array([numbers[digest] for digest in unseen.digests], np.intp)
    found = suggest_abstention(probabilities.max(axis=1), probabilities.argmax(axis=1) == truth)
    return {"by": unseen.by, **found.to_dict()} if found else None


def _describe_training(
    material: Material,
    parts: dict[bytes, Part],
    train_counts: Counter[str],
    learned: Learned,
    extraction: Extraction,
) -> dict[str, Any]:
    """What was learned, from what, for the summary that the model file carries; the same data give the same text."""
    return {
        "data_fingerprint": data_fingerprint(material.labels, parts),
        "split": "given" if material.given_parts is not None else "by content",
        "train_counts": dict(sorted(train_counts.items())),
        "engine": extraction.source.spec.engine,
        "dtype": extraction.source.spec.dtype,
        "views": extraction.views,
        "distortions": asdict(extraction.distortions) if extraction.views else None,
        "l2": learned.head.l2,
        "temperature": learned.head.temperature,
        "cross_validation": _cross_validated(learned.head).to_dict(),
        # Without what differs from run to run.
        "fine_tuning": [{k: v for k, v in stage.items() if k != "seconds"} for stage in learned.stages()],
    }
