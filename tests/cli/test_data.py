"""`quickstudy data` as a user types it, without network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from in_process import Run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICKSTUDY_DATA", str(tmp_path / "data"))
    for name in ("http_proxy", "https_proxy"):  # leads nowhere, so nothing here depends on a network
        monkeypatch.setenv(name, "http://quickstudy.invalid:9")


def test_list_says_what_is_here(run: Run, tmp_path: Path) -> None:
    done = run("data", "list")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == f"Data folder: {tmp_path / 'data'}"
    rows = {line.split()[0]: line for line in lines[2:-1]}
    assert list(rows) == ["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "flowers", "digits"]
    assert rows["cifar10"].split() == ["cifar10", "60,000", "170", "MB", "not", "here"]
    assert rows["digits"].endswith("digits.csv.gz")
    listed = json.loads(run("data", "list", "--json").out)
    assert listed[0]["download_bytes"] == 170_052_171
    assert listed[0]["place"] is None


def test_get_without_network_says_what_to_put_where(run: Run, tmp_path: Path) -> None:
    done = run("data", "get", "cifar10", "--data-folder", "elsewhere")
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("quickstudy: Cannot download 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'")
    assert "put it at 'elsewhere/cifar10/cifar-10-binary.tar.gz', or name a copy with --from" in done.err


def test_get_what_is_there_already_or_unknown(run: Run, tmp_path: Path) -> None:
    done = run("data", "get", "digits", "--quiet")
    assert done.code == 0
    assert done.out.startswith("digits: ")
    done = run("data", "get", "cifar")
    assert done.code == 2
    assert done.err.startswith("quickstudy: There is no data set named 'cifar'; there are cifar10, cifar100, mnist")


def test_get_mnist_from_a_local_copy(run: Run, tmp_path: Path, test_data: Path) -> None:
    if not (test_data / "mnist").is_dir():
        pytest.skip(f"no folder '{test_data / 'mnist'}'")
    for _ in range(2):
        done = run("data", "get", "mnist", "--from", str(test_data / "mnist"))
        assert done.code == 0, done.err
        assert done.out == f"mnist: {tmp_path / 'data' / 'mnist'}\n"
    assert f"{tmp_path / 'data' / 'mnist'}" in run("data", "list").out
    assert "not here" not in next(line for line in run("data", "list").out.splitlines() if "  mnist" in line)
