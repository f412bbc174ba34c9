"""A plan says what to do about the findings, in a CSV file to review and edit; `carrying_out.py` does it.

A plan has a row for each file that something is to be said of, with the columns `action`, `path` (relative to the
image folder, or as in the manifest), `from` and `to` (the label now and then; for `move`, `to` is the path then),
`reason` and `sha256` (of the file that the plan was made for). The actions:

- `drop` sets the file aside, `relabel` gives it the label `to`, `move` puts it where `to` says;
- `keep` does nothing: the row is there to be reviewed, and `to` says what may be right.

A cell that a spreadsheet would take for a formula, or that starts with an apostrophe, is written with one before it.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from quickstudy.bottlenecks.looks import Gallery
from quickstudy.errors import AuditError, WriteError
from quickstudy.files import write_bytes_atomically
from quickstudy.images.decoding import is_broken
from quickstudy.images.imageset import IMAGE_SUFFIXES
from quickstudy.images.listing import real_places
from quickstudy.images.manifests import read_table
from quickstudy.reports.evidence import Evidence
from quickstudy.reports.findings import Audit, DuplicateGroup
from quickstudy.wording import as_probability, quoted

Action = Literal["drop", "relabel", "move", "keep"]
PLAN_COLUMNS = ("action", "path", "from", "to", "reason", "sha256")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
_CLEAR = 0.5
_HOPELESS = {"tiny", "dark", "bright", "blank"}
_PREFERRED = {"test": 0, "validation": 1, "train": 2, None: 3}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row of a plan."""

    action: Action
    """What is to be done with the file."""
    path: str
    """Path of the file, relative to the image folder; for manifests as it is there."""
    label: str = ""
    """Label of the file now; empty where it has none."""
    to: str = ""
    """Label that the file gets or may deserve; for `move`, the path that it gets."""
    reason: str = ""
    """Why, in words; empty where nobody says."""
    sha256: str = ""
    """SHA-256 of the file's bytes, in hexadecimal; empty where it is not known, and then any file will do."""


def make_plan(evidence: Evidence, gallery: Gallery, audit: Audit) -> tuple[Step, ...]:
    """Plan what to do about what was found, one step a file: unreadable files first, then by path.

    Where one picture is there under several names, one file stays: with a label that the classifier believes, in the
    test split where it is in one, the largest. Labels that are more probably wrong than not are changed; what is less
    clear is only marked.
    """
    folder = evidence.source.parent if evidence.source.is_file() else evidence.source
    names = [path_in_plan(image.path, folder) for image in evidence.images]
    places = real_places(image.path for image in evidence.images)
    steps: dict[int, Step] = {}

    def add(image: int, action: Action, reason: str, to: str = "") -> None:
        known, before = evidence.images[image], steps.get(image)
        if before and before.action != "keep":
            return  # it goes, or gets another label, for a better reason
        steps[image] = Step(
            action=action,
            path=names[image],
            label=known.label or "",
            to=to or (before.to if before else ""),
            reason=f"{before.reason}; {reason}" if before else reason,
            sha256=known.digest.hex(),
        )

    for group in audit.duplicates:
        best = _best(group, evidence, gallery)
        for member in group.members:
            if member == best:
                add(member, "keep", f"the one of {len(group.members)} files with this picture that stays")
            elif (places[member], evidence.images[member].label) == (places[best], evidence.images[best].label):
                add(member, "keep", "the same file in another row, in another split; take one of the rows out")
            else:
                add(member, "drop", f"{_kind(group)} of {names[best]}")
    for flaw in audit.quality:
        action: Action = "drop" if flaw.kind in _HOPELESS else "keep"
        add(flaw.image, action, f"{flaw.kind}: {flaw.value:.3g}, limit {flaw.limit:g}")
    for error in audit.label_errors:
        clear = error.score >= _CLEAR and error.probability_suggested >= _CLEAR
        add(error.image, "relabel" if clear else "keep", error.statement, error.suggested)
    for outlier in audit.outliers:
        add(outlier.image, "keep", f"unlike all others: {outlier.score:.1f} robust standard deviations")
    for suggestion in audit.suggestions:
        add(
            suggestion.image,
            "keep",
            f"no label; suggested with {as_probability(suggestion.probability, 0)}",
            suggestion.label,
        )
    # A photo that is not read wants converting, or an extra; only what is broken is dropped.
    unusable = [
        Step(
            action="drop" if item.path.suffix.lower() in IMAGE_SUFFIXES and is_broken(item.reason) else "keep",
            path=path_in_plan(item.path, folder),
            reason=item.reason,
        )
        for item in audit.skipped
        if item.path.is_file() and not item.path.is_symlink()
    ]
    return (*unusable, *sorted(steps.values(), key=lambda step: step.path))


def require_new(path: Path) -> None:
    """Raise a WriteError where there is a file of this name, which somebody may have worked on."""
    if os.path.lexists(path):
        raise WriteError(f"There is a '{path}' already, which may have been edited; name another file, or delete it")


def write_plan(path: Path, steps: Iterable[Step]) -> None:
    """Write a plan, atomically.

    Raises:
        WriteError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # ends lines with \r\n, and so quotes cells with either
    writer.writerow(PLAN_COLUMNS)
    for step in steps:
        cells = (step.action, step.path, step.label, step.to, step.reason, step.sha256)
        writer.writerow([_guard(cell) for cell in cells])
    try:
        # File names need not be valid text; as they are read, so they are written.
        write_bytes_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise WriteError(f"Cannot write the plan '{path}': {error.strerror}") from error


def read_plan(path: Path) -> tuple[Step, ...]:
    """Read a plan that `write_plan` wrote and people may have edited, in a spreadsheet or elsewhere.

    Columns may be in any order, and the table as spreadsheets write it (`read_table`).

    Raises:
        AuditError: the file cannot be read, lacks a column, or names an action that there is not.
    """
    try:
        table = read_table(path.read_bytes(), PLAN_COLUMNS, errors="surrogateescape")
    except FileNotFoundError:
        raise AuditError(
            f"No such file: '{path}'; expected a plan that --fix wrote, or to undo one, the file that --apply wrote"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise AuditError(f"Cannot read the plan '{path}': {why}") from None
    places = {name.lower(): place for place, name in enumerate(table.header)}
    if missing := [name for name in ("action", "path") if name not in places]:
        raise AuditError(
            f"The plan '{path}' has no column '{missing[0]}', but {quoted(table.header, most=10) or 'none'}; "
            f"expected {', '.join(PLAN_COLUMNS)}"
        )
    steps = []
    for number, row in enumerate(table.rows, start=2):
        cells = {name: _unguard(row[places[name]]) if name in places else "" for name in PLAN_COLUMNS}
        action = cells["action"].strip().lower()
        if action not in get_args(Action):
            raise AuditError(
                f"Row {number} of the plan '{path}' has the action '{action}'; expected {', '.join(get_args(Action))}"
            )
        steps.append(
            Step(
                action=action,  # type: ignore[arg-type]  # checked above
                path=cells["path"],
                label=cells["from"],
                to=cells["to"],
                reason=cells["reason"],
                sha256=cells["sha256"].strip().lower(),
            )
        )
    return tuple(steps)


def _guard(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _unguard(cell: str) -> str:
    return cell.removeprefix("'")


def path_in_plan(path: Path, folder: Path) -> str:
    """Say what a plan for a folder calls a file: by its path below the folder, where it was found there."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _kind(group: DuplicateGroup) -> str:
    kind = "exact copy" if group.exact else "near copy"
    if group.conflicts:
        kind += " under another label" if len(group.labels) == 2 else " under other labels"
    return f"{kind}, across splits," if group.leaks else kind


def _best(group: DuplicateGroup, evidence: Evidence, gallery: Gallery) -> int:
    """Choose the member that stays."""
    number_of = {name: number for number, name in enumerate(evidence.classes)}

    def rank(member: int) -> tuple[bool, float, int, int, int]:
        image = evidence.images[member]
        known = number_of.get(image.label or "") if evidence.probabilities.shape[1] else None
        belief = float(evidence.probabilities[member, known]) if known is not None else 0.0
        return (
            image.label is None,
            -round(belief, 2) if group.conflicts else 0.0,
            _PREFERRED[image.split],
            -int(gallery.width[member]) * int(gallery.height[member]),
            member,
        )

    return min(group.members, key=rank)


def summarise(steps: Sequence[Step]) -> dict[str, int]:
    """Count the steps of each action."""
    return {action: sum(step.action == action for step in steps) for action in get_args(Action)}
