"""What an audit can find is kept in plain records, which name images by their number in `Evidence.images`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from quickstudy.images.imageset import Skipped, Split
from quickstudy.wording import as_probability


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Images that are one picture: the same file, or the same picture encoded, resized, cropped or mirrored anew."""

    members: tuple[int, ...]
    """Numbers of the images, at least two, in their order."""
    exact: bool
    """Whether all members are the same file, byte for byte."""
    splits: tuple[Split, ...]
    """The members' splits, each once, sorted; none where the images came without splits."""
    labels: tuple[str, ...]
    """The members' labels, each once, sorted."""

    @property
    def leaks(self) -> bool:
        """Whether the picture is on both sides of a split, so that a test would ask for what was learned by heart."""
        return len(self.splits) > 1

    @property
    def conflicts(self) -> bool:
        """Whether the picture is under several labels, of which at most one is right."""
        return len(self.labels) > 1


@dataclass(frozen=True, kw_only=True)
class LabelError:
    """An image whose label may be wrong."""

    image: int
    """Number of the image in `Audit.images`."""
    given: str
    """Label that the image has."""
    suggested: str
    """Label that it may deserve."""
    probability_given: float
    """Probability of the given label, 0 to 1, by a classifier that has not seen the image."""
    probability_suggested: float
    """Probability of the suggested label, 0 to 1, by the same classifier."""
    score: float
    """Probability that the label is wrong, 0 to 1, by the rate of wrong labels in the whole set."""

    @property
    def statement(self) -> str:
        """What to say to people: what a classifier that has not seen the image takes it for, and how surely."""
        probability = as_probability(self.probability_suggested, 0)
        return f"not having seen it, the classifier takes it for '{self.suggested}', {probability}"


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """An image unlike all others."""

    image: int
    """Number of the image in `Audit.images`."""
    score: float
    """Distance from the tenth nearest neighbour, in robust standard deviations above what is usual here."""


FlawKind = Literal["tiny", "thumbnail", "narrow", "screenshot", "grey", "shallow", "blurred", "dark", "bright", "blank"]


@dataclass(frozen=True, kw_only=True)
class QualityFlaw:
    """An image of which little can be seen."""

    image: int
    """Number of the image in `Audit.images`."""
    kind: FlawKind
    """`narrow` is an extreme aspect ratio, `screenshot` a photo between bars of one colour, `blank` an image of one
    colour, `grey` one of which bands are missing, `shallow` one that uses fewer bits than the set; `audit.LIMITS` says
    what each means."""
    value: float
    """Value that was measured, on the scale that `audit.LIMITS` states."""
    limit: float
    """Limit that the value crosses."""


@dataclass(frozen=True, kw_only=True)
class ClassShare:
    """Says how many images a class has."""

    name: str
    """Name of the class."""
    images: int
    """Number of different files: exact copies count once."""
    scarce: bool
    """Whether the class has so few images beside the others that it will be recognised badly."""


@dataclass(frozen=True, kw_only=True)
class AlikePair:
    """Two classes that are hard to tell apart."""

    first: str
    """Name of one class, the first of the two in sorted order."""
    second: str
    """Name of the other class."""
    images: int
    """Number of images of either that were taken for the other, by a classifier that had not seen them."""
    rate: float
    """Share of the images of both that were taken for the other, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Suggests a label for an image that has none."""

    image: int
    """Number of the image in `Audit.images`."""
    label: str
    """Most probable class of the image."""
    probability: float
    """Probability of that class, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Holds all that was found about an image set."""

    images: tuple[Path, ...]
    """Paths of the usable files; the findings' image numbers index them."""
    labelled: int
    """Number of usable files that have a label."""
    classes: tuple[ClassShare, ...]
    """Numbers of images by class, in the order of the names."""
    skipped: tuple[Skipped, ...]
    """Files that cannot be used, with the reason."""
    duplicates: tuple[DuplicateGroup, ...]
    """Groups of images that are one picture, leaking and conflicting ones first."""
    label_errors: tuple[LabelError, ...]
    """Images whose label may be wrong, most surprising first."""
    outliers: tuple[Outlier, ...]
    """Images unlike all others, farthest first."""
    quality: tuple[QualityFlaw, ...]
    """Flaws of images, by image."""
    alike: tuple[AlikePair, ...]
    """Pairs of classes that are hard to tell apart, most alike first."""
    suggestions: tuple[Suggestion, ...]
    """Labels suggested for the images without one, in their order."""
    next_to_label: tuple[int, ...]
    """Images without a label from whose label most would be learned, in the order to label them."""

    @property
    def imbalance(self) -> float:
        """Ratio of the largest class's images to the smallest class's, at least 1; 1 where there are no classes."""
        counts = [share.images for share in self.classes]
        return max(counts) / min(counts) if counts else 1.0

    @property
    def leaks(self) -> tuple[DuplicateGroup, ...]:
        """Groups of duplicates on both sides of a split."""
        return tuple(group for group in self.duplicates if group.leaks)

    @property
    def conflicts(self) -> tuple[DuplicateGroup, ...]:
        """Groups of duplicates under several labels."""
        return tuple(group for group in self.duplicates if group.conflicts)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON values, with images named by their paths."""
        return {
            "images": len(self.images),
            "labelled": self.labelled,
            "classes": [asdict(share) for share in self.classes],
            "imbalance": self.imbalance,
            "skipped": [item.to_dict() for item in self.skipped],
            "duplicates": [
                {
                    "images": self._names(group.members),
                    "exact": group.exact,
                    "splits": list(group.splits),
                    "labels": list(group.labels),
                    "leaks": group.leaks,
                    "conflicts": group.conflicts,
                }
                for group in self.duplicates
            ],
            "label_errors": self._named(self.label_errors),
            "outliers": self._named(self.outliers),
            "quality": self._named(self.quality),
            "alike": [asdict(pair) for pair in self.alike],
            "suggestions": self._named(self.suggestions),
            "next_to_label": self._names(self.next_to_label),
        }

    def _names(self, numbers: Sequence[int]) -> list[str]:
        return [str(self.images[number]) for number in numbers]

    def _named(self, findings: Sequence[Any]) -> list[dict[str, Any]]:
        return [{**asdict(finding), "image": str(self.images[finding.image])} for finding in findings]
