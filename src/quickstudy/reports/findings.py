"""What an audit can find, as plain records: each names images by their number in `Evidence.images`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from quickstudy.images.imageset import Skipped, Split


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Images that are one picture: the same file, or the same picture encoded, resized, cropped or mirrored anew."""

    members: tuple[int, ...]
    """At least two images, in their order."""
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
    """An image whose label is probably wrong."""

    image: int
    given: str
    suggested: str
    probability_given: float
    """Of the given label, by a classifier that has not seen the image."""
    probability_suggested: float
    """Of the suggested one, by the same."""
    score: float
    """How probable it is that the label is wrong, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """An image unlike all others."""

    image: int
    score: float
    """Its distance from its tenth nearest neighbour, in robust standard deviations above what is usual here."""


FlawKind = Literal["tiny", "narrow", "blurred", "dark", "bright", "blank"]


@dataclass(frozen=True, kw_only=True)
class QualityFlaw:
    """An image of which little can be seen."""

    image: int
    kind: FlawKind
    """`narrow` is an extreme aspect ratio, `blank` an image of one colour; `quality.LIMITS` states what each means."""
    value: float
    """What was measured."""
    limit: float
    """What it was compared with."""


@dataclass(frozen=True, kw_only=True)
class ClassShare:
    """How many images a class has."""

    name: str
    images: int
    """Different pictures: exact copies count once."""
    scarce: bool
    """Whether it has so few beside the others that it will be recognised badly."""


@dataclass(frozen=True, kw_only=True)
class AlikePair:
    """Two classes that are hard to tell apart."""

    first: str
    second: str
    images: int
    """Images of either that were taken for the other, by a classifier that had not seen them."""
    rate: float
    """Those, as a share of the images of both."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A label for an image that has none."""

    image: int
    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All that was found."""

    images: tuple[Path, ...]
    """The usable files; the findings' image numbers index them."""
    labelled: int
    """How many of them have a label."""
    classes: tuple[ClassShare, ...]
    """By name."""
    skipped: tuple[Skipped, ...]
    """Files that cannot be used, with the reason."""
    duplicates: tuple[DuplicateGroup, ...]
    """Leaking and conflicting groups first."""
    label_errors: tuple[LabelError, ...]
    """Most probable first."""
    outliers: tuple[Outlier, ...]
    """Farthest first."""
    quality: tuple[QualityFlaw, ...]
    """By image."""
    alike: tuple[AlikePair, ...]
    """Most alike first."""
    suggestions: tuple[Suggestion, ...]
    """For each image without a label, in their order."""
    next_to_label: tuple[int, ...]
    """Images without a label from whose label most would be learned, in the order to label them."""

    @property
    def imbalance(self) -> float:
        """How many times as many images the largest class has as the smallest; 1 where there are none."""
        counts = [share.images for share in self.classes]
        return max(counts) / min(counts) if counts else 1.0

    @property
    def leaks(self) -> tuple[DuplicateGroup, ...]:
        """Groups on both sides of a split."""
        return tuple(group for group in self.duplicates if group.leaks)

    @property
    def conflicts(self) -> tuple[DuplicateGroup, ...]:
        """Groups under several labels."""
        return tuple(group for group in self.duplicates if group.conflicts)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, with images named by their paths."""
        return {
            "images": len(self.images),
            "labelled": self.labelled,
            "classes": [asdict(share) for share in self.classes],
            "imbalance": self.imbalance,
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
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
