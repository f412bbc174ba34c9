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

from quickstudy.extras import installation_of
from ray_processes import NO_RAY, ray_folder, without_rays

COMMAND = str(Path(sys.executable).parent / "quickstudy")
WITHOUT_RAY = "import sys; sys.modules['ray'] = None; from quickstudy.cli.main import run; run()"


@pytest.fixture
def folder(photos: Path) -> Path:
    """A folder with `photos/`, one of them broken."""
    (photos / "discs" / "broken.jpg").write_bytes(b"<html>not an image</html>")
    return photos.parent


def run(folder: Path, *arguments: str, program: tuple[str, ...] = (COMMAND,)) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "QUICKSTUDY_CACHE": str(folder / "cache"), "COLUMNS": "100"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [*program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_filling_here_spares_the_retraining_its_forward_passes(folder: Path) -> None:
    first = run(folder, "cache", "fill", "photos/")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("photos: 37 images\n36 forward passes, 0 bottlenecks from the store\n")
    assert "photos/discs/broken.jpg: an HTML page, not an image" in first.stdout
    assert f"Store: {folder / 'cache' / 'bottlenecks'}" in first.stdout
    again = json.loads(run(folder, "cache", "fill", "photos/", "--json").stdout)
    assert (again["images"], again["forward_passes"], again["from_store"]) == (37, 0, 36)
    assert again["skipped"] == [{"path": "photos/discs/broken.jpg", "reason": "an HTML page, not an image"}]
    assert "0 forward passes, 36 bottlenecks from the store" in run(folder, "retrain", "photos/").stdout


@pytest.mark.slow
def test_what_a_cluster_stored_elsewhere_is_pulled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `auto` where no cluster runs: a private Ray, which is gone when the command ends."""
    pytest.importorskip("ray", reason=NO_RAY)
    uri = (folder / "shared").as_uri()
    with ray_folder() as temporary:
        monkeypatch.setenv("RAY_TMPDIR", str(temporary))
        filled = run(folder, "cache", "fill", "photos/", "--ray", "auto", "--store", uri)
    assert (filled.returncode, without_rays(filled.stderr)) == (0, "")
    assert filled.stdout.startswith("photos: 37 images\n36 forward passes, 0 bottlenecks from the store\n")
    assert "photos/discs/broken.jpg: an HTML page, not an image" in filled.stdout
    assert re.search(rf"Store: {uri}; [\d.]+ s, \d+ workers? on 1 node\n", filled.stdout)
    assert f"Next:  quickstudy cache pull {uri}" in filled.stdout
    pulled = run(folder, "cache", "pull", uri)
    assert pulled.returncode == 0, pulled.stderr
    assert "36 bottlenecks new" in pulled.stdout
    assert json.loads(run(folder, "cache", "pull", uri, "--json").stdout)["shards"] == 0
    assert "0 forward passes, 36 bottlenecks from the store" in run(folder, "cache", "fill", "photos").stdout


def test_errors_come_before_anything_is_computed(folder: Path) -> None:
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
            done = run(folder, "cache", "fill", "photos", *arguments)
            assert done.returncode == 2
            assert "Traceback" not in done.stderr
            assert words in " ".join(done.stderr.split())
    assert not (folder / "cache").exists()


def test_without_ray_the_message_says_what_to_install(folder: Path) -> None:
    done = run(folder, "cache", "fill", "photos", "--ray", "auto", program=(sys.executable, "-c", WITHOUT_RAY))
    assert done.returncode == 2
    assert "needs ray, which is not installed" in done.stderr
    assert installation_of("ray") in done.stderr
    here = run(folder, "cache", "fill", "photos", program=(sys.executable, "-c", WITHOUT_RAY))
    assert here.returncode == 0, here.stderr
