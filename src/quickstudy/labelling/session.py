"""A session of labelling: the photos, what people say of them, and what is known of them at this moment.

Nobody waits for learning. An act is written to the journal, counts, and is acknowledged; the threads of `background.py`
follow. What they find is published as a whole (`Knowledge`, `Figures`), never changed in place, so that readers need no
lock. All else that threads share is changed under `lock`.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.engines.named import engine_for
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import LabellingError
from quickstudy.files import write_bytes_atomically
from quickstudy.images.depth import significant_bits
from quickstudy.images.manifests import ONE_EACH, SEPARATORS, Labelling, holds_several
from quickstudy.labelling.choosing import CONTROL_SHARE, Pick, Reason, with_checks
from quickstudy.labelling.journal import MARKING, Act, ActKind, Journal, Standing, class_names, is_of_several
from quickstudy.labelling.knowledge import Figures, Knowledge
from quickstudy.labelling.manifest import make_manifest, take_over
from quickstudy.labelling.photos import PhotoSet
from quickstudy.labelling.teacher import Space
from quickstudy.learning.features import Floats
from quickstudy.progress import Progress, silent
from quickstudy.wording import count

CONTROL_MOST = 200
"""The largest number of photos drawn at random; their 95 % interval then reaches at most 7 points to either side."""
MOST_PHOTOS = 20_000
"""The largest number of photos of one act."""
_MOST_CLASSES = 1000
"""The largest number of classes."""
_HANDED_SECONDS = 30.0
_WAYS: dict[Reason, str] = {"unlike": "unlike", "between": "doubtful", "whether": "doubtful", "few": "doubtful"}


class Session:
    """Photos and labels while they are labelled. Its methods may be called from several threads."""

    def __init__(
        self,
        source: Path,
        manifest: Path,
        model: Path,
        *,
        cache: Path,
        backbone: str,
        engine: str,
        labelling: Labelling = ONE_EACH,
        progress: Progress = silent,
    ) -> None:
        """List the photos, and read what was said of them.

        Args:
            source: a folder or manifest of photos.
            manifest: where labels are written; the journal lies beside it.
            model: where the trained model is written.
            cache: folder of the store and the backbones.
            backbone: name of the pretrained network.
            engine: what computes bottlenecks.
            labelling: how labels are to be read and written. Photos may have several, too, where the source is a
                manifest that says so, or they once had with this journal.
            progress: is told how far hashing has come.

        Raises:
            ImageSetError: there are no images.
            LabellingError: another process labels them, the journal is damaged, or the manifest is of other photos.
            QuickstudyError: the backbone, the engine or the journal's place cannot be used.
        """
        journal = manifest.with_name(f"{manifest.name.removesuffix('.csv')}.journal")
        if not labelling.several and (is_of_several(journal) or holds_several(source)):
            labelling = replace(labelling, several=True)
        self.photos = PhotoSet(source, manifest, cache=cache, labelling=labelling, progress=progress)
        self.model, self.cache, self.backbone, self.engine = model, cache, backbone, engine
        self.net = load_backbone(backbone, cache).reading(significant_bits(self.photos.census, self.photos.index))
        self.store, self.runner = Store(cache / "bottlenecks"), engine_for(engine)
        self.id = secrets.token_hex(8)
        """Name of this session, by which a page notices that the server has started anew."""
        self.labels = Standing({photo.id: photo.labels for photo in self.photos.photos if photo.labels is not None})
        self.journal = Journal.open(journal)
        try:
            for act in self.journal.acts:
                self.labels.apply(act)
            if labelling.several and not self.labels.several:
                self.labels.apply(self.journal.append("several"))
            self.taken_over = take_over(self.photos, self.labels, self.journal)
            """What somebody has changed in the manifest by other means."""
        except BaseException:
            self.journal.close()
            raise
        n = len(self.photos)
        self.began = self.labels.number
        """Number of the last act before this session."""
        self.raw = np.zeros((n, self.net.cut_shape[0]), np.float16)
        """Bottlenecks, n×d; zeros where there is none yet."""
        self.have = np.zeros(n, np.bool_)
        """Whether a photo's bottleneck is there (n)."""
        self.projected: Floats = np.zeros((n, 0), np.float32)
        """The photos in the directions of `space`, n×r."""
        self.space: Space | None = None
        """The directions in which the photos vary most; None until a few bottlenecks are there."""
        self.labelled = np.zeros(n, np.bool_)
        """Whether a photo has labels (n); where there may be several, none of these is one way to have them."""
        self.marks = np.zeros((n, 0), np.bool_)
        """Whether a photo has a label (n×C), by the number of the label in `labels.classes`, which has at most C."""
        self.counts = np.zeros(0, np.intp)
        """Number of photos that have a label (C)."""
        self.answered = np.zeros(n, np.bool_)
        """Whether something was said of a photo, so that it is not asked for again."""
        self._tests = np.array([photo.tests for photo in self.photos.photos], np.bool_)
        most = min(CONTROL_MOST, int(CONTROL_SHARE * n))
        untouched = np.flatnonzero([not photo.added for photo in self.photos.photos])
        self.candidates = np.flatnonzero(self._tests) if self.photos.splits_given else untouched[:most]
        """Numbers of the photos that are drawn at random as a check, in the order in which they are asked for.

        They are the photos that came in a split for the test; where none did, the first by content hash."""
        self.unusable: dict[int, str] = {}
        """Why photos cannot be shown, by number."""
        self.group = np.arange(n)
        """Number of the first photo of the same picture, by photo."""
        self.places: NDArray[np.float64] | None = None
        """Places on the map (n×2); None until it is drawn."""
        self.extracted = False
        """Whether the extraction has ended."""
        self.trouble = ""
        """What went wrong in the background, in words; empty where nothing did."""
        self.knowledge, self.figures = Knowledge(), Figures()
        self.urgent: deque[int] = deque()
        """Numbers of photos that are shown soon, whose bottlenecks are wanted first."""
        self.asked: Counter[str] = Counter()
        """Number of answered photos that were `unlike` all others, or asked for since they were `doubtful`."""
        self._handed: dict[int, tuple[str, float]] = {}
        self._why: dict[int, str] = {}  # of photos that were handed out and have no answer yet
        self.lock = threading.RLock()
        self._acting, self._writing = threading.Lock(), threading.Lock()
        self.changed = threading.Condition(self.lock)
        """Is notified of new acts and bottlenecks."""
        self.dirty = True
        """Whether the manifest is behind the acts."""
        self._note(range(n))
        self.version = 0
        """Rises whenever a page would show something else."""
        self.listener: Callable[[], object] = lambda: None
        """Is called whenever `version` rises, from any thread."""

    # What people do
    def act(
        self,
        kind: ActKind,
        photos: Sequence[str],
        *,
        names: Sequence[str] = (),
        seen: Sequence[int] = (),
        who: str,
        key: str = "",
        way: str = "",
    ) -> Act | None:
        """Write down what somebody says of photos; it is durable when this returns.

        Pictures that are the same as one of them, and of which nothing was said, are told the same.

        Args:
            kind: `label`, `none`, `skip`, `clear` or `class`.
            photos: content hashes.
            names: names of the labels, for `label`; without any, none of these is meant. The new name, for `class`.
            seen: number of the last act on each photo that they had seen.
            who: name of their browser.
            key: name of the act, by which it is known if it is sent twice.
            way: where in the page it was done.

        Returns:
            The act; None where it had been written already.

        Raises:
            LabellingError: there is no such photo, a name cannot be one of a class, or there are too few or too many.
            WriteError: it cannot be written; then it does not count.
        """
        given: tuple[str, ...] = ()
        if kind in ("label", "class"):
            most = _MOST_CLASSES if self.several and kind == "label" else 1
            given = class_names(names, self.labels.classes, most=most, separators=self.separators)
        if kind == "label" and not given:
            kind = "none"
        if kind in MARKING and not 0 < len(photos) <= MOST_PHOTOS:
            raise LabellingError(f"An act is of 1 to {MOST_PHOTOS:,} photos; got {len(photos):,}")
        if len(seen) != len(photos):
            raise LabellingError(f"For {count(len(photos), 'photo')}, 'seen' needs as many numbers; got {len(seen)}")
        with self._acting:
            if key and key in self.labels.keys:
                return None
            chosen = dict(zip(photos, seen, strict=True))
            if unknown := [photo for photo in chosen if photo not in self.photos.number_of]:
                raise LabellingError(f"There is no photo '{unknown[0][:64]}'; load the page again")
            if len({*self.labels.classes, *given}) > max(_MOST_CLASSES, len(self.labels.classes)):
                raise LabellingError(f"There are {_MOST_CLASSES:,} classes already, which is the limit")
            if kind in ("label", "none"):
                chosen |= {twin: 0 for twin in self._twins(chosen) if self.labels.mark(twin) is None}
            act = self.journal.append(
                kind, who=who, key=key, photos=tuple(chosen), seen=tuple(chosen.values()), way=way, names=given
            )
            self._count(act)
        return act

    @property
    def several(self) -> bool:
        """Whether a photo may have several labels."""
        return self.photos.labelling.several

    @property
    def separators(self) -> tuple[str, ...]:
        """What no new name may hold: whatever a reader of the manifest may take for what stands between labels."""
        return tuple({*SEPARATORS, self.photos.separator}) if self.several else ()

    def undo(self, *, who: str, key: str = "") -> Act | None:
        """Take back what somebody did last; give the act that was taken back, None where there is none.

        Raises:
            WriteError: it cannot be written; then nothing is taken back.
        """
        with self._acting:
            if key and key in self.labels.keys:
                return None
            act = self.labels.to_undo(who, before=self.began)
            if act is not None:
                self._count(self.journal.append("undo", who=who, key=key, of=act.number))
        return act

    def add_photo(self, data: bytes) -> str:
        """Take in a photo that was handed to the page, and give its content hash.

        Raises:
            UnusableImageError: it is no image that can be used.
            WriteError: it cannot be kept.
        """
        number = self.photos.add(data)
        with self.lock:
            if number >= len(self.have):
                self.raw = np.concatenate([self.raw, np.zeros((1, self.raw.shape[1]), np.float16)])
                self.projected = np.concatenate([self.projected, np.zeros((1, self.projected.shape[1]), np.float32)])
                self.have = np.append(self.have, False)
                self.group = np.append(self.group, number)
                self.labelled, self.answered = np.append(self.labelled, False), np.append(self.answered, False)
                self.marks = np.concatenate([self.marks, np.zeros((1, self.marks.shape[1]), np.bool_)])
                self._tests = np.append(self._tests, False)
                if self.places is not None:
                    self.places = np.concatenate([self.places, [[0.5, 0.5]]])
        photo = self.photos.photos[number]
        found = extract([photo.path], self.net, self.store, digests=[photo.digest], engine=self.runner)
        if not found.reasons:
            self.arrive([photo.digest], found.gather([photo.digest]))
        return photo.id

    def _twins(self, photos: dict[str, int]) -> list[str]:
        chosen = {self.photos.number_of[photo] for photo in photos}
        wanted = np.unique(self.group[list(chosen)])
        same = np.flatnonzero(np.isin(self.group, wanted))
        return [self.photos.photos[n].id for n in same.tolist() if n not in chosen]

    def _count(self, act: Act) -> None:
        with self.lock:
            numbers = [n for id_ in self.labels.apply(act) if (n := self.photos.number_of.get(id_)) is not None]
            self._note(numbers)
            self.asked.update(filter(None, (self._why.pop(number, "") for number in numbers)))
            self.dirty = True
            self.changed.notify_all()
        self.tell()

    def tell(self) -> None:
        """Let pages know that there is something new."""
        with self.lock:
            self.version += 1
        self.listener()

    # What is known of photos
    def labels_of(self, number: int) -> tuple[str, ...] | None:
        """Give the labels that a photo has; None where it has none, or people contradict each other."""
        return self.labels.labels(self.photos.photos[number].id)

    def targets(self, numbers: NDArray[np.intp], classes: Sequence[int]) -> NDArray[np.intp]:
        """Give what is to be learned of photos (m) that have labels.

        Args:
            numbers: numbers of the photos.
            classes: numbers in `labels.classes` of the K classes that are told apart.

        Returns:
            Places of their classes among these (m), -1 for another one; or marks (m×K), where there may be several.
        """
        marks = self.marks[numbers][:, list(classes)]
        if self.several:
            return marks.astype(np.intp)
        return np.where(marks.any(axis=1), marks.argmax(axis=1), -1) if len(classes) else np.full(len(numbers), -1)

    def _note(self, numbers: Sequence[int]) -> None:
        """Note what stands of some photos, so that nothing has to go through all."""
        class_of = {name: k for k, name in enumerate(self.labels.classes)}
        if len(class_of) > self.marks.shape[1]:
            more = len(class_of) + 8 - self.marks.shape[1]
            self.marks = np.pad(self.marks, ((0, 0), (0, more)))
            self.counts = np.pad(self.counts, (0, more))
        for number in numbers:
            photo = self.photos.photos[number]
            mark, names = self.labels.mark(photo.id), self.labels.labels(photo.id)
            if self.labelled[number]:
                self.counts -= self.marks[number]
                self.marks[number] = False
            if names:
                numbers_of = [class_of[name] for name in names]
                self.marks[number, numbers_of] = True
                self.counts[numbers_of] += 1
            self.labelled[number] = names is not None
            self.answered[number] = photo.labels is not None if mark is None else mark.kind != "clear"

    def control(self) -> NDArray[np.intp]:
        """List the photos that check the model: of the candidates, those with a label up to the first that waits.

        So it is the beginning of a random order, whatever else was labelled by whatever choice, and a fair sample.
        Where photos came in a split for the test, it is all of these.
        """
        found = self.candidates
        if not self.photos.splits_given:
            waiting = ~self.answered[found]
            waiting[np.isin(found, list(self.unusable))] = False
            found = found[: int(waiting.argmax())] if waiting.any() else found
        return found[self.labelled[found]]

    def waits_as_check(self, numbers: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Tell which photos (m) are of pictures that wait for their label as a check; no suggestion may lead it."""
        waiting = self.candidates[~self.labelled[self.candidates]]
        found: NDArray[np.bool_] = np.isin(self.group[numbers], self.group[waiting])
        return found

    def training_rows(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """List the photos that are learned from, each picture once, and those that check the head.

        Checks are learned from, too, and judged by fits that had not seen them; only what came for the test is not.
        """
        learned = self.labelled.copy()
        learned[self._tests] = False
        control = self.control()
        if self.photos.splits_given:
            learned[np.isin(self.group, self.group[control])] = False
        rows = np.flatnonzero(learned)
        rows = rows[np.unique(self.group[rows], return_index=True)[1]]
        return rows, control if self.photos.splits_given else control[np.isin(control, rows)]

    def classes(self) -> list[tuple[int, str, int]]:
        """List the classes that there are: number in `labels.classes`, name, and number of labels.

        A class whose last label was taken away is gone, unless it was added, or came with the photos.
        """
        counts = self.counts.tolist()  # of the last that were noted; more may be added meanwhile
        names = self.labels.classes[: len(counts)]
        lasting = {*self.labels.added, *(name for given in set(self.labels.given.values()) for name in given)}
        return [(k, name, counts[k]) for k, name in enumerate(names) if counts[k] or name in lasting]

    def told_apart(self, counts: NDArray[np.intp], n: int) -> list[int]:
        """List the classes that can be told apart by photos with labels, by number in `labels.classes`.

        They are those that some of the `n` photos have, by `counts`, at least two; or, where there may be several, each
        label that some have and others have not.
        """
        found = np.flatnonzero((counts > 0) & (counts < n)).tolist()
        return found if self.several or len(found) > 1 else []

    def next_for(self, who: str, count: int) -> list[Pick]:
        """Choose what to ask somebody next; photos that others have in front of them are left to them."""
        now = time.monotonic()
        knowledge = self.knowledge
        with self.lock:
            others = {n for n, (owner, when) in self._handed.items() if owner != who and now - when < _HANDED_SECONDS}
            free = self.free()
            picks = [pick for pick in knowledge.picks if free[pick.row] and pick.row not in others]
            if len(picks) < count:
                have = {pick.row for pick in picks} | others
                picks += self._fillers(count - len(picks), have)
            if not picks and others:  # nobody has to wait for somebody who has gone away
                picks = self._fillers(count, set())
            for pick in picks[:count]:
                self._handed[pick.row] = who, now
                self._why[pick.row] = _WAYS.get(pick.reason, "")
                if not self.have[pick.row]:
                    self.urgent.append(pick.row)
        return picks[:count]

    def _fillers(self, count: int, but: set[int]) -> list[Pick]:
        """Pick photos before anything is known of them, one in five as a check; at the end those that were skipped."""
        free = self.free()
        free[[number for number in but if number < len(free)]] = False
        checks = self.candidates[free[self.candidates]].tolist()
        free[self.candidates] = False
        others = [Pick(row=number, reason="any") for number in np.flatnonzero(free)[:count].tolist()]
        picks = with_checks(others, checks, asked=len(self.control()), answered=int(self.answered.sum()), most=count)
        if not picks and not but:
            picks = [Pick(row=n, reason="any") for n in self.marked("skip") if n not in self.unusable][:count]
        return picks

    def set_unusable(self, number: int, reason: str) -> None:
        """Note that a photo cannot be shown."""
        with self.lock:
            new = number not in self.unusable
            self.unusable[number] = reason
            self.changed.notify_all()
        if new:
            self.tell()

    def marked(self, kind: ActKind) -> list[int]:
        """List the photos of which this was said last."""
        unlabelled = np.flatnonzero(self.answered & ~self.marks.any(axis=1)).tolist()
        marks = ((number, self.labels.mark(self.photos.photos[number].id)) for number in unlabelled)
        return [number for number, mark in marks if mark is not None and mark.kind == kind]

    def rows(self) -> tuple[Floats, NDArray[np.bool_]]:
        """Give the photos in the directions in which they vary most (n×r), and which of them are known (n)."""
        with self.lock:
            return self.projected, self.have.copy() if self.space else np.zeros(len(self.have), np.bool_)

    @property
    def computed(self) -> int:
        """Number of photos whose bottleneck is there."""
        return int(self.have.sum())

    def arrive(self, digests: Sequence[bytes], bottlenecks: NDArray[np.floating]) -> None:
        """Take in bottlenecks (at least n×d, of which the features come first) of photos by content hash."""
        width = self.raw.shape[1]
        numbers = [self.photos.number_of[digest.hex()] for digest in digests]
        with self.lock:
            self.raw[numbers] = bottlenecks[:, :width]
            self.have[numbers] = True
            if self.space is not None:
                self.projected[numbers] = self.space.project(self.raw[numbers])
            self.changed.notify_all()
        self.tell()

    def free(self) -> NDArray[np.bool_]:
        """Tell which photos may be asked for (n)."""
        free = ~self.answered
        free[list(self.unusable)] = False
        return free

    def is_confirmed(self, number: int) -> bool:
        """Tell whether a label was given by somebody who had been asked whether it is wrong."""
        mark = self.labels.mark(self.photos.photos[number].id)
        return mark is not None and mark.way == "review"

    def close(self) -> None:
        """Write the manifest, and let go of the journal."""
        self.write_manifest()
        self.journal.close()

    # The manifest
    def roles(self) -> dict[str, str]:
        """Give the split of each photo that has a label and came without one; empty where nothing checks the model."""
        control = self.control().tolist()
        if not control or self.photos.splits_given:
            return {}
        return {self.photos.photos[n].id: "test" for n in control}

    def write_manifest(self) -> Path:
        """Write the manifest, all or nothing; gives its path.

        Raises:
            WriteError: the journal refuses.
            OSError: the manifest's place does.
        """
        with self._writing:
            with self.lock:
                self.dirty = False
                manifest = make_manifest(self.photos, self.labels, self.roles())
            try:
                if manifest.digest not in self.labels.manifests:  # before a kill can leave it there, unknown
                    self._note_manifest(name=manifest.digest)
                write_bytes_atomically(self.photos.manifest, manifest.data)
                if manifest.said > self.labels.written:
                    absent = manifest.absent
                    self._note_manifest(name=manifest.digest, of=manifest.said, photos=absent, seen=(0,) * len(absent))
            except BaseException:
                self.dirty = True
                raise
        return self.photos.manifest

    def _note_manifest(self, **values: Any) -> None:
        with self._acting:
            act = self.journal.append("manifest", **values)
            with self.lock:
                self.labels.apply(act)
