"""Options as text: what a configuration says can be read again."""

from __future__ import annotations

import pytest

from quickstudy.errors import OptionError
from quickstudy.options import as_text, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "auto"), (True, "on"), (0.1, "0.1"), (10.0, "10"), (1 / 3, repr(1 / 3)), ((8, 16), "8,16"), ("a", "a")],
)
def test_values_are_written_as_they_are_read(value: object, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("3m", 180), ("3 min", 180), ("1.5h", 5400), ("1h30m", 5400), ("2M", 120)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "3 days", "-3m", "0", "1.2.3s", "three", "3m later"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(OptionError, match="is not a time"):
        parse_seconds(text)


@pytest.mark.parametrize(("text", "size"), [("2GB", 2e9), ("500 MB", 5e8), ("1.5gb", 1.5e9), ("10kb", 1e4), ("8b", 8)])
def test_sizes(text: str, size: float) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "2", "2 GiB", "-1GB", "0MB", "1.2.3GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="is not a size"):
        parse_bytes(text)
