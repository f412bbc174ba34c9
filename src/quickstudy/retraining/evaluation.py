"""How good a model is: accuracy with its interval, each class, and what is mistaken for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quickstudy.bottlenecks.store import Store
from quickstudy.files import as_path, cache_folder
from quickstudy.images.census import Content, take_census
from quickstudy.images.imageset import Skipped
from quickstudy.learning.intervals import share_interval
from quickstudy.models.model import Model, load
from quickstudy.models.roles import Judgement, Kind, may_judge
from quickstudy.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Score:
    """A share of right answers with its 95 % interval (Wilson, 1927), which holds for few images too."""

    right: int
    n: int

    @property
    def accuracy(self) -> float:
        """Between 0 and 1; NaN for no images."""
        return self.right / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95 % interval."""
        return share_interval(self.right, self.n)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "accuracy": self.accuracy if self.n else None,
            "right": self.right,
            "n": self.n,
            "interval_95": list(self.interval),
        }


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class: how many of its images were found, and how many called so were right."""

    name: str
    n: int
    predicted: int
    right: int

    @property
    def precision(self) -> float | None:
        """Share of the images called so that are so; None where none was called so."""
        return self.right / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of the class's images that were called so; None where it has none."""
        return self.right / self.n if self.n else None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """So many images of one class were taken for another."""

    truth: str
    predicted: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came out on a set of labelled images."""

    score: Score
    classes: tuple[ClassScore, ...]
    confusions: tuple[Confusion, ...]
    """Most frequent first."""
    missing: tuple[str, ...] = ()
    """Classes of the model of which there was no image."""
    unknown: Mapping[str, int] = field(default_factory=dict)
    """How many images of each class that the model does not know; they are not scored."""
    skipped: tuple[Skipped, ...] = ()
    roles: Mapping[Kind, int] | None = None
    """What the set's images are to the model; None where the model does not say, or was not asked."""
    is_test: bool | None = None
    """Whether no image that was scored was learned or chosen by; None where the model does not say."""
    left_out: int = 0
    """Images that were not scored since the model has learned or was chosen by them."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **self.score.to_dict(),
            "classes": [{**asdict(c), "precision": c.precision, "recall": c.recall} for c in self.classes],
            "confusions": [asdict(confusion) for confusion in self.confusions],
            "missing_classes": list(self.missing),
            "unknown_classes": list(self.unknown),
            "unknown_images": dict(self.unknown),
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
            "roles": None if self.roles is None else dict(self.roles),
            "is_test": self.is_test,
            "left_out": self.left_out,
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Evaluation:
        """From what `to_dict` gave."""
        return Evaluation(
            score=Score(right=values["right"], n=values["n"]),
            classes=tuple(
                ClassScore(**{name: c[name] for name in ("name", "n", "predicted", "right")}) for c in values["classes"]
            ),
            confusions=tuple(Confusion(**confusion) for confusion in values["confusions"]),
            missing=tuple(values["missing_classes"]),
            unknown=dict(values["unknown_images"]),
            skipped=tuple(Skipped(path=Path(item["path"]), reason=item["reason"]) for item in values["skipped"]),
            roles=values["roles"],
            is_test=values["is_test"],
            left_out=values["left_out"],
        )


def score_predictions(
    truth: Sequence[str],
    predicted: Sequence[str],
    classes: Sequence[str],
    *,
    unknown: Mapping[str, int] | None = None,
    skipped: tuple[Skipped, ...] = (),
    judgement: Judgement | None = None,
) -> Evaluation:
    """Compare predicted class names with the true ones.

    Args:
        truth: true class by image.
        predicted: predicted class by image.
        classes: all classes of the model, in its order.
        unknown: images by class that the model does not know.
        skipped: passed through.
        judgement: what the images are to the model, where that was asked.
    """
    pairs = Counter(zip(truth, predicted, strict=True))
    counts, called = Counter(truth), Counter(predicted)
    wrong = [Confusion(truth=t, predicted=p, count=count) for (t, p), count in pairs.items() if t != p]
    return Evaluation(
        score=Score(right=sum(pairs[name, name] for name in classes), n=len(truth)),
        classes=tuple(
            ClassScore(name=name, n=counts[name], predicted=called[name], right=pairs[name, name]) for name in classes
        ),
        confusions=tuple(sorted(wrong, key=lambda pair: (-pair.count, pair.truth, pair.predicted))),
        missing=tuple(name for name in classes if not counts[name]),
        unknown=unknown or {},
        skipped=skipped,
        roles=judgement.roles if judgement else None,
        is_test=judgement.is_test if judgement else None,
        left_out=judgement.left_out if judgement else 0,
    )


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
    census = take_census(as_path(images), stat_index(cache), progress=progress)
    judgement = may_judge(census, [model.roles], classes=model.classes, everything=everything)
    contents = judgement.contents
    progress.start("evaluating", len(contents))
    try:
        said, unusable = ask(model, contents, progress)
    finally:
        progress.finish()
    scored = [content for content in contents if content.digest in said]
    return score_predictions(
        [content.label or "" for content in scored],
        [said[content.digest] for content in scored],
        model.classes,
        unknown=judgement.unknown,
        skipped=(*census.skipped, *unusable),
        judgement=judgement,
    )


def ask(
    model: Model, contents: Sequence[Content], progress: Progress, *, before: int = 0
) -> tuple[dict[bytes, str], list[Skipped]]:
    """Ask a model what it calls each content, by digest, and note the files that it cannot use.

    Args:
        model: the model.
        contents: the images.
        progress: is told how far it has come, of a task that was started.
        before: how many images of the task were done before.
    """
    said: dict[bytes, str] = {}
    unusable: list[Skipped] = []
    predictions = model.predict_each(content.path for content in contents)
    for number, (content, prediction) in enumerate(zip(contents, predictions, strict=True), start=1):
        if prediction.probabilities is None:
            unusable.append(Skipped(path=content.path, reason=prediction.reason))
        else:
            said[content.digest] = model.classes[prediction.probabilities.argmax()]
        progress.update(done=before + number, note="")
    return said, unusable


def stat_index(cache: str | Path | None) -> Path:
    """Where the stat index of a cache folder lies."""
    return Store(cache_folder(cache) / "bottlenecks").index_path
