"""`--fit` and `--backbone auto` as a user types them: here, ahead of time, in a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from in_process import Run
from small_backbones import add_small_backbone


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `photos/`, 75 of them three times as wide as high, and a cache with a small backbone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(tmp_path / "cache"))
    add_small_backbone(tmp_path / "cache")
    for number, name in enumerate(("amber", "blue", "green")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for image in range(25):
            draws = np.random.Generator(np.random.PCG64([number, image]))
            pixels = draws.integers(60, 200, (32, 96, 3), np.uint8)
            pixels[:, :32, number] = 230
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{image:02}.png")
    return tmp_path


@pytest.mark.usefixtures("here")
def test_the_summary_says_what_was_chosen_and_by_how_much(run: Run) -> None:
    done = run("retrain", "photos", "--backbone", "small", "--levels", "last", "--fit", "auto")
    [line] = [line for line in done.out.splitlines() if line.startswith("Fit chosen: ")]
    assert line.startswith(("Fit chosen: pad (log loss ", "Fit chosen: squash (log loss "))
    assert "crop +" in line
    assert "95 % interval +" in line
    choice = json.loads(
        run("retrain", "photos", "--backbone", "small", "--levels", "last", "--fit", "auto", "--json").out
    )
    assert choice["choices"][0]["chosen"] == line.split()[2]
    card = run("export", "photos.onnx", "--card", "card.md")
    assert card.code == 0
    assert "all of it, " in Path("card.md").read_text()


@pytest.mark.usefixtures("here")
def test_the_store_is_filled_ahead_for_a_fit(run: Run) -> None:
    filled = run("cache", "fill", "photos", "--backbone", "small", "--fit", "tiles")
    assert "photos: 75 images\n225 forward passes, 0 bottlenecks from the store\n" in filled.out
    done = run("retrain", "photos", "--backbone", "small", "--fit", "tiles")
    assert "0 forward passes, 75 bottlenecks from the store" in done.out
    assert "Fit chosen: tiles3 (3 passes an image; the median image is 3.00 times as long as wide)" in done.out
    assert "0 forward passes" not in run("retrain", "photos", "--backbone", "small", "--fit", "squash").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--fit", "auto"), "nothing is trained here, so nothing can choose"),
        (("--backbone", "auto"), "nothing is trained here, so nothing can choose"),
        (("--ray", "auto", "--fit", "tiles"), "name --fit tiles2 or tiles3"),
        (("--fit", "tiles2", "--cut", "block_1"), "--fit tiles2 averages the features of several squares"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_cannot_be_filled_is_refused(run: Run, words: tuple[str, ...], said: str) -> None:
    done = run("cache", "fill", "photos", *words)
    assert done.code != 0
    assert said in " ".join(done.err.replace("│", " ").split())


@pytest.mark.heavy
def test_a_sweep_has_fits_as_an_axis(run: Run, here: Path) -> None:
    done = run("sweep", "retrain", "--set", "data=photos", "--set", "backbone=small", "--grid", "fit=crop,pad,squash")
    assert done.code == 0, done.err
    [folder] = (here / "sweeps").iterdir()
    rows = (folder / "results.csv").read_text().splitlines()
    assert len(rows) == 4
    assert {fit for fit in ("crop", "pad", "squash") if any(fit in row for row in rows[1:])} == {
        "crop",
        "pad",
        "squash",
    }
