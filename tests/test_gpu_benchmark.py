"""The benchmark for GPUs runs on a processor in miniature, keeps to its limits, and goes on where a section fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.heavy

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
SECTIONS = ["extract", "finetune", "cifar94", "sweep", "cifar95", "cifar96", "classic", "scaling"]

PEER = """
import torch
import torchvision.transforms as T

normalize = T.Normalize(torch.tensor((0.5, 0.5, 0.5)), torch.tensor((0.2, 0.2, 0.2)))
data = torch.load("cifar10/test.pt")
images = normalize((data["images"].half() / 255).permute(0, 3, 1, 2))
assert images.shape[1:] == (3, 32, 32) and len(data["labels"]) == len(images)
print("|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |")
for run in ["warmup", *range(200)]:
    print(f"|  {run}  |  0  |  0.1  |  0.2  |    |  1.0  |")
    print("|    |  eval  |  0.1000  |  0.2000  |  0.9400  |  2.5000  |")
"""


def write_cifar10(folder: Path) -> Path:
    folder.mkdir()
    draws = np.random.Generator(np.random.PCG64(0))
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = draws.integers(0, 256, (40, 3073), np.uint8)
        records[:, 0] = np.arange(40) % 10
        (folder / name).write_bytes(records.tobytes())
    return folder


def write_mnist(folder: Path) -> Path:
    folder.mkdir()
    draws = np.random.Generator(np.random.PCG64(1))
    for kind in ("train", "t10k"):
        pixels = draws.integers(0, 256, (60, 28, 28), np.uint8)
        labels = (np.arange(60) % 10).astype(np.uint8)
        head = np.array([2051, 60, 28, 28], ">u4").tobytes()
        (folder / f"{kind}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (folder / f"{kind}-labels-idx1-ubyte").write_bytes(np.array([2049, 60], ">u4").tobytes() + labels.tobytes())
    return folder


def command(photos: Path, tmp_path: Path, *options: str) -> list[str]:
    (tmp_path / "peer.py").write_text(PEER)
    places = {
        "photos": photos,
        "cifar": write_cifar10(tmp_path / "cifar"),
        "mnist": write_mnist(tmp_path / "mnist"),
        "peer": tmp_path / "peer.py",
        "json": tmp_path / "gpu.json",
    }
    given = [part for name, place in places.items() for part in (f"--{name}", str(place))]
    return [sys.executable, str(SCRIPT), "--device", "cpu", "--small", *given, *options]


def measured(photos: Path, tmp_path: Path, *options: str) -> dict[str, Any]:
    subprocess.run(command(photos, tmp_path, *options), check=True, timeout=590)
    values: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())
    assert values["machine"]["cores"] >= 1
    return values["sections"]


def test_a_section_tells_what_it_finds(photos: Path, tmp_path: Path) -> None:
    found = measured(photos, tmp_path, "--only", "scaling")["scaling"]
    assert "error" not in found
    assert found["images_per_second"]["decoding_processes"]["1"] > 0
    assert found["share_of_linear"]["decoding_processes"]["1"] == 1


def test_the_longer_trainings_in_miniature(photos: Path, tmp_path: Path) -> None:
    found = measured(photos, tmp_path, "--only", "cifar95", "--only", "cifar96")
    for name in ("cifar95", "cifar96"):
        assert "error" not in found[name]
        assert found[name]["tried_seconds_as_the_peer_counts"]["median"] > 0
        assert len(found[name]["tried_rows"]) == 2


def test_a_section_that_takes_too_long_is_ended_and_the_next_one_told(photos: Path, tmp_path: Path) -> None:
    found = measured(photos, tmp_path, "--only", "classic", "--only", "sweep", "--each", "1.2")
    assert [found[name]["error"].partition(" than")[0] for name in ("classic", "sweep")] == ["took longer"] * 2
    assert any("gpu.py" in line for line in found["sweep"]["said"])  # where it was


def test_nothing_begins_when_the_time_is_over(photos: Path, tmp_path: Path) -> None:
    found = measured(photos, tmp_path, "--only", "sweep", "--limit", "0")
    assert "no time was left" in found["sweep"]["error"]


def test_what_a_failed_part_said_is_told_and_the_next_one_run(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    write_mnist(tmp_path / "damaged" / "mnist")
    (tmp_path / "damaged" / "mnist" / "train-images-idx3-ubyte").write_bytes(b"damaged")
    found = measured(photos, tmp_path, "--only", "sweep", "--mnist", str(tmp_path / "damaged" / "mnist"))["sweep"]
    assert found["error"] == "exit status 1"
    for part in ("together", "separate"):
        assert "train-images" in found[f"{part}_error"]
        assert found[f"{part}_part_seconds"] > 0
    assert any("train-images" in line for line in found["said"])


@pytest.mark.parametrize("option", ["photos", "cifar", "mnist", "peer"])
def test_what_is_not_there_is_told_before_anything_is_run(option: str, photos: Path, tmp_path: Path) -> None:
    missing = command(photos, tmp_path, f"--{option}", str(tmp_path / "nothing"))
    ended = subprocess.run(missing, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "nothing' " in ended.stderr
    assert not (tmp_path / "gpu.json").exists()


def processes_of(folder: Path) -> list[str]:
    """List the processes whose temporary files lie in this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"TMPDIR={folder}".encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_however_it_is_ended_nothing_goes_on_or_is_left(number: signal.Signals, photos: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        command(photos, tmp_path, "--only", "sweep"),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    with process:
        for line in process.stdout or ():
            if "-- together" in line:
                break
        time.sleep(1)  # a command of the section is under way
        process.send_signal(number)
    assert process.returncode == (143 if number is signal.SIGTERM else -number)
    until = time.monotonic() + 30
    while (left := [processes_of(temporary), list(temporary.iterdir())]) != [[], []] and time.monotonic() < until:
        time.sleep(0.1)
    assert left == [[], []]
    if number is not signal.SIGKILL:
        found = json.loads((tmp_path / "gpu.json").read_text())["sections"]["sweep"]
        assert found["error"].endswith("ended the command")


@pytest.mark.slow
def test_all_of_it_in_miniature(photos: Path, tmp_path: Path) -> None:
    found = measured(photos, tmp_path)
    assert list(found) == SECTIONS
    assert {name: values["error"] for name, values in found.items() if "error" in values} == {}
    assert {"bare_images_per_second", "from_memory_3_threads_images_per_second"} <= found["extract"].keys()
    assert found["extract"]["folder_to_store_1_images_per_second"] > 0
    assert found["finetune"]["processor_seconds_an_epoch"] > 0
    cifar = found["cifar94"]
    assert (cifar["peer_accuracy"], cifar["peer_training_seconds"]["median"]) == (0.94, 2.5)
    assert len(cifar["eager_rows"]) == 2
    assert cifar["eager_rows"][1]["around"] > 0
    assert cifar["eager_share_of_the_peers_seconds"] > 0
    assert cifar["eager_process_says"]["steps"] == 4
    assert [len(found[name]["tried_rows"]) for name in ("cifar95", "cifar96")] == [2, 2]
    assert found["sweep"]["together_seconds"] > 0
    assert found["sweep"]["same_number_of_steps"] == found["sweep"]["runs"] == 2
    assert found["classic"]["cpu_images_per_second"] > 0
