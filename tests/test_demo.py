"""What `make demo` says where it cannot go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[1] / "demo" / "demo.py"


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(folder), "QUICKSTUDY_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    done = demo(tmp_path, "--images", "~/nope")
    assert done.returncode == 2
    assert done.stdout == (
        f"No such folder: '{tmp_path}/nope'; expected photos/<class>/*.jpg, as in: make demo IMAGES=photos\n"
    )


def test_where_a_command_fails_its_message_is_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = demo(tmp_path, "--images", "empty")
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("$ quickstudy retrain empty ")
    assert lines[-1].startswith("quickstudy: No ")
    assert "Traceback" not in done.stdout


def test_its_last_words_are_what_to_type_next(tmp_path: Path, photos: Path) -> None:
    done = demo(tmp_path, "--images", str(photos))
    assert done.returncode == 0, done.stdout
    *_, retrain, predict, audit, _, without_labels, install, label = done.stdout.splitlines()
    assert [line.split("quickstudy ")[-1] for line in (retrain, predict, audit, label)] == [
        "retrain photos/",
        "predict photos.onnx new.jpg",
        "audit photos/",
        "label photos/",
    ]
    assert "no labels" in without_labels
    assert "install" in install
