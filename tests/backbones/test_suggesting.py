"""`quickstudy suggest`: photos compared with names by two towers from an imitation of the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from local_hub import LocalHub, Repository
from PIL import Image
from test_names import NAMES, expected_logits, files_of, towers

from in_process import run_here

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

BACKBONE = "hf:somebody/towers"
COMMON = ("--names", ",".join(NAMES), "--backbone", BACKBONE, "--template", "a photo of a {}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Photos loose, in `unlabelled/`, and of one class, with the hub that the network is on."""
    folder = tmp_path_factory.mktemp("suggest")
    draws = np.random.Generator(np.random.PCG64(1))
    for name in ("photos/1.png", "photos/unlabelled/2.png", "photos/unlabelled/3.png", "photos/cat/4.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (37, 37, 3), np.uint8)).save(folder / name)
    with LocalHub() as hub, pytest.MonkeyPatch.context() as patched:
        model = towers("CLIP")
        hub.repositories["somebody/towers"] = Repository(files_of(model, folder / "repository"))
        hub.stand_in(patched, folder / "hub")
        patched.setenv("QUICKSTUDY_CACHE", str(folder / "cache"))
        yield folder


@pytest.mark.filterwarnings("ignore")
def test_probabilities_are_those_of_the_network(folder: Path) -> None:
    code, out, err = run_here(folder, "suggest", "photos", *COMMON, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [Path(photo["path"]).name for photo in found["photos"]] == ["1.png", "2.png", "3.png"]
    assert found["labelled"]["n"] == 1
    middles = [np.asarray(Image.open(folder / photo["path"]))[2:34, 2:34] for photo in found["photos"]]
    sentences = [f"a photo of a {name.replace('_', ' ')}" for name in NAMES]
    logits = expected_logits(towers("CLIP"), np.stack(middles), sentences).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for photo, row in zip(found["photos"], expected, strict=True):
        assert photo["name"] == NAMES[row.argmax()]
        assert photo["probability"] == pytest.approx(row.max(), abs=1e-3)  # kept in half precision


@pytest.mark.filterwarnings("ignore")
def test_a_plan_can_be_carried_out(folder: Path) -> None:
    code, out, err = run_here(folder, "suggest", "photos", *COMMON, "--sure", "0", "-o", "plan.csv")
    assert code == 0, err
    assert "audit photos --apply plan.csv" in out
    with (folder / "plan.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert {row["action"] for row in rows.values()} == {"relabel"}
    assert run_here(folder, "audit", "photos", "--apply", "plan.csv")[0] == 0
    for path, row in rows.items():
        assert (folder / "photos" / row["to"] / Path(path).name).is_file()
    code, _, err = run_here(folder, "suggest", "photos", *COMMON, "-o", "plan.csv")
    assert (code, "already" in err) == (2, True)
    left = json.loads(run_here(folder, "suggest", "photos", *COMMON, "--json")[1])
    assert (left["photos"], left["labelled"]["n"], left["computed"]) == ([], 4, 0)
    assert run_here(folder, "audit", "photos", "--undo", "plan.undo.csv")[0] == 0


def test_what_cannot_be_suggested_is_told(folder: Path) -> None:
    # Before anything is fetched: this network is nowhere.
    code, _, err = run_here(folder, "suggest", "photos", "--names", "cat", "--backbone", "hf:nobody/nothing")
    assert (code, "--names cat,dog; got only 'cat'" in err) == (2, True)
    code, _, err = run_here(folder, "suggest", "nowhere", "--names", "cat,dog", "--backbone", "hf:nobody/nothing")
    assert (code, "'nowhere'" in err) == (2, True)
    code, _, err = run_here(
        folder, "suggest", "photos", "--names", "cat,dog", "--backbone", "hf:nobody/nothing", "--template", "a photo"
    )
    assert (code, "The template 'a photo' has no {} for the name" in err) == (2, True)
    code, _, err = run_here(folder, "suggest", "photos", "--names", "cat,dog", "--backbone", "efficientnet_lite0")
    assert (code, "tower for text" in err) == (2, True)
