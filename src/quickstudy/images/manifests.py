"""Manifests, tables that name image files, their labels and perhaps their splits; and tables and lists as text.

A manifest is CSV as spreadsheets write it, or Parquet. Its columns are `path`, `label` and perhaps `split`, or have a
usual other name, in any case. What stands in them is text, numbers or bytes; lists and structs are refused.

A table as text may be separated by commas, semicolons or tabs, begin with a byte order mark, be in UTF-16, end its
lines as Windows does, and have blank rows. Cells stay as they are written; the names of columns are trimmed. A list
names one path a line, as people pipe them.

Where an image may have several labels, they stand in one cell with `|`, `,` or `;` between, or in several rows of the
same path, or there is a column for each class with 0 and 1 in it, as at Kaggle. An empty cell, or a row of zeros, then
says that the image has none of them. `Labelling` says how labels are to be read.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from quickstudy.errors import ImageSetError
from quickstudy.images.listing import label_of
from quickstudy.wording import quoted

if TYPE_CHECKING:
    import pyarrow as pa


MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")
"""The suffixes of manifests, in lower case."""
_MOST_COLUMNS = 10
SEPARATORS = ("|", ";", ",")
"""What may stand between labels in a cell where nothing was said."""
_Role = Literal["path", "label", "labels", "split"]
_OTHER_NAMES: dict[_Role, str] = {
    "path": "file filename file_name filepath file_path image image_path image_file image_name img img_path",
    "label": "class category target classname class_name",
    "labels": "label tags classes categories class category target classname class_name",
    "split": "set subset",
}
COLUMN_NAMES = frozenset(name for role, names in _OTHER_NAMES.items() for name in (role, *names.split()))
"""The names that a manifest's columns may have, in lower case."""


_MARKS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """How labels are to be read: one an image or several, and which name stands for none of the classes."""

    several: bool = False
    """Whether an image may have any number of labels, none among them."""
    separator: str | None = None
    """What stands between labels in a cell of a manifest; None takes `|`, `;` or `,`, whichever there is."""
    none: str | None = None
    """Label of images that are of none of the classes; None where there is no such label."""
    way_to_several: str = field(default="use a command that has --several, such as retrain", compare=False)
    """What to do where images have several labels after all, for an error to say."""

    def of(self, name: str) -> tuple[str, ...]:
        """Give the labels of an image that is called this, in a folder's name or a cell of its own."""
        return () if name == self.none else (name,)


ONE_EACH = Labelling()
"""The way in which labels are read where nothing was said: one an image."""


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
    labels: tuple[str, ...] | None
    """Names of its classes; empty where it is of none of them, and None where that is not said."""
    split: str
    """The split as it is written."""


def read_manifest(source: Path, labelling: Labelling = ONE_EACH) -> Iterator[Row]:
    """Read a manifest, row by row.

    Args:
        source: the manifest.
        labelling: how labels are to be read.

    Raises:
        ImageSetError: it cannot be read, lacks a column, or a column holds what is no text, or not what was said.
    """
    names, rows = _read_columns(source, labelling)
    path, split = _find(names, "path", source), _find(names, "split", source)
    place = _find(names, "labels" if labelling.several else "label", source)
    if path is None or (place is None and (not labelling.several or len(names) < 2 + (split is not None))):
        expected = "path,labels or path and a column for each class" if labelling.several else "path,label"
        others = len(names) - 1 - (split is not None)
        may_be_several = path is not None and (others > 1 or _find(names, "labels", source) is not None)
        hint = f". If an image may have several labels, {labelling.way_to_several}" * (
            may_be_several and not labelling.several
        )
        raise _lacks_columns(names, source, f"{expected}[,split]{hint}")
    if place is not None:
        labels = _labels_of([row[place] for row in rows], labelling, source)
    else:
        places = [k for k in range(len(names)) if k not in (path, split)]
        labels = _marked(names, rows, places, labelling, source)
    for number, (row, found) in enumerate(zip(rows, labels, strict=True), start=1):
        yield Row(
            number=number, path=row[path].strip(), labels=found, split="" if split is None else row[split].strip()
        )


def surplus_columns(source: Path, labelling: Labelling = ONE_EACH) -> list[str]:
    """Name the columns of a manifest in which something stands that is no path, label or split.

    Raises:
        ImageSetError: it cannot be read.
    """
    names, rows = _read_columns(source, labelling)
    places = {_find(names, role, source) for role in ("path", "labels" if labelling.several else "label", "split")}
    if labelling.several and _find(names, "labels", source) is None:
        return []  # all others are classes
    return [
        name for place, name in enumerate(names) if place not in places and (name or any(row[place] for row in rows))
    ]


def holds_several(source: Path) -> bool:
    """Tell whether this is a manifest whose columns are those of several labels an image, and can be read."""
    if source.suffix.lower() not in MANIFEST_SUFFIXES or not source.is_file():
        return False
    try:
        names, _ = _read_columns(source, ONE_EACH)
        if _find(names, "path", source) is None or _find(names, "label", source) is not None:
            return False
        if _find(names, "labels", source) is not None:
            return True
        names, rows = _read_columns(source, Labelling(several=True))
        known = (_find(names, "path", source), _find(names, "split", source))
        others = [place for place in range(len(names)) if place not in known]
        return len(others) > 1 and all(row[place].strip().lower() in _MARKS for row in rows for place in others)
    except ImageSetError:
        return False


def _read_columns(source: Path, labelling: Labelling) -> tuple[list[str], list[list[str]]]:
    if source.suffix.lower() == ".parquet":
        return _read_parquet(source, labelling)
    table = read_csv(source)
    return table.header, table.rows


def _labels_of(cells: Sequence[str], labelling: Labelling, source: Path) -> list[tuple[str, ...] | None]:
    """Read the labels of each cell."""
    if not labelling.several:
        return [labelling.of(name) if (name := label_of(cell)) else None for cell in cells]
    separator = labelling.separator
    if separator is None:
        there = [mark for mark in SEPARATORS if any(mark in cell for cell in cells)]
        if len(there) > 1:
            raise ImageSetError(
                f"In the labels of '{source}' there are both '{there[0]}' and '{there[1]}'; say which of them stands "
                f"between labels, such as --separator '{there[0]}'"
            )
        separator = there[0] if there else SEPARATORS[0]
    return [
        tuple(sorted({name for part in cell.split(separator) if (name := label_of(part))} - {labelling.none}))
        for cell in cells
    ]


def _marked(
    names: Sequence[str], rows: Sequence[Sequence[str]], places: Sequence[int], labelling: Labelling, source: Path
) -> list[tuple[str, ...] | None]:
    """Read the labels of each row from columns, one a class, with 0 and 1."""
    classes: dict[str, int] = {}
    for place in places:
        name = label_of(names[place])
        if not name and not any(row[place].strip() for row in rows):
            continue
        if not name:
            raise ImageSetError(
                f"Column {place + 1} of '{source}' has no name, as the row numbers that pandas writes; give it that of "
                "its class, or leave it out"
            )
        if name in classes:
            raise ImageSetError(
                f"Columns {classes[name] + 1} and {place + 1} of '{source}' are both called '{name}'; expected a "
                "column for each class"
            )
        classes[name] = place
    found: list[tuple[str, ...] | None] = []
    for number, row in enumerate(rows, start=1):
        mine = []
        for name, place in classes.items():
            mark = _MARKS.get(row[place].strip().lower())
            if mark is None:
                raise ImageSetError(
                    f"Row {number} of '{source}' has '{row[place]}' in the column '{names[place]}'; expected 0 or 1 in "
                    "a column for each class, or a column 'labels'. Leave out columns that are no class"
                )
            if mark and name != labelling.none:
                mine.append(name)
        found.append(tuple(sorted(mine)))
    return found


def read_csv(source: Path) -> Table:
    """Read the table of a manifest in CSV.

    Raises:
        ImageSetError: it cannot be read, is no table, or is empty.
    """
    try:
        table = read_table(source.read_bytes(), COLUMN_NAMES)
    except UnicodeDecodeError as error:
        raise ImageSetError(
            f"Cannot read the manifest '{source}' as CSV in UTF-8: {error}; save it as 'CSV UTF-8'"
        ) from None
    except (OSError, csv.Error) as error:
        raise ImageSetError(f"Cannot read the manifest '{source}' as CSV: {error}") from None
    if not table.header:
        raise ImageSetError(f"The manifest '{source}' is empty; expected a first row with path,label[,split]")
    return table


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
        raise _lacks_columns(names, source, "path,label[,split]")
    return Columns(path=path, label=label, split=_find(names, "split", source))


def _lacks_columns(names: Sequence[str], source: Path, expected: str) -> ImageSetError:
    there = quoted(names, most=_MOST_COLUMNS) or "none"
    return ImageSetError(f"The manifest '{source}' has the columns {there}; expected {expected}")


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


def _read_parquet(source: Path, labelling: Labelling) -> tuple[list[str], list[list[str]]]:
    """Read the names of the columns that matter, and the rows in which anything stands."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(source)
        names: list[str] = schema.names
        path, label = _find(names, "path", source), _find(names, "labels" if labelling.several else "label", source)
        at = (path, label, _find(names, "split", source))
        chosen = [place for place in at if place is not None]
        if path is None or label is None:
            if not labelling.several:
                return names, []
            chosen = list(range(len(names)))
        for place in chosen:
            _require_texts(source, schema.field(place))
        # By their folders' names alone, `partitioning` would add columns that are not in the file.
        table = pq.read_table(source, columns=[names[place] for place in chosen], partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise ImageSetError(f"Cannot read the manifest '{source}' as Parquet: {error}") from None
    cells = [_texts(table.column(names[place])) for place in chosen]
    if path is not None and "\0" in next(filter(None, cells[chosen.index(path)]), ""):
        raise ImageSetError(
            f"The column '{names[path]}' of the manifest '{source}' holds bytes that are not a path, perhaps the "
            "images themselves; write them to files and name these"
        )
    return [names[place] for place in chosen], [list(row) for row in zip(*cells, strict=True) if any(row)]


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
    """The rows that are not blank, each with as many cells as the header."""
    delimiter: str = ","
    """The character between cells."""
    line_end: str = "\n"
    """The characters at the end of each line."""
    encoding: str = "utf-8"
    """The text's encoding, by Python's name."""


def read_table(data: bytes, names: Collection[str] = (), *, errors: str = "strict") -> Table:
    """Read a table with a header from a file's bytes.

    Args:
        data: the file.
        names: names of columns that may be expected, in lower case; they tell the delimiter where it is in doubt.
        errors: what becomes of bytes that are not valid text, as in `bytes.decode`.

    Raises:
        UnicodeDecodeError: the text is neither UTF-8 nor UTF-16 with a byte order mark.
        csv.Error: it is no table: a quotation mark is never closed, something follows a closed one in its cell, or a
            row has more cells than the header, as where a comma stands in a label without quotation marks.
    """
    text, encoding = _decoded(data, errors)
    if told := _TOLD.match(text):
        delimiter, text = told[1], text[told.end() :]
    else:
        start = text[:_HEADER_CHARACTERS]
        delimiter = max(_DELIMITERS, key=lambda one: _promise(start, one, names))
    rows = _rows(text, delimiter)
    header = [cell.strip() for cell in next(rows, [])]
    if any("\0" in name for name in header):
        raise csv.Error("its first row is no text in UTF-8, but perhaps in UTF-16 or UTF-32; save it as 'CSV UTF-8'")
    padded = []
    for number, row in enumerate(rows, start=1):
        if any(map(str.strip, row[len(header) :])):
            raise csv.Error(
                f"row {number} has {len(row)} cells, the header {len(header)}: '{delimiter.join(row)}'; put a cell "
                f"with '{delimiter}' in it in quotation marks"
            )
        padded.append([*row[: len(header)], *[""] * (len(header) - len(row))])
    line_end = "\r\n" if "\r\n" in text else "\n"
    return Table(header=header, rows=padded, delimiter=delimiter, line_end=line_end, encoding=encoding)


def write_table(table: Table) -> bytes:
    """Write a table to the bytes of a file, in the way in which the table says that it was written."""
    lines = []
    for row in (table.header, *table.rows):
        line = io.StringIO(newline="")
        csv.writer(line, delimiter=table.delimiter, lineterminator="\r\n").writerow(row)  # so quotes cells with either
        lines.append(line.getvalue().removesuffix("\r\n") + table.line_end)
    return "".join(lines).encode(table.encoding)


def read_list(file: BinaryIO | Iterable[bytes]) -> Iterator[str]:
    """Yield the paths of a list with one a line, as lines come; blank lines are passed over.

    Args:
        file: the lines as bytes; names of files need not be valid text.
    """
    for number, line in enumerate(_lines(file)):
        path = (line.removeprefix("\ufeff") if number == 0 else line).rstrip("\r\n")
        if path.strip():
            yield path


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


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows of a table in which anything stands."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 0
    try:
        for row in reader:
            if any(cell and not cell.isspace() for cell in row):
                yield row
            line = reader.line_num
    except csv.Error as error:
        where, why = f"the row that begins in line {line + 1} has", str(error)
        if "unexpected end of data" in why:
            raise csv.Error(f"{where} a quotation mark that is never closed") from None
        if "expected after" in why:
            raise csv.Error(
                f"{where} something behind a closing quotation mark; put quotation marks around the whole cell, and "
                "write those within it twice"
            ) from None
        if "field larger" in why:
            raise csv.Error(
                f"{where} a cell of more than {csv.field_size_limit():,} characters; is a quotation mark never closed?"
            ) from None
        raise csv.Error(f"{where} what is no table: {why}") from None


def _promise(text: str, delimiter: str, names: Collection[str]) -> tuple[int, int]:
    """Count in a header separated like this the names that are expected, then the cells that are not empty."""
    try:
        header = next(_rows(text, delimiter), [])
    except csv.Error:
        return 0, 0
    cells = [cell.strip().lower() for cell in header]
    return sum(cell in names for cell in cells), sum(map(bool, cells))
