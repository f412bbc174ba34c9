"""Manifests: tables that name image files, their labels and, where they say so, their splits.

A manifest is CSV as spreadsheets write it, or Parquet. Its columns are `path`, `label` and perhaps `split`, or have a
usual other name, in any case. What stands in them is text, numbers or bytes; lists and structs are refused.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quickstudy.errors import ImageSetError
from quickstudy.images.delimited import read_table
from quickstudy.images.names import label_of

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")
_Role = Literal["path", "label", "split"]
_OTHER_NAMES: dict[_Role, str] = {
    "path": "file filename file_name filepath file_path image image_path image_file image_name img img_path",
    "label": "class category target classname class_name",
    "split": "set subset",
}
COLUMN_NAMES = frozenset(name for role, names in _OTHER_NAMES.items() for name in (role, *names.split()))
"""The names that a manifest's columns may have, in lower case."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where in a manifest its columns are, counted from 0."""

    path: int
    label: int
    split: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a manifest as text, without blanks around it; what is missing is empty."""

    number: int
    """Counted from 1, without the header and without blank rows."""
    path: str
    label: str
    split: str


def read_manifest(source: Path) -> Iterator[Row]:
    """Read a manifest, row by row.

    Raises:
        ImageSetError: it cannot be read, lacks a column, or a column holds what is no text.
    """
    if source.suffix.lower() == ".parquet":
        yield from _read_parquet(source)
        return
    try:
        table = read_table(source.read_bytes(), COLUMN_NAMES)
    except UnicodeDecodeError as error:
        raise ImageSetError(
            f"Cannot read the manifest '{source}' as CSV in UTF-8: {error}; save it as 'CSV UTF-8'"
        ) from None
    except (OSError, csv.Error) as error:
        raise ImageSetError(f"Cannot read the manifest '{source}' as CSV in UTF-8: {error}") from None
    at = columns_of(table.header, source)
    for number, row in enumerate(table.rows, start=1):
        split = "" if at.split is None else row[at.split].strip()
        yield Row(number=number, path=row[at.path].strip(), label=label_of(row[at.label]), split=split)


def columns_of(names: Sequence[str], source: Path) -> Columns:
    """Find a manifest's columns by their names.

    Args:
        names: the columns' names in their order.
        source: the manifest, for the message.

    Raises:
        ImageSetError: there is no path or no label, or one of the three may be in either of two columns.
    """
    path, label = _find(names, "path", source), _find(names, "label", source)
    if path is None or label is None:
        raise ImageSetError(
            f"The manifest '{source}' has the columns {', '.join(names) or 'none'}; expected path,label[,split]"
        )
    return Columns(path=path, label=label, split=_find(names, "split", source))


def text_of(value: object) -> str:
    """A cell as text without blanks around it; nothing where it is missing, and whole numbers without a point."""
    # NaN, the one value unequal to itself, is how data frames write a missing label; 0 is a label.
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
        return os.fsdecode(value).strip()
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value).strip()


def _find(names: Sequence[str], role: _Role, source: Path) -> int | None:
    plain = [name.strip().lower().replace(" ", "_").replace("-", "_") for name in names]
    for wanted in ((role,), tuple(_OTHER_NAMES[role].split())):
        places = [place for place, name in enumerate(plain) if name in wanted]
        exact = [place for place in places if names[place] == role]
        if len(exact) == 1 or len(places) == 1:
            return (exact or places)[0]
        if places:
            listed = ", ".join(f"'{names[place]}'" for place in places)
            raise ImageSetError(
                f"The manifest '{source}' has several columns that may be its {role}: {listed}; "
                f"name one of them '{role}'"
            )
    return None


def _read_parquet(source: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(source)
        names: list[str] = schema.names
        at = columns_of(names, source)
        chosen = [place for place in (at.path, at.label, at.split) if place is not None]
        for place in chosen:
            _require_texts(source, schema.field(place))
        # By their folders' names alone, `partitioning` would add columns that are not in the file.
        table = pq.read_table(source, columns=[names[place] for place in chosen], partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise ImageSetError(f"Cannot read the manifest '{source}' as Parquet: {error}") from None
    cells = [_texts(table.column(names[place])) for place in chosen]
    splits = cells[2] if len(cells) > 2 else [""] * table.num_rows
    if "\0" in next(filter(None, cells[0]), ""):
        raise ImageSetError(
            f"The column '{names[at.path]}' of the manifest '{source}' holds bytes that are no path, perhaps the "
            "images themselves; write them to files and name these"
        )
    for number, (path, label, split) in enumerate(zip(cells[0], cells[1], splits, strict=True), start=1):
        if path or label or split:
            yield Row(number=number, path=path, label=label_of(label), split=split)


def _texts(column: Iterable[object]) -> list[str]:
    return [text_of(value) for value in column.to_pylist()]  # type: ignore[attr-defined]  # pyarrow has no types


def _require_texts(source: Path, field: pa.Field) -> None:
    import pyarrow as pa

    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_nested(kind):
        raise ImageSetError(
            f"The column '{field.name}' of the manifest '{source}' is of the type {field.type}; "
            "expected one text or number in each row"
        )
