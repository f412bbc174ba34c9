"""Fine-tuning from the command line: what it prints, what it takes from the store, and mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from in_process import Done, run_here
from small_backbones import add_small_backbone


@pytest.fixture
def folder(photos: Path) -> Path:
    add_small_backbone(photos.parent / "cache")
    return photos.parent


def run(folder: Path, *arguments: str) -> Done:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("QUICKSTUDY_CACHE", str(folder / "cache"))
        return run_here(folder, *arguments)


def test_the_summary_tells_the_story_epoch_by_epoch(folder: Path) -> None:
    filled = run(folder, "cache", "fill", "photos/", "--backbone", "small", "--cut", "block_1", "--views", "1")
    assert "72 forward passes" in filled.out, filled.err
    done = run(folder, "retrain", "photos/", "--backbone", "small", "--cut", "block_1", "--epochs", "3")
    assert done.code == 0, done.err
    out = done.out
    assert "0 forward passes, 72 bottlenecks from the store" in out
    assert re.search(r"Fine-tuned all that follows 'block_1': [\d,]+ parameters\n  epoch  training loss", out)
    lines = re.findall(r"^ +(\d) +(–|\d+\.\d{3}) +\d+ % +\d+\.\d{3} +\d+\.\d %(  kept)?$", out, re.MULTILINE)
    assert [line[0] for line in lines] == ["0", "1", "2", "3"]
    assert [line[1] == "–" for line in lines] == [True, False, False, False]
    assert sum(bool(line[2]) for line in lines) == 1
    assert re.search(r"Validation, linear head   \d+\.\d %.*\nValidation, fine-tuned    \d+\.\d %", out)
    assert "Cross-validated accuracy" not in out
    assert (
        "\nFine-tuning was no better than the linear head on the validation images, so the model is the linear" in out
    )
    assert run(folder, "predict", "photos.onnx", "photos/discs/01.jpg").code == 0


def test_a_gain_of_few_images_is_said_to_be_what_it_is(folder: Path) -> None:
    blunt = ("--l2", "300", "--epochs", "12", "--rate", "5e-3")
    done = run(folder, "retrain", "photos/", "--backbone", "small", "--cut", "block_1", *blunt)
    assert re.search(r"\nBetter on only \d validation images?, which may be chance", done.out)


def test_json_has_the_plan_and_the_stages(folder: Path) -> None:
    done = run(folder, "retrain", "photos/", "--backbone", "small", "--budget", "2m", "--disk", "1GB", "--json")
    values = json.loads(done.out)
    assert values["plan"]["cut"] == values["cut"] == values["fine_tuning"][0]["cut"]
    assert values["plan"]["disk_bytes"] <= 1e9
    shown = run(folder, "retrain", "photos/", "--backbone", "small", "--budget", "2m")
    assert re.search(r"Planned: cut 'stem', \d views?, \d+ epochs?, \d+ s; it took \d+ s", shown.out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--cut", "block_7"],
            "'small' cannot be cut at 'block_7'; its cuts are: stem, block_1, block_2, head, features",
        ),
        (["--budget", "soon"], "'soon' is not a time"),
        (["--budget", "3m", "--disk", "much"], "'much' is not a size"),
        (["--budget", "1s"], "No fine-tuning fits 1 s; "),
        (["--budget", "3m", "--cut", "block_1"], "--budget chooses the cut, views and epochs itself; leave out --cut"),
        (["--disk", "2GB"], "--disk only works with --budget"),
        (["--random-crop", "5"], "--random-crop distorts views, but there are none"),
        (["--views", "0", "--cut", "block_1", "--no-flip"], "--flip distorts views, but there are none"),
        (["--epochs", "12"], "--epochs is for fine-tuning; add --cut, or leave it out"),
        (["--cut", "block_1", "--set", "mixup=0.2", "--set", "mixup=0.3"], "mixup is given twice, as '0.2' and '0.3'"),
        (["--l2", "1", "--set", "l2=2"], "l2 is given by its own option, and once more as 'l2=2'"),
        (["--set", "mixup=0.2"], "mixup is for fine-tuning; add --cut"),
        (["--set", "mixin=0.2", "--cut", "block_1"], "no option 'mixin'; did you mean 'mixup'?"),
        (["--cut", "block_1", "--set", "mixup=-1"], "mixup is -1; expected 0 or more"),
        (["--cut", "block_1", "--rate", "-1"], "rate is -1"),
    ],
)
def test_mistakes(folder: Path, options: list[str], message: str) -> None:
    done = run(folder, "retrain", "photos/", "--backbone", "small", *options)
    assert done.code == 2
    assert message in " ".join(done.err.replace("│", " ").split())
    assert not (folder / "photos.onnx").exists()
