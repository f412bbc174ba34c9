"""What a run trains and tests on: a named data set or any image set, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quickstudy.errors import ImageSetError
from quickstudy.files import as_path
from quickstudy.images.decoding import InputSpec
from quickstudy.images.imageset import Skipped, Split
from quickstudy.images.named import NAMED, find, layout_of, load
from quickstudy.images.pixels import PixelSet, decode_image_set
from quickstudy.models.roles import Roles
from quickstudy.progress import Progress, silent
from quickstudy.records import as_values, read_record
from quickstudy.scratch.input import Augmentation, Moments, Pipeline, evaluation_batches
from quickstudy.scratch.parallel import Replica
from quickstudy.scratch.recipe import Recipe

_PREPARING_IMAGES = 2000
"""Number of training images that a network may take its first layer from."""
_KEPT_VALUES = 64_000_000
"""Most values of images that are kept from one evaluation to the next: 256 MB in float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """Square images of one size by split, in memory."""

    train: PixelSet
    """Images to train on."""
    validation: PixelSet | None
    """Images held out of the training images to choose by; None where nothing is held out."""
    test: PixelSet
    """Images to test on."""
    skipped: tuple[Skipped, ...] = ()
    """Image files that could not be used."""
    roles: Roles | None = None
    """What each image is for, by content; None where images did not come as files of their own."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.train.classes

    @property
    def side(self) -> int:
        """Height and width of the images, in pixels."""
        return int(self.train.pixels.shape[1])

    @property
    def channels(self) -> int:
        """Number of channels: 1 (grey) or 3 (RGB)."""
        return int(self.train.pixels.shape[3])

    def split(self, name: str) -> PixelSet:
        """Give the images of the split `validation` or `test`.

        Raises:
            ImageSetError: nothing is held out for validation.
        """
        if name == "test":
            return self.test
        if self.validation is None:
            raise ImageSetError("This run has no validation images; train with --set validation=0.1 to hold some out")
        return self.validation

    @cached_property
    def moments(self) -> Moments:
        """Mean and deviation of the channels of the images trained on."""
        return Moments.of(self.train.pixels)

    @cached_property
    def facts(self) -> DataFacts:
        """What stays of the data in the run's folder."""
        return DataFacts(
            fingerprint=self.train.content_fingerprint(),
            classes=self.classes,
            side=self.side,
            channels=self.channels,
            moments=self.moments,
            roles=self.roles,
        )


class ImagesAtHand:
    """The images on a device, as training and evaluation take them; runs that are trained together share them."""

    def __init__(self, data: TrainingData, replica: Replica, *, threads: int) -> None:
        """Bring nothing to the device yet; `threads` is the number of those that make batches ahead on a processor."""
        self.data, self.replica, self.threads = data, replica, threads
        self._pipelines: dict[tuple[Augmentation, int], Pipeline] = {}
        self._kept: dict[tuple[Augmentation, int], list[Tensor]] = {}
        """Batches to evaluate on, by how they are made and the identity of their set of images."""
        self._first: dict[Augmentation, Tensor] = {}
        """Images that networks are prepared with, by how they are made."""

    def pipeline(self, recipe: Recipe) -> Pipeline:
        """Give the batches that a recipe trains on."""
        replica, key = self.replica, (recipe.augmentation, recipe.optimiser.batch)
        if key not in self._pipelines:
            self._pipelines[key] = Pipeline(
                self.data.train,
                recipe.augmentation,
                batch=recipe.optimiser.batch,
                seed=recipe.seed,
                moments=self.data.moments,
                rank=replica.rank,
                world=replica.world,
                threads=self.threads,
                device=replica.device,
            )
        return self._pipelines[key].with_seed(recipe.seed)

    def to_evaluate(self, recipe: Recipe, data: PixelSet) -> Iterable[Tensor]:
        """List the images to evaluate on; they are kept where they are small and evaluated on again and again."""
        made = self._undistorted(recipe, data.pixels)
        if not recipe.evaluate_steps or data.pixels.size > _KEPT_VALUES:
            return made
        key = (recipe.augmentation, id(data))
        if key not in self._kept:
            self._kept[key] = list(made)
        return self._kept[key]

    def to_prepare(self, recipe: Recipe) -> Tensor:
        """Give some of the training images, from which a network may take what it does not train."""
        if recipe.augmentation not in self._first:
            some = self._undistorted(recipe, self.data.train.pixels[:_PREPARING_IMAGES])
            self._first[recipe.augmentation] = torch.cat(list(some))
        return self._first[recipe.augmentation]

    def _undistorted(self, recipe: Recipe, pixels: NDArray[np.uint8]) -> Iterator[Tensor]:
        return evaluation_batches(pixels, recipe.augmentation, self.data.moments, device=self.replica.device)


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What stays of the training data in the run: enough to build the network and to use it."""

    fingerprint: str
    """Hash of the images trained on, their labels and the class names."""
    classes: tuple[str, ...]
    """Class names, in the order of the labels."""
    side: int
    """Height and width of the images, in pixels."""
    channels: int
    """Number of channels: 1 (grey) or 3 (RGB)."""
    moments: Moments
    """Mean and deviation of the channels of the images trained on."""
    roles: Roles | None = None
    """What each image is for, which the exported model will carry; None where images were no files of their own."""

    def differences(self, other: DataFacts) -> list[str]:
        """Say for people in what two sets of images differ; nothing where they are the same, wherever they lie."""
        found = ["the training images are others"] if self.fingerprint != other.fingerprint else []
        if not found and None not in (self.roles, other.roles) and self.roles != other.roles:
            found.append("the test or validation images are others")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Give the facts as JSON values."""
        return {
            "fingerprint": self.fingerprint,
            "classes": list(self.classes),
            "side": self.side,
            "channels": self.channels,
            "moments": as_values(self.moments),
            "roles": self.roles.to_dict() if self.roles else None,
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> DataFacts:
        """Make facts from what `to_dict` gave."""
        return DataFacts(
            fingerprint=values["fingerprint"],
            classes=tuple(values["classes"]),
            side=int(values["side"]),
            channels=int(values["channels"]),
            moments=read_record(Moments, values["moments"]),
            roles=Roles.from_dict(values["roles"]) if values.get("roles") else None,
        )


def load_training_data(
    source: str,
    *,
    image_size: int,
    validation: float,
    folder: Path | None = None,
    progress: Progress = silent,
) -> TrainingData:
    """Load a data set, and hold out a part of its training images where that is asked for.

    Args:
        source: the name of a data set, a folder in its official layout, or an image set (folder or manifest).
        image_size: side to which image files are decoded, in pixels.
        validation: share of the training images to hold out where none are given.
        folder: where named data sets lie; None: see `named.data_folder`.
        progress: is told how far it has come.

    Raises:
        ImageSetError: there is no such data, or it cannot be used.
    """  # fmt: skip
    path = as_path(source)
    skipped: tuple[Skipped, ...] = ()
    digests: Mapping[Split, tuple[bytes, ...]] = {}
    if source in NAMED and source != "flowers":
        splits = dict(load(source, folder=folder))
    elif source not in NAMED and layout_of(path) is not None:
        splits = dict(load(path))
    else:
        place = find(source, folder) if source in NAMED else path
        if place is None:
            raise ImageSetError(f"'{source}' is not here; get it with: quickstudy data get {source}")
        decoded = decode_image_set(place, InputSpec(size=image_size), progress=progress)
        splits, skipped = {str(name): pixels for name, pixels in decoded.splits.items()}, decoded.skipped
        digests = decoded.digests
    train, test, held = splits["train"], splits.get("test"), splits.get("validation")
    if test is None:
        raise ImageSetError(f"'{source}' has no test images; put some under {source}/test/<class>/")
    if train.pixels.shape[1] != train.pixels.shape[2]:
        raise ImageSetError(f"Images of {train.pixels.shape[1:3]} pixels are not square; training needs square ones")
    learned, chosen_by = digests.get("train", ()), digests.get("validation", ())
    if held is None and validation:
        chosen = _held_out(train, validation)
        chosen_by = tuple(digest for digest, out in zip(learned, chosen.tolist(), strict=False) if out)
        learned = tuple(digest for digest, out in zip(learned, chosen.tolist(), strict=False) if not out)
        train, held = _part(train, ~chosen), _part(train, chosen)
    roles = Roles.of(learned, chosen_by, digests.get("test", ())) if digests else None
    return TrainingData(train=train, validation=held, test=test, skipped=skipped, roles=roles)


def _held_out(data: PixelSet, share: float) -> NDArray[np.bool_]:
    """Choose the images to hold out, by content: the lowest hashes of each class; copies stay together."""
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in data.pixels]
    order: NDArray[np.int64] = np.array(sorted(range(len(data)), key=lambda row: hashes[row]), np.int64)
    held = np.zeros(len(data), np.bool_)
    for label in range(len(data.classes)):
        rows = order[data.labels[order] == label]
        wanted = max(1, round(share * len(rows)))  # a class of two or more is on both sides, however small
        held[rows[: max(0, min(wanted, len(rows) - 1))]] = True
    taken = {hashes[row] for row in np.flatnonzero(held)}
    held |= np.fromiter((digest in taken for digest in hashes), np.bool_, len(hashes))
    if untrained := sorted(set(data.labels.tolist()) - set(data.labels[~held].tolist())):
        raise ImageSetError(
            f"validation={share:g} leaves no image of '{data.classes[untrained[0]]}' to train on; "
            "hold out a smaller share, or add images to the class"
        )
    if not held.any():
        raise ImageSetError(f"No class has a second image that validation={share:g} could hold out; add images")
    return held


def _part(data: PixelSet, chosen: NDArray[np.bool_] | Sequence[bool]) -> PixelSet:
    return PixelSet(pixels=data.pixels[chosen], labels=data.labels[chosen], classes=data.classes)
