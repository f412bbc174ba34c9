"""Every command in the README, in the documentation and in `--help`, in a small world where its files exist.

Trainings are cut short. What needs the network, a cluster, a camera or an end that never comes is only parsed: its
words are the command line's, and other tests run the same in ways that end.
"""

from __future__ import annotations

import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer.main
from PIL import Image

from drawn_photos import draw_photo
from in_process import run_here
from quickstudy.cli.main import app
from quickstudy.models.teaching import TeachableModel, written
from small_backbones import small_graph

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).parent / "quickstudy")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

ONLY_PARSED = (
    r"backbone add (keras|timm):|--preprocessing",  # weights to download, a network that needs to be told
    r"hf:|hf-hub:|dino|^suggest|\.backbone",  # the hub; what came or was packed of a network from there
    r"data get",
    r"--ray|s3://|/data/photos",  # a cluster, an object store
    r"--watch|^serve|^label",  # never ends
    r"--web|--coreml",  # npm's registry, another framework
    r"--devices",
    r"--abstain",  # wants more photos than there are here
    r"--port|--token",
)
SLOW = (r"--budget|--unfreeze|--cut|--int8|backbone show|^sweep (batchnorm|mlp)|sweeps/",)
HEAVY = (r"--preset best|^backbone list|^backbone bench|--fp16|--engine openvino",)
SHORT = {
    r"^train": "--steps 2 --batch 4",
    r"^sweep (batchnorm|mlp|my_study)": "--steps 2 --set batch=8 --set evaluate_steps=1 --seeds 1 --grid depth=1,2 "
    "--grid activation=relu",
    r"^sweep (cifar10-fast|input|bottleneck)": "--steps 2 --set batch=8 --seeds 1",
}
EARLIER = {  # the steps without which a command has nothing to do
    r"^audit .*--apply": ("audit photos/ --fix plan.csv",),
    r"^audit .*--undo": ("audit photos/ --fix plan.csv", "audit photos/ --apply plan.csv"),
    r"^predict cifar10.onnx": ("export runs/cifar10-fast --output cifar10.onnx",),
}


def commands_of(page: Path) -> list[str]:
    """The `quickstudy` lines of a page's indented blocks, with and without a prompt, comments left out."""
    found = re.findall(r"^ {4}(?:\$ )?quickstudy (.+)$", page.read_text(), re.MULTILINE)
    return [re.split(r"\s+#|→", line)[0].strip() for line in found]


def all_commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for line in commands_of(page):
            yield page.name, line
    for path, command in leaves(typer.main.get_command(app), ()):
        example = re.search(r"Example: quickstudy (.+)$", command.epilog or "")
        assert example, f"{' '.join(path)} has no example"
        yield "--help", example[1]


def leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from leaves(child, (*path, name))


def matches(patterns: tuple[str, ...], line: str) -> bool:
    return any(re.search(pattern, line) for pattern in patterns)


@pytest.fixture(scope="module")
def world(photo_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands speak of."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("photos", "clothing"):
        shutil.copytree(photo_source, folder / name)
    for name in ("held_out", "garments"):  # a third of them
        shutil.copytree(photo_source, folder / name, ignore=shutil.ignore_patterns("0[4-9].jpg", "1*.jpg"))
    shutil.make_archive(str(folder / "holiday"), "zip", folder / "clothing")
    images = sorted(photo_source.rglob("*.jpg"))
    for name in ("other", "new", "more"):
        (folder / name).mkdir()
        shutil.copy(images[-1], folder / name / "second.jpg")
    for name in ("new.jpg", "skirt.jpg"):
        shutil.copy(images[0], folder / name)
    # Several labels: the kind of each photo, and `even` for every other one; and two kinds with examples of others.
    kinds = [(file.parent.name, file.name) for file in images]
    rows = [f"photos/{kind}/{name},{kind}{'|even' * (n % 2)}" for n, (kind, name) in enumerate(kinds)]
    (folder / "tags.csv").write_text("\n".join(["path,labels", *rows, ""]))
    for number in range(30):
        draw_photo("stripes", 100 + number).save(folder / "garments" / "stripes" / f"more{number}.jpg")
    (folder / "garments" / "stripes").rename(folder / "garments" / "other")
    Image.open(images[1]).save(folder / "frog.png")
    onnx.save(small_graph(), folder / "my_network.onnx")
    page = (ROOT / "docs" / "sweep.md").read_text()
    study = re.search(r"^    # my_study\.toml\n((?:    .*\n|\n)+)", page, re.MULTILINE)
    assert study
    (folder / "my_study.toml").write_text("\n".join(line[4:] for line in study[1].splitlines()))
    random = np.random.Generator(np.random.PCG64(0))
    (folder / "data" / "mnist").mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = random.integers(0, 256, (40, 3073), np.uint8)
        records[:, 0] = np.arange(40) % 10
        records.tofile(folder / "data" / f"{name}.bin")
    for name, count in (("train", 60), ("t10k", 20)):
        pixels, labels = random.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        head = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28)
        (folder / "data" / "mnist" / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (folder / "data" / "mnist" / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes()
        )
    for line in ("retrain photos/", "retrain tags.csv --several", "train cifar10-fast", "train cifar10-classic"):
        run(folder, shortened(line))
    run(folder, "retrain photos/ --l2 1 --output new.onnx")
    for name in ("old.onnx", "other.onnx", "model.onnx", "clothing.onnx", "nine.onnx"):
        shutil.copy(folder / "photos.onnx", folder / name)
    teachable = TeachableModel.of((folder / "photos.onnx").read_bytes(), folder / "photos.onnx", folder / "cache")
    taught = teachable.classes_of(folder / "photos", folder / "cache")
    (folder / "anna.json").write_text(written(teachable.teaching, taught[:2]))
    (folder / "ben.json").write_text(written(teachable.teaching, taught[1:]))
    return folder


def run(folder: Path, line: str) -> None:
    words = [
        word
        for given in shlex.split(line)
        for word in (sorted(str(p.relative_to(folder)) for p in folder.glob(given)) if "*" in given else [given])
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("QUICKSTUDY_CACHE", str(folder / "cache"))
        patched.setenv("QUICKSTUDY_DATA", str(folder / "data"))
        done = run_here(folder, *words)
    assert done.code == 0, f"{line}\n{done.out[-2000:]}{done.err}"


def parse(line: str) -> None:
    """Have the command line take a command apart, without running it."""
    command, words = typer.main.get_command(app), shlex.split(line)
    context = command.make_context("quickstudy", words)
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, words, parent=context)


COMMANDS: dict[str, str] = {}  # with the page that has it first
for _page, _line in all_commands():
    COMMANDS.setdefault(_line, _page)


def running() -> Iterator[Any]:
    """What can be run here; what is on no first page, or takes its time, in other runs."""
    for line, page in COMMANDS.items():
        if not matches(ONLY_PARSED, line):
            heavy = matches(HEAVY, line) or page not in ("README.md", "--help")
            marks = [pytest.mark.slow] if matches(SLOW, line) else [pytest.mark.heavy] if heavy else []
            yield pytest.param(line, marks=marks)


def test_there_are_commands_on_every_page_that_should_have_some() -> None:
    without = {"architecture.md", "api.md", "benchmarks.md", "concepts.md", "images.md"}
    assert {page.name for page in PAGES if not commands_of(page)} <= without
    assert len(COMMANDS) > 50


@pytest.mark.parametrize("line", [line for line in COMMANDS if matches(ONLY_PARSED, line)])
def test_it_is_a_command(line: str) -> None:
    parse(line)


def test_what_is_no_command_is_not_taken_for_one() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("retrain photos/ --no-such-option")


@pytest.mark.parametrize("line", list(running()))
def test_it_runs(world: Path, line: str) -> None:
    for name in ("plan.csv", "plan.undo.csv"):  # of an earlier command
        (world / name).unlink(missing_ok=True)
    for step in next((steps for pattern, steps in EARLIER.items() if re.search(pattern, line)), ()):
        run(world, step)
    run(world, shortened(line))
    if "--apply" in line:  # the next command finds the photos as they were
        run(world, "audit photos/ --undo plan.undo.csv")


def shortened(line: str) -> str:
    extra = next((words for pattern, words in SHORT.items() if re.search(pattern, line)), "")
    for name in re.findall(r"--(?:grid|set) (\w+)=", extra):  # twice would be an error
        line = re.sub(rf" --(?:grid|set) {name}=\S+", "", line)
    return f"{line} {extra}"


def test_completion_for_shells() -> None:
    # What completes commands asks its parents which shell they are.
    command = ["bash", "-c", f"'{COMMAND}' --show-completion; exit $?"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "_QUICKSTUDY_COMPLETE" in done.stdout
