"""Manifests, tables that name image files, their labels and perhaps their splits; and tables and lists as text.

A manifest is CSV as spreadsheets write it, or Parquet. Its columns are `path`, `label` and perhaps `split`, or have a
usual other name, in any case. What stands in them is text, numbers or bytes; lists and structs are refused.

A table as text may be separated by commas, semicolons or tabs, begin with a byte order mark, be in UTF-16, end its
lines as Windows does, and have blank rows. Cells stay as they are written; the names of columns are trimmed. A list
names one path a line, as people pipe them.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from quickstudy.errors import ImageSetError
from quickstudy.images.listing import label_of

if TYPE_CHECKING:
    import pyarrow as pa


MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")
"""The suffixes of manifests, in lower case."""
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
    """Number of the column with the paths."""
    label: int
    """Number of the column with the labels."""
    split: int | None
    """Number of the column with the splits; None where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a manifest as text, without blanks around it; what is missing is empty."""

    number: int
    """The row's number, from 1, without the header and without blank rows."""
    path: str
    """The path as it is written."""
    label: str
    """The class name."""
    split: str
    """The split as it is written."""


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
    """Write a cell as text without blanks around it: empty where it is missing, whole numbers without a point."""
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
            f"The column '{names[at.path]}' of the manifest '{source}' holds bytes that are not a path, perhaps the "
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


# Tables and lists as text
_DELIMITERS = (",", ";", "\t")
_TOLD = re.compile(r"sep=([^\r\n])\r?\n", re.IGNORECASE)
"""The line by which Excel is told the delimiter."""
_HEADER_CHARACTERS = 1 << 16
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts, and how it was written."""

    header: list[str]
    """The names of the columns, without blanks around them."""
    rows: list[list[str]]
    """The rows that are not blank, each with at least as many cells as the header."""
    delimiter: str = ","
    """The character between cells."""
    line_end: str = "\n"
    """The characters at the end of each line."""
    encoding: str = "utf-8"
    """The text's encoding, by Python's name."""


def read_table(data: bytes, names: Collection[str] = (), *, strict: bool = False, errors: str = "strict") -> Table:
    """Read a table with a header from a file's bytes.

    Args:
        data: the file.
        names: names of columns that may be expected, in lower case; they tell the delimiter where it is in doubt.
        strict: whether a quote that is never closed is an error.
        errors: what becomes of bytes that are not valid text, as in `bytes.decode`.

    Raises:
        UnicodeDecodeError: the text is neither UTF-8 nor UTF-16 with a byte order mark.
        csv.Error: it is no table.
    """
    text, encoding = _decoded(data, errors)
    if told := _TOLD.match(text):
        delimiter, text = told[1], text[told.end() :]
    else:
        start = text[:_HEADER_CHARACTERS]
        delimiter = max(_DELIMITERS, key=lambda one: _promise(start, one, names))
    rows = _rows(text, delimiter, strict=strict)
    header = [cell.strip() for cell in next(rows, [])]
    padded = [row if len(row) >= len(header) else [*row, *[""] * (len(header) - len(row))] for row in rows]
    line_end = "\r\n" if "\r\n" in text else "\n"
    return Table(header=header, rows=padded, delimiter=delimiter, line_end=line_end, encoding=encoding)


def write_table(table: Table, *, errors: str = "strict") -> bytes:
    """Write a table to the bytes of a file, in the way in which the table says that it was written."""
    lines = []
    for row in (table.header, *table.rows):
        line = io.StringIO(newline="")
        csv.writer(line, delimiter=table.delimiter, lineterminator="\r\n").writerow(row)  # so quotes cells with either
        lines.append(line.getvalue().removesuffix("\r\n") + table.line_end)
    return "".join(lines).encode(table.encoding, errors)


def read_list(file: BinaryIO | Iterable[bytes]) -> Iterator[str]:
    """Yield the paths of a list with one a line, as lines come; blank lines are passed over, `~` is the home folder.

    Args:
        file: the lines as bytes; names of files need not be valid text.
    """
    for number, line in enumerate(_lines(file)):
        path = (line.removeprefix("\ufeff") if number == 0 else line).rstrip("\r\n")
        if path.strip():
            yield os.path.expanduser(path)  # noqa: PTH111 (pathlib raises where there is no such user)


def _lines(file: BinaryIO | Iterable[bytes]) -> Iterator[str]:
    lines = iter(file)
    first = next(lines, b"")
    if first.startswith(_UTF_16_MARKS):
        yield from b"".join((first, *lines)).decode("utf-16", "replace").splitlines()
        return
    yield first.decode("utf-8", "surrogateescape")
    for line in lines:
        yield line.decode("utf-8", "surrogateescape")


def _decoded(data: bytes, errors: str) -> tuple[str, str]:
    """Decode a text, without its byte order mark, and name its encoding."""
    if data.startswith(_UTF_16_MARKS):
        return data.decode("utf-16", errors), "utf-16"
    encoding = "utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8"
    return data.decode(encoding, errors), encoding


def _rows(text: str, delimiter: str, *, strict: bool) -> Iterator[list[str]]:
    """Yield the rows of a table in which anything stands."""
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict):
        if any(cell and not cell.isspace() for cell in row):
            yield row


def _promise(text: str, delimiter: str, names: Collection[str]) -> tuple[int, int]:
    """Count in a header separated like this the names that are expected, then the cells that are not empty."""
    try:
        header = next(_rows(text, delimiter, strict=False), [])
    except csv.Error:
        return 0, 0
    cells = [cell.strip().lower() for cell in header]
    return sum(cell in names for cell in cells), sum(map(bool, cells))
