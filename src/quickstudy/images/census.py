"""The census of an image set: which images there are, by content, in which role, before any network runs.

An image is its content: the SHA-256 of its file's bytes. The census brings files of one content together, gives each
content its labels, and its role: to train on, to choose by (validation), to test on, or none, with the reason. What
comes after it takes contents, labels and roles from here; nothing else groups, sorts or splits images.

An image has labels: one where each image is of one class, any number where it may have several, and none where it is
known to be of no class. Where an image may have several, it has all those of its files.

Where a set comes with split folders or a split column, these are the roles; a content that stands in several of them
counts for the test before the validation before the training, so that nothing leaks. Otherwise roles are drawn by
content: the hash, read as a number between 0 and 1, decides, so files can be added, moved and renamed freely. Roles
that an earlier model remembers stay as they are (see `quickstudy.models.roles`).
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import ImageSetError, OptionError
from quickstudy.images.drawn_roles import TEST_SHARE, RolesBefore, draw_tests, draw_tests_of_several, draw_validation
from quickstudy.images.identity import StatIndex, identify
from quickstudy.images.imageset import EXPECTED, ImageFile, ImageSet, Skipped, Split, as_label, load_image_set
from quickstudy.images.listing import alike, real_places
from quickstudy.images.manifests import ONE_EACH, Labelling
from quickstudy.progress import Progress, silent
from quickstudy.wording import count, quoted

FEWEST_EXAMPLES = 10
"""The fewest examples of none of the classes to learn from."""
LeftOut = Literal["unusable", "conflict", "unlabelled", "single"]

_MOST_NAMED = 3
_STRICTEST: tuple[Split, ...] = ("test", "validation", "train")


class Content(NamedTuple):
    """One image, wherever it lies. It is a tuple, since a census makes a hundred thousand of them in half a second."""

    digest: bytes
    """SHA-256 of the bytes."""
    places: tuple[ImageFile, ...]
    """Its files, sorted by path; at least one."""
    labels: tuple[str, ...] | None = None
    """The labels on which all its labelled places agree, or all that they have where an image may have several; empty
    where it is of none of the classes, and None where it has no label, they contradict, or it is unusable."""
    role: Split | None = None
    """What it is for; None where it is left out."""
    left_out: LeftOut | None = None
    """Why it has no role, in a word; None where it has one."""
    reason: str = ""
    """Why it has no role, in words that end a sentence; empty where it has one."""

    @property
    def label(self) -> str | None:
        """Its labels as a text; None where it has none that is known."""
        return as_label(self.labels)

    @property
    def path(self) -> Path:
        """The first of its files."""
        return self.places[0].path

    @property
    def leaks(self) -> bool:
        """Whether the given splits have it in different roles."""
        return len(_given_roles(self.places)) > 1


@dataclass(frozen=True, kw_only=True)
class Census:
    """The images of a set by content, with labels and roles."""

    source: Path
    """The folder or manifest."""
    contents: Mapping[bytes, Content]
    """The contents by digest, in the digests' order, which no renaming changes."""
    given: bool
    """Whether the set came with splits; if not, roles are drawn by content."""
    listed: ImageSet
    """The image set as it was listed, with all that listing passed over."""
    unread: tuple[Skipped, ...] = ()
    """Files that have no content, since they could not be used at listing or not be read."""
    holds_out: bool = False
    """Whether some of the images that are not for the test are drawn for the validation, where none come so."""
    to_learn: bool = False
    """Whether an image that is the only one of its class is left out where roles are drawn: nothing could test it."""
    before: RolesBefore | None = field(default=None, compare=False)
    """The roles that stand from an earlier model; None where there is no such model."""
    test_share: float = TEST_SHARE
    """Share of each class's images that is drawn for the test where no splits are given, from 0 (none) to below 1."""

    @property
    def several(self) -> bool:
        """Whether an image may have several labels."""
        return self.listed.labelling.several

    @cached_property
    def names(self) -> dict[bytes, tuple[str, ...]]:
        """The labels of each content that has a role, in the digests' order."""
        return {d: c.labels for d, c in self.contents.items() if c.role is not None and c.labels is not None}

    @cached_property
    def labels(self) -> dict[bytes, str]:
        """The labels as a text of each content that has a role, in the digests' order."""
        return {digest: as_label(names) or "" for digest, names in self.names.items()}

    def digests(self, *roles: Split) -> list[bytes]:
        """Return the contents in one of these roles, in the digests' order."""
        return [digest for digest, content in self.contents.items() if content.role in roles]

    def numbered(self, *roles: Split) -> dict[bytes, int]:
        """Return the contents of a class in one of these roles with their class numbers, in the digests' order."""
        number_of = {name: number for number, name in enumerate(self.classes)}
        return {d: number_of[names[0]] for d in self.digests(*roles) if (names := self.names[d])}

    def targets(self, *roles: Split) -> tuple[list[bytes], NDArray[np.intp]]:
        """Return the contents in one of these roles that can be learned, in the digests' order, and what of them.

        It is their class numbers (n), or, where an image may have several labels, a 1 for each that it has (n×K); then
        all contents can be learned, otherwise those that have a class.
        """
        if not self.several:
            numbered = self.numbered(*roles)
            return list(numbered), np.array(list(numbered.values()), np.intp)
        digests, number_of = self.digests(*roles), {name: number for number, name in enumerate(self.classes)}
        marks = np.zeros((len(digests), len(self.classes)), np.intp)
        for row, digest in enumerate(digests):
            marks[row, [number_of[name] for name in self.names[digest] if name in number_of]] = 1
        return digests, marks

    def examples_of_none(self, *roles: Split) -> list[bytes]:
        """Return the contents in one of these roles that are of no class where each image has one, in order."""
        return [] if self.several else [digest for digest in self.digests(*roles) if not self.names[digest]]

    def counts(self, *roles: Split) -> Counter[str]:
        """Count the contents in one of these roles by label; one with several labels counts for each."""
        return Counter(name for digest in self.digests(*roles) for name in self.names[digest])

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Every file that cannot be used, with the reason."""
        damaged = (content for content in self.contents.values() if content.left_out == "unusable")
        return (
            *self.unread,
            *(Skipped(path=place.path, reason=content.reason) for content in damaged for place in content.places),
        )

    @property
    def conflicting(self) -> tuple[Content, ...]:
        """Contents that are left out since their files are under different labels."""
        return tuple(content for content in self.contents.values() if content.left_out == "conflict")

    @property
    def conflicts(self) -> tuple[tuple[Path, ...], ...]:
        """Groups of files of one content under different labels."""
        return tuple(tuple(place.path for place in content.places) for content in self.conflicting)

    @property
    def copies(self) -> int:
        """Number of files whose content is there already, under the same label."""
        several = (c.places for c in self.contents.values() if c.role is not None and len(c.places) > 1)
        return sum(len(set(real_places(place.name for place in places))) - 1 for places in several)

    @property
    def leaks(self) -> int:
        """Number of contents that the given splits have in several roles; they count in the strictest."""
        return sum(content.leaks for content in self.contents.values() if content.role is not None)

    @property
    def validation_given(self) -> bool:
        """Whether the validation images came as such; if not, they were drawn by content."""
        return any(place.split == "validation" for content in self.contents.values() for place in content.places)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes that there are images of to learn from, and where there may be several, without, sorted."""
        counts = self.counts("train", "validation")
        all_images = len(self.digests("train", "validation")) if self.several else None
        return tuple(sorted(name for name, images in counts.items() if images != all_images))

    @property
    def everywhere(self) -> tuple[str, ...]:
        """The labels that every image to learn from has, so that nothing can tell them, sorted."""
        return tuple(sorted(set(self.counts("train", "validation")) - set(self.classes)))

    @cached_property
    def strangers(self) -> dict[str, int]:
        """Number of test images by label, of the classes that have no image to learn from."""
        known = {*self.classes, *self.everywhere}
        return {name: n for name, n in sorted(self.counts("test").items()) if name not in known}

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Classes that were listed and have no usable image, sorted."""
        listed = {*self.listed.classes, *self.listed.empty_classes}
        there = {name for names in set(self.names.values()) for name in names}
        return tuple(sorted(listed - there - set(self.single)))

    @property
    def single(self) -> dict[str, Content]:
        """The images that are left out since their class has no other, by label, sorted."""
        found = {c.label: c for c in self.contents.values() if c.left_out == "single" and c.label is not None}
        return dict(sorted(found.items()))

    @property
    def alike_classes(self) -> tuple[tuple[str, str], ...]:
        """Pairs of labels that differ by capitals only, sorted; they are not joined."""
        return alike({name for names in set(self.names.values()) for name in names})

    @property
    def passed_over(self) -> tuple[tuple[str, int], ...]:
        """Kinds of files and folders that listing has passed over, with their numbers."""
        return self.listed.passed_over

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all contents with label and role, which names what a model was made from and tested on."""
        listing = "".join(f"{d.hex()} {c.role} {c.label}\n" for d, c in self.contents.items() if c.role is not None)
        return hashlib.sha256(listing.encode()).hexdigest()

    @property
    def faults(self) -> str:
        """Number of files that cannot be used and of images that contradict, with the first of each, in words."""
        found = []
        if skipped := sorted(self.skipped, key=attrgetter("path")):
            files = count(len(skipped), "file cannot be used", "files cannot be used, the first")
            found.append(f"{files}: '{skipped[0].path}': {skipped[0].reason}")
        if conflicts := sorted(self.conflicts):
            images = count(
                len(conflicts), "image is under several classes", "images are under several classes, the first"
            )
            found.append(f"{images}: " + " = ".join(f"'{path}'" for path in conflicts[0]))
        return "; ".join(found)

    def without(self, unusable: Mapping[bytes, str]) -> Census:
        """Return the census without the contents that cannot be decoded; roles are given again without them.

        Args:
            unusable: why a content cannot be decoded, by digest.
        """
        if not unusable:
            return self
        known = {d: c.reason for d, c in self.contents.items() if c.left_out == "unusable"}
        places = {digest: content.places for digest, content in self.contents.items()}
        return replace(self, contents=_contents(self, places, {**known, **unusable}))

    def require_enough(self, *, strict: bool = False) -> None:
        """Check that there is something to tell apart; with `strict`, that all files and classes can be used.

        Raises:
            ImageSetError: there is nothing to learn of two classes; with `strict`, a file or a whole class cannot be
                used.
        """
        if self.several and not self.classes:
            raise ImageSetError(
                f"Nothing can be learned from '{self.source}': no label is on some images and not on others"
                f"{self._and_faults()}; expected a manifest with columns path,labels, or path and a column of 0 and 1 "
                "for each class"
            )
        none = self.listed.labelling.none
        if none is not None and all(self.names.values()):
            near = difflib.get_close_matches(none, self.classes, n=1)
            hint = f"did you mean '{near[0]}'? The" if near else "the"
            raise ImageSetError(
                f"No usable image of '{self.source}' is labelled '{none}', whose images are to be of none of the "
                f"classes; {hint} labels are {quoted(self.classes, most=_MOST_NAMED) or 'none'}{self._and_faults()}"
            )
        examples = self.examples_of_none("train", "validation")
        if none is not None and not self.several and len(examples) < FEWEST_EXAMPLES:
            raise ImageSetError(
                f"'{self.source}' has {count(len(examples), 'image')} labelled '{none}' to learn from, examples of "
                f"none of the classes; at least {FEWEST_EXAMPLES} are needed. Add some, or leave out --none"
            )
        if not self.several and len(self.classes) < 2:
            names = ", ".join(f"'{name}'" for name in self.classes) or "none"
            alone = "".join(f"; '{name}' has a single usable image, add more" for name in [*self.single][:_MOST_NAMED])
            expected = f"; {self._classes_further_down() or EXPECTED}"
            if len(self.classes) + len(self.single) >= 2:
                alone, expected = f"{alone}, or learn from what there is with --test-share 0", ""
            raise ImageSetError(
                f"At least 2 classes are needed to train, '{self.source}' has {len(self.classes)} ({names}){alone}"
                f"{self._and_faults()}{expected}"
            )
        if strict and (skipped := self.skipped):
            raise ImageSetError(
                f"{count(len(skipped), 'file')} cannot be used and --strict was asked for; the first: "
                f"'{skipped[0].path}': {skipped[0].reason}"
            )
        if strict and (empty := self.empty_classes):
            raise ImageSetError(f"The class '{empty[0]}' has no usable image, and --strict was asked for")
        if strict and (single := self.single):
            name, content = next(iter(single.items()))
            raise ImageSetError(
                f"The class '{name}' has a single image, '{content.path}', and --strict was asked for; at least two "
                "are needed, one to train on and one to test"
            )

    def _and_faults(self) -> str:
        """Say what is at fault, for the end of an error; it goes through all contents, so not without need."""
        faults = self.faults
        return f"; {faults}" if faults else ""

    def _classes_further_down(self) -> str:
        """Say which folder to give where the only folder of the source holds the class folders; else nothing."""
        if len(self.classes) != 1 or not self.source.is_dir():
            return ""
        parts = [file.path.relative_to(self.source).parts for file in self.listed.files]
        names = sorted({path[1] for path in parts})
        if len({path[0] for path in parts}) != 1 or len(names) < 2 or any(len(path) < 3 for path in parts):
            return ""
        below = self.source / parts[0][0]
        return f"if {quoted(names, most=_MOST_NAMED)} are the classes, give the folder that holds them: '{below}'"


def take_census(
    images: Path | ImageSet,
    index: Path | None,
    *,
    unlabelled: bool = False,
    to_learn: bool = False,
    hold_out: bool = False,
    before: RolesBefore | None = None,
    test_share: float | None = None,
    labelling: Labelling = ONE_EACH,
    identities: Iterable[bytes | str] | None = None,
    progress: Progress = silent,
) -> Census:
    """Make the census of an image set: list, hash, bring together by content, label, and give roles.

    Args:
        images: a folder or manifest, or what was listed of one.
        index: the stat index, which spares reading unchanged files; none if left out.
        unlabelled: take images without a label, too; they have no role.
        to_learn: leave an image out that is the only one of its class, where roles are drawn, as training does.
        hold_out: draw some of the images that are not for the test for the validation, where none come so; see
            `held_out_share`.
        before: roles that stand from an earlier model, where the set does not come with splits.
        test_share: share of each class's images to draw for the test, from 0 to below 1; `TEST_SHARE` if left out.
        labelling: how labels are to be read, where the images are not listed yet.
        identities: content hashes of the files that were listed, where others have read these.
        progress: is told how far it has come.

    Raises:
        ImageSetError: there are no images.
        OptionError: a share is to be drawn for the test, and the set comes with splits.
    """
    with _collector_paused():
        listed = (
            images
            if isinstance(images, ImageSet)
            else load_image_set(images, unlabelled=unlabelled, labelling=labelling)
        )
        given = any(file.split for file in listed.files)
        if given and test_share is not None:
            raise OptionError(
                f"--test-share draws a test where there is none, but '{listed.source}' comes with splits; leave "
                "--test-share out, or give the images without their splits"
            )
        if identities is None:
            names = [file.name for file in (*listed.files, *listed.unlabelled)]
            identities = identify(names, index, progress=progress)
        places, unread = _places(listed, identities)
        with contextlib.closing(StatIndex(index)) as known:
            unusable = known.unusable()
        census = Census(
            source=listed.source,
            contents={},
            given=given,
            listed=listed,
            unread=unread,
            holds_out=hold_out,
            to_learn=to_learn,
            before=before,
            test_share=TEST_SHARE if test_share is None else test_share,
        )
        return replace(census, contents=_contents(census, places, unusable))


def _places(
    listed: ImageSet, identities: Iterable[bytes | str]
) -> tuple[dict[bytes, tuple[ImageFile, ...]], tuple[Skipped, ...]]:
    """Bring the files together by content, in the digests' order, sorted by path; and say which cannot be read."""
    files = (*listed.files, *listed.unlabelled)
    by_digest: dict[bytes, list[ImageFile]] = {}
    unread = list(listed.skipped)
    for file, identity in zip(files, identities, strict=True):
        if isinstance(identity, bytes):
            by_digest.setdefault(identity, []).append(file)
        else:
            unread.append(Skipped(path=file.path, reason=identity))
    places = {}
    for digest in sorted(by_digest):
        found = by_digest[digest]
        places[digest] = tuple(found) if len(found) == 1 else _different(found)
    return places, tuple(unread)


def _different(files: list[ImageFile]) -> tuple[ImageFile, ...]:
    """Leave out what says again of a file what was said already, as a row of a manifest may; the others by path.

    One file under two labels, or in two splits, stays there twice, since that is a contradiction to be told.
    """
    files.sort(key=attrgetter("name"))
    places = real_places(file.name for file in files)
    first: dict[tuple[str, tuple[str, ...] | None, Split | None], ImageFile] = {}
    for place, file in zip(places, files, strict=True):
        first.setdefault((place, file.labels, file.split), file)
    return tuple(first.values())


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Let Python's cyclic garbage collector rest: of 100,000 files it takes 0.9 of 2.3 s, and finds nothing."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            if not gc.get_freeze_count():  # what has been made is old at once: to go through it would take 0.2 s
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _contents(
    census: Census, places: Mapping[bytes, tuple[ImageFile, ...]], unusable: Mapping[bytes, str]
) -> dict[bytes, Content]:
    """Give each content its label and its role, or say why it has none.

    Args:
        census: how the set came, and what it is for; its contents do not matter.
        places: the files of each content, sorted by path, by digest, in the digests' order.
        unusable: why contents cannot be decoded, by digest; others than these may be among them.
    """
    labels: dict[bytes, tuple[str, ...]] = {}
    others: dict[bytes, Content] = {}
    for digest, files in places.items():
        if digest in unusable:
            others[digest] = Content(digest, files, None, None, "unusable", unusable[digest])
            continue
        first = files[0].labels
        if len(files) == 1 and first is not None:
            labels[digest] = first
            continue
        names = {file.labels for file in files if file.labels is not None}
        if len(names) == 1:
            labels[digest] = names.pop()
        elif names and census.several:
            labels[digest] = tuple(sorted({name for found in names for name in found}))
        elif names:
            listed = " and ".join(f"'{as_label(name)}'" for name in sorted(names))
            reason = f"the same image is there under {listed}, so it teaches nothing"
            others[digest] = Content(digest, files, None, None, "conflict", reason)
        else:
            others[digest] = Content(digest, files, None, None, "unlabelled", "it has no label")
    if census.to_learn and not census.given and not census.several and census.test_share:
        images_of = Counter(labels.values())
        for digest in [digest for digest, label in labels.items() if label and images_of[label] == 1]:
            reason = "it is the only image of its class, and at least two are needed, one to train on and one to test"
            others[digest] = Content(digest, places[digest], labels.pop(digest), None, "single", reason)
    if census.given:
        given = {digest: _given_roles(places[digest]) for digest in labels}
        roles = {digest: next(split for split in _STRICTEST if split in given[digest]) for digest in labels}
    elif census.several:
        roles = draw_tests_of_several(labels, test_share=census.test_share, before=census.before)
    else:
        roles = draw_tests(labels, test_share=census.test_share, before=census.before)
    if census.holds_out and "validation" not in roles.values():
        roles |= draw_validation({digest: label for digest, label in labels.items() if roles[digest] == "train"})
    return {
        digest: Content(digest, files, labels[digest], roles[digest]) if digest in labels else others[digest]
        for digest, files in places.items()
    }


def _given_roles(files: Sequence[ImageFile]) -> set[Split]:
    """List the roles that the files of a content came with; those without a split are for training."""
    return {file.split or "train" for file in files}
