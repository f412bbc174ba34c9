"""The journal: what people said of photos, act by act, durable before it is acknowledged; and what follows from it.

An act is a line of JSON that is written and flushed to the disk before anybody hears that it was done. A kill leaves at
worst the beginning of a line, which was never acknowledged and is cut off. Nothing is ever taken back: undoing is an
act, too, so whatever was said can be read there.

What stands follows from the acts alone, in one place (`Standing.apply`), whether they come from a person or from the
file. A photo has a history of marks; the last that is not undone counts. Each act names, photo by photo, the last mark
that its author had seen, so that two people who contradict each other without knowing it are noticed: then the photo
has a conflict, and no label until somebody has settled it by another mark.

A photo has one class, or, from an act `several` on, any number of labels: then a mark gives all that it has, and none
of these is an answer as good as any.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from quickstudy.errors import LabellingError, WriteError
from quickstudy.files import flush_folder
from quickstudy.images.listing import label_of
from quickstudy.records import as_values, read_record
from quickstudy.wording import count

ActKind = Literal["label", "none", "skip", "clear", "class", "undo", "manifest", "several"]
"""What an act does: give labels; say that none fits; leave for later; take a mark away; add a class; take an act back;
note the manifest that is about to be written, or has been; or let photos have several labels from now on."""
MARKING = frozenset({"label", "none", "skip", "clear"})
"""The kinds of acts that say something of photos."""
FORMAT = 1
LONGEST_NAME = 80
"""The largest number of characters in the name of a class."""


@dataclass(frozen=True, kw_only=True)
class Act:
    """One line of the journal."""

    number: int
    """Number of the act, from 1 on, rising."""
    kind: ActKind
    """What was done."""
    who: str = ""
    """Name by which a browser calls itself; empty for acts of the program."""
    key: str = ""
    """Name that the sender gave the act, by which it is known if it is sent twice; empty where it gave none."""
    photos: tuple[str, ...] = ()
    """Content hashes of the photos, in hexadecimal."""
    seen: tuple[int, ...] = ()
    """Number of the last act on each photo that the author had seen, 0 for none; as many as there are photos."""
    name: str = ""
    """Name of the only label that is given, or of the class that is added; the hash of the manifest, in hexadecimal."""
    names: tuple[str, ...] = ()
    """Names of the labels that are given, where there are at least two, in the order in which they were told."""
    of: int = 0
    """Number of the act that is taken back; of a manifest that has been written, the last act that it knows; else 0."""
    way: str = ""
    """The view in which it was done: `one`, `grid`, `map`, `review`, `try` or `manifest`; empty where not known."""
    time: float = 0.0
    """When it was done, in seconds since 1970."""

    @property
    def given(self) -> tuple[str, ...]:
        """Names of all labels or classes that it gives or adds, in the order in which they were told."""
        return self.names or ((self.name,) if self.name and self.kind in ("label", "class") else ())


class Mark(NamedTuple):
    """What an act says of one photo."""

    number: int
    """Number of the act."""
    kind: ActKind
    names: tuple[str, ...]
    """Names of the labels, sorted; empty where none is given."""
    who: str
    """Who said so."""
    seen: int
    """Number of the last act on the photo that they had seen; 0 for none."""
    way: str
    """The view in which it was done; see `Act`."""

    @property
    def value(self) -> tuple[str, tuple[str, ...]]:
        """What is said, to compare it with what others say."""
        return self.kind, self.names


class Standing:
    """What stands of everything that was said."""

    def __init__(self, given: Mapping[str, tuple[str, ...]] | None = None) -> None:
        """Begin with the labels that photos came with, by content hash."""
        self.given = dict(given or {})
        self.several = False
        """Whether a photo may have several labels, and none of them for an answer."""
        self.classes: list[str] = sorted({name for names in self.given.values() for name in names})
        """Names of all classes that there ever were: those that came with the photos, then in the order of the acts."""
        self.added: dict[str, int] = {}
        """Number of the act by which a class was added without a photo, by its name."""
        self.number = 0
        """Number of the last act."""
        self.said = 0
        """Number of the last act that is more than a note of a manifest."""
        self.written = 0
        """Number of the last act that the newest manifest on the disk knows; 0 where none is known to be there."""
        self.keys: dict[str, int] = {}
        """Number of the act by the name that its sender gave it."""
        self.manifests: set[str] = set()
        """Hashes of all manifests that were written, or about to be."""
        self.conflicting: dict[str, None] = {}
        """Content hashes of the photos of which people contradict each other, in the order in which that came up."""
        self._marks: dict[str, list[Mark]] = {}
        self._acts: dict[int, Act] = {}
        self._undone: set[int] = set()

    def apply(self, act: Act) -> Sequence[str]:
        """Let an act count; gives the photos of which something else stands now."""
        self.number = act.number
        if act.key:
            self.keys[act.key] = act.number
        if act.kind == "manifest":
            self.manifests.add(act.name)
            self.written = max(self.written, act.of)
            return ()
        self.said = act.number
        if act.kind == "several":
            self.several = True
            return tuple(self._marks)
        if act.kind == "undo":
            self._undone.add(act.of)
            taken_back = self._acts.get(act.of)
            photos = taken_back.photos if taken_back is not None else ()
            self.added = {name: number for name, number in self.added.items() if number != act.of}
            for photo in photos:
                self._marks[photo] = [mark for mark in self._marks[photo] if mark.number != act.of]
            self._compare(photos)
            return photos
        self.classes += [name for name in act.given if name not in self.classes]
        self._acts[act.number] = act
        if act.kind == "class":
            self.added.setdefault(act.name, act.number)
        else:
            for photo, seen in zip(act.photos, act.seen, strict=True):
                mark = Mark(act.number, act.kind, tuple(sorted(act.given)), act.who, seen, act.way)
                self._marks.setdefault(photo, []).append(mark)
            self._compare(act.photos)
        return act.photos

    def _compare(self, photos: Iterable[str]) -> None:
        for photo in photos:
            if self.conflict(photo):
                self.conflicting[photo] = None
            else:
                self.conflicting.pop(photo, None)

    def as_written(self, acts: Iterable[Act]) -> dict[str, tuple[str, ...]] | None:
        """Give the labels that the newest manifest on the disk had when it was written, by content hash.

        They are those of photos of which something was said here; None where no manifest is known to be there.

        Args:
            acts: all acts.
        """
        if not self.written:
            return None
        then, absent = Standing(self.given), set[str]()
        for act in acts:
            if act.number <= self.written:
                then.apply(act)
            if act.of == self.written and act.kind == "manifest":
                absent = set(act.photos)
        labels = {photo: then.labels(photo) for photo in then.marked() if photo not in absent}
        return {photo: names for photo, names in labels.items() if names is not None}

    def marked(self) -> Iterable[str]:
        """Go through the content hashes of all photos of which something was said here."""
        return self._marks

    def mark(self, photo: str) -> Mark | None:
        """Give what counts of a photo, of what was said here; None where nothing was."""
        marks = self._marks.get(photo)
        return marks[-1] if marks else None

    def labels(self, photo: str) -> tuple[str, ...] | None:
        """Give the labels that a photo has, sorted; None where it has none, or people contradict each other.

        Where there may be several, a photo of which it was said that none fits has labels, too: no label at all.
        """
        mark = self.mark(photo)
        if mark is None:
            return self.given.get(photo)
        says = mark.kind == "label" or (mark.kind == "none" and self.several)
        return mark.names if says and not self.conflict(photo) else None

    def conflict(self, photo: str) -> tuple[Mark, ...]:
        """Give the marks that contradict each other, the last one last; none where nobody is contradicted.

        A mark contradicts an earlier one of somebody else that its author had not seen.
        """
        marks = self._marks.get(photo, [])
        if len(marks) < 2:
            return ()
        last = marks[-1]
        others = [m for m in marks[:-1] if m.number > last.seen and m.who != last.who and m.value != last.value]
        return (*others, last) if others else ()

    def to_undo(self, who: str, *, before: int) -> Act | None:
        """Find the act that somebody would take back: their last one, or else the last of all up to `before`.

        Args:
            who: name of the browser.
            before: number of the last act before the server started: who opens another browser may go on undoing.
        """
        valid = [act for number, act in reversed(list(self._acts.items())) if number not in self._undone and act.who]
        own = next((act for act in valid if act.who == who), None)
        return own or next((act for act in valid if act.number <= before), None)


@dataclass(kw_only=True)
class Journal:
    """The file of all acts, held by one process at a time. Its methods may be called from several threads."""

    path: Path
    acts: list[Act]
    """The acts that were in the file when it was opened."""
    _descriptor: int
    _number: int
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def open(path: Path) -> Journal:
        """Open a journal, or make one.

        Raises:
            LabellingError: another process holds it, or a line that is not the last is damaged.
            WriteError: it cannot be opened for writing.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise _cannot_write(path, error) from None
        try:
            _hold(descriptor, path)
            acts, length = _read(path)
            os.ftruncate(descriptor, length)
            os.lseek(descriptor, length, os.SEEK_SET)
            if not length:
                _write(descriptor, {"format": FORMAT})
                flush_folder(path.parent)
        except OSError as error:
            os.close(descriptor)
            raise _cannot_write(path, error) from None
        except LabellingError:
            os.close(descriptor)
            raise
        return Journal(path=path, acts=acts, _descriptor=descriptor, _number=acts[-1].number if acts else 0)

    def append(self, kind: ActKind, *, names: tuple[str, ...] = (), **values: Any) -> Act:
        """Write an act, and return it once it is on the disk.

        Args:
            kind: what it does.
            names: names of all labels or classes that it gives or adds; new ones become classes in this order.
            **values: the other fields of `Act` but its number and time.

        Raises:
            WriteError: the disk is full or refuses; then nothing was written.
        """
        values |= {"name": names[0]} if len(names) == 1 else {"names": names}
        with self._lock:
            act = Act(number=self._number + 1, kind=kind, time=round(time.time(), 3), **values)
            length = os.lseek(self._descriptor, 0, os.SEEK_END)
            try:
                _write(self._descriptor, as_values(act))
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, length)
                    os.fsync(self._descriptor)
                raise _cannot_write(self.path, error) from None
            self._number = act.number
            return act

    def close(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)


def is_of_several(path: Path) -> bool:
    """Tell whether the journal at a path, if there is one, lets photos have several labels."""
    return path.is_file() and b'"kind":"several"' in path.read_bytes()  # in a name, quotes would have a backslash


def class_name(text: Any, *, separators: Iterable[str] = ()) -> str:
    """Make the name of a class of what somebody typed.

    Args:
        text: what was typed.
        separators: what stands between labels in the manifest, and so in none of them.

    Raises:
        LabellingError: it is empty, too long, or has characters that cannot be shown, or that stand between labels.
    """
    name = label_of(text) if isinstance(text, str) else ""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise LabellingError(
            f"{text!r:.100} cannot be the name of a class; it needs 1 to {LONGEST_NAME} characters that can be shown"
        )
    if within := [mark for mark in separators if mark in name]:
        raise LabellingError(
            f"'{name}' cannot be a label: '{within[0]}' stands between labels in a manifest; leave it out, or name "
            "the labels one by one"
        )
    return name


def class_names(
    texts: Sequence[Any], known: Collection[str], *, most: int, separators: Iterable[str]
) -> tuple[str, ...]:
    """Make the names of classes, each once, of what somebody typed; those that are known are taken as they are.

    Raises:
        LabellingError: one cannot be the name of a class, or is that of another class but for upper and lower case, or
            there are more than `most`, or none where that is 1.
    """
    names = dict.fromkeys(text if text in known else class_name(text, separators=separators) for text in texts)
    spelt = {name.casefold(): name for name in known}
    for name in names:
        if name not in known and (other := spelt.setdefault(name.casefold(), name)) != name:
            raise LabellingError(
                f"'{name}' differs from the class '{other}' in upper and lower case only; take that one"
            )
    if len(names) > most or (most == 1 and not names):
        raise LabellingError(
            f"Got {count(len(names), 'name')} for one; start with --several to give a photo several labels"
        )
    return tuple(names)


def digest_of(data: bytes) -> str:
    """Work out the hash by which a manifest is known."""
    return hashlib.sha256(data).hexdigest()


def _write(descriptor: int, values: Mapping[str, Any]) -> None:
    short = {name: value for name, value in values.items() if value not in ("", 0, [], ())}
    line = memoryview(json.dumps(short, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n")
    while line:
        line = line[os.write(descriptor, line) :]
    os.fsync(descriptor)


def _read(path: Path) -> tuple[list[Act], int]:
    """Read all acts, and the length of the file without what a kill has left behind the last whole line."""
    data = path.read_bytes()
    acts: list[Act] = []
    length = 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            values = json.loads(line)
            if number == 1:
                if values != {"format": FORMAT}:
                    raise ValueError(f"it begins with {line[:40]!r}")
            else:
                acts.append(_act(values))
        except (ValueError, TypeError) as error:
            if number == len(lines) - 1 and number > 1:
                break  # what a loss of power has left of the last line, with its end
            raise LabellingError(
                f"Line {number} of the journal '{path}' is damaged ({error}); mend the line, or put the journal aside: "
                "the labels are in the manifest, too"
            ) from None
        length += len(line) + 1
    return acts, length


def _act(values: Any) -> Act:
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    act = read_record(Act, values)
    if act.kind in MARKING and len(act.photos) != len(act.seen):
        raise ValueError(f"it names {count(len(act.photos), 'photo')}, and what was seen of {len(act.seen)}")
    return act


def _hold(descriptor: int, path: Path) -> None:
    """Take the file for this process alone; the system lets it go when the process ends, however that ends."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, 1 << 40, os.SEEK_SET)  # beyond the end, so that others may read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise LabellingError(
            f"Another quickstudy label writes to '{path}'; open its address in one more window, or name another "
            "manifest with --labels"
        ) from None


def _cannot_write(path: Path, error: OSError) -> WriteError:
    return WriteError(f"Cannot write the journal '{path}': {error.strerror}; nothing that was acknowledged is lost")
