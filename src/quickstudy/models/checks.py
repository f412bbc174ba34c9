"""How an export compares with what it was made from: on golden images, on photos, in images a second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import ImageSetError
from quickstudy.images.census import take_census
from quickstudy.images.imageset import list_images, load_image_set
from quickstudy.images.manifests import ONE_EACH, Labelling
from quickstudy.learning.answers import marks_of
from quickstudy.learning.scores import Paired
from quickstudy.models.format import golden_images
from quickstudy.models.model import Model
from quickstudy.models.roles import may_judge
from quickstudy.progress import Progress, silent
from quickstudy.wording import as_percent

_PHOTOS_THAT_TELL = 50  # how far two models are apart


@dataclass(frozen=True, kw_only=True)
class ComparedPhoto:
    """An image to compare on."""

    path: Path
    """Path of the file."""
    labels: tuple[str, ...] | None = None
    """Names of its classes, sorted; None where they are not known."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What two models say of the same images."""

    n: int
    """Number of images that both could use."""
    same: int
    """Number of answers that are the same: one an image, its class, or one a label, whether it is given."""
    largest_difference: float
    """Largest difference of a probability, over all images and classes, from 0 to 1."""
    mean_difference: float
    """Mean difference of a probability, over all images and classes, from 0 to 1."""
    each: int = 1
    """Number of answers an image: 1, or the number of labels where an image may have several."""
    refused: tuple[int, int] | None = None
    """Number of images that the original, and that the export takes for none of its classes; None where the models do
    not tell."""
    labelled: Paired | None = None
    """The original and the export on images whose class is known and is one of the model's, or on each label of images
    whose labels are; None where none are."""

    @property
    def same_share(self) -> float:
        """Share of the answers that are the same, between 0 and 1."""
        return self.same / (self.n * self.each)

    @property
    def told(self) -> str:
        """What that share is of, in words that follow it."""
        return "taken for the same class" if self.each == 1 else "given, or not, by both alike"

    @property
    def accuracy_loss(self) -> float | None:
        """Accuracy that the export loses, from -1 to 1, negative where it gains; None where no labels are known."""
        return -self.labelled.difference if self.labelled else None

    @property
    def loss_interval(self) -> tuple[float, float] | None:
        """Ends of the loss's 95 % interval, for the same images looked at twice; None where no labels are known."""
        if not self.labelled:
            return None
        low, high = self.labelled.interval
        return -high, -low

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        paired = self.labelled
        return {
            "n": self.n,
            "same": self.same,
            "answers_an_image": self.each,
            "largest_difference": self.largest_difference,
            "mean_difference": self.mean_difference,
            "refused": list(self.refused) if self.refused else None,
            "labelled": paired.first.n if paired else 0,
            "right_before": paired.first.right if paired else 0,
            "right_after": paired.second.right if paired else 0,
            "only_before": paired.only_first if paired else 0,
            "only_after": paired.only_second if paired else 0,
            "accuracy_loss": self.accuracy_loss,
            "accuracy_loss_interval_95": self.loss_interval,
        }


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an export may be from its original."""

    golden: float
    """Largest difference of a probability allowed on the golden images, which are not photos, where fewer than 50
    photos tell."""
    same: float
    """Least share of photos that both must take for the same class, between 0 and 1."""
    accuracy_loss: float
    """Most accuracy that may be lost on labelled photos, as a share: 0.02 is two points."""

    def complaints(self, golden: float, agreement: Agreement | None) -> list[str]:
        """Say in words what is beyond the tolerance; give none where all is well."""
        found = []
        photos_tell = agreement is not None and agreement.n >= _PHOTOS_THAT_TELL
        if not golden <= (1 if photos_tell else self.golden):
            found.append(f"on golden images a probability differs by {golden:.3g} (tolerance {self.golden:g})")
        if agreement and agreement.same_share < self.same:
            found.append(
                f"{agreement.same} of {agreement.n * agreement.each} "
                f"{'images' if agreement.each == 1 else 'labels'} are {agreement.told}, "
                f"{as_percent(agreement.same_share)} (tolerance {100 * self.same:g} %)"
            )
        loss = agreement.accuracy_loss if agreement else None
        if loss is not None and loss > self.accuracy_loss:
            found.append(f"accuracy falls by {100 * loss:.1f} points (tolerance {100 * self.accuracy_loss:g})")
        return found


def agreement_of(
    before: Model, after: Model, photos: Sequence[ComparedPhoto], *, progress: Progress = silent
) -> Agreement | None:
    """Ask both models about the same photos; None where none of them can be used."""
    same = n = 0
    each = 1
    largest = total = 0.0
    refused = [0, 0]
    right_before: list[bool] = []
    right_after: list[bool] = []
    progress.start("comparing", len(photos))
    try:
        paths = [photo.path for photo in photos]
        answers = zip(photos, before.predict_each(paths), after.predict_each(paths), strict=True)
        for number, (photo, old, new) in enumerate(answers, start=1):
            progress.update(done=number, note="")
            if old.probabilities is None or new.probabilities is None:
                continue
            difference = np.abs(new.probabilities - old.probabilities)
            largest, total = max(largest, float(difference.max())), total + float(difference.mean())
            said, says = (
                one.answer.given(p[None])[0] for one, p in ((before, old.probabilities), (after, new.probabilities))
            )
            # One answer an image, or one for each of several labels.
            alike = said == says if before.thresholds else [bool((said == says).all())]
            n, each, same = n + 1, len(alike), same + int(sum(alike))
            refused[0] += before.is_none_of_these(old.strangeness)
            refused[1] += after.is_none_of_these(new.strangeness)
            if photo.labels is not None and set(photo.labels) <= set(before.classes):
                truth = marks_of([photo.labels], before.classes)[0]
                for found, given in ((right_before, said), (right_after, says)):
                    found += (given == truth).tolist() if before.thresholds else [bool((given == truth).all())]
    finally:
        progress.finish()
    if not n:
        return None
    return Agreement(
        n=n,
        each=each,
        same=same,
        largest_difference=largest,
        mean_difference=total / n,
        refused=(refused[0], refused[1]) if before.refusal and after.refusal else None,
        labelled=Paired.of(right_before, right_after) if right_before else None,
    )


def on_golden_images(model: Model) -> NDArray[np.float32]:
    """Ask a model for its probabilities of the golden images."""
    return model.predict_pixels(golden_images(model.input))


def images_per_second(models: Sequence[Model], *, rounds: int = 12) -> list[float]:
    """Measure each model here, from pixels, one image at a time on one thread: images a second, median of rounds."""
    images = [golden_images(model.input)[:1] for model in models]
    seconds = np.empty((rounds + 1, len(models)))
    for round_number in range(rounds + 1):  # the first is slower, and does not count
        for place, (model, image) in enumerate(zip(models, images, strict=True)):
            began = time.perf_counter()
            model.predict_pixels(image)
            seconds[round_number, place] = time.perf_counter() - began
    return [float(1 / median) for median in np.median(seconds[1:], axis=0)]


def photos_for_checking(source: Path, model: Model, index: Path | None) -> list[ComparedPhoto]:
    """List the images under a folder or in a manifest, with the labels of those that are a test of the model.

    Where some are, only they are taken. Where none is, as where there are no labels, all are taken without: they tell
    whether two models agree, and nothing of their accuracy.

    Raises:
        ImageSetError: there are none.
    """
    try:
        census = take_census(source, index, labelling=model.labelling)
    except ImageSetError:
        return [ComparedPhoto(path=path) for path in _all_images(source)]
    try:
        judgement = may_judge(census, [model.roles], classes=model.classes)
    except ImageSetError:
        return [ComparedPhoto(path=content.path) for content in census.contents.values()]
    certain = judgement.is_test is True
    return [
        ComparedPhoto(path=content.path, labels=content.labels if certain else None) for content in judgement.contents
    ]


def photos_for_calibration(source: Path, index: Path | None, labelling: Labelling = ONE_EACH) -> list[Path]:
    """List the images under a folder or in a manifest, without those for the test, which are for checking.

    Args:
        source: the folder or manifest.
        index: the stat index; none if left out.
        labelling: how labels are to be read.

    Raises:
        ImageSetError: there are none.
    """
    try:
        census = take_census(source, index, labelling=labelling)
    except ImageSetError:
        return _all_images(source)
    return [content.path for content in census.contents.values() if not (census.given and content.role == "test")]


def _all_images(source: Path) -> list[Path]:
    paths = list_images(source)[0] if source.is_dir() else []
    if not paths:
        load_image_set(source)  # says what is missing
    return paths
