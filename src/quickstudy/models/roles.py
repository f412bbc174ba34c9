"""The images that a model was made from, and what may therefore be called a test of it.

A model carries the roles of the images that it was made from: those it has learned, those it was chosen by, and those
that it was tested on, each as the first six bytes of its SHA-256. Two images of a hundred thousand share them by chance
once in 30,000 such sets. Whoever has the model and a photo can tell whether the photo was among these, and nothing
else; `retrain --no-roles` leaves them out.

One policy for all commands: an image that a model has learned or was chosen by is not a test of it, wherever the file
has gone since.
"""

from __future__ import annotations

import base64
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from quickstudy.errors import ImageSetError, OptionError
from quickstudy.images.census import Census, Content
from quickstudy.images.imageset import Split
from quickstudy.wording import quoted

_BYTES = 6
_MOST = 1 << 30  # bytes of what a model may unpack to

Relation = Literal["trained_on", "chosen_by", "tested_on", "new"]
"""What an image is to a model, by its role there."""
RELATIONS: tuple[Relation, ...] = ("trained_on", "chosen_by", "tested_on", "new")
"""All relations; of two models', the earlier here counts."""
_RELATION_OF: dict[Split, Relation] = {"train": "trained_on", "validation": "chosen_by", "test": "tested_on"}


def require_drawn(census: Census) -> None:
    """Check that a set's roles are drawn, so that those of a model that was named for them can stand in it.

    Raises:
        OptionError: the set comes with splits, and these are its roles.
    """
    if census.given:
        raise OptionError(
            f"--roles-of says which images are tested on, but so do the splits that '{census.source}' comes with; "
            "leave --roles-of out, or give the images without their splits"
        )


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The images that a model was made from."""

    role_of: Mapping[bytes, Split]
    """The role of each content, by the first six bytes of its SHA-256."""

    @staticmethod
    def of(train: Iterable[bytes], validation: Iterable[bytes], test: Iterable[bytes]) -> Roles:
        """Make roles of whole digests; one that is given twice is for training before validation before the test."""
        role_of: dict[bytes, Split] = {digest[:_BYTES]: "test" for digest in test}
        role_of |= {digest[:_BYTES]: "validation" for digest in validation}
        role_of |= {digest[:_BYTES]: "train" for digest in train}
        return Roles(role_of=role_of)

    def role(self, digest: bytes) -> Split | None:
        """Look up the role of a content; None where the model does not know it."""
        return self.role_of.get(digest[:_BYTES])

    @property
    def tested(self) -> bool:
        """Whether any content was for the test."""
        return "test" in self.role_of.values()

    def relation(self, digest: bytes) -> Relation:
        """Say what a content is to the model."""
        role = self.role(digest)
        return _RELATION_OF[role] if role else "new"

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values: by role the digests' beginnings, in order, each as its distance from the one before."""
        return {split: _pack(d for d, role in self.role_of.items() if role == split) for split in _RELATION_OF}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Roles:
        """Make roles of what `to_dict` gave.

        Raises:
            ValueError: it is something else.
        """
        return Roles(role_of={digest: split for split in _RELATION_OF for digest in _unpack(values[split])})


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The images of a set that may be judged by, and what they are to the models."""

    contents: tuple[Content, ...]
    """The images to score, in the digests' order."""
    roles: dict[Relation, int] | None
    """Number of labelled images of the set by what they are to the models; None where a model does not say."""
    is_test: bool | None
    """Whether no model has learned or was chosen by an image to score; None where a model does not say."""
    left_out: int
    """Number of images that are not scored since a model has learned or was chosen by them."""
    unknown: dict[str, int]
    """Number of images by label, of classes that not all models know; they are not scored."""
    none: int = 0
    """Number of images that are labelled as of none of the classes; they are not scored."""
    strangers: tuple[Content, ...] = ()
    """Images of unknown classes that no model has learned or was chosen by."""
    examples: tuple[Content, ...] = ()
    """Images of none of the classes that no model has learned or was chosen by."""
    beside_test: int = 0
    """Number of labelled images that are not scored since they are not in the test split that the set comes with."""
    conflicts: tuple[Content, ...] = ()
    """Images that are not scored since they are there under several classes."""
    copies: int = 0
    """Number of files that are not scored, since their content is there already under the same label."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {
            "roles": self.roles,
            "is_test": self.is_test,
            "left_out": self.left_out,
            "beside_test": self.beside_test,
            "conflicts": [[str(place.path) for place in content.places] for content in self.conflicts],
            "copies": self.copies,
            "unknown_images": self.unknown,
            "none_images": self.none,
        }


def may_judge(
    census: Census, roles: Sequence[Roles | None], *, classes: Collection[str], everything: bool = False
) -> Judgement:
    """Decide which labelled images of a set are a test of all these models.

    A set that comes with a test split is judged by that alone.

    Args:
        census: the images.
        roles: the roles that each model carries; None for a model that does not say.
        classes: names of the classes that all the models know; images of others cannot be judged by.
        everything: take all images, whatever they are to the models; the judgement says whether that is a test.

    Raises:
        ImageSetError: nothing is left.
    """
    names = set(classes)
    labelled = [content for content in census.contents.values() if content.role is not None]
    tested = [content for content in labelled if content.role == "test"] if census.given else []
    offered = labelled if everything or not tested else tested
    if census.several:
        candidates = offered  # also of an image without a label that is known, each label may be judged
        others, of_none = [], []
    else:
        candidates = [content for content in offered if not names.isdisjoint(content.labels or ())]
        others = [content for content in offered if content.labels and names.isdisjoint(content.labels)]
        of_none = [content for content in offered if not content.labels]
    unknown = Counter(name for content in offered for name in content.labels or () if name not in names)
    who, knows = ("the model knows", "it knows") if len(roles) == 1 else ("both models know", "both know")
    if not any(name in names for content in candidates for name in content.labels or ()):
        there = "the images are of " + (quoted(sorted(unknown)) or "none of the classes")
        if not labelled:
            there = f"no image there can be used; {census.faults}"
        raise ImageSetError(
            f"No image under '{census.source}' is of a class that {who}: {knows} {quoted(sorted(classes)) or 'none'}; "
            f"{there}. Classes are matched by name"
        )
    known = [one for one in roles if one is not None]
    relations = {
        c.digest: min((one.relation(c.digest) for one in known), key=RELATIONS.index, default="new") for c in labelled
    }
    seen = {digest for digest, relation in relations.items() if relation in ("trained_on", "chosen_by")}

    def unseen(contents: Sequence[Content]) -> tuple[Content, ...]:
        return tuple(content for content in contents if everything or content.digest not in seen)

    scored = unseen(candidates)
    beside_test = len(labelled) - len(offered)
    if not scored:
        every = f"all {len(candidates):,} usable images" if len(candidates) > 1 else "the only usable image"
        raise ImageSetError(
            f"{'The model' if len(roles) == 1 else 'A model'} has learned or was chosen by {every} "
            f"{'of the test split ' if beside_test else ''}under '{census.source}', so "
            "nothing there is a test. Name other images, or score these with --all, which marks the result as no test"
        )
    unsaid = len(known) < len(roles)
    return Judgement(
        contents=scored,
        roles=None if unsaid else {one: sum(found == one for found in relations.values()) for one in RELATIONS},
        is_test=False if any(content.digest in seen for content in scored) else None if unsaid else True,
        left_out=len(candidates) - len(scored),
        unknown=dict(sorted(unknown.items())),
        none=len(of_none),
        strangers=unseen(others),
        examples=unseen(of_none),
        beside_test=beside_test,
        conflicts=census.conflicting,
        copies=census.copies,
    )


def _pack(digests: Iterable[bytes]) -> str:
    numbers = np.array(sorted(int.from_bytes(digest, "big") for digest in digests), np.uint64)
    distances = np.diff(numbers, prepend=np.uint64(0)).astype("<u8").view(np.uint8).reshape(-1, 8)[:, :_BYTES]
    # Byte by byte of all distances: the high ones are mostly zero, and take next to nothing.
    return base64.b64encode(zlib.compress(distances.T.tobytes(), 9)).decode()


def _unpack(text: object) -> list[bytes]:
    if not isinstance(text, str):
        raise ValueError(f"roles are text, not {type(text).__name__}")
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(text, validate=True), _MOST)
    except zlib.error as error:
        raise ValueError(f"its roles cannot be unpacked ({error})") from None
    if len(data) % _BYTES or unpacker.unconsumed_tail:
        raise ValueError("its roles are no whole digests")
    padded = np.zeros((len(data) // _BYTES, 8), np.uint8)
    padded[:, :_BYTES] = np.frombuffer(data, np.uint8).reshape(_BYTES, -1).T
    numbers = np.cumsum(padded.view("<u8").reshape(-1), dtype=np.uint64)
    if len(numbers) and int(numbers[-1]) >> (8 * _BYTES):
        raise ValueError("its roles are no digests")
    return [int(number).to_bytes(_BYTES, "big") for number in numbers.tolist()]
