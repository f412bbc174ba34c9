"""`quickstudy train`, `evaluate RUN`, `predict RUN` and `export RUN` as a user types them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from in_process import Done, Run, run_here
from quickstudy.extras import installation_of

COMMAND = str(Path(sys.executable).parent / "quickstudy")
SMALL = ("--data", "digits", "--set", "crop=6", "--batch", "32", "--steps", "25", "--threads", "1")
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that wait for each other would be slow beside other work."""
    monkeypatch.setattr("quickstudy.scratch.parallel.usable_cores", lambda: 1)


def on_one_core() -> None:
    """Before a process of its own starts: two threads that wait for each other would be slow beside other work."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def command(folder: Path, *arguments: str, script: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; with `script`, after these Python lines."""
    lines = (
        f"import sys; sys.argv = {['quickstudy', *arguments]!r}\n{script}\nfrom quickstudy.cli.main import run; run()"
    )
    command = [sys.executable, "-c", lines] if script else [COMMAND, *arguments]
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=on_one_core,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A folder with the run `runs/cifar10-classic`, and what training it printed."""
    folder = tmp_path_factory.mktemp("train")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("quickstudy.scratch.parallel.usable_cores", lambda: 1)
        done = run_here(folder, "train", "cifar10-classic", *SMALL)
    assert done.code == 0, done.err
    return folder, done


@pytest.fixture
def here(trained: tuple[Path, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, and the working directory."""
    shutil.copytree(trained[0], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_train_prints_plain_lines_where_there_is_no_terminal(
    trained: tuple[Path, Done],
) -> None:
    folder, done = trained
    assert done.err == ""
    assert "\x1b" not in done.out
    assert "\r" not in done.out
    lines = done.out.splitlines()
    assert lines[0] == "digits: 10 classes; 1,412 to train on, 385 to test on"
    assert re.fullmatch(
        r"cifar10-classic: [\d,]+ parameters, \d+\.\d million multiply-adds an image; "
        r"25 steps of 32 images, float32 on cpu",
        lines[1],
    )
    number = r"\d+\.\d"
    for line, step in zip(lines[2:4], (10, 20), strict=True):
        assert re.fullmatch(
            rf"{STAMP}: step {step}, loss = \d+\.\d\d \({number} examples/s; {number}\d\d s/batch\)", line
        )
    accuracy = re.fullmatch(r"accuracy = ([01]\.\d{3})", lines[4])
    assert accuracy
    result = json.loads((folder / "runs" / "cifar10-classic" / "result.json").read_text())
    assert float(accuracy[1]) == round(result["test"]["accuracy"], 3)
    assert re.fullmatch(r"Test accuracy \d+\.\d % \(95 % interval .* %, n = 385\); 25 steps in \d+\.\d s", lines[5])
    assert lines[-1] == "Next:  quickstudy export runs/cifar10-classic"


def test_train_again_is_over_at_once_and_says_the_same(here: Path, run: Run) -> None:
    done = run("train", "cifar10-classic", *SMALL)
    assert done.code == 0, done.err
    assert done.out.startswith("accuracy = ")
    as_json = run("train", "cifar10-classic", *SMALL, "--json")
    values = json.loads(as_json.out)
    assert values["run"] == "runs/cifar10-classic"
    assert (values["steps"], values["test"]["n"], values["validation"]) == (25, 385, None)
    assert as_json.err == ""


def test_train_with_json_or_quietly_prints_the_result_only(tmp_path: Path, run: Run) -> None:
    folder = str(tmp_path / "run")
    done = run("train", "cifar10-classic", *SMALL, "--run", folder, "--json", "--set", "validation=0.2")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert values["steps"] == 25
    assert 200 < values["validation"]["n"] < 350
    quiet = run("train", "cifar10-classic", *SMALL, "--run", folder, "--quiet", "--set", "validation=0.2")
    assert quiet.out.splitlines()[0].startswith("Validation: accuracy = ")
    assert quiet.out.splitlines()[1].startswith("accuracy = ")


def test_train_on_class_folders(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draws = np.random.Generator(np.random.PCG64(0))
    for name, base in (("night", 40), ("noon", 210)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = (base + draws.normal(0, 20, (20, 24, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number:02}.png")
    (tmp_path / "photos" / "noon" / "broken.png").write_bytes(b"<html>")
    done = run(
        "train", "cifar10-fast", "--data", "photos", "--run", "run", "--epochs", "4", "--batch", "8", "--threads", "1",
        "--set", "image-size=16", "--set", "widths=8,16", "--summary-steps", "0",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert re.match(r"photos: 2 classes; \d+ to train on, \d+ to test on\n\nSkipped 1 file:\n", done.out)
    assert "broken.png: an HTML page, not an image" in done.out
    assert re.search(r"^WARNING: \d+ images of 2 classes .*50 %.*quickstudy retrain photos$", done.err, re.MULTILINE)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["image_size"] == 16
    evaluated = run("evaluate", "run")
    assert evaluated.code == 0, evaluated.err
    predicted = run("predict", "run", "photos/night/00.png", "photos/noon/00.png", "--json")
    assert predicted.code == 0, predicted.err
    assert [row["predictions"][0]["label"] for row in json.loads(predicted.out)] == ["night", "noon"]


def test_options_are_printed_and_nothing_is_trained(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("train", "cifar10-classic", "--options", "--set", "rate=0.5", "--batch", "64", "--set", "contrast=1,2")
    assert done.code == 0
    options = json.loads(done.out)
    assert (options["rate"], options["batch"], options["contrast"], options["crop"]) == (0.5, 64, [1, 2], 24)
    assert (options["steps"], options["weight_decay"], options["average_decay"]) == (60_000, 0.004, 0.9999)
    epochs = json.loads(run("train", "cifar10-classic", "--options", "--epochs", "2.5").out)
    assert (epochs["epochs"], epochs["steps"]) == (2.5, 0)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cifar10-classsic",), "There is no recipe 'cifar10-classsic'; there are: cifar10-classic, cifar10-fast"),
        (("cifar10-classic", "--set", "rate=1", "--set", "rate=2"), "rate is given twice, as '1' and '2'"),
        (("cifar10-classic", "--steps", "5", "--set", "steps=6"), "steps is given by its own option, and once more"),
        (("cifar10-classic", "--set", "rate"), "'rate': expected NAME=VALUE, such as rate=0.05"),
        (("cifar10-classic", "--set", "ratte=1"), "has no option 'ratte'; did you mean 'rate'?"),
        (("cifar10-classic", "--set", "rate=fast"), "rate is 'fast'; expected a number, such as 0.1"),
        (("cifar10-classic", "--set", "flip=perhaps"), "flip is 'perhaps'; expected on or off"),
        (("cifar10-classic", "--set", "batch=2.5"), "batch is '2.5'; expected a whole number"),
        (("cifar10-classic", "--epochs", "inf"), "epochs is inf"),
        (("cifar10-classic", "--epochs", "nan"), "epochs is nan"),
        (("cifar10-classic", "--epochs", "0"), "Both steps and epochs are 0"),
        (("cifar10-classic", "--set", "momentum=2"), "momentum is 2; expected 0 to less than 1"),
        (("cifar10-classic", "--data", "digits", "--set", "contrast=1"), "contrast is 1; expected two factors"),
        (("cifar10-classic", "--data", "digits"), "crop is 24; expected 0 (no crop) to 8"),
        (("cifar10-classic", "--data", "digits", "--set", "crop=6", "--set", "top=x"), "top is 'x'; expected one of"),
        (("cifar10-fast", "--data", "digits", "--set", "nesterov=on", "--set", "momentum=0"), "nesterov"),
        (("cifar10-classic", "--device", "gpu"), "device is 'gpu'; expected auto, cpu or cuda"),
        (("cifar10-classic", "--data-folder", "nowhere"), "get it with: quickstudy data get cifar10"),
        (("cifar10-classic", "--data", "flowers", "--data-folder", "nowhere"), "quickstudy data get flowers"),
        (("cifar10-classic", "--data", "nowhere"), "nowhere"),
    ],
)
def test_wrong_use_is_told_without_a_traceback_and_leaves_nothing(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("train", *arguments)
    assert done.code == 2
    assert done.err.startswith("quickstudy: ")
    assert words in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.parametrize("arguments", [(), ("--steps", "0"), ("--devices", "0"), ("--keep", "0"), ("--threads", "-1")])
def test_wrong_numbers_are_told_by_the_parser(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("train", *(("cifar10-classic", *arguments) if arguments else ()))
    assert done.code == 2
    assert "Traceback" not in done.err


def test_other_values_in_the_same_folder(here: Path, run: Run) -> None:
    done = run("train", "cifar10-classic", *SMALL, "--seed", "7")
    assert done.code == 2
    assert "holds a run with other values (seed is 0 there, 7 here)" in done.err


def test_the_runs_folder_is_a_file(here: Path, run: Run) -> None:
    (here / "file").write_text("")
    done = run("train", "cifar10-classic", *SMALL, "--run", "file")
    assert done.code == 2
    assert done.err.startswith("quickstudy: Cannot write to 'file'")


def test_two_at_once(here: Path, run: Run) -> None:
    from quickstudy.scratch.folder import RunFolder

    with RunFolder(here / "runs" / "cifar10-classic").locked():
        done = run("train", "cifar10-classic", *SMALL)
    assert done.code == 2
    assert "Another process is training in 'runs/cifar10-classic'" in done.err


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.heavy),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_interrupted_it_saves_and_goes_on(tmp_path: Path, number: int, code: int) -> None:
    arguments = ("train", "cifar10-classic", *SMALL, "--steps", "500", "--run", "run", "--summary-steps", "0")
    process = subprocess.Popen(
        [COMMAND, *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=on_one_core,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if ": step 20," in line:
                process.send_signal(number)
                break
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code
    assert "Traceback" not in err
    assert "interrupted; the same command continues from the checkpoint in run" in err
    (saved,) = (tmp_path / "run" / "checkpoints").glob("*.pt")
    step = int(saved.stem.removeprefix("step-"))
    assert 20 <= step < 500


def test_going_on_and_a_damaged_checkpoint_are_told(here: Path, run: Run) -> None:
    folder = here / "runs" / "cifar10-classic"
    (folder / "result.json").unlink()
    shutil.copy(folder / "checkpoints" / "step-000025.pt", folder / "checkpoints" / "step-000030.pt")
    done = run("train", "cifar10-classic", *SMALL)
    assert done.code == 0, done.err
    assert done.err == (
        "Warning: the checkpoint runs/cifar10-classic/checkpoints/step-000030.pt is damaged; an older one is used\n"
    )
    assert "Continuing from step 25 of the run in runs/cifar10-classic\n" in done.out
    (folder / "result.json").unlink()
    for path in (folder / "checkpoints").glob("*.pt"):
        path.write_bytes(b"")
    done = run("train", "cifar10-classic", *SMALL)
    assert done.code == 0, done.err
    assert "step-000025.pt is damaged; there is no older one, so the run starts again\n" in done.err
    assert "an older one is used" not in done.err
    assert "Continuing" not in done.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("train", "cifar10-fast", "--checkpoint-seconds", "nan"), "--checkpoint-seconds is nan"),
        (("train", "cifar10-fast", "--checkpoint-seconds", "-1"), "checkpoint_seconds is -1; expected 0 or more"),
        (("train", "cifar10-fast", "--epochs", "inf"), "--epochs is inf"),
        (("train", "cifar10-fast", "--set", "momentum=1"), "momentum is 1; expected 0 to less than 1"),
        (("train", "cifar10-fast", "--set", "label_smoothing=1"), "label_smoothing is 1; expected 0 to less than 1"),
        (("evaluate", "runs/cifar10-classic", "--watch", "--interval", "inf"), "--interval is inf"),
        (("sweep", "mlp", "--seconds", "nan"), "--seconds is nan"),
        (("serve", "model.onnx", "--max-megapixels", "inf"), "--max-megapixels is inf"),
        (("cache", "prune", "--older-than", "inf"), "--older-than is inf"),
        (("retrain", "photos", "--l2", "inf"), "--l2 is inf"),
        (("retrain", "photos", "--set", "weight_decay=nan", "--cut", "block_12"), "weight_decay is nan"),
    ],
)
def test_numbers_of_all_commands_are_finite_and_in_their_range(
    here: Path, run: Run, words: tuple[str, ...], named: str
) -> None:
    done = run(*words)
    assert done.code == 2, done
    assert named in done.err
    assert "Traceback" not in done.err


def test_evaluate_a_run(here: Path, run: Run) -> None:
    done = run("evaluate", "runs/cifar10-classic")
    assert done.code == 0, done.err
    first = done.out.splitlines()[0]
    assert re.fullmatch(rf"{STAMP}: accuracy = [01]\.\d{{3}} \(step 25 of 25, 385 test images\)", first)
    assert re.search(r"^  class +test +precision +recall$", done.out, re.MULTILINE)
    result = json.loads((here / "runs" / "cifar10-classic" / "result.json").read_text())
    assert f"= {result['test']['accuracy']:.3f} " in first
    values = json.loads(run("evaluate", "runs/cifar10-classic", "--json", "--split", "test").out)
    assert (values["step"], values["split"], values["n"]) == (25, "test", 385)
    assert values["accuracy"] == result["test"]["accuracy"]


def test_evaluate_with_the_last_parameters_instead_of_their_averages(here: Path, run: Run) -> None:
    """After so few steps at such a rate the averages lag behind, so the answers differ."""
    averaged = json.loads(run("evaluate", "runs/cifar10-classic", "--json").out)
    own = json.loads(run("evaluate", "runs/cifar10-classic", "--json", "--no-ema").out)
    assert own["n"] == averaged["n"] == 385
    assert [c["predicted"] for c in own["classes"]] != [c["predicted"] for c in averaged["classes"]]


def test_evaluate_watch_ends_with_the_run_and_repeats_nothing(here: Path, run: Run) -> None:
    done = run("evaluate", "runs/cifar10-classic", "--watch", "--interval", "0.1")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    assert "(step 25 of 25, 385 test images)" in done.out
    assert run("evaluate", "runs/cifar10-classic", "--watch").out == ""
    lines = (here / "runs" / "cifar10-classic" / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [25]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("runs", "--watch"), "'runs' is not a run: it has no config.json"),
        (("runs/cifar10-classic", "--watch", "--checkpoint", "25"), "leave out --checkpoint, or --watch"),
        (("runs/cifar10-classic", "--checkpoint", "24"), "checkpoint is '24'; expected newest, best or a step"),
        (("runs/cifar10-classic", "--checkpoint", "best"), "since none was evaluated on validation images"),
        (("runs/cifar10-classic", "--data", "gone"), "gone"),
        (("empty",), "'empty' is not a run: it has no config.json"),
        (("runs/cifar10-classic", "--split", "validation"), "no validation images"),
        (("runs/cifar10-classic", "--split", "train"), "--split is 'train'; expected validation or test"),
        (("runs/cifar10-classic", "photos"), "a run brings its own images; to score it on photos, export it first"),
    ],
)
def test_evaluate_wrongly(here: Path, run: Run, arguments: tuple[str, ...], words: str) -> None:
    (here / "empty").mkdir()
    done = run("evaluate", *arguments)
    assert done.code == 2
    assert words in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err


def test_evaluate_watch_waits_for_a_run_that_has_not_begun(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            shutil.copytree("runs/cifar10-classic", here / "made")
            (here / "made").rename(here / "later")

    with monkeypatch.context() as patch:
        patch.setattr("quickstudy.cli.evaluate.time.sleep", wait)
        done = run("evaluate", "later", "--watch", "--interval", "0.1")
    assert done.code == 0, done.err
    assert waits[:3] == [0.1] * 3
    assert "'later'" in done.err
    assert "(step 25 of 25, 385 test images)" in done.out


def test_a_checkpoint_by_its_step(here: Path, run: Run) -> None:
    options = [*SMALL, "--run", "several", "--checkpoint-seconds", "0", "--set", "validation=0.2", "--quiet"]
    assert run("train", "cifar10-classic", *options, "--set", "evaluate_steps=5", "--keep", "99").code == 0
    lines = (here / "several" / "metrics.jsonl").read_text().splitlines()
    judged = {line["step"]: line["accuracy"] for line in map(json.loads, lines) if "accuracy" in line}
    best = max(judged, key=lambda step: (judged[step], step))
    for which, step in (("7", 7), ("newest", 25), ("best", best)):
        done = run("evaluate", "several", "--checkpoint", which)
        assert f"(step {step} of 25, " in done.out, done.err
        done = run("export", "several", "--checkpoint", which, "-o", "some.onnx")
        assert f", of step {step} of 25, " in done.out, done.err
    values = json.loads(run("evaluate", "several", "--checkpoint", "best", "--json").out)
    assert values["accuracy"] == judged[best]
    done = run("export", "some.onnx", "--fp16", "--checkpoint", "7")
    assert (done.code, "--checkpoint is for a run's folder" in done.err) == (2, True)


def test_export_and_predict(here: Path, run: Run) -> None:
    from quickstudy.images.named import load

    digits = load("digits")["test"]
    for number in range(6):
        Image.fromarray(digits.pixels[number].squeeze()).save(here / f"{number}.png")
    images = [f"{number}.png" for number in range(6)]
    done = run("export", "runs/cifar10-classic", "-o", "digits.onnx")
    assert done.code == 0, done.err
    assert re.search(
        r"^Model: digits\.onnx \(\d\.\d MB\), of step 25 of 25, its golden checks passed$", done.out, re.MULTILINE
    )
    assert done.out.splitlines()[-1] == "Next:  quickstudy predict digits.onnx new.jpg"
    by_model = run("predict", "digits.onnx", *images, "--json", "--top", "10")
    by_run = run("predict", "runs/cifar10-classic", *images, "--json", "--top", "10")
    assert by_run.code == 0, by_run.err
    assert by_run.out == by_model.out
    rows = json.loads(by_run.out)
    assert [len(row["predictions"]) for row in rows] == [10] * 6
    assert {p["label"] for p in rows[0]["predictions"]} == set(digits.classes)
    text = run("predict", "runs/cifar10-classic", "0.png", "missing.png")
    assert text.code == 3
    assert rows[0]["predictions"][0]["label"] in text.out
    assert "missing.png" in text.err


def test_export_and_predict_wrongly(here: Path, run: Run) -> None:
    (here / "empty").mkdir()
    shutil.copytree("runs/cifar10-classic", "new")
    shutil.rmtree("new/checkpoints")
    for arguments, words in (
        (("export", "empty"), "'empty' is not a run"),
        (("export", "nowhere"), "'nowhere' is not a run"),
        (("export", "new"), "'new' has no checkpoint that is whole"),
        (("predict", "empty", "x.png"), "'empty' is a folder, but not the run of a training; expected a model"),
        (("evaluate", "new"), "'new' has no checkpoint yet; wait for one with --watch"),
        (("export", "runs/cifar10-classic", "-o", "empty"), "empty"),
    ):
        done = run(*arguments)
        assert done.code == 2, done
        assert done.err.startswith("quickstudy: ")
        assert words in done.err
        assert "Traceback" not in done.err


WITHOUT_TORCH = "sys.modules['torch'] = None"


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "cifar10-fast"),
        ("evaluate", "runs/cifar10-classic"),
        ("export", "runs/cifar10-classic"),
        ("predict", "runs/cifar10-classic", "x.png"),
    ],
)
def test_without_torch_it_is_said_what_to_install(here: Path, arguments: tuple[str, ...]) -> None:
    done = command(here, *arguments, script=WITHOUT_TORCH)
    assert done.returncode == 2
    assert done.stderr == (
        f"quickstudy: This needs torch, which is not installed; install it with: {installation_of('train')}\n"
    )


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("train", "--help"), ("evaluate", "--help"), ("export", "--help")]
)
def test_help_does_not_import_torch(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    script = (
        "import atexit; heavy = ('torch', 'onnxruntime', 'sklearn', 'numpy')\n"
        "atexit.register(lambda: print('imported:', [name for name in heavy if name in sys.modules]))"
    )
    done = command(tmp_path, *arguments, script=script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"
    if arguments == ("--help",):
        assert all(name in done.stdout for name in ("train", "evaluate", "export", "predict", "data"))
