"""Models are judged on labelled images that they have not learned: one on its own, or two on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.bottlenecks.store import Store
from quickstudy.errors import ImageSetError, ModelError
from quickstudy.files import as_path, cache_folder
from quickstudy.images.census import Content, take_census
from quickstudy.images.imageset import Skipped, as_label
from quickstudy.learning.answers import compare_average_precision, marks_of
from quickstudy.learning.scores import Interval, Paired, Score, Scores
from quickstudy.models.loading import load
from quickstudy.models.model import Model
from quickstudy.models.roles import Judgement, Relation, may_judge
from quickstudy.progress import Progress, silent
from quickstudy.wording import quoted


@dataclass(frozen=True, kw_only=True)
class Evaluation(Scores):
    """Scores of a model on a set of labelled images, and what those images are to it."""

    judgement: Judgement
    """Roles that the set's images have in the model, and which images were left out for that."""
    answered: Score | None = None
    """Score of the images that the model does not take for none of its classes; None where it does not tell."""
    strangers: Score | None = None
    """How many of the images of classes that the model does not know it takes for none of its classes; None where it
    does not tell, or there are none."""
    examples: Score | None = None
    """How many of the images that are labelled as of none of the classes it takes for none of these; None where it does
    not tell, or there are none."""
    skipped: tuple[Skipped, ...] = ()
    """Files that cannot be used, with the reason."""

    @property
    def roles(self) -> dict[Relation, int] | None:
        """Number of labelled images of the set by their role in the model; None where the model does not say."""
        return self.judgement.roles

    @property
    def left_out(self) -> int:
        """Number of images that were not scored, since the model has learned or was chosen by them."""
        return self.judgement.left_out

    @property
    def is_test(self) -> bool | None:
        """Whether no image that was scored was learned or chosen by; None where the model does not say."""
        return self.judgement.is_test

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON values."""
        return {
            **super().to_dict(),
            **self.judgement.to_dict(),
            "answered": self.answered.to_dict() if self.answered else None,
            "strangers_refused": self.strangers.to_dict() if self.strangers else None,
            "examples_refused": self.examples.to_dict() if self.examples else None,
            "skipped": [item.to_dict() for item in self.skipped],
        }


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model said of an image."""

    labels: tuple[str, ...]
    """The most probable class, or the labels that are given, sorted."""
    probabilities: NDArray[np.float32]
    """Probabilities of the model's classes (K)."""
    none_of_these: bool
    """Whether the image is too strange to be of any class; False where the model does not tell."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One image that the two models call differently."""

    path: Path
    """Path of the image, the first of its files."""
    label: str
    """Labels of the image, as a text."""
    first: str
    """Labels that the first model gives, as a text."""
    second: str
    """Labels that the second model gives, as a text."""


@dataclass(frozen=True, kw_only=True)
class Comparison(Paired):
    """Scores of two models on the same labelled images, and where the two differ."""

    differences: tuple[Difference, ...]
    """Images that the two call differently, whether or not one is right, by path."""
    judgement: Judgement
    """Roles that the set's images have in the models, for each image the one closest to training, and what was left
    out for that."""
    skipped: tuple[Skipped, ...]
    """Files that cannot be used, with the reason."""
    average_precision: Interval | None = None
    """Mean average precision of the second less that of the first, over labels that both know, with its interval by
    paired bootstrap; None where each image is of one class."""

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON values."""
        return {
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
            "average_precision_difference": self.average_precision.to_dict() if self.average_precision else None,
            "difference": self.difference,
            "interval_95": list(self.interval),
            "only_first_right": self.only_first,
            "only_second_right": self.only_second,
            "p_value": self.p_value,
            **self.judgement.to_dict(),
            "unknown_classes": list(self.judgement.unknown),
            "differences": [
                {"path": str(d.path), "label": d.label, "first": d.first, "second": d.second} for d in self.differences
            ],
            "skipped": [item.to_dict() for item in self.skipped],
        }


def evaluate(
    model: Model | str | Path,
    images: str | Path,
    *,
    everything: bool = False,
    cache: str | Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Score a model on labelled images that it has neither learned nor been chosen by, matching classes by name.

    A set with a test split is scored on that alone. Each content counts once.

    Args:
        model: a loaded model, or the path of one.
        images: folder or manifest, as for `retrain`.
        everything: score all images, whatever they are to the model; the result says whether that is a test.
        cache: folder whose stat index spares hashing unchanged files; see `quickstudy.files.cache_folder`.
        progress: is told how far it has come.

    Raises:
        ModelError: the model cannot be loaded.
        ImageSetError: no images, none of a class that the model knows, or none that it has not learned.
    """
    model = model if isinstance(model, Model) else load(model)
    census = take_census(as_path(images), stat_index(cache), labelling=model.labelling, progress=progress)
    judgement = may_judge(census, [model.roles], classes=model.classes, everything=everything)
    strange = (*judgement.strangers, *judgement.examples) if model.refusal else ()
    contents = (*judgement.contents, *strange)
    progress.start("evaluating", len(contents))
    try:
        said, unusable = ask(model, contents, progress)
    finally:
        progress.finish()
    scored = [content for content in judgement.contents if content.digest in said]
    scores = model.answer.score(
        _table(said, scored, len(model.classes)),
        [content.labels or () for content in scored],
        model.classes,
        unknown=judgement.unknown,
    )
    kept = [content for content in scored if not said[content.digest].none_of_these]
    right = sum(said[content.digest].labels == content.labels for content in kept)
    return Evaluation(
        **vars(scores),
        judgement=judgement,
        answered=Score(right=right, n=len(kept)) if model.refusal else None,
        strangers=_refused(said, judgement.strangers) if model.refusal else None,
        examples=_refused(said, judgement.examples) if model.refusal else None,
        skipped=(*census.skipped, *unusable),
    )


def compare(
    first: Model | str | Path,
    second: Model | str | Path,
    images: str | Path,
    *,
    everything: bool = False,
    cache: str | Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Score two models on the same labelled images, of which neither has learned or been chosen by any.

    Of a set with a test split only that is used. Each content counts once.

    Args:
        first: a model, or the path of one.
        second: the other.
        images: folder or manifest, as for `retrain`.
        everything: take all images, whatever they are to the models; the result says whether that is a test.
        cache: folder whose stat index spares hashing unchanged files; see `quickstudy.files.cache_folder`.
        progress: is told how far it has come.

    Raises:
        ModelError: a model cannot be loaded.
        ModelError: one gives one class an image, the other any number of labels, or they are one and the same.
        ImageSetError: there is no image that can be used, of a class that both models know, that is a test of both.
    """
    models = [model if isinstance(model, Model) else load(model) for model in (first, second)]
    several = models[0].labelling.several
    if models[1].labelling.several != several:
        raise ModelError(
            f"The {'first' if several else 'second'} model gives any number of labels an image, the other one class; "
            "compare two of a kind"
        )
    seals = [model.metadata.get("sha256") for model in models]
    if models[0] is models[1] or (seals[0] and seals[0] == seals[1]):
        names = quoted(dict.fromkeys(str(model) for model in (first, second) if not isinstance(model, Model)))
        raise ModelError(
            f"The two models are one and the same, byte for byte{names and f' ({names})'}; name two that differ"
        )
    # The name that stands for none of the classes in one model is that in both: who has learned it as a class says so.
    labelling = next((model.labelling for model in models if model.labelling.none), models[0].labelling)
    census = take_census(as_path(images), stat_index(cache), labelling=labelling, progress=progress)
    shared = set(models[0].classes) & set(models[1].classes)
    judgement = may_judge(census, [model.roles for model in models], classes=shared, everything=everything)
    contents = judgement.contents
    predicted: list[dict[bytes, Said]] = []
    skipped = {item.path: item for item in census.skipped}
    progress.start("comparing", 2 * len(contents))
    try:
        for number, model in enumerate(models):
            said, unusable = ask(model, contents, progress, before=number * len(contents))
            predicted.append(said)
            skipped.update((item.path, item) for item in unusable)
    finally:
        progress.finish()
    scored = [content for content in contents if all(content.digest in names for names in predicted)]
    if not scored:
        raise ImageSetError(f"No image under '{images}' of a class that both models know can be used")
    truth = {content.digest: _among(content.labels or (), shared) for content in scored}
    answers = [{c.digest: _among(names[c.digest].labels, shared) for c in scored} for names in predicted]
    if not several:  # a class that only one of them knows is wrong, and no answer at all would be as well
        answers = [{c.digest: names[c.digest].labels for c in scored} for names in predicted]
    right = [[names[digest] == labels for digest, labels in truth.items()] for names in answers]
    differences = (
        Difference(
            path=c.path,
            label=c.label or "",
            first=as_label(answers[0][c.digest]) or "",
            second=as_label(answers[1][c.digest]) or "",
        )
        for c in scored
    )
    columns = [[model.classes.index(name) for name in sorted(shared)] for model in models]
    tables = [
        _table(names, scored, len(model.classes))[:, mine]
        for names, model, mine in zip(predicted, models, columns, strict=True)
    ]
    return Comparison(
        **vars(Paired.of(*right)),
        average_precision=compare_average_precision(
            tables[0], tables[1], marks_of(list(truth.values()), sorted(shared))
        )
        if several
        else None,
        differences=tuple(sorted((d for d in differences if d.first != d.second), key=lambda d: str(d.path))),
        judgement=judgement,
        skipped=tuple(skipped.values()),
    )


def ask(
    model: Model, contents: Sequence[Content], progress: Progress, *, before: int = 0
) -> tuple[dict[bytes, Said], list[Skipped]]:
    """Ask a model what it calls each content, by digest, and note the files that it cannot use.

    Args:
        model: the model.
        contents: the images.
        progress: is told how far it has come, of a task that was started.
        before: how many images of the task were done before.
    """
    said: dict[bytes, Said] = {}
    unusable: list[Skipped] = []
    predictions = model.predict_each(content.path for content in contents)
    for number, (content, prediction) in enumerate(zip(contents, predictions, strict=True), start=1):
        if prediction.probabilities is None:
            unusable.append(Skipped(path=content.path, reason=prediction.reason))
        else:
            said[content.digest] = Said(
                labels=tuple(sorted(model.labels(prediction.probabilities))),
                probabilities=prediction.probabilities,
                none_of_these=model.is_none_of_these(prediction.strangeness),
            )
        progress.update(done=before + number, note="")
    return said, unusable


def _table(said: dict[bytes, Said], contents: Sequence[Content], classes: int) -> NDArray[np.float32]:
    """Bring together the probabilities (n×K) of images."""
    rows = [said[content.digest].probabilities for content in contents]
    return np.stack(rows) if rows else np.empty((0, classes), np.float32)


def _refused(said: dict[bytes, Said], contents: Sequence[Content]) -> Score | None:
    """Count how many images are taken for none of the classes; None where none could be used."""
    found = [said[content.digest].none_of_these for content in contents if content.digest in said]
    return Score(right=sum(found), n=len(found)) if found else None


def _among(names: tuple[str, ...], classes: set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in classes)


def stat_index(cache: str | Path | None) -> Path:
    """Give the place of the stat index in a cache folder."""
    return Store(cache_folder(cache) / "bottlenecks").index_path
