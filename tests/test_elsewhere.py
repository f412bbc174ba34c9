"""What only POSIX or Linux has is not needed: the core runs without it, in a process that has lost all of that.

It stands in for Windows and macOS, where these tests have not been run: names of `os` that they lack are taken away,
as far as the libraries below can do without, and modules of POSIX cannot be imported. Processes are spawned.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quickstudy.models.loading import load
from quickstudy.process import begin_own_processes, own_processes
from small_backbones import add_small_backbone

WITHOUT = """
import multiprocessing
import os
import sys

for name in ("sched_getaffinity", "setsid", "sync", "fork", "forkpty", "killpg", "getpgid", "statvfs", "chown",
             "mkfifo", "posix_spawn", "fchmod", "nice", "O_NOFOLLOW", "O_DIRECTORY"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios", "syslog"):
    sys.modules[name] = None
multiprocessing.set_start_method("spawn")
from quickstudy.cli.main import run
for line in sys.argv[1:]:
    sys.argv = ["quickstudy", *line.split()]
    try:
        run()
    except SystemExit as end:
        assert not end.code, line
    print(end=chr(12))
"""


def run_without(folder: Path, *commands: str) -> list[str]:
    """Run commands of quickstudy in such a process, one after the other; gives what each printed."""
    environment = {**os.environ, "QUICKSTUDY_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", WITHOUT, *commands]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(chr(12))


def test_the_core_needs_nothing_that_only_linux_has(photos: Path, tmp_path: Path) -> None:
    commands = ("retrain photos", "predict photos.onnx photos/discs --json", "audit photos --json")
    _, predicted, audited, _ = run_without(tmp_path, *commands)
    assert json.loads(predicted)[0]["predictions"][0]["label"] == "discs"
    assert json.loads(audited)["images"] == 36


def test_where_processes_cannot_be_forked_they_are_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert own_processes().get_start_method() == "spawn"
    begin_own_processes()


def test_lines_that_end_as_windows_ends_them(photos: Path, tmp_path: Path) -> None:
    names = [f"{path.parent.name}/{path.name}" for path in sorted(photos.rglob("*.jpg"))]
    rows = ["image,label", *(f"photos/{name},{name.partition('/')[0]}" for name in names)]
    (tmp_path / "labels.csv").write_bytes("".join(f"{row}\r\n" for row in rows).encode("utf-8-sig"))
    add_small_backbone(tmp_path / "cache")
    run_without(tmp_path, "retrain labels.csv --backbone small")
    assert load(tmp_path / "labels.onnx").classes == ("checks", "discs", "stripes")
