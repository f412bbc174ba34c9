"""Conclusions say what the numbers say: rows made by hand, sentences worked out by hand."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quickstudy.errors import SweepError
from quickstudy.learning.scores import Paired
from quickstudy.sweeps.conclusion import conclude
from quickstudy.sweeps.pictures import draw_all
from quickstudy.sweeps.results import SweepFolder, TrialRow, axes_of, median
from quickstudy.sweeps.study import Grid, Study

NORM = Study(
    name="norm",
    title="Norms",
    grids=(
        Grid(
            recipe="mlp",
            fixed={"evaluate_steps": 10, "target": 0.9},
            axes={"depth": (1, 7), "batch_norm": ("off", "before"), "activation": ("relu", "sigmoid")},
        ),
    ),
    x="depth",
    lines="activation",
    panels="batch_norm",
)


def write_rows(study: Study, folder: Path, runs: Mapping[tuple[Any, ...], dict[str, Any]]) -> list[TrialRow]:
    """Run folders as trainings would leave them; runs are named by their labels' values and seed."""
    sweep = SweepFolder(folder)
    trials = study.trials()
    for trial in trials:
        values = runs.get((*trial.labels.values(), trial.seed)) or runs.get(tuple(trial.labels.values()))
        if values is None:
            continue
        place = sweep.runs / trial.folder
        place.mkdir(parents=True)
        if "error" in values:
            (place / "failure.json").write_text(json.dumps(values))
            continue
        steps, rate = values["steps"], values.get("ms", 10)
        reached = values.get("reached", True)
        lines = [
            {
                "step": step,
                "accuracy": 0.95 if reached and step == steps else 0.5,
                "training_seconds": step * rate / 1e3,
            }
            for step in range(10, steps + 1, 10)
        ]
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = {
            "test": score_of(values.get("accuracy", 0.95)),
            "validation": score_of(values["validation"]) if "validation" in values else None,
            "steps": steps,
            "seconds": 1.5 * steps * rate / 1e3,
            "training_seconds": steps * rate / 1e3,
            "parameters": values.get("parameters", 100),
            "multiply_adds": 1000,
        }
        (place / "result.json").write_text(json.dumps(result))
    return sweep.rows(trials)


def score_of(accuracy: float, n: int = 1000) -> dict[str, float]:
    return {"accuracy": accuracy, "right": round(accuracy * n), "n": n}


def write_retrained(study: Study, folder: Path, runs: Mapping[float, tuple[str, float]]) -> list[TrialRow]:
    """Folders of retrainings: by l2, which images were right in cross-validation, and the test accuracy."""
    sweep, trials = SweepFolder(folder), study.trials()
    for trial in trials:
        right, test = runs[trial.labels["l2"]]
        place = sweep.runs / trial.folder
        place.mkdir(parents=True)
        digests = "".join(f"{number:016x}" for number in range(len(right)))
        (place / "judged.json").write_text(json.dumps({"by": "cross-validation", "digests": digests, "right": right}))
        result = {
            "test": score_of(test, 40),
            "cross_validation": score_of(right.count("1") / len(right), len(right)),
            "fine_tuning": [],
            "seconds": {"head": 1.0},
        }
        (place / "result.json").write_text(json.dumps(result))
    return sweep.rows(trials)


def test_a_choice_goes_by_cross_validation_and_the_test_is_that_of_the_chosen_one(tmp_path: Path) -> None:
    study = Study(name="l2", grids=(Grid(recipe="retrain", fixed={"data": "x"}, axes={"l2": (0.001, 0.01, 0.1)}),))
    # The first has the best test and is worst in cross-validation; of the others, the last is right on one image more.
    runs = {0.001: ("1" * 60 + "0" * 40, 1.0), 0.01: ("1" * 90 + "0" * 10, 0.9), 0.1: ("1" * 91 + "0" * 9, 0.95)}
    rows = write_retrained(study, tmp_path, runs)
    text = conclude(study, rows)
    assert "- Best cross-validated accuracy: 91.0 %, with l2 0.1.\n" in text
    low, high = (100 * end for end in Paired.of([True] * 91 + [False] * 9, [True] * 90 + [False] * 10).interval)
    assert f"l2 0.01 (-1.0 points, 95 % interval {low:+.1f} to {high:+.1f})" in text
    assert high > 0 > low
    assert "l2 0.001" not in text
    assert "Test accuracy of the best: 95.0 %" in text
    assert "100.0 %" not in text, "the test of the others is not told"


def test_equal_ones_are_shown_as_equal(tmp_path: Path) -> None:
    study = Study(name="l2", grids=(Grid(recipe="retrain", fixed={"data": "x"}, axes={"l2": (0.001, 0.01)}),))
    text = conclude(study, write_retrained(study, tmp_path, {0.001: ("110", 0.5), 0.01: ("101", 0.9)}))
    assert "with l2 0.001." in text
    assert "No worse beyond chance: l2 0.01 (+0.0 points" in text


@pytest.mark.parametrize(("second", "tied"), [((0.91, 0.92, 0.94), True), ((0.70, 0.71, 0.69), False)])
def test_seeds_are_pairs(tmp_path: Path, second: tuple[float, ...], tied: bool) -> None:
    study = Study(name="rates", grids=(Grid(recipe="mlp", axes={"rate": (0.1, 0.2)}),), seeds=3)
    shares = {0.1: (0.92, 0.91, 0.95), 0.2: second}
    runs = {
        (rate, seed): {"steps": 10, "accuracy": 0.5, "validation": values[seed]}
        for rate, values in shares.items()
        for seed in range(3)
    }
    text = conclude(study, write_rows(study, tmp_path, runs))
    assert "Best validation accuracy: 92.7 %, with rate 0.1." in text
    assert ("No worse beyond chance: rate 0.2" in text) == tied
    assert "mean of 3 seeds" in text
    assert "3 seeds each" in text


def test_seeds_are_counted_as_they_ran(tmp_path: Path) -> None:
    study = Study(name="seeds", grids=(Grid(recipe="mlp", axes={"seed": (3, 4)}),), seeds=5)
    with pytest.raises(SweepError, match="seeds is 5, and the grid names the seeds itself"):
        study.trials()
    once = dataclasses.replace(study, seeds=1)
    assert "2 of 2 runs have ended." in conclude(
        once, write_rows(once, tmp_path, {(3,): {"steps": 9}, (4,): {"steps": 9}})
    )


def test_steps_and_seconds_to_the_target(tmp_path: Path) -> None:
    rows = write_rows(
        NORM,
        tmp_path,
        {
            (1, "off", "relu"): {"steps": 40},
            (1, "before", "relu"): {"steps": 40, "ms": 15},
            (1, "off", "sigmoid"): {"steps": 110},
            (1, "before", "sigmoid"): {"steps": 60, "ms": 15},
            (7, "off", "relu"): {"steps": 40},
            (7, "before", "relu"): {"steps": 30, "ms": 15},
            (7, "off", "sigmoid"): {"steps": 1000, "reached": False},
            (7, "before", "sigmoid"): {"steps": 60, "ms": 15},
        },
    )
    text = conclude(NORM, rows)
    assert "- batch_norm off: 3 of 4 runs reach 90.0 % test accuracy within their steps.\n" in text
    assert "- batch_norm before: 4 of 4 runs reach" in text
    assert (
        "- relu, depth 7: 40 steps with batch_norm off, 30 steps with batch_norm before; in seconds of training "
        "0.4 and 0.45.\n"
    ) in text
    assert (
        "- sigmoid, depth 7: never there with batch_norm off, 60 steps with batch_norm before; in seconds of training "
        "never and 0.9.\n"
    ) in text
    assert (
        "batch_norm before gets there sooner than batch_norm off in 2 of 4 combinations; not with relu, depth 1; relu, "
        "depth 7.\n"
    ) in text
    assert "A step with batch_norm before takes 1.50 times as long as with batch_norm off (from 1.50 to 1.50" in text


def test_the_same_study_with_other_numbers_says_something_else(tmp_path: Path) -> None:
    runs = {
        (depth, norm, activation): {"steps": 40, "ms": 5 if norm == "before" else 10, "reached": norm == "off"}
        for depth in (1, 7)
        for norm in ("off", "before")
        for activation in ("relu", "sigmoid")
    }
    text = conclude(NORM, write_rows(NORM, tmp_path, runs))
    assert "batch_norm before: 0 of 4 runs reach" in text
    assert "40 steps with batch_norm off, never there with batch_norm before" in text
    assert "sooner than batch_norm off in 0 of 4 combinations" in text
    assert "takes 0.50 times as long" in text


def test_runs_that_failed_or_are_missing_are_counted(tmp_path: Path) -> None:
    rows = write_rows(
        NORM, tmp_path, {(1, "off", "relu"): {"steps": 40}, (7, "off", "relu"): {"error": "The loss\nis lost"}}
    )
    assert [row.status for row in rows].count("missing") == 6
    text = conclude(NORM, rows)
    assert text.startswith("# Norms\n\n1 of 8 runs have ended, one seed each.\nFailed: depth 7, batch_norm off, ")
    assert "is lost" not in text
    assert "sooner" not in text
    nothing = conclude(NORM, write_rows(NORM, tmp_path / "empty", {}))
    assert nothing == "# Norms\n\n0 of 8 runs have ended, one seed each.\n"
    assert draw_all(NORM, [row for row in rows if row.status == "done"], tmp_path / "pictures")


def test_where_nothing_is_compared_the_quickest_and_the_slowest_are_named(tmp_path: Path) -> None:
    axes = {"depth": (1, 2, 3), "activation": ("relu", "sigmoid")}
    grid = Grid(recipe="mlp", fixed={"evaluate_steps": 10, "target": 0.9}, axes=axes)
    study = Study(name="x", grids=(grid,))
    runs = {(depth, "relu"): {"steps": 50 - 10 * depth} for depth in (1, 2, 3)}
    runs |= {(depth, "sigmoid"): {"steps": 100 * depth, "reached": depth < 3} for depth in (1, 2, 3)}
    text = conclude(study, write_rows(study, tmp_path, runs))
    assert "- relu: 20 steps with depth 3; 40 steps with depth 1.\n" in text
    assert "- sigmoid: 100 steps with depth 1; never there with depth 3.\n" in text


def test_how_narrow(tmp_path: Path) -> None:
    study = Study(
        name="narrow", grids=(Grid(recipe="mlp", axes={"bottleneck": (0, 1, 4, 16)}),), x="bottleneck", seeds=2
    )
    shares = {0: (0.97, 0.98), 1: (0.30, 0.40), 4: (0.96, 0.962), 16: (0.975, 0.975)}
    runs = {
        (width, seed): {"steps": 10, "accuracy": values[seed], "parameters": 1000 + width}
        for width, values in shares.items()
        for seed in (0, 1)
    }
    text = conclude(study, write_rows(study, tmp_path, runs))
    assert "None is named the best: no images are held out to choose by" in text
    assert (
        "The network: 97.5 % without a bottleneck; width 16 is enough to come within a point of that (97.5 %); at "
        "width 1 35.0 % is left."
    ) in text
    assert "The network, width 16: 1,016 parameters instead of 1,000, and 10.0 ms a step instead of 10.0." in text
    runs = {key: {**values, "accuracy": 0.5 if key[0] else 0.9} for key, values in runs.items()}
    text = conclude(study, write_rows(study, tmp_path / "worse", runs))
    assert "no width up to 16 comes within a point of that (50.0 % at 16)" in text


def test_what_each_part_is_worth(tmp_path: Path) -> None:
    study = Study(
        name="parts",
        grids=tuple(
            Grid(recipe="cifar10-classic", case=case, fixed=fixed)
            for case, fixed in (("everything", {}), ("no flip", {"flip": False}), ("no crop", {"crop": 0}))
        ),
        seeds=3,
    )
    shares = {"everything": (0.80, 0.81, 0.82), "no flip": (0.78, 0.79, 0.801), "no crop": (0.82, 0.79, 0.84)}
    runs = {
        (case, seed): {"steps": 10, "accuracy": values[seed]} for case, values in shares.items() for seed in range(3)
    }
    rows = write_rows(study, tmp_path, runs)
    text = conclude(study, rows)
    assert "- everything: 81.0 %.\n" in text
    assert "- no flip: 79.0 %, -2.0 points (3 seeds; standard error 0.03; more than chance).\n" in text
    assert "- no crop: 81.7 %, +0.7 points (3 seeds; standard error 1.33; this may be chance).\n" in text
    assert {path.stem for path in draw_all(study, rows, tmp_path / "pictures")} == {"cases"}


def test_which_axis_plays_which_part(tmp_path: Path) -> None:
    study = Study(
        name="x", grids=(Grid(recipe="mlp", axes={"activation": ("relu",), "rate": (0.1,), "batch_norm": ("off",)}),)
    )
    layout = axes_of(study, write_rows(study, tmp_path, {}))
    assert (layout.x, layout.lines, layout.panels) == ("rate", "batch_norm", "activation")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], 3.0),
        ([1.0, 2.0], 1.5),
        ([None, 1.0, 2.0], 2.0),
        ([None, None, 1.0], None),
        ([1.0, None], None),
        ([], None),
        ([None], None),
    ],
)
def test_a_median_in_which_never_is_the_longest_time(values: list[float | None], expected: float | None) -> None:
    assert median(values) == expected
