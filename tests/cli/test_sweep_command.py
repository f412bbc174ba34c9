"""`quickstudy sweep` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from in_process import Run

SMALL = (
    "mlp", "--set", "data=digits", "--set", "batch=32", "--set", "widths=24,16", "--set", "rate=0.01",
    "--grid", "depth=1..2", "--steps", "60",
)  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_sweep_and_then_again(run: Run, tmp_path: Path) -> None:
    done = run("sweep", *SMALL, "--target", "0.8")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] in ("2 runs; 2 at a time", "2 runs; 1 at a time")
    assert sorted(line.split("  ")[1].partition(":")[0] for line in lines[1:3]) == [
        "depth 1, seed 0",
        "depth 2, seed 0",
    ]
    assert lines[3].split() == [
        "depth", "seed", "accuracy", "steps", "ms/step", "steps", "to", "target", "seconds", "to", "target",
        "parameters",
    ]  # fmt: skip
    assert "2 of 2 runs have ended, one seed each." in done.out
    folder = tmp_path / "sweeps" / "mlp"
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert [row["depth"] for row in rows] == [1, 2]
    assert all(row["accuracy"] >= 0.8 and row["steps_to_target"] == row["steps"] for row in rows)
    assert (folder / "pictures" / "steps_to_target.svg").is_file()
    again = run("sweep", *SMALL, "--target", "0.8")
    assert again.out.splitlines()[0] == "2 runs, 2 of them done; 1 at a time"
    shown = run("sweep", "show", "sweeps/mlp")
    assert shown.out.splitlines() == again.out.splitlines()[1:]
    values = json.loads(run("sweep", "show", str(folder), "--json").out)
    assert [row["steps"] for row in values["rows"]] == [row["steps"] for row in rows]
    assert values["conclusion"] == (folder / "conclusion.md").read_text()


def test_a_study_of_ones_own_and_a_failure(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my_study.toml").write_text(
        """
        title = "Rates"
        recipe = "mlp"
        [set]
        data = "digits"
        steps = 5
        method = "sgd"
        [grid]
        rate = [0.1, 1e30]
        """
    )
    done = run("sweep", "my_study.toml", "--json")
    assert done.code == 1  # since a run failed
    values = json.loads(done.out)
    assert values["folder"] == str(Path("sweeps") / "my_study")
    assert [(row["rate"], row["status"]) for row in values["rows"]] == [(0.1, "done"), (1e30, "failed")]
    assert "The loss is not a number" in values["rows"][1]["error"]
    assert "Failed: rate 1e+30, seed 0: The loss is not a number" in run("sweep", "show", "sweeps/my_study").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("batchnrom",), "There is no study or recipe 'batchnrom'; studies: batchnorm, bottleneck, input; recipes: "),
        (("mlp", "--grid", "dept=1..3"), "The recipe 'mlp' has no option 'dept'; did you mean 'depth'?"),
        (("mlp", "--grid", "depth"), "'depth': expected NAME=VALUE"),
        (("mlp", "--grid", "depth="), "The axis depth= has no value"),
        (("mlp", "--grid", "depth=1", "--grid", "depth=2"), "depth is given twice, as '1' and '2'; leave out one"),
        (("mlp", "--steps", "1", "--set", "steps=2"), "steps is given by its own option, and once more as 'steps=2'"),
        (("mlp", "--grid", "depth=one"), "depth is 'one'; expected a whole number"),
        (("mlp", "--set", "data=digits", "--grid", "depth=8"), "depth is 8; expected 0 to 7"),
        (("mlp", "--set", "data=digits", "--target", "90"), "target is 90; expected 0 to 1"),
        (("mlp", "--set", "data=digits", "--ray", "nowhere"), "'nowhere' is not the address of a Ray cluster"),
        (("show",), "Which sweep? Name its folder: quickstudy sweep show sweeps/batchnorm"),
        (("show", "gone"), "'gone' is not a sweep: it has no sweep.json; start one with: quickstudy sweep"),
        (("mlp", "more"), "'more' is not expected here"),
        (("mlp", "--seeds", "1001", "--set", "data=digits"), "1,001 runs were not started"),
    ],
)
def test_mistakes(run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    if "--ray" in arguments:
        pytest.importorskip("ray")
    done = run("sweep", *arguments)
    assert done.code == 2
    assert done.err.startswith("quickstudy: ")
    assert message in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.rglob("result.json"))
