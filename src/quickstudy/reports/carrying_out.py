"""A plan is carried out by moving files within the image folder: none is deleted, overwritten or taken elsewhere.

All steps are checked before the first is taken. Then the undo file is written, durably: a plan that moves everything
back. Only then files move, each by a hard link to its new name before its old name goes, so a kill at any moment leaves
it under one name at least; running the same plan again finishes what the undo file says was begun. A manifest stays as
it is, and a new one is written beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from quickstudy.errors import AuditError, WriteError
from quickstudy.files import flush_folder, sha256_of_file, write_bytes_atomically
from quickstudy.images.imageset import SET_ASIDE
from quickstudy.images.listing import is_unlabelled, label_of, place_of, split_named
from quickstudy.images.manifests import columns_of, read_csv, text_of, write_table
from quickstudy.reports.plan import Step, read_plan, write_plan

_MOST_NAMES = 10_000
_Relabel = Callable[[object, object], tuple[object] | None]
"""Function that gives, for path and label of a row of a manifest, its label from now on; None where the row goes."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """Says what carrying out a plan did."""

    moved: int
    """Number of files that are now where the plan wants them; of rows changed or dropped, for a manifest."""
    left: tuple[tuple[str, str], ...]
    """Files that were left where they are, and why."""
    undo: Path | None
    """Path of the plan that puts everything back; None where there was nothing to move."""
    manifest: Path | None = None
    """Path of the new manifest; None where the images came from a folder."""


def apply_plan(source: Path, plan: Path) -> Done:
    """Carry out a plan, or finish one that was interrupted.

    Args:
        source: the image folder or the manifest that the plan was made for.
        plan: the CSV file.

    Raises:
        AuditError: the plan cannot be read, or a step of it leads out of the folder or cannot be meant; nothing has
            been moved then.
        ImageSetError: the manifest cannot be read.
        WriteError: the undo file or the new manifest cannot be written; nothing has been moved then.
    """
    steps = read_plan(plan)
    if not source.is_dir():
        return _rewrite_manifest(source, steps)
    undo = plan.with_name(f"{plan.stem}.undo.csv")
    begun = {step.to: step.path for step in read_plan(undo)} if undo.exists() else {}
    steps = tuple(_as_it_lies(source, step, begun) for step in steps)
    for name in (*begun, *begun.values()):
        _require_inside(source, name)
    moves: dict[str, str] = {}
    taken = set(begun.values())
    for step in steps:
        if step.action == "keep":
            continue
        _require_inside(source, step.path)
        target = _target(step)
        _require_inside(source, target)
        before = begun.get(step.path)
        # What was begun goes on to where it was going, unless the plan has changed its mind.
        goes_on = before is not None and before in _names_beside(target)
        moves[step.path] = before if before and goes_on else _free_name(source, target, taken)
        taken.add(moves[step.path])
    if not moves:
        return Done(moved=0, left=(), undo=None)
    hashes = {step.path: step.sha256 for step in steps}
    moved_before = {
        old: new
        for old, new in begun.items()
        if old not in moves and os.path.lexists(source / new) and not os.path.lexists(source / old)
    }
    everything = {**moved_before, **moves}
    back = [Step(action="move", path=new, to=old, sha256=hashes.get(old, "")) for old, new in everything.items()]
    write_plan(undo, back)
    return _move_all(source, moves, hashes, undo)


def undo_plan(source: Path, undo: Path) -> Done:
    """Put everything back that an undo file names.

    Raises:
        AuditError: the file cannot be read, is not an undo file, or leads out of the folder; nothing has been moved
            then.
    """
    steps = read_plan(undo)
    if not source.is_dir():
        raise AuditError(f"'{source}' is not a folder; a manifest is never changed, so there is nothing to undo")
    for step in steps:
        if step.action != "move":
            raise AuditError(f"'{undo}' is not an undo file: it has the action '{step.action}'; expected move only")
        _require_inside(source, step.path)
        _require_inside(source, step.to)
    done = _move_all(source, {step.path: step.to for step in steps}, {step.path: step.sha256 for step in steps}, None)
    for step in steps:
        _remove_empty(source, source / step.path)
    return done


def _as_it_lies(source: Path, step: Step, begun: Collection[str]) -> Step:
    """Give a step the path that the folder has, or had when it was begun, where the plan writes it otherwise."""
    slashed = step.path.replace("\\", "/")
    place = place_of(source, step.path)
    if slashed in begun and not os.path.lexists(place):
        place = source / slashed
    if place == source / step.path or not place.is_relative_to(source):
        return step
    to = step.to.replace("\\", "/") if step.action == "move" and "\\" in step.path else step.to
    return replace(step, path=place.relative_to(source).as_posix(), to=to)


def _target(step: Step) -> str:
    """Work out where a step takes its file, as a path in the folder."""
    parts = PurePath(step.path).parts
    if step.action == "drop":
        return str(PurePath(SET_ASIDE, *parts))
    if step.action == "move":
        return step.to
    label = PurePath(step.to)
    if len(label.parts) != 1 or label.name != step.to or step.to.startswith("."):
        raise AuditError(f"'{step.path}' cannot be relabelled '{step.to}'; expected the name of a class folder")
    if step.label:
        at = next(
            (k for k, part in enumerate(parts[:3]) if label_of(part) == label_of(step.label) and k < len(parts) - 1),
            None,
        )
        if at is None:
            raise AuditError(
                f"'{step.path}' is not in a folder of its class '{step.label}', so it cannot be relabelled"
            )
        return str(PurePath(*parts[:at], step.to, *parts[at + 1 :]))
    split = parts[:1] if len(parts) > 1 and split_named(parts[0]) else ()
    rest = parts[len(split) :]
    rest = rest[1:] if len(rest) > 1 and is_unlabelled(rest[0]) else rest
    return str(PurePath(*split, step.to, *rest))


def _require_inside(folder: Path, name: str) -> None:
    """Refuse a path that is not plainly one of a file in the folder."""
    path = PurePath(name)
    plain = bool(path.parts) and not path.is_absolute() and not path.drive and not path.root and "\0" not in name
    if not plain or any(part == ".." or part.startswith(".") for part in path.parts):
        raise AuditError(f"The path '{name}' does not lie in the image folder, or is hidden; nothing was moved")
    real, place = folder.resolve(), folder / path.parent
    if not place.resolve().is_relative_to(real):
        raise AuditError(f"The path '{name}' leads out of '{folder}' through a link; nothing was moved")


def _free_name(folder: Path, target: str, taken: set[str]) -> str:
    """Find a free name: the target, or one beside it that nothing has."""
    for name in _names_beside(target):
        if name not in taken and not os.path.lexists(folder / name):
            return name
    raise AuditError(f"There is no free name for '{target}' in '{folder}'")


def _names_beside(target: str) -> Iterator[str]:
    path = PurePath(target)
    yield target
    for number in range(2, _MOST_NAMES):
        yield str(path.with_name(f"{path.stem}-{number}{path.suffix}"))


def _move_all(folder: Path, moves: dict[str, str], hashes: dict[str, str], undo: Path | None) -> Done:
    left: list[tuple[str, str]] = []
    for old, new in moves.items():
        reason = _move(folder / old, folder / new, hashes.get(old, ""))
        if reason:
            left.append((old, reason))
    for parent in sorted({(folder / new).parent for new in moves.values()}):
        if parent.is_dir():
            flush_folder(parent)
    return Done(moved=len(moves) - len(left), left=tuple(left), undo=undo)


def _move(old: Path, new: Path, sha256: str) -> str:
    """Move one file; gives the reason if it stays, and none for a file that was moved before."""
    try:
        if not os.path.lexists(old):
            return "" if os.path.lexists(new) else "no such file"
        if old.is_symlink() or not old.is_file():
            return "not an ordinary file"
        if os.path.lexists(new):
            if not new.is_symlink() and new.samefile(old):  # killed between the two names
                old.unlink()
                return ""
            return f"there is a file at '{new}' already"
        if sha256 and sha256_of_file(old) != sha256:
            return "it has changed since the plan was made"
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            new.hardlink_to(old)
        except FileExistsError:
            return f"there is a file at '{new}' already"
        except OSError:  # a file system without hard links
            old.rename(new)
            return ""
        old.unlink()
    except OSError as error:
        return f"cannot be moved ({error.strerror})".lower()
    return ""


def _remove_empty(folder: Path, path: Path) -> None:
    """Remove folders under `_set_aside` that have become empty."""
    aside = folder / SET_ASIDE
    for parent in path.parents:
        if not parent.is_relative_to(aside):
            return
        try:
            parent.rmdir()
        except OSError:
            return


def _rewrite_manifest(source: Path, steps: Sequence[Step]) -> Done:
    """Write a manifest without the dropped images and with the new labels beside the one that there is."""
    if not source.is_file():
        raise AuditError(f"No such file or folder: '{source}'; name the images that the plan was made for")
    if moving := [step for step in steps if step.action == "move"]:
        raise AuditError(f"'{moving[0].path}' cannot be moved: the images come from a manifest; drop or relabel it")
    target = source.with_name(f"{source.stem}.audited{source.suffix}")
    if target.exists():
        raise AuditError(f"There is a manifest '{target}' already; move it away first")

    def place(path: object) -> str:
        return os.path.normpath(place_of(source.parent, text_of(path)))

    changes = {(place(step.path), step.label): step for step in steps if step.action != "keep"}
    found: set[tuple[str, str]] = set()

    def relabel(path: object, label: object) -> tuple[object] | None:
        text = label_of(text_of(label))
        keys = [(place(path), text), (place(path), "")]  # unusable files are dropped whatever their label
        key = next((key for key in keys if key in changes), None)
        if key is None:
            return (label,)
        found.add(key)
        return None if changes[key].action == "drop" else (changes[key].to,)

    try:
        rewrite: Callable[[Path, _Relabel], bytes | memoryview] = (
            _rewritten_parquet if source.suffix.lower() == ".parquet" else _rewritten_csv
        )
        write_bytes_atomically(target, rewrite(source, relabel))
    except OSError as error:
        raise WriteError(f"Cannot write the manifest '{target}': {error.strerror}") from error
    left = tuple((step.path, "no such row") for key, step in changes.items() if key not in found)
    return Done(moved=len(found), left=left, undo=None, manifest=target)


def _rewritten_csv(source: Path, relabel: _Relabel) -> bytes:
    table = read_csv(source)
    at = columns_of(table.header, source)
    rows = [
        [*row[: at.label], str(new[0]), *row[at.label + 1 :]]
        for row in table.rows
        if (new := relabel(row[at.path], row[at.label])) is not None
    ]
    return write_table(replace(table, rows=rows))


def _rewritten_parquet(source: Path, relabel: _Relabel) -> memoryview:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(source, partitioning=None)
    at = columns_of(table.column_names, source)
    pairs = zip(table.column(at.path).to_pylist(), table.column(at.label).to_pylist(), strict=True)
    rows = [(number, new[0]) for number, (path, label) in enumerate(pairs) if (new := relabel(path, label)) is not None]
    labels = pa.array([text_of(name) or None for _, name in rows], pa.string())
    kept = table.take(pa.array([number for number, _ in rows], pa.int64()))
    sink = pa.BufferOutputStream()
    pq.write_table(kept.set_column(at.label, table.column_names[at.label], labels), sink)
    return memoryview(sink.getvalue())
