"""The paths that `predict` is told, on its command line and on standard input."""

from __future__ import annotations

import io
import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from in_process import Run
from quickstudy.cli.predict import files_of
from small_models import write_small_model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in ("a.jpg", "sub/b.jpg", "sub/IMG1", unicodedata.normalize("NFD", "é.jpg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xff\xd8\xff")
    return tmp_path


def expanded(monkeypatch: pytest.MonkeyPatch, data: bytes) -> tuple[list[str], dict[str, str]]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    wrong: list[Any] = []
    paths = [str(path) for path in files_of(["-"], wrong)]
    return paths, {item.path.name: item.reason for item in wrong}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_as_windows_writes_it(here: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    text = "./a.jpg\r\n\r\nsub\\b.jpg\r\n~/a.jpg\r\n\u00e9.jpg\r\nsub\r\nnowhere.jpg"
    paths, wrong = expanded(monkeypatch, text.encode(encoding))
    decomposed = unicodedata.normalize("NFD", "é.jpg")
    assert paths == ["./a.jpg", "sub/b.jpg", f"{here}/a.jpg", decomposed, "sub/IMG1", "sub/b.jpg", "nowhere.jpg"]
    assert wrong == {}


@pytest.mark.parametrize("data", [b"", b"\n  \r\n"])
def test_a_list_without_a_path_is_told_as_a_folder_without_an_image_is(
    here: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, run: Run
) -> None:
    write_small_model(here / "m.onnx")
    (here / "empty").mkdir()
    for words, told in (("-", "-: no paths on standard input"), ("empty", "empty: no images in this folder")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        done = run("predict", str(here / "m.onnx"), words)
        assert (done.code, done.out) == (1, "")
        assert told in done.err
        assert "1 of 1 could not be used" in done.err


def test_a_table_of_paths_is_no_image_and_the_way_is_told(here: Path, run: Run) -> None:
    write_small_model(here / "m.onnx")
    (here / "photos.csv").write_text("path,label\na.jpg,cat\n")
    done = run("predict", "m.onnx", "photos.csv")
    assert (done.code, done.out) == (1, "")
    assert "photos.csv: a table, not an image" in done.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes in folders")
def test_a_named_pipe_in_a_list_or_a_pattern_is_never_opened(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(here / "pipe.jpg")
    (here / "gone.jpg").symlink_to("nowhere")
    expected = {"pipe.jpg": "a named pipe, not a file", "gone.jpg": "a link to nothing"}
    assert expanded(monkeypatch, b"pipe.jpg\ngone.jpg\na.jpg\n") == (["a.jpg"], expected)
    paths, wrong = expanded(monkeypatch, b"*.jpg\n")
    assert (len(paths), wrong) == (2, expected)
