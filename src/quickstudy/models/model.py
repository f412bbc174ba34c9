"""A model in use: predict, answer, verify."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import ModelError, OptionError, UnusableImageError, first_line
from quickstudy.images.decoding import MOST_PIXELS, InputSpec, Pixels, decode, to_input
from quickstudy.images.given import ImageLike, file_of, one_by_one, pixels_of
from quickstudy.images.identity import read_image_file
from quickstudy.learning.answers import MOST_PROBABLE, Answer, Thresholds
from quickstudy.learning.calibration import FEWEST_ANSWERED
from quickstudy.learning.conformal import FEWEST, Sets
from quickstudy.learning.strangeness import Refusal
from quickstudy.models.format import (
    GOLDEN_TOLERANCE,
    LOOSEST_TOLERANCE,
    STRANGENESS,
    STRANGENESS_LOOSER,
    golden_images,
)
from quickstudy.models.properties import (
    labelling_in,
    outputs_of,
)
from quickstudy.models.roles import Roles
from quickstudy.process import usable_cores
from quickstudy.wording import as_percent, count, quoted

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one image; where it could not be read, `probabilities` is None and `reason` says why."""

    image: ImageLike
    """The image as it was given."""
    probabilities: NDArray[np.float32] | None
    """Class probabilities (K) in the order of the model's classes; None where the image cannot be used."""
    reason: str = ""
    """Why the image cannot be used; empty where it can."""
    features: NDArray[np.float32] | None = None
    """What the head saw (d); None where the model was loaded without features, or the image cannot be used."""
    strangeness: float | None = None
    """Share of the model's own training images that are less strange, 0 to 1; None where the model does not tell, or
    the image cannot be used."""


class Model:
    """A classifier that takes images and gives class probabilities. Several threads may use it at once.

    `quickstudy.load` makes one from its file.
    """

    def __new__(cls, session: object, **_parts: object) -> Model:
        """Refuse a path, which most people would try, with the way to load it."""
        if isinstance(session, str | os.PathLike):
            raise OptionError(f"A model is loaded from its file by quickstudy.load({os.fspath(session)!r})")
        return super().__new__(cls)

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        *,
        classes: Sequence[str],
        input_spec: InputSpec,
        metadata: dict[str, Any],
        again: Callable[[], Model],
        roles: Roles | None = None,
        features: str | None = None,
        refusal: Refusal | None = None,
        sets: Sets | None = None,
        answer: Answer = MOST_PROBABLE,
    ) -> None:
        self._session = session
        self._again = again
        self._features = features
        self._refusal, self._sets = refusal, sets
        self._outputs = outputs_of(features, refusal)
        self.classes = tuple(classes)
        """Names of the classes in the order of the probabilities."""
        self.input = input_spec
        """How an image becomes the model's input."""
        self.metadata = metadata
        """What the file says about itself: backbone, training, versions."""
        self.roles = roles
        """Which images it was made from, so that none of them is taken for a test; None where it does not say."""
        self.answer = answer
        """What its probabilities are answered by: the most probable class, or several labels by thresholds."""
        self.labelling = labelling_in(metadata)
        """How labels are to be read of images that are like those it was made from."""

    def __repr__(self) -> str:
        training = self.metadata.get("training") or {}
        test, backbone = training.get("test") or {}, self.metadata.get("backbone") or {}
        right = "all labels right" if self.thresholds else "right"
        accuracy = f", {as_percent(test['accuracy'])} {right} of {test['n']:,} test images" if test.get("n") else ""
        on = f", on {backbone['name']}" if backbone.get("name") else ""
        classes = count(len(self.classes), "class", "classes")
        return f"<quickstudy.Model of {classes} ({quoted(self.classes)}){accuracy}{on}>"

    def __reduce__(self) -> tuple[Callable[[], Model], tuple[()]]:
        """Let copies and pickles be the model's file, which is loaded, checks and all, where they arrive."""
        return self._again, ()

    def predict_proba(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Work out class probabilities (N×classes) of one image or several, in the order of `classes`.

        Args:
            images: one image or several, in any of the forms that `quickstudy.images.given.ImageLike` names.

        Raises:
            UnusableImageError: an image cannot be used; `predict_each` goes on instead.
        """
        rows = []
        for prediction in self.predict_each(images):
            if prediction.probabilities is None:
                raise UnusableImageError(f"Cannot use {_name(prediction.image)}: {prediction.reason}")
            rows.append(prediction.probabilities)
        return np.stack(rows) if rows else np.empty((0, len(self.classes)), np.float32)

    @overload
    def predict(self, images: ImageLike | Iterable[ImageLike], *, abstain: Literal[False] = False) -> list[str]: ...

    @overload
    def predict(self, images: ImageLike | Iterable[ImageLike], *, abstain: Literal[True]) -> list[str | None]: ...

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, abstain: bool = False
    ) -> list[str] | list[str | None]:
        """Name the most probable class of each image; see `predict_proba`.

        With `abstain`, it is None where its probability is below the model's threshold; see `threshold`.

        Raises:
            ModelError: with `abstain`, the model has no threshold; or it gives several labels, see `predict_labels`.
        """
        if self.thresholds:
            raise ModelError("The model gives any number of labels an image; ask predict_labels for them")
        threshold = self.threshold() if abstain else 0.0
        best = [self.rank(row, 1)[0] for row in self.predict_proba(images)]
        return [name if is_answer(share, threshold) else None for name, share in best]

    def predict_labels(self, images: ImageLike | Iterable[ImageLike]) -> list[tuple[str, ...]]:
        """Name the labels of each image, the most probable first: its class, or any number of several labels."""
        return [self.labels(row) for row in self.predict_proba(images)]

    def labels(self, probabilities: NDArray[np.float32]) -> tuple[str, ...]:
        """Name the labels that are given for an image's probabilities (K), the most probable first."""
        given = self.answer.given(probabilities[None])[0]
        ranked = np.argsort(-probabilities, kind="stable").tolist()
        return tuple(self.classes[number] for number in ranked if given[number])

    @property
    def thresholds(self) -> dict[str, float]:
        """The least probability of each of several labels, 2 where it is never given; empty for one class an image."""
        values = self.answer.values if isinstance(self.answer, Thresholds) else ()
        return dict(zip(self.classes, values, strict=False))

    def rank(self, probabilities: NDArray[np.float32], count: int | None = None) -> list[tuple[str, float]]:
        """Rank classes by an image's probabilities (K), the most probable first; of equal ones, the first in `classes`.

        Args:
            probabilities: probabilities of one image, by class.
            count: number of classes to give; all if left out.
        """
        order = np.argsort(-probabilities, kind="stable")[:count].tolist()
        shares = probabilities.tolist()
        return [(self.classes[number], shares[number]) for number in order]

    def threshold(self) -> float:
        """Return the probability from which on the most probable class should be believed.

        It was chosen when the model was trained, on images that had not been trained on: the lowest at which the images
        above it have half the errors of all (see
        `quickstudy.learning.calibration.suggest_abstention`).

        Raises:
            ModelError: the model has none.
        """
        if self.thresholds:
            raise ModelError(
                "The model gives any number of labels an image, each from a threshold of its own on; there is no one "
                '"don\'t know". Leave out --abstain'
            )
        try:
            return float(self.metadata["training"]["abstention"]["threshold"])
        except (KeyError, TypeError, ValueError):
            raise ModelError(f"The model has no threshold for 'don't know': {self._why_no_threshold()}") from None

    def _why_no_threshold(self) -> str:
        """Say why no threshold was set, and what to do, by what the model remembers of its training."""
        training = self.metadata.get("training")
        if not isinstance(training, Mapping) or "abstention" not in training:
            return (
                "it is a pretrained network, or was written before quickstudy set thresholds. Retrain, or decide by "
                "the probabilities"
            )
        judged = training.get("cross_validation")
        judged = judged if isinstance(judged, Mapping) and not training.get("fine_tuning") else {}
        if isinstance(n := judged.get("n"), int) and n < FEWEST_ANSWERED:
            return (
                f"it has to answer at least {FEWEST_ANSWERED} images of those that it was judged by in "
                f"cross-validation, and there were {n}. Retrain with more images, or decide by the probabilities"
            )
        if judged.get("accuracy") == 1:
            return (
                "its cross-validation made no mistake, so there is nothing to abstain from. Leave out --abstain, or "
                "retrain with harder images"
            )
        return (
            "at none are 30 or more of the images it was judged by answered at half the errors, as they are too few or "
            "its probabilities do not tell right from wrong. Retrain with more images, or decide by the probabilities"
        )

    def _why_no_sets(self) -> str:
        """Say why it carries nothing to make sets of, and what to do, by what it remembers of its training."""
        training = self.metadata.get("training")
        if not isinstance(training, Mapping) or "sets" not in training:
            return "it is a network as it stands, or was written before quickstudy made sets. Retrain"
        return (
            f"they go by images that a fit had not learned when it judged them, and of these there were fewer than "
            f"{FEWEST}. Retrain with more images"
        )

    def predict_each(
        self, images: ImageLike | Iterable[ImageLike], *, threads: int | None = None
    ) -> Iterator[Prediction]:
        """Yield predictions in the images' order, as they are ready; an image that cannot be used does not end them.

        Decoding and network run on all cores; no more than a few images are in memory at a time.
        """
        threads = threads or usable_cores()
        with ThreadPoolExecutor(threads) as pool:
            yield from _in_order(pool, self._predict_one, one_by_one(images), ahead=4 * threads)

    def sets(
        self, probabilities: NDArray[np.floating], level: float, *, by_class: bool = False
    ) -> list[tuple[str, ...]]:
        """Name for each image the classes among which the right one is, at this level, the most probable first.

        Args:
            probabilities: class probabilities (N×classes) that the model gave.
            level: share of images whose right class is to be in its set, from 0.01 to below 1; what that means, says
                `quickstudy.learning.conformal`.
            by_class: let the share hold for each class on its own.

        Raises:
            ModelError: the model carries nothing to make sets of.
            OptionError: the level is no such share.
        """
        if self.thresholds:
            raise ModelError(
                "The model gives any number of labels an image already, so there are no sets of which one class is "
                "right. Leave out --sets; retrain with --least-precision for labels that are right more often"
            )
        if self._sets is None:
            raise ModelError(f"The model cannot give sets: {self._why_no_sets()}, or judge by the probabilities")
        members = self._sets.of(probabilities, level, by_class=by_class)
        ranked = np.argsort(-probabilities, axis=1, kind="stable")
        return [
            tuple(self.classes[number] for number in order if inside[number])
            for order, inside in zip(ranked.tolist(), members.tolist(), strict=True)
        ]

    @property
    def refusal(self) -> Refusal | None:
        """The strangeness above which an image is of none of the classes; None where the model does not tell.

        It was chosen when the model was trained, so that few images of its own classes are refused.
        """
        return self._refusal

    def is_none_of_these(self, strangeness: float | None) -> bool:
        """Decide whether an image is of none of the classes; it never is where the model tells no strangeness."""
        return self._refusal is not None and strangeness is not None and strangeness > self._refusal.threshold

    def classify(self, file: bytes, *, most_pixels: int = MOST_PIXELS) -> NDArray[np.float32]:
        """Work out class probabilities of one image, given as an image file's bytes, in the caller's thread.

        Args:
            file: what would be in the file.
            most_pixels: images whose header announces more are refused.

        Raises:
            UnusableImageError: the bytes are no image that can be used; the message is the reason.
        """
        pixels = to_input(decode(file, self.input, most_pixels=most_pixels), self.input)
        probabilities: NDArray[np.float32] = self.predict_pixels(pixels[None])[0]
        return probabilities

    def examine(self, file: bytes, *, most_pixels: int = MOST_PIXELS) -> Prediction:
        """Say all that there is to say of one image, given as an image file's bytes, in the caller's thread.

        Args:
            file: what would be in the file.
            most_pixels: images whose header announces more are refused.

        Raises:
            UnusableImageError: the bytes are no image that can be used; the message is the reason.
        """
        return self._examine(decode(file, self.input, most_pixels=most_pixels), file)

    def verify(self) -> float:
        """Run the golden checks, and return the largest difference from the expected probabilities.

        Raises:
            ModelError: the file has none, or a difference is beyond the tolerance.
        """
        try:
            golden = self.metadata["golden"]
            expected = np.array(golden["probabilities"], np.float64)
            tolerance = self.golden_tolerance
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ModelError("The model has no golden checks") from None
        given = dict(zip(self._outputs, self._run(self._outputs, golden_images(self.input)), strict=True))
        actual = given["probabilities"]
        if expected.shape != actual.shape:
            raise ModelError(f"The golden checks are of shape {expected.shape}; the model gives {actual.shape}")
        difference = float(np.abs(actual - expected).max())
        if not difference <= tolerance:
            raise ModelError(
                f"The model fails its golden checks: a probability differs by {difference:.2e} "
                f"(tolerance {tolerance:.0e}); the file or the runtime is damaged"
            )
        if STRANGENESS in given:
            self._verify_strangeness(given[STRANGENESS], STRANGENESS_LOOSER * tolerance)
        return difference

    def _verify_strangeness(self, actual: NDArray[np.float32], tolerance: float) -> None:
        expected = np.array(self.metadata["golden"].get(STRANGENESS, ()), np.float64)
        if expected.shape != actual.shape or not np.abs(actual - expected).max() <= tolerance:
            raise ModelError(
                f"The model fails its golden checks: the strangeness of the golden images is {actual.tolist()}, and "
                f"should be {expected.tolist()} (tolerance {tolerance:.0e}); the file or the runtime is damaged"
            )

    @property
    def golden_tolerance(self) -> float:
        """Largest difference of a probability from what the golden checks expect; more than usual in 8 bits."""
        return min(float(self.metadata["golden"].get("tolerance", GOLDEN_TOLERANCE)), LOOSEST_TOLERANCE)

    def _predict_one(self, image: ImageLike) -> Prediction:
        try:
            return self._examine(_open(image, self.input), image)
        except UnusableImageError as error:
            return Prediction(image=image, probabilities=None, reason=str(error))

    def _examine(self, pixels: Pixels, image: ImageLike) -> Prediction:
        """Run the network on one decoded image, once, for all that it gives."""
        values = self._run(self._outputs, to_input(pixels, self.input)[None])
        given = dict(zip(self._outputs, values, strict=True))
        return Prediction(
            image=image,
            probabilities=given["probabilities"][0],
            features=given[self._features][0] if self._features else None,
            strangeness=float(given[STRANGENESS][0]) if STRANGENESS in given else None,
        )

    def predict_pixels(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Work out class probabilities (N×classes) of what is decoded and cut already: uint8, N × `input.shape`, RGB.

        Raises:
            ModelError: the graph cannot be run.
        """
        return self._run(["probabilities"], images)[0]

    def predict_pixels_with_features(
        self, images: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Work out class probabilities (N×classes) and features (N×d) in one pass; see `predict_pixels`.

        Raises:
            ModelError: the model was loaded without features, has none, or cannot be run.
        """
        if self._features is None:
            raise ModelError(
                "The model gives no features: load it with with_features=True; only models with a head of quickstudy's "
                "have any"
            )
        probabilities, features = self._run(["probabilities", self._features], images)
        return probabilities, features

    def _run(self, outputs: list[str], images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        try:
            values: list[NDArray[np.float32]] = self._session.run(outputs, {"image": images})
        except Exception as error:  # ONNX Runtime raises its own, unexported kinds
            raise ModelError(f"The model cannot be run: {first_line(error)}") from error
        return values


def is_answer(probability: float, threshold: float) -> bool:
    """Decide whether the most probable class is believed, or the answer is "don't know"."""
    return probability >= threshold


def _open(image: ImageLike, spec: InputSpec) -> Pixels:
    file = file_of(image)
    if file is None:
        return pixels_of(image, bits=spec.bits)
    return decode(read_image_file(file)[0] if isinstance(file, Path) else file, spec)


def _in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[ImageLike], Prediction],
    items: Iterable[ImageLike],
    *,
    ahead: int,
) -> Iterator[Prediction]:
    """Do as `pool.map`, but take items only as results are asked for, so that endless input is no trouble."""
    remaining = iter(items)
    waiting: list[Future[Prediction]] = [pool.submit(function, item) for item in islice(remaining, ahead)]
    while waiting:
        result = waiting.pop(0).result()
        waiting += [pool.submit(function, item) for item in islice(remaining, 1)]
        yield result


def _name(image: ImageLike) -> str:
    return f"'{os.fspath(image)}'" if isinstance(image, str | os.PathLike) else "an image"
