"""Labels for photos without one, from names alone: a network of two towers compares each photo with each name.

Nothing is learned, so it works before there is a single label, as well as the names tell the classes apart. Where some
photos of the set have labels of these names, they say how well. What is suggested is a plan, like an audit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickstudy.backbones.engines.named import engine_for
from quickstudy.backbones.loading import load_backbone
from quickstudy.backbones.names import TEMPLATES, check_templates, embed_names
from quickstudy.bottlenecks.extraction import extract_census
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import OptionError
from quickstudy.files import as_path, cache_folder
from quickstudy.images.census import take_census
from quickstudy.images.depth import significant_bits
from quickstudy.images.imageset import Skipped
from quickstudy.learning.scores import Score
from quickstudy.progress import Progress, silent
from quickstudy.reports.plan import Step, path_in_plan
from quickstudy.wording import as_probability


@dataclass(frozen=True, kw_only=True)
class NamedPhoto:
    """A photo without a label, and what it is taken for."""

    path: Path
    """Path of the file."""
    name: str
    """The most probable name."""
    probability: float
    """How probable it is, between 0 and 1, if one of the names is right."""
    second: str
    """The next probable name."""
    digest: bytes
    """SHA-256 of the file's bytes."""


@dataclass(frozen=True, kw_only=True)
class NamedPhotos:
    """Photos of a set by names alone."""

    source: Path
    """The folder or manifest."""
    names: tuple[str, ...]
    """The names, in the order given."""
    photos: tuple[NamedPhoto, ...]
    """Those without a label, by path."""
    labelled: Score
    """How many of those that have a label of these names, each content once, are taken for it; none counts 0."""
    skipped: tuple[Skipped, ...]
    """Files that cannot be used, with the reason."""
    computed: int
    """Number of forward passes that it took."""

    def plan(self, sure: float) -> tuple[Step, ...]:
        """Plan to label photos whose name has a probability of `sure` (0 to 1) or more; the others are kept."""
        folder = self.source if self.source.is_dir() else self.source.parent
        return tuple(
            Step(
                action="relabel" if photo.probability >= sure else "keep",
                path=path_in_plan(photo.path, folder),
                to=photo.name,
                reason=f"by its name, {as_probability(photo.probability, 0)}; next: {photo.second}",
                sha256=photo.digest.hex(),
            )
            for photo in self.photos
        )

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {
            "names": list(self.names),
            "labelled": self.labelled.to_dict(),
            "photos": [
                {
                    "path": str(photo.path),
                    "name": photo.name,
                    "probability": round(photo.probability, 4),
                    "second": photo.second,
                    "sha256": photo.digest.hex(),
                }
                for photo in self.photos
            ],
            "skipped": [item.to_dict() for item in self.skipped],
            "computed": self.computed,
        }


def name_photos(
    images: str | Path,
    *,
    backbone: str,
    names: Sequence[str] = (),
    templates: Sequence[str] = TEMPLATES,
    engine: str = "onnxruntime",
    cache: str | Path | None = None,
    progress: Progress = silent,
) -> NamedPhotos:
    """Compare photos with names.

    Args:
        images: a folder or manifest, labelled, partly labelled or not.
        backbone: name of the image tower of a network of two towers, such as `hf:Xenova/clip-vit-base-patch32`.
        names: of the classes, at least two; left out, those of the labels that there are.
        templates: sentences with `{}` for the name; with several, the mean of their vectors counts.
        engine: what computes bottlenecks: `onnxruntime`, `onnxruntime-int8`, `openvino` or `cuda`.
        cache: folder of the store and the backbones; see `quickstudy.files.cache_folder`.
        progress: is told how far it has come.

    Raises:
        ImageSetError: there are no images.
        OptionError: there are no two names, a template has no `{}`, or there is no such engine.
        QuickstudyError: the store or the backbone cannot be used, or it has no tower for text; see the message.
    """
    check_templates(templates)
    source, folder, runner = as_path(images), cache_folder(cache), engine_for(engine)
    store = Store(folder / "bottlenecks")
    census = take_census(source, store.index_path, unlabelled=True, progress=progress)
    known = sorted({label for content in census.contents.values() for label in content.labels or ()})
    names = tuple(dict.fromkeys(names or known))
    if len(names) < 2:
        given = f"only '{names[0]}'" if names else "none"
        raise OptionError(
            f"Two names or more are needed to tell the photos of '{source}' apart, such as --names cat,dog; got {given}"
        )
    net = load_backbone(backbone, folder)
    named = embed_names(net, names, templates=templates)
    net = net.reading(significant_bits(census, store.index_path))
    extraction = extract_census(census, net, store, unlabelled=True, engine=runner, progress=progress)
    census = census.without(extraction.unusable)
    contents = [content for content in census.contents.values() if content.left_out != "unusable"]
    probabilities = named.probabilities(extraction.gather([content.digest for content in contents]).astype("float32"))
    order = probabilities.argsort(axis=1)[:, ::-1]
    tested = right = 0
    photos = []
    for content, row, (first, second, *_) in zip(contents, probabilities, order.tolist(), strict=True):
        if content.label in names:
            tested, right = tested + 1, right + (names[first] == content.label)
        photos += [
            NamedPhoto(
                path=place.path,
                name=names[first],
                probability=float(row[first]),
                second=names[second],
                digest=content.digest,
            )
            for place in content.places
            if place.label is None
        ]
    return NamedPhotos(
        source=source,
        names=names,
        photos=tuple(sorted(photos, key=lambda photo: str(photo.path))),
        labelled=Score(right=right, n=tested),
        skipped=census.skipped,
        computed=extraction.computed,
    )
