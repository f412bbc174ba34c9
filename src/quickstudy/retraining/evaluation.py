"""How good a model is: accuracy with its interval, each class, and what is mistaken for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quickstudy.errors import ImageSetError, UnusableImageError
from quickstudy.images.identity import read_image_file
from quickstudy.images.imageset import ImageFile, ImageSet, Skipped, load_image_set
from quickstudy.images.splits import LOCK_NAME, read_lock
from quickstudy.intervals import share_interval
from quickstudy.models.model import Model, load
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
    unknown: tuple[str, ...] = ()
    """Classes of the images that the model does not know; their images are not scored."""
    skipped: tuple[Skipped, ...] = ()
    trained_on: int = 0
    """How many of the images the split lock beside the model has for training; they say little about others."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **self.score.to_dict(),
            "classes": [{**asdict(c), "precision": c.precision, "recall": c.recall} for c in self.classes],
            "confusions": [asdict(confusion) for confusion in self.confusions],
            "missing_classes": list(self.missing),
            "unknown_classes": list(self.unknown),
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
            "trained_on": self.trained_on,
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
            unknown=tuple(values["unknown_classes"]),
            skipped=tuple(Skipped(path=Path(item["path"]), reason=item["reason"]) for item in values["skipped"]),
            trained_on=values.get("trained_on", 0),
        )


def score_predictions(
    truth: Sequence[str],
    predicted: Sequence[str],
    classes: Sequence[str],
    *,
    unknown: tuple[str, ...] = (),
    skipped: tuple[Skipped, ...] = (),
    trained_on: int = 0,
) -> Evaluation:
    """Compare predicted class names with the true ones.

    Args:
        truth: true class by image.
        predicted: predicted class by image.
        classes: all classes of the model, in its order.
        unknown: passed through.
        skipped: passed through.
        trained_on: passed through.
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
        unknown=unknown,
        skipped=skipped,
        trained_on=trained_on,
    )


def evaluate(model: Model | str | Path, images: str | Path, *, progress: Progress = silent) -> Evaluation:
    """Score a model on labelled images, matching classes by name; a set with a test split is scored on that alone.

    Args:
        model: a loaded model, or the path of one.
        images: folder or manifest, as for `retrain`.
        progress: is told how far it has come.

    Raises:
        ModelError: the model cannot be loaded.
        ImageSetError: no images, or none of a class that the model knows.
    """
    trained = set() if isinstance(model, Model) else training_images(Path(model))
    model = model if isinstance(model, Model) else load(model)
    found: ImageSet = load_image_set(Path(images))
    files = [file for file in found.files if file.split == "test"] if found.has_splits else list(found.files)
    scored = [file for file in files if file.label in model.classes]
    unknown = tuple(sorted({file.label for file in files} - set(model.classes)))
    if not scored:
        raise ImageSetError(
            f"No image under '{images}' is of a class that the model knows: it knows {_some(model.classes)}; "
            f"the images are of {_some(unknown)}. Classes are matched by name"
        )
    truth: list[str] = []
    predicted: list[str] = []
    skipped = list(found.skipped)
    progress.start("evaluating", len(scored))
    try:
        predictions = model.predict_each(file.path for file in scored)
        for number, (file, prediction) in enumerate(zip(scored, predictions, strict=True), start=1):
            if prediction.probabilities is None:
                skipped.append(Skipped(path=file.path, reason=prediction.reason))
            else:
                truth.append(file.label)
                predicted.append(model.classes[prediction.probabilities.argmax()])
            progress.update(done=number, note="")
    finally:
        progress.finish()
    return score_predictions(
        truth,
        predicted,
        model.classes,
        unknown=unknown,
        skipped=tuple(skipped),
        trained_on=sum(is_among(file, trained) for file in scored),
    )


def training_images(model: Path) -> set[bytes]:
    """Content hashes of the images that the split lock beside a model has for training."""
    return {digest for digest, part in read_lock(model.parent / LOCK_NAME).items() if part == "train"}


def is_among(file: ImageFile, digests: set[bytes]) -> bool:
    """Whether an image's content is one of these."""
    if not digests:
        return False
    try:
        return read_image_file(file.path)[1] in digests
    except UnusableImageError:
        return False  # told when it is to be predicted


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
