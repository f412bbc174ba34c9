"""What callers send: a request's body, held in memory within limits, and the images in it.

Nothing is written to the disk, and addresses are never fetched: images come as bytes or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from quickstudy.serving.pool import OverloadedError

MULTIPART = "multipart/form-data"


class RefusedError(Exception):
    """A request that is not answered, with the HTTP status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One image as it was sent."""

    data: bytes
    file: str | None = None
    """The name that the sender gave it, to tell the answers apart; None where the body is the image."""


class Bodies:
    """Counts the bytes of all bodies that are in memory."""

    def __init__(self, *, most_bytes: int, most_held_bytes: int, seconds: float) -> None:
        self._most_bytes = most_bytes
        self._most_held_bytes = max(most_held_bytes, most_bytes)
        self._seconds = seconds
        self.held = 0

    @contextmanager
    def hold(self) -> Iterator[Holder]:
        """Where a request's body is counted until the request is done."""
        holder = Holder()
        try:
            yield holder
        finally:
            self.held -= holder.size

    async def read(self, request: Request, holder: Holder) -> bytes:
        """A request's body.

        Raises:
            RefusedError: it is too large (413) or too slow (408).
            OverloadedError: all bodies together are too large for now.
            ClientDisconnect: the sender has gone.
        """
        if (
            int(request.headers.get("content-length", 0)) > self._most_bytes
        ):  # the HTTP parser lets only numbers through
            raise self._too_large()
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(self._seconds):
                async for piece in request.stream():
                    if self.held + len(piece) > self._most_held_bytes:
                        raise OverloadedError
                    self.held += len(piece)
                    holder.size += len(piece)
                    if holder.size > self._most_bytes:
                        raise self._too_large()
                    pieces.append(piece)
        except TimeoutError:
            raise RefusedError(408, f"the body took longer than {self._seconds:g} s to arrive") from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body is larger than {self._most_bytes:,} bytes")


@dataclass
class Holder:
    """How many bytes one request holds."""

    size: int = 0


@dataclass
class _Part:
    """A part of a form while it is parsed; `file` is None where it holds a plain value."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    pieces: list[bytes] = field(default_factory=list)
    file: str | None = None


def is_multipart(content_type: str) -> bool:
    """Whether a body of this type is a form."""
    return content_type.partition(";")[0].strip().lower() == MULTIPART


def parse_form(body: bytes, content_type: str, *, most_files: int) -> list[Upload]:
    """The files of a `multipart/form-data` body, in their order, under whatever field names; other fields are ignored.

    Raises:
        RefusedError: it is malformed (400), holds no file (400) or too many parts (413).
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise RefusedError(400, "multipart/form-data without a boundary; leave the Content-Type to your HTTP library")
    uploads: list[Upload] = []
    part = _Part()
    begun = 0

    def begin() -> None:
        nonlocal part, begun
        begun += 1
        if begun > most_files:
            raise RefusedError(413, f"more than {most_files} parts in one request; send several requests")
        part = _Part()

    def end_header() -> None:
        part.headers[bytes(part.name).lower()] = bytes(part.value)
        part.name.clear()
        part.value.clear()

    def end_headers() -> None:
        _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        if (name := options.get(b"filename")) is not None:
            part.file = name.decode("utf-8", "replace")

    def data(source: bytes, start: int, end: int) -> None:
        if part.file is not None:
            part.pieces.append(source[start:end])

    def end_part() -> None:
        if part.file is not None:
            uploads.append(Upload(data=b"".join(part.pieces), file=part.file))

    ended = False

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": lambda source, start, end: part.name.extend(source[start:end]),
                "on_header_value": lambda source, start, end: part.value.extend(source[start:end]),
                "on_header_end": end_header,
                "on_headers_finished": end_headers,
                "on_part_data": data,
                "on_part_end": end_part,
                "on_end": end,
            },
        )
        parser.write(body)
    except FormParserError as error:
        raise RefusedError(400, f"malformed multipart/form-data ({error})") from None
    if not ended:
        raise RefusedError(400, "malformed multipart/form-data (it ends before its last boundary)")
    if not uploads:
        raise RefusedError(400, "no file in the form; send images as files, as in: curl -F image=@photo.jpg")
    return uploads


__all__ = ["Bodies", "ClientDisconnect", "Holder", "RefusedError", "Upload", "is_multipart", "parse_form"]
