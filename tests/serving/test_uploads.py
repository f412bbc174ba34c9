"""Forms, compared with the standard library's mail parser; and bodies, counted while they are in memory."""

from __future__ import annotations

import asyncio
import email
import email.policy
from collections.abc import AsyncIterator
from tempfile import SpooledTemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from quickstudy.serving.limits import Bodies, RefusedError, Upload, is_multipart, parse_form
from quickstudy.serving.registry import OverloadedError

NAMES = st.text(st.characters(codec="ascii", exclude_characters='"\\;', exclude_categories=("C",)), min_size=1).filter(
    lambda name: name == name.strip()
)
# Pieces that look like the boundary or the ends of lines, where parsers go wrong.
CONTENTS = st.lists(
    st.sampled_from([b"--b", b"\r\n", b"--", b"\r", b"\n", b"--B0", b"\x00\xff", b"a"]), max_size=12
).map(b"".join)
TYPE = "multipart/form-data; boundary=B0UND"


def form(files: list[tuple[str, bytes]]) -> bytes:
    parts = [
        b'--B0UND\r\nContent-Disposition: form-data; name="i"; filename="%s"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in files
    ]
    return b"".join(parts) + b"--B0UND--\r\n"


@given(st.lists(st.tuples(NAMES, CONTENTS), min_size=1, max_size=5))
def test_files_come_out_as_they_went_in(files: list[tuple[str, bytes]]) -> None:
    assert parse_form(form(files), TYPE, most_files=5) == [Upload(file=name, data=data) for name, data in files]


@given(st.lists(st.tuples(NAMES, st.binary(max_size=40).map(bytes.hex).map(str.encode)), min_size=1, max_size=5))
def test_agrees_with_the_standard_librarys_mail_parser(files: list[tuple[str, bytes]]) -> None:
    body = form(files)
    message = email.message_from_bytes(b"Content-Type: " + TYPE.encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP)
    expected = [Upload(file=part.get_filename(), data=part.get_payload(decode=True)) for part in message.iter_parts()]
    assert parse_form(body, TYPE, most_files=5) == expected


@given(st.binary(max_size=300), st.integers(0, 300))
def test_whatever_the_bytes_it_is_files_or_a_refusal(noise: bytes, cut: int) -> None:
    whole = form([("a.jpg", noise)])
    for body in (noise, whole[:cut], whole[cut:], whole[:cut] + noise + whole[cut:]):
        try:
            uploads = parse_form(body, TYPE, most_files=3)
        except RefusedError as refusal:
            assert refusal.status in (400, 413)
        else:
            assert all(upload.file is not None for upload in uploads)


def test_more_parts_than_allowed_are_refused_before_the_rest_is_parsed() -> None:
    with pytest.raises(RefusedError, match="more than 2 parts") as caught:
        parse_form(form([("a", b"")] * 3) + b"garbage", TYPE, most_files=2)
    assert caught.value.status == 413


@pytest.mark.parametrize("cut", [-5, -12, -60])
def test_a_form_that_was_cut_off_is_refused_though_files_came_whole(cut: int) -> None:
    with pytest.raises(RefusedError, match="ends before its last boundary") as caught:
        parse_form(form([("a", b"1"), ("b", b"2")])[:cut], TYPE, most_files=2)
    assert caught.value.status == 400


def test_large_files_are_not_written_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpooledTemporaryFile, "rollover", lambda _: pytest.fail("to the disk"))
    data = bytes(3_000_000)
    assert parse_form(form([("a", data)]), TYPE, most_files=1) == [Upload(file="a", data=data)]


@pytest.mark.parametrize("noise", [b"\r\n--B0UN", b"\r", b"\r\n", b"--B0UND", b"\r\n--B0UND\r"])
def test_what_keeps_looking_like_the_boundary_is_data_all_the_same(noise: bytes) -> None:
    data = b"x" + noise * 20_000 + b"x"
    assert parse_form(form([("a", data)]), TYPE, most_files=1) == [Upload(file="a", data=data)]


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [("multipart/form-data", True), ("Multipart/Form-Data; x", True), ("multipart/mixed", False), ("", False)],
)
def test_recognises_forms(content_type: str, expected: bool) -> None:
    assert is_multipart(content_type) is expected


def request_of(pieces: list[bytes], *, pause: float = 0, headers: dict[str, str] | None = None) -> Request:
    async def messages() -> AsyncIterator[dict[str, object]]:
        for number, piece in enumerate(pieces):
            await asyncio.sleep(pause)
            yield {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}

    source = messages()
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, source.__anext__)  # type: ignore[arg-type]


def test_bytes_are_counted_while_they_are_held_and_no_longer() -> None:
    bodies = Bodies(most_bytes=10, most_held_bytes=15, seconds=5)

    async def scenario() -> None:
        with bodies.hold() as first, bodies.hold() as second:
            assert await bodies.read(request_of([b"12345", b"6789"]), first) == b"123456789"
            assert bodies.held == 9
            with pytest.raises(OverloadedError):
                await bodies.read(request_of([b"1234", b"567"]), second)
        assert bodies.held == 0
        with bodies.hold() as third, pytest.raises(RefusedError) as caught:
            await bodies.read(request_of([b"12345", b"678901"]), third)
        assert caught.value.status == 413
        assert bodies.held == 0

    asyncio.run(scenario())


def test_an_announced_size_is_refused_before_reading() -> None:
    bodies = Bodies(most_bytes=10, most_held_bytes=15, seconds=5)

    async def scenario() -> None:
        with bodies.hold() as held, pytest.raises(RefusedError) as caught:
            await bodies.read(request_of([], headers={"content-length": "11"}), held)
        assert caught.value.status == 413

    asyncio.run(scenario())


def test_a_body_that_trickles_is_given_up() -> None:
    bodies = Bodies(most_bytes=100, most_held_bytes=100, seconds=0.05)

    async def scenario() -> None:
        with bodies.hold() as held, pytest.raises(RefusedError) as caught:
            await bodies.read(request_of([b"1"] * 100, pause=0.02), held)
        assert caught.value.status == 408

    asyncio.run(scenario())
    assert bodies.held == 0
