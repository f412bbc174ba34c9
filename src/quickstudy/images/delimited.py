"""Tables and lists as text: CSV as spreadsheets write it, and lists of paths as people pipe them.

A table may be separated by commas, semicolons or tabs, begin with a byte order mark, be in UTF-16, end its lines as
Windows does, and have blank rows. Cells stay as they are written; the names of columns are trimmed.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

_DELIMITERS = (",", ";", "\t")
_TOLD = re.compile(r"sep=([^\r\n])\r?\n", re.IGNORECASE)
"""How Excel is told the delimiter."""
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
    line_end: str = "\n"
    encoding: str = "utf-8"


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
    """The bytes of a file that holds a table, written as the table says that it was."""
    lines = []
    for row in (table.header, *table.rows):
        line = io.StringIO(newline="")
        csv.writer(line, delimiter=table.delimiter, lineterminator="\r\n").writerow(row)  # so quotes cells with either
        lines.append(line.getvalue().removesuffix("\r\n") + table.line_end)
    return "".join(lines).encode(table.encoding, errors)


def read_list(file: BinaryIO | Iterable[bytes]) -> Iterator[str]:
    """The paths in a list with one a line, as the lines come; blank lines are passed over, and `~` is the home folder.

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
    """The text without its byte order mark, and its encoding."""
    if data.startswith(_UTF_16_MARKS):
        return data.decode("utf-16", errors), "utf-16"
    encoding = "utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8"
    return data.decode(encoding, errors), encoding


def _rows(text: str, delimiter: str, *, strict: bool) -> Iterator[list[str]]:
    """The rows in which anything stands."""
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict):
        if any(cell and not cell.isspace() for cell in row):
            yield row


def _promise(text: str, delimiter: str, names: Collection[str]) -> tuple[int, int]:
    """How well a header separated like this looks: names that are expected, then cells that are not empty."""
    try:
        header = next(_rows(text, delimiter, strict=False), [])
    except csv.Error:
        return 0, 0
    cells = [cell.strip().lower() for cell in header]
    return sum(cell in names for cell in cells), sum(map(bool, cells))
