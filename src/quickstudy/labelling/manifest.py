"""The manifest of the labels: its rows, and what somebody has changed in it by other means.

The journal is the truth, and the manifest follows from it. But people open it in spreadsheets: they correct a label,
add a row or delete one. What they did is told by three versions: what the newest manifest on the disk said when it
was written, what it says now, and what stands. Where the first two agree, nobody touched the row, and what stands goes
on to stand, whatever was said since; elsewhere the file's word is taken, and becomes an act of the journal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quickstudy.errors import LabellingError
from quickstudy.images.imageset import as_label
from quickstudy.images.listing import names_from, place_of, real_places
from quickstudy.images.manifests import Row, Table, read_manifest, surplus_columns, write_table
from quickstudy.labelling.journal import ActKind, Journal, Standing, digest_of
from quickstudy.labelling.photos import PhotoSet
from quickstudy.wording import count, quoted


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest that is to be written."""

    data: bytes
    """The file's bytes."""
    said: int
    """Number of the last act that it knows."""
    absent: tuple[str, ...]
    """Content hashes of photos that have labels and no row in it: they are not there, or have no name that is text."""

    @property
    def digest(self) -> str:
        """SHA-256 of its bytes, in hexadecimal."""
        return digest_of(self.data)


@dataclass(frozen=True, kw_only=True)
class TakenOver:
    """Number of photos of which something else stands since the manifest was changed by other means."""

    given: int = 0
    """Photos that were given other labels there, or their first ones."""
    cleared: int = 0
    """Photos whose labels were deleted there."""


def make_manifest(photos: PhotoSet, labels: Standing, roles: Mapping[str, str]) -> Manifest:
    """Make the manifest of what is labelled; a file whose name is no valid text is left out.

    Args:
        photos: the photos.
        labels: what stands.
        roles: split of each photo that came without one, by content hash; without any, no splits are written.
    """
    labelled = [photo for photo in photos.photos if labels.labels(photo.id) is not None]
    files = [(photo.id, file) for photo in labelled for file in photo.files]
    names = names_from(photos.manifest.parent, (file.name for _, file in files))
    places: dict[str, list[tuple[str, str]]] = {}
    for (photo, file), name in zip(files, names, strict=True):
        if name is not None:
            places.setdefault(photo, []).append((name, file.split or ""))
    rows = rows_of(places.items(), labels, roles, photos.separator)
    header = ["path", "labels" if photos.labelling.several else "label", "split"]
    columns = 2 + (bool(roles) or photos.splits_given)
    data = write_table(Table(header=header[:columns], rows=[row[:columns] for row in rows]))
    absent = tuple(photo for photo in labels.marked() if photo not in places and labels.labels(photo) is not None)
    return Manifest(data=data, said=labels.said, absent=absent)


def rows_of(
    photos: Iterable[tuple[str, Sequence[tuple[str, str]]]], labels: Standing, roles: Mapping[str, str], separator: str
) -> list[list[str]]:
    """List the rows of the manifest: path, labels and split of every file that has labels, by path.

    Args:
        photos: content hash of each photo, with the path in the manifest and the given split of each of its files.
        labels: what stands.
        roles: the split of a photo, where it did not come with one.
        separator: what stands between several labels of a photo.
    """
    rows = [
        [path, separator.join(names), split or roles.get(photo, "train")]
        for photo, places in photos
        if (names := labels.labels(photo)) is not None
        for path, split in places
    ]
    return sorted(rows)


def take_over(photos: PhotoSet, labels: Standing, journal: Journal) -> TakenOver:
    """Let count what somebody has changed in the manifest by other means, as acts of the journal.

    A photo whose row is gone, or has no label any more, has none; but where it came with a label and nothing was said
    of it here, it keeps that.

    Raises:
        LabellingError: the manifest labels files that are not among the photos, has further columns, which would be
            lost, or two rows of one photo contradict each other.
        ImageSetError: it cannot be read.
        WriteError: the journal refuses.
    """
    try:
        data = photos.manifest.read_bytes()
    except FileNotFoundError:
        return TakenOver()
    except OSError as error:
        raise LabellingError(f"Cannot read '{photos.manifest}': {error.strerror}") from None
    if digest_of(data) in labels.manifests:
        return TakenOver()
    changes = changes_by(_labels_in(photos), labels, labels.as_written(journal.acts), photos.number_of)
    by_labels: dict[tuple[str, ...] | None, list[str]] = {}
    for photo, names in changes.items():
        by_labels.setdefault(names, []).append(photo)
    for names, mine in sorted(by_labels.items(), key=lambda one: (one[0] is None, one[0] or ())):
        seen = tuple(mark.number if (mark := labels.mark(photo)) else 0 for photo in mine)
        kind: ActKind = "clear" if names is None else "label" if names else "none"
        labels.apply(journal.append(kind, photos=tuple(mine), seen=seen, way="manifest", names=names or ()))
    labels.apply(journal.append("manifest", name=digest_of(data)))  # what it says is known from now on
    cleared = len(by_labels.get(None, ()))
    return TakenOver(given=len(changes) - cleared, cleared=cleared)


def changes_by(
    found: Mapping[str, tuple[str, ...]],
    labels: Standing,
    written: Mapping[str, tuple[str, ...]] | None,
    there: Collection[str],
) -> dict[str, tuple[str, ...] | None]:
    """Find what somebody has changed in the manifest: labels by content hash, None where they were deleted.

    Args:
        found: what it says now, by content hash.
        labels: what stands.
        written: what it said when it was written, of photos of which something was said here; None where that is not
            known. Then nothing counts as deleted.
        there: content hashes of the photos that are there.
    """
    changes: dict[str, tuple[str, ...] | None] = {
        photo: names
        for photo, names in found.items()
        if names != labels.labels(photo) and (written is None or names != written.get(photo))
    }
    gone = [photo for photo in written or () if photo in there and photo not in found]
    return changes | {photo: None for photo in gone if labels.labels(photo) is not None}


def _labels_in(photos: PhotoSet) -> dict[str, tuple[str, ...]]:
    """Read the labels of a manifest that somebody else has written, by content hash."""
    if surplus := surplus_columns(photos.manifest, photos.labelling):
        raise LabellingError(
            f"'{photos.manifest}' has columns that would be lost when labels are written: {quoted(surplus)}; name "
            "another manifest with --labels"
        )
    files = [(file.name, photo.id) for photo in photos.photos for file in photo.files]
    where = dict(zip(real_places(name for name, _ in files), (photo for _, photo in files), strict=True))
    read = list(read_manifest(photos.manifest, photos.labelling))
    places = real_places(place_of(photos.manifest.parent, row.path) for row in read)
    rows: dict[str, list[Row]] = {}
    foreign: list[str] = []
    for row, place in zip(read, places, strict=True):
        photo = where.get(place) if row.path else None
        if photo is None:
            foreign.append(f"'{row.path}' (row {row.number})")
        elif row.labels is not None:
            rows.setdefault(photo, []).append(row)
    if foreign:
        files_are = count(len(foreign), "file that is", "files that are")
        raise LabellingError(
            f"'{photos.manifest}' labels {files_are} not in '{photos.source}', such as {foreign[0]}; name another "
            "manifest with --labels"
        )
    if not photos.labelling.several:  # where there may be several, a photo has the labels of all its rows
        _require_agreement(photos.manifest, rows.values())
    return {photo: tuple(sorted({name for row in mine for name in row.labels or ()})) for photo, mine in rows.items()}


def _require_agreement(manifest: Path, rows: Iterable[Sequence[Row]]) -> None:
    """Check that no photo has rows under different labels: whichever counted, the other would be lost."""
    conflicts = [mine for mine in rows if len({row.labels for row in mine}) > 1]
    if not conflicts:
        return
    first = ", ".join(f"row {row.number} '{row.path}' ({as_label(row.labels)})" for row in conflicts[0])
    raise LabellingError(
        f"In '{manifest}' {count(len(conflicts), 'photo is', 'photos are')} under different labels: {first}; correct "
        "these rows, or keep one of them"
    )
