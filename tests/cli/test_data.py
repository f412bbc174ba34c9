"""`quickstudy data` as a user types it, in processes of their own, without network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).parent / "quickstudy")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The proxy leads nowhere, so nothing here depends on a network.
    environment = {**os.environ, "QUICKSTUDY_DATA": str(folder / "data"), "COLUMNS": "100"}
    environment |= dict.fromkeys(("http_proxy", "https_proxy"), "http://quickstudy.invalid:9")
    return subprocess.run(
        [COMMAND, "data", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_list_says_what_is_here(tmp_path: Path) -> None:
    done = run(tmp_path, "list")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"Data folder: {tmp_path / 'data'}"
    rows = {line.split()[0]: line for line in lines[2:-1]}
    assert list(rows) == ["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "flowers", "digits"]
    assert rows["cifar10"].split() == ["cifar10", "60,000", "170", "MB", "not", "here"]
    assert rows["digits"].endswith("digits.csv.gz")
    listed = json.loads(run(tmp_path, "list", "--json").stdout)
    assert listed[0]["download_bytes"] == 170_052_171
    assert listed[0]["place"] is None


def test_get_without_network_says_what_to_put_where(tmp_path: Path) -> None:
    done = run(tmp_path, "get", "cifar10", "--data-folder", "elsewhere")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(
        "quickstudy: Cannot download 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'"
    )
    assert "put it at 'elsewhere/cifar10/cifar-10-binary.tar.gz', or name a copy with --from" in done.stderr


def test_get_what_is_there_already_or_unknown(tmp_path: Path) -> None:
    done = run(tmp_path, "get", "digits", "--quiet")
    assert done.returncode == 0
    assert done.stdout.startswith("digits: ")
    done = run(tmp_path, "get", "cifar")
    assert done.returncode == 2
    assert done.stderr.startswith("quickstudy: There is no data set named 'cifar'; there are cifar10, cifar100, mnist")


def test_get_mnist_from_a_local_copy(tmp_path: Path, test_data: Path) -> None:
    if not (test_data / "mnist").is_dir():
        pytest.skip(f"no folder '{test_data / 'mnist'}'")
    for _ in range(2):
        done = run(tmp_path, "get", "mnist", "--from", str(test_data / "mnist"))
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"mnist: {tmp_path / 'data' / 'mnist'}\n"
    assert f"{tmp_path / 'data' / 'mnist'}" in run(tmp_path, "list").stdout
    assert "not here" not in next(line for line in run(tmp_path, "list").stdout.splitlines() if "  mnist" in line)
