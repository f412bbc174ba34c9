"""`cache fill` and `cache pull` as a user types them, here and on a cluster."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from in_process import Run
from quickstudy.extras import installation_of
from ray_processes import NO_RAY, ray_folder, without_rays

COMMAND = str(Path(sys.executable).parent / "quickstudy")


@pytest.fixture
def folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `photos/`, one of them broken; the commands run there, with a cache of their own."""
    (photos / "discs" / "broken.jpg").write_bytes(b"<html>not an image</html>")
    monkeypatch.chdir(photos.parent)
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(photos.parent / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return photos.parent


def apart(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, which a private Ray ends with."""
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(
        [COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_filling_here_spares_the_retraining_its_forward_passes(run: Run, folder: Path) -> None:
    first = run("cache", "fill", "photos/")
    assert first.code == 0, first.err
    assert first.out.startswith("photos: 37 images\n36 forward passes, 0 bottlenecks from the store\n")
    assert "photos/discs/broken.jpg: an HTML page, not an image" in first.out
    assert f"Store: {folder / 'cache' / 'bottlenecks'}" in first.out
    again = json.loads(run("cache", "fill", "photos/", "--json").out)
    assert (again["images"], again["forward_passes"], again["from_store"]) == (37, 0, 36)
    assert again["skipped"] == [{"path": "photos/discs/broken.jpg", "reason": "an HTML page, not an image"}]
    assert "0 forward passes, 36 bottlenecks from the store" in run("retrain", "photos/").out


def test_filling_tells_of_what_it_leaves_out(run: Run, folder: Path) -> None:
    photos = folder / "photos"
    for place, copy in (("discs/00.jpg", "discs/copy.jpg"), ("discs/01.jpg", "checks/other.jpg")):
        (photos / copy).write_bytes((photos / place).read_bytes())
    text = run("cache", "fill", "photos/").out
    assert "1 file is an exact copy of another" in text
    assert "Conflict: the same image under different labels, left out: photos/checks/other.jpg (checks), " in text
    found = json.loads(run("cache", "fill", "photos/", "--json").out)
    assert (found["from_store"], found["copies"]) == (35, 1)
    assert found["conflicts"] == [["photos/checks/other.jpg", "photos/discs/01.jpg"]]


@pytest.mark.slow
def test_what_a_cluster_stored_elsewhere_is_pulled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `auto` where no cluster runs: a private Ray, which is gone when the command ends."""
    pytest.importorskip("ray", reason=NO_RAY)
    for place, copy in (("discs/00.jpg", "discs/copy.jpg"), ("discs/01.jpg", "checks/other.jpg")):
        (folder / "photos" / copy).write_bytes((folder / "photos" / place).read_bytes())
    uri = (folder / "shared").as_uri()
    with ray_folder() as temporary:
        monkeypatch.setenv("RAY_TMPDIR", str(temporary))
        filled = apart("cache", "fill", "photos/", "--ray", "auto", "--store", uri)
    assert (filled.returncode, without_rays(filled.stderr)) == (0, "")
    assert filled.stdout.startswith("photos: 39 images\n36 forward passes, 2 bottlenecks from the store\n")
    assert "1 file is an exact copy of another" in filled.stdout
    assert "Conflict: the same image under different labels, left out: photos/checks/other.jpg" in filled.stdout
    assert "photos/discs/broken.jpg: an HTML page, not an image" in filled.stdout
    assert re.search(rf"Store: {uri}; [\d.]+ s, \d+ workers? on 1 node\n", filled.stdout)
    assert f"Next:  quickstudy cache pull {uri}" in filled.stdout
    pulled = apart("cache", "pull", uri)
    assert pulled.returncode == 0, pulled.stderr
    assert "36 bottlenecks new" in pulled.stdout
    assert json.loads(apart("cache", "pull", uri, "--json").stdout)["shards"] == 0
    assert "0 forward passes, 35 bottlenecks from the store" in apart("cache", "fill", "photos").stdout


def test_errors_come_before_anything_is_computed(run: Run, folder: Path) -> None:
    pytest.importorskip("ray", reason=NO_RAY)
    (folder / "occupied").write_text("")
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        cases = [
            (["--ray", nobody], f"No Ray cluster answers at '{nobody}'"),
            (["--ray", "somewhere"], "'somewhere' is not the address of a Ray cluster; expected auto"),
            (["--ray", "auto", "--store", "nowhere://bucket"], "Cannot open the store 'nowhere://bucket'"),
            (["--store", "shared"], "--ray auto"),
        ]
        for arguments, words in cases:
            done = run("cache", "fill", "photos", *arguments)
            assert done.code == 2
            assert "Traceback" not in done.err
            assert words in " ".join(done.err.split())
    assert not (folder / "cache").exists()


def test_without_ray_the_message_says_what_to_install(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run("cache", "fill", "photos", "--ray", "auto")
    assert done.code == 2
    assert "needs ray, which is not installed" in done.err
    assert installation_of("ray") in done.err
    here = run("cache", "fill", "photos")
    assert here.code == 0, here.err
