"""The commands as a user types them; in processes of their own where that plays a part."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from in_process import Done, run_here

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(photo_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos/`, `held_out/`, `new.jpg`, `other/`, and a model trained on `photos/`."""
    folder = tmp_path_factory.mktemp("cli")
    shutil.copytree(photo_source, folder / "photos")
    shutil.copytree(photo_source, folder / "held_out")
    (folder / "other").mkdir()
    images = sorted(photo_source.rglob("*.jpg"))
    shutil.copy(images[0], folder / "new.jpg")
    shutil.copy(images[-1], folder / "other" / "second.jpg")
    done = run(folder, "retrain", "photos/")
    assert done.code == 0, done.err
    return folder


def run(folder: Path, *arguments: str, stdin: str = "") -> Done:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("QUICKSTUDY_CACHE", str(folder / "cache"))
        patched.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        return run_here(folder, *arguments)


def test_retrain_prints_what_it_did_and_writes_the_model(trained: Path) -> None:
    done = run(trained, "retrain", "photos/", "--output", "again.onnx")
    assert done.code == 0, done.err
    assert "0 forward passes, 36 bottlenecks from the store" in done.out
    for words in ("Cross-validated accuracy", "95 % interval", "Test accuracy", "precision", "Seconds:", "again.onnx"):
        assert words in done.out
    assert (trained / "again.onnx").read_bytes() == (trained / "photos.onnx").read_bytes()


def test_retrain_json_holds_everything(trained: Path) -> None:
    done = run(trained, "retrain", "photos", "--json", "--output", "json.onnx")
    result = json.loads(done.out)
    assert result["forward_passes"] == 0
    assert result["from_store"] == 36
    assert result["head"]["gap"] <= 1e-6
    assert set(result["seconds"]) == {"census", "bottlenecks", "head", "evaluation", "model"}


def test_predict_in_all_its_forms(trained: Path) -> None:
    (trained / "bad.jpg").write_bytes(b"<html>not an image</html>")
    done = run(trained, "predict", "photos.onnx", "new.jpg", "bad.jpg", "other", "oth*/*.jpg", "missing.jpg")
    assert done.code == 3
    assert len(done.out.splitlines()) == 3
    assert "bad.jpg: an HTML page, not an image" in done.err
    assert "missing.jpg: unreadable (no such file or directory)" in done.err
    assert "2 of 5 could not be used" in done.err
    rows = json.loads(run(trained, "predict", "photos.onnx", "new.jpg", "bad.jpg", "--json", "--top", "2").out)
    assert len(rows[0]["predictions"]) == 2
    assert rows[1]["error"] == "an HTML page, not an image"
    table = list(csv.DictReader(io.StringIO(run(trained, "predict", "photos.onnx", "new.jpg", "--csv").out)))
    assert table[0]["label"] == rows[0]["predictions"][0]["label"]
    listed = run(trained, "predict", "photos.onnx", "-", stdin="new.jpg\n\nother\n")
    assert len(listed.out.splitlines()) == 2


def test_predict_fails_only_when_nothing_could_be_predicted(trained: Path) -> None:
    done = run(trained, "predict", "photos.onnx", "nowhere.jpg")
    assert done.code == 1
    assert "nowhere.jpg" in done.err


def test_backbone_predicts_imagenet_as_it_stands(trained: Path) -> None:
    done = run(trained, "predict", "efficientnet_lite0", "new.jpg", "--json")
    assert len(json.loads(done.out)[0]["predictions"]) == 5


def test_evaluate_names_missing_and_unknown_classes(trained: Path) -> None:
    folders = sorted(path for path in (trained / "photos").iterdir() if path.is_dir())
    target = trained / "partly"
    shutil.copytree(folders[0], target / folders[0].name)
    shutil.copytree(folders[1], target / "never seen")
    done = run(trained, "evaluate", "photos.onnx", "partly")
    assert done.code == 0, done.err
    assert "never seen" in done.out
    assert f"is of these classes of the model: '{folders[1].name}'" in done.out
    assert "left out: the model has learned" in done.out
    values = json.loads(run(trained, "evaluate", "photos.onnx", "partly", "--json").out)
    assert values["n"] + values["left_out"] == 12
    assert (values["is_test"], values["unknown_images"]) == (True, {"never seen": 12})
    everything = run(trained, "evaluate", "photos.onnx", "partly", "--all")
    assert "NOT A TEST" in everything.out
    values = json.loads(run(trained, "evaluate", "photos.onnx", "partly", "--all", "--json").out)
    assert (values["n"], values["is_test"]) == (12, False)


def test_evaluate_and_compare_tell_of_images_under_two_labels_and_beside_the_test(trained: Path) -> None:
    folders = sorted(path for path in (trained / "photos").iterdir() if path.is_dir())
    target = trained / "mixed"
    for part in ("train", "test"):
        for folder in folders:
            shutil.copytree(folder, target / part / folder.name)
    photos = sorted(folders[0].iterdir())
    shutil.copy(photos[0], target / "test" / folders[1].name / "wrong.jpg")
    shutil.copy(photos[1], target / "test" / folders[0].name / "again.jpg")
    for path in (target / "train").rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"\0")
    assert run(trained, "retrain", "photos/", "--l2", "1", "--output", "other.onnx").code == 0
    for words in (["evaluate", "photos.onnx"], ["compare", "photos.onnx", "other.onnx"]):
        told = run(trained, *words, "mixed").out
        assert told.count("Conflict: ") == 1
        assert "wrong.jpg" in told
        assert "1 file is an exact copy" in told
        assert "36 images left out: the set comes with a test split" in told
        values = json.loads(run(trained, *words, "mixed", "--json").out)
        assert (len(values["conflicts"]), values["copies"], values["beside_test"]) == (1, 1, 36)


@pytest.mark.parametrize("as_manifest", [False, True])
def test_a_set_with_splits_and_no_test_says_how_to_come_to_one(
    trained: Path, tmp_path: Path, as_manifest: bool
) -> None:
    for split, numbers in {"train": range(6), "val": range(6, 9)}.items():
        for path in (path for n in numbers for path in (trained / "photos").rglob(f"{n:02}.jpg")):
            to = tmp_path / "set" / split / path.parent.name / path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    source, way = tmp_path / "set", f"put images into {tmp_path}/set/test/<class>/"
    if as_manifest:
        source, way = tmp_path / "set.csv", f"give rows of {tmp_path}/set.csv the split test"
        run(trained, "census", f"{tmp_path}/set", "--csv", str(source))
    for command in (("census", str(source)), ("retrain", str(source), "-o", f"{tmp_path}/set.onnx")):
        assert f"For a test accuracy, {way}" in run(trained, *command).out


def test_census_shows_and_writes_what_retrain_would_do(trained: Path) -> None:
    shown = run(trained, "census", "photos", "--roles-of", "photos.onnx", "--csv", "set/roles.csv")
    assert shown.code == 0, shown.err
    assert "36 different images" in shown.out
    values = json.loads(run(trained, "census", "photos", "--json").out)
    with (trained / "set" / "roles.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == [row["role"] for row in values["files"]]
    again = json.loads(run(trained, "census", "set/roles.csv", "--json").out)
    assert again["given_splits"]
    assert again["counts"] == values["counts"]
    assert again["fingerprint"] == values["fingerprint"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are always valid text there")
def test_a_census_names_what_its_manifest_cannot_hold(trained: Path, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(trained / "photos", tmp_path / "photos"))
    (photos / "discs" / "00.jpg").rename(photos / "discs" / "\udcff.jpg")
    done = run(trained, "census", str(photos), "--csv", str(tmp_path / "c.csv"))
    assert (done.code, "without 1 file, whose name is no valid text" in done.out) == (0, True)
    shown = [row["path"] for row in csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text()))]
    assert len(shown) == len(list(photos.rglob("*.jpg"))) - 1
    assert not any(Path(path).is_absolute() for path in shown)


def test_a_census_overwrites_no_other_file(trained: Path) -> None:
    mine = trained / "mine.csv"
    mine.write_text("path,label,photographer\nphotos/discs/00.jpg,discs,Ann\nphotos/checks/00.jpg,checks,Ben\n")
    before = mine.read_bytes()
    model = (trained / "photos.onnx").read_bytes()
    for source, target in (("mine.csv", "mine.csv"), ("photos", "mine.csv"), ("photos", "photos.onnx")):
        done = run(trained, "census", source, "--csv", target)
        assert (done.code, f"'{target}'" in done.err) == (2, True)
    assert run(trained, "census", "photos", "--csv", "photos").code == 2  # a folder
    assert run(trained, "census", "photos", "--csv", "mine.csv/census.csv").code == 2
    assert (mine.read_bytes(), (trained / "photos.onnx").read_bytes()) == (before, model)
    for _ in range(2):
        assert run(trained, "census", "photos", "--csv", "its own.csv").code == 0
    assert run(trained, "census", "its own.csv", "--csv", "its own.csv").code == 2


def test_cache_commands(trained: Path) -> None:
    listed = json.loads(run(trained, "cache", "list", "--json").out)
    assert listed[0]["bottlenecks"] == 36
    assert "0 damaged" in run(trained, "cache", "verify").out
    assert run(trained, "cache", "compact").code == 0
    assert "Nothing to delete" in run(trained, "cache", "prune", "--older-than", "1").out
    nothing = run(trained, "cache", "prune")
    assert nothing.code == 2
    assert "--older-than" in nothing.err


def test_cache_verify_finds_and_removes_a_flipped_bit(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "cache", tmp_path / "cache")
    shard = next((tmp_path / "cache" / "bottlenecks").glob("*/*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    found = run(tmp_path, "cache", "verify")
    assert found.code == 1
    assert str(shard) in found.out
    assert run(tmp_path, "cache", "verify", "--remove").code == 0
    assert "0 damaged" in run(tmp_path, "cache", "verify").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retrain", "nowhere"], ["No such file or folder: 'nowhere'", "photos/<class>/*.jpg"]),
        (["retrain", "photos/", "--backbone", "resnet"], ["Unknown backbone 'resnet'", "efficientnet_lite0"]),
        (["retrain", "photos/", "--output", "model.bin"], ["*.onnx", "model.bin"]),
        (["retrain", "photos/", "--output", "no/such/m.onnx"], ["no/such"]),
        (["retrain", "photos/", "--random-crop", "200"], ["--random-crop is 200 %", "below 100 %"]),
        (["retrain", "photos/", "--l2", "-1"], ["-1", "more than 0"]),
        (["retrain", "photos/", "--cache", "new.jpg/cache"], ["new.jpg/cache", "--cache"]),
        (["predict", "nowhere.onnx", "new.jpg"], ["No such model: 'nowhere.onnx'"]),
        (["predict", "new.jpg", "new.jpg"], ["new.jpg", "is not an ONNX file"]),
        (["evaluate", "photos.onnx", "other"], ["No images under 'other'"]),
    ],
)
def test_errors_say_what_was_wrong_without_a_traceback(trained: Path, arguments: list[str], words: list[str]) -> None:
    done = run(trained, *arguments)
    assert done.code == 2
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys, quickstudy.cli.main\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'pyarrow', 'PIL', 'sklearn', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_light_core_runs_without_torch_scipy_and_scikit_learn(photos: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'sklearn'): sys.modules[name] = None\n"
        "import quickstudy\n"
        f"quickstudy.retrain({str(photos)!r}, {str(tmp_path / 'm.onnx')!r}, cache={str(tmp_path / 'cache')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_data_keep_names_as_they_are_whatever_the_terminal_writes(trained: Path, encoding: str) -> None:
    name = "Hüte 帽子.jpg"
    (trained / name).write_bytes((trained / "new.jpg").read_bytes())
    for option in ("--json", "--csv"):
        done = subprocess.run(
            [sys.executable, "-m", "quickstudy", "predict", "photos.onnx", name, option],
            cwd=trained,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=True,
        )
        assert name in done.stdout.decode("utf-8")
