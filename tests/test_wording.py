"""Wording for people: counts, shares, probabilities, names and commands."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from quickstudy.wording import as_percent, as_probability, count, pasted, printable, quoted

NAMES = ["photos.onnx", "Mes photos d'été.onnx", 'a "b" $c.onnx', "-x.onnx", "новые снимки.onnx"]


@pytest.mark.parametrize("name", NAMES)
def test_commands_can_be_pasted_whatever_the_names(name: str) -> None:
    assert shlex.split(pasted("report", name)) == ["quickstudy", "report", name]


def test_on_windows_names_are_quoted_as_its_shell_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "nt")
    assert pasted("report", "Mes photos d'été.onnx") == 'quickstudy report "Mes photos d\'été.onnx"'


@pytest.mark.parametrize(
    ("number", "nouns", "told"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (1200, ("image",), "1,200 images"),
        (1, ("class", "classes"), "1 class"),
        (2, ("file is", "files are"), "2 files are"),
    ],
)
def test_one_thing_has_no_plural(number: int, nouns: tuple[str, ...], told: str) -> None:
    assert count(number, *nouns) == told


@pytest.mark.parametrize(
    ("share", "digits", "told"),
    [
        (299 / 300, 0, "99.7 %"),
        (1 / 300, 0, "0.3 %"),
        (4999 / 5000, 1, "99.98 %"),
        (72 / 73, 0, "99 %"),
        (0.914, 1, "91.4 %"),
        (1.0, 0, "100 %"),
        (0.0, 1, "0.0 %"),
        (1 - 1e-16, 1, "100.0 %"),
        (1e-9, 1, "0.0 %"),
        (0.99951, 0, "99.95 %"),
    ],
)
def test_what_is_not_all_does_not_look_like_all(share: float, digits: int, told: str) -> None:
    assert as_percent(share, digits) == told


@pytest.mark.parametrize(
    ("probability", "digits", "told"),
    [
        (0.9996, 1, "> 99.9 %"),
        (0.99949, 1, "99.9 %"),
        (1.0, 1, "> 99.9 %"),
        (0.996, 0, "> 99 %"),
        (0.99, 0, "99 %"),
        (0.5, 1, "50.0 %"),
        (0.0006, 1, "0.1 %"),
        (0.0004, 1, "< 0.1 %"),
        (0.0, 1, "< 0.1 %"),
        (0.004, 0, "< 1 %"),
    ],
)
def test_no_probability_reads_as_certain(probability: float, digits: int, told: str) -> None:
    assert as_probability(probability, digits) == told


def test_names_of_files_keep_to_their_line() -> None:
    assert printable("é a-b.jpg") == "é a-b.jpg"
    assert printable(Path("x.jpg\ny.jpg: cat 100.0 %")) == "x.jpg\\ny.jpg: cat 100.0 %"
    assert printable("\x1b[2Jx\u2028y") == "\\x1b[2Jx\\u2028y"


def test_names_beyond_the_first_are_left_out() -> None:
    assert quoted("abc") == "'a', 'b', 'c'"
    assert quoted("abc", most=2) == "'a', 'b', …"
    assert quoted([]) == ""
