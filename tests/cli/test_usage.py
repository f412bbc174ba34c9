"""What the command line says of words that it cannot use, of words in the wrong order, and in its help."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from in_process import Run
from quickstudy.cli.main import app
from quickstudy.cli.usage import command_meant
from small_models import write_small_model


def parameters() -> Iterator[tuple[str, list[str], list[str]]]:
    """Give each parameter of each command that takes a value: its name, words with an empty one, and its command."""

    def commands(group: Any, path: list[str]) -> Iterator[tuple[list[str], Any]]:
        for name, command in group.commands.items():
            yield from commands(command, [*path, name]) if hasattr(command, "commands") else [([*path, name], command)]

    for path, command in commands(typer.main.get_command(app), []):
        required = [one for one in command.params if one.required]
        for parameter in command.params:
            if getattr(parameter, "is_flag", False) or parameter.name == "help" or parameter.default == "":
                continue
            words = []
            for one in (*required, *([parameter] if parameter not in required else [])):
                name = [] if one.param_type_name == "argument" else one.opts[:1]
                words += [*name, "" if one is parameter else "x"]
            yield next((one for one in parameter.opts if one.startswith("--")), parameter.name.upper()), words, path


@pytest.mark.parametrize(
    ("name", "words", "path"), [pytest.param(*one, id=" ".join((*one[2], one[0]))) for one in parameters()]
)
def test_nothing_is_given_as_an_empty_text(name: str, words: list[str], path: list[str], run: Run) -> None:
    done = run(*path, *words)
    assert (done.code, done.out) == (2, "")
    assert f"{name} is ''" in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("audit photos --apply plan.csv --several", "--several would do nothing beside --apply"),
        ("audit photos --undo undo.csv --limit 3", "--limit would do nothing beside --undo"),
        ("evaluate a.onnx photos --interval 5", "--interval is for the run of a training; 'a.onnx' is a model"),
        ("evaluate a.onnx photos --data-folder x", "--data-folder is for the run of a training"),
        ("evaluate a.onnx photos --no-ema", "--no-ema is for the run of a training"),
        ("evaluate run --interval 5", "--interval is for --watch"),
        ("export a.onnx --fp16 --calibrate photos", "--calibrate is for --int8"),
        ("export a.onnx --web site --check photos", "--check is for --int8 and --fp16"),
        ("export a.onnx --labels x.txt --force", "--force is for --int8 and --fp16"),
        ("export a.onnx --fp16 --runtime x", "--runtime is for a page: --web DIR"),
        ("export a.onnx --web site -o b.onnx", "--output is for --int8, --fp16 or a run"),
        ("predict a.onnx b.jpg --sets 95 --top 3", "--top would do nothing beside --sets"),
        ("suggest photos --sure 90", "--sure is for the plan"),
        ("sweep show sweeps/x --seeds 3", "--seeds would do nothing: sweep show only shows"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    words: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*words.split())
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert not list(tmp_path.iterdir())


def test_the_home_folder_is_known_where_the_shell_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_small_model(tmp_path / "m.onnx")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = run("export", "~/m.onnx", "--labels=~/classes.txt")
    assert done.code == 0, done.err
    assert (tmp_path / "classes.txt").is_file()
    assert not list((tmp_path / "here").iterdir())


LONG_HELP = "Print the most probable classes of images; files that cannot be used are named and left out."


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("retrain photos --l2 abc", "--l2 is 'abc'; expected a number"),
        ("retrain photos --epochs two", "--epochs is 'two'; expected a whole number"),
        ("audit photos --limit 0", "--limit is '0'; expected 1 or more"),
        ("serve x.onnx --port 99999", "--port is '99999'; expected at most 65535"),
        ("retrain photos --strickt", "There is no option '--strickt'; did you mean --strict?"),
        ("retrain photos --preset", "--preset needs a value"),
        ("predict a.onnx b.jpg --sets", "--sets needs a value"),
        ("export a.onnx --web", "--web needs a value"),
        ("label photos --port", "--port needs a value"),
        ("data get mnist --from", "--from needs a value"),
        ("retrain photos --strict=3", "--strict takes no value"),
        ("retrain photos --preset x", "--preset is 'x'; expected 'fast', 'good' or 'best'"),
        ("retran photos", "There is no command 'retran'; did you mean retrain or train?"),
        ("evaluate a b c", "Unexpected argument 'c'"),
        (
            "predict a.onnx",
            "IMAGES is missing: images, folders or patterns such as 'new/*.jpg'; - reads a list of paths from stdin",
        ),
        ("predict a.onnx b.jpg --json --csv", "choose one of --json and --csv"),
        (
            "evaluate a.onnx photos --split test",
            "--split is for the run of a training; 'a.onnx' is a model, for which it would do nothing",
        ),
        (
            "evaluate a.onnx photos --no-ema",
            "--no-ema is for the run of a training; 'a.onnx' is a model, for which it would do nothing",
        ),
        ("evaluate run --all", "--all is for a model and labelled images; a run is scored on its own"),
    ],
)
def test_words_that_cannot_be_used(words: str, told: str, run: Run) -> None:
    done = run(*words.split())
    assert done.code == 2
    assert done.err.splitlines()[0] == f"quickstudy: {told}"
    for others in ("Traceback", "Error:", "Input should"):
        assert others not in done.err


@pytest.mark.parametrize(
    ("words", "command"),
    [("retrain photos --preset", "retrain"), ("data get mnist --from", "data get")],
)
def test_a_missing_value_points_to_the_help_of_its_command(words: str, command: str, run: Run) -> None:
    assert run(*words.split()).err.splitlines()[-1] == f"More: quickstudy {command} --help"


@pytest.mark.parametrize("option", ["--refuse", "--least-precision"])
def test_a_share_out_of_range_is_named_as_it_was_typed(option: str, photos: Path, run: Run) -> None:
    done = run("retrain", str(photos), option, "200")
    assert (done.code, done.err.startswith(f"quickstudy: {option} is 200 %; expected ")) == (2, True)


def test_the_list_of_commands_is_whole(run: Run) -> None:
    for words in (("--help",), ()):
        done = run(*words)
        assert done.code == (0 if words else 2)
        told = " ".join((done.out + done.err).split())
        assert LONG_HELP in told
        assert "..." not in told.replace("[ARGS]...", "")


def test_model_and_images_swapped(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_small_model(tmp_path / "my model.onnx").name
    (tmp_path / "photos").mkdir()
    for words in (("evaluate", "photos", model), ("predict", "photos", model, "--top", "2")):
        done = run(*words)
        assert done.code == 2
        meant = done.err.splitlines()[-1].removeprefix("The model comes first: ")
        assert shlex.split(meant) == ["quickstudy", words[0], model, "photos", *words[3:]]
    assert command_meant(["predict", model, "photos"]) == ""
    assert command_meant(["export", "photos", "--output", model]) == ""


def test_a_manifest_of_several_labels_tells_what_each_command_has(
    tmp_path: Path, run: Run, photo_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(tmp_path / "cache"))
    write_small_model(tmp_path / "m.onnx")
    write_small_model(tmp_path / "n.onnx", resize="pillow-nearest-1")
    rows = "".join(f"{path},checks|discs\n" for path in photo_source.rglob("*.jpg"))
    (tmp_path / "tags.csv").write_text(f"path,tags\n{rows}")
    of_model = "take a model of several labels, which retrain --several makes"
    for words, way in (
        ("evaluate m.onnx tags.csv", of_model),
        ("compare m.onnx n.onnx tags.csv", of_model),
        ("retrain tags.csv", "add --several"),
        ("census tags.csv", "add --several"),
    ):
        done = run(*words.split())
        assert (done.code, done.err.partition("If an image may have several labels, ")[2]) == (2, f"{way}\n")


def test_spaces_without_quotes(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.move(photos, tmp_path / "Mes photos 2026")
    write_small_model(tmp_path / "m.onnx")
    done = run("retrain", "Mes", "photos", "2026", "--seed", "1")
    assert done.code == 2
    assert done.err.splitlines()[-1] == (
        "'Mes photos 2026' is one name with spaces in it; put it in quotes: "
        "quickstudy retrain 'Mes photos 2026' --seed 1"
    )
    done = run("predict", "m.onnx", "Mes", "photos", "2026")
    assert done.code == 1
    assert done.err.splitlines()[-1].endswith("quickstudy predict m.onnx 'Mes photos 2026'")


def test_predict_tells_by_its_status_how_many_could_be_used(tmp_path: Path, run: Run, photo_source: Path) -> None:
    model, good = str(write_small_model(tmp_path / "m.onnx")), str(next(photo_source.rglob("*.jpg")))
    for form in ((), ("--json",), ("--csv",)):
        assert run("predict", model, good, *form).code == 0
        assert run("predict", model, good, "missing.jpg", *form).code == 3
        assert run("predict", model, "missing.jpg", *form).code == 1


def test_an_interrupted_prediction_promises_nothing(
    tmp_path: Path, run: Run, photo_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(write_small_model(tmp_path / "m.onnx"))

    def interrupt(*_: object) -> None:  # in a thread of the model's; the main one hears of it before this ends
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr("quickstudy.models.model.to_input", interrupt)
    done = run("predict", model, str(next(photo_source.rglob("*.jpg"))))
    assert (done.code, done.err) == (130, "\nquickstudy: interrupted\n")


def test_a_folder_that_is_no_run_needs_no_pytorch(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = run("predict", "photos", "new.jpg")
    assert (done.code, done.err) == (
        2,
        "quickstudy: 'photos' is a folder, but not the run of a training; expected a model, such as photos.onnx\n",
    )
