import dataclasses
import json
from pathlib import Path

import pytest

from quickstudy.errors import OptionError, SweepError
from quickstudy.sweeps.results import SweepFolder
from quickstudy.sweeps.study import Grid, Study, built_in, read_axis, read_study, study_named

TOML = """
title = "Depth"
recipe = "mlp"
seeds = 2
target = 0.9

[set]
data = "digits"

[grid]
depth = "1..3"
activation = ["relu", "tanh"]
"""


def read(text: str) -> Study:
    return read_study(text, name="mine", source="mine.toml")


def test_every_combination_is_a_trial_and_seeds_come_last() -> None:
    trials = read(TOML).trials()
    assert [(dict(trial.labels), trial.seed) for trial in trials] == [
        ({"depth": depth, "activation": activation}, seed)
        for seed in (0, 1)
        for depth in (1, 2, 3)
        for activation in ("relu", "tanh")
    ]
    options = trials[-1].task.options()
    assert (options["depth"], options["activation"], options["seed"], options["data"]) == (3, "tanh", 1, "digits")
    assert (options["target"], options["evaluate_steps"]) == (0.9, 10)
    assert str(trials[-1]) == "depth 3, activation tanh, seed 1"


def test_a_run_is_known_by_its_configuration_alone() -> None:
    by_file = {trial.identity: trial.folder for trial in read(TOML).trials()}
    grid = Grid(
        recipe="mlp",
        fixed={"activation": "tanh", "data": "digits", "target": "0.9", "evaluate_steps": 10},
        axes={"depth": ("2",)},
    )
    (other,) = Study(name="other", grids=(grid,)).trials()
    assert by_file[other.identity] == other.folder
    assert other.folder.startswith("mlp,activation=tanh,data=digits,depth=2,seed=0-")
    changed = Study(name="other", grids=(dataclasses.replace(grid, fixed={**grid.fixed, "rate": 0.5}),)).trials()
    assert changed[0].identity not in by_file


def test_folder_names_are_short_and_plain() -> None:
    grid = Grid(recipe="mlp", fixed={"data": "/some where/ünïcode/" + "x" * 300}, axes={"widths": ("8,4", "300,200")})
    for trial in Study(name="x", grids=(dataclasses.replace(grid, fixed={**grid.fixed, "depth": 2}),)).trials():
        assert len(trial.folder) < 140
        assert "/" not in trial.folder
        assert " " not in trial.folder


def test_the_same_configuration_twice_is_one_run() -> None:
    grid = Grid(recipe="mlp", axes={"depth": (1, "1", 1.0)})
    assert len(Study(name="x", grids=(grid, grid)).trials()) == 1


def test_the_studies_that_come_along() -> None:
    assert built_in() == ["batchnorm", "bottleneck", "input"]
    counts = {name: len(study_named(name).trials()) for name in built_in()}
    assert counts == {"batchnorm": 70, "bottleneck": 34, "input": 21}
    batchnorm = study_named("batchnorm").trials()[-1].task.options()
    assert batchnorm["widths"] == (500, 400, 300, 200, 100, 50, 25)
    assert (batchnorm["batch"], batchnorm["method"], batchnorm["steps"], batchnorm["target"]) == (
        500,
        "adam",
        1000,
        0.9,
    )


def test_cases_have_their_own_values() -> None:
    study = read(
        """
        [[cases]]
        name = "plain"
        recipe = "mlp"
        [[cases]]
        name = "wide"
        recipe = "mlp"
        set = { widths = [900], depth = 1 }
        grid = { batch_norm = ["off", "before"] }
        """
    )
    assert study.axes == ("case", "batch_norm")
    assert [dict(trial.labels) for trial in study.trials()] == [
        {"case": "plain"},
        {"case": "wide", "batch_norm": "off"},
        {"case": "wide", "batch_norm": "before"},
    ]
    assert str(study.trials()[1]) == "wide, batch_norm off, seed 0"


def test_an_axis_takes_the_place_of_a_fixed_value_and_the_other_way() -> None:
    with pytest.raises(SweepError, match=r"depth is set to 4 and varied, too"):
        read(TOML).changed(axes={"depth": (1, 2)}, fixed={"depth": 4})
    study = read(TOML).changed(axes={"data": ("digits", "mnist")}, fixed={"depth": 4}, seeds=1)
    assert study.axes == ("activation", "data")
    assert len(study.trials()) == 4
    assert {trial.task.options()["depth"] for trial in study.trials()} == {4}


@pytest.mark.parametrize(
    ("text", "values"),
    [("1..4", (1, 2, 3, 4)), (" 2 .. 2 ", (2,)), ("a, b", ("a", "b")), ("0.1,1e-3", ("0.1", "1e-3"))],
)
def test_axes_from_texts(text: str, values: tuple[object, ...]) -> None:
    assert read_axis("mlp", "rate", text) == values


def test_values_with_commas_are_told_apart_by_semicolons() -> None:
    assert read_axis("mlp", "widths", "8,4; 16,8") == ("8,4", "16,8")
    assert read_axis("retrain", "data", "a,b;c") == ("a,b", "c")
    assert read_axis("retrain", "data", "a,b;") == ("a,b",)


@pytest.mark.parametrize("text", ["", " , ", "5..1"])
def test_an_empty_axis(text: str) -> None:
    with pytest.raises(SweepError, match=r"depth=.* has no value"):
        read_axis("mlp", "depth", text)


def test_unknown_options_suggest_the_nearest() -> None:
    with pytest.raises(OptionError, match="'mlp' has no option 'dept'; did you mean 'depth'"):
        read_axis("mlp", "dept", "1..3")
    with pytest.raises(OptionError, match="did you mean 'views'"):
        Study(name="x", grids=(Grid(recipe="retrain", axes={"view": (1,)}),)).trials()
    with pytest.raises(OptionError, match="depth is 'deep'; expected a whole number"):
        Study(name="x", grids=(Grid(recipe="mlp", axes={"depth": ("deep",)}),)).trials()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe = ", "is not valid TOML"),
        ("title = 'x'", "names no recipe"),
        ("recipe = 'mlp'\ngrids = 1", "unknown entry 'grids'; known are"),
        ("recipe = 'mlp'\ngrid = 1", r"grid is 1; expected a table \[grid\]"),
        ("recipe = 'mlp'\n[grid]\ndepth = []", r"axis depth is \[\]; expected a list"),
        ("recipe = 'mlp'\n[grid]\ndepth = 3", "axis depth is 3; expected a list"),
        ("recipe = 'mlp'\nseeds = 'two'", "seeds is 'two'; expected a whole number"),
        ("recipe = 'mlp'\nx = 5", "x is 5; expected a text"),
        ("recipe = 'mlp'\ncases = 5", "cases is 5"),
        ("recipe = 'mlp'\n[[cases]]\nnames = 'a'", "case 1' has an unknown entry 'names'"),
    ],
)
def test_files_that_are_no_studies(text: str, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        read(text)


def test_no_such_study() -> None:
    with pytest.raises(
        SweepError, match=r"no study or recipe 'batchnrom'; studies: batchnorm, .*recipes: cifar10-class"
    ):
        study_named("batchnrom")
    with pytest.raises(SweepError, match=r"Cannot read the study 'gone\.toml'"):
        study_named("gone.toml")


def test_no_runs() -> None:
    with pytest.raises(SweepError, match="seeds is 0"):
        read(TOML).changed(seeds=0).trials()


def test_a_study_stays_in_its_folder(tmp_path: Path) -> None:
    for name in built_in():
        study = study_named(name)
        folder = SweepFolder(tmp_path / name)
        folder.begin(study)
        again = folder.study()
        assert [trial.identity for trial in again.trials()] == [trial.identity for trial in study.trials()]
        assert (again.title, again.axes, again.x, again.seeds) == (study.title, study.axes, study.x, study.seeds)


def test_a_folder_of_another_version(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    folder.begin(study_named("batchnorm"))
    values = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps(values | {"format": 99}))
    for use in (folder.study, lambda: folder.begin(study_named("input"))):
        with pytest.raises(SweepError, match="sweep of format 99; this version of quickstudy reads 1"):
            use()
    for text in ("", "[]", "{", '{"format": 1}', '{"format": 1, "study": {"name": 5}}'):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(SweepError, match=r"sweep\.json' is damaged"):
            folder.study()


def test_a_folder_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(SweepError, match="exists already and is not a sweep; name another"):
        SweepFolder(tmp_path).begin(study_named("input"))
    with pytest.raises(SweepError, match=r"is not a sweep: it has no sweep\.json"):
        SweepFolder(tmp_path / "gone").study()
