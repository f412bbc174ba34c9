"""`quickstudy export` of models, and `quickstudy verify`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageOps

from in_process import Run
from quickstudy.cli.export import change_told
from quickstudy.models import loading
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.models.conversion import TOLERANCES
from quickstudy.models.loading import load
from quickstudy.models.model import Model
from quickstudy.models.teaching import TeachableModel, written
from small_backbones import add_small_backbone
from small_models import CLASSES, TRAINING, write_small_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_small_model(tmp_path / "small.onnx")


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model has random weights and is sure of nothing."""
    for kind, tolerance in list(TOLERANCES.items()):
        monkeypatch.setitem(TOLERANCES, kind, type(tolerance)(golden=0.25, same=0.5, accuracy_loss=0.5))


def test_verify_tells_whole_models_from_others(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("verify", "small.onnx")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("small.onnx: intact; 4 classes, 32 pixels; golden checks differ by ")
    data = bytearray(model.read_bytes())
    data[5000] ^= 4
    (tmp_path / "changed.onnx").write_bytes(data)
    (tmp_path / "text.onnx").write_text("no model")
    done = run("verify", "small.onnx", "changed.onnx", "text.onnx", "none.onnx")
    assert done.code == 1
    lines = done.out.splitlines()
    assert [line.split(": ")[1].split(";")[0] for line in lines] == ["intact", "FAILED", "FAILED", "FAILED"]
    for line, words in zip(lines[1:], ("its checksum does not fit", "not an ONNX", "No such model"), strict=True):
        assert words in line
    done = run("verify", "small.onnx", "changed.onnx", "--json")
    assert done.code == 1
    good, bad = json.loads(done.out)
    assert (good["ok"], good["classes"], good["pixels"]) == (True, 4, 32)
    assert good["golden_difference"] <= good["tolerance"] == 1e-4
    assert (bad["ok"], "checksum" in bad["error"]) == (False, True)


def test_fp16_with_check_labels_and_card(run: Run, model: Path, photo_source: Path) -> None:
    done = run("export", "small.onnx", "--fp16", "--check", str(photo_source), "--labels", "l.txt", "--card", "card.md")
    assert done.code == 0, done.err
    for words in ("Model: small.fp16.onnx", "images/s instead of", "36 photos: ", "accuracy before", "accuracy after",
                  "95 % interval", "Labels: l.txt", "Card: card.md", "quickstudy predict small.fp16.onnx"):  # fmt: skip
        assert words in done.out
    assert Path("l.txt").read_text(encoding="utf-8").splitlines() == list(CLASSES)
    assert Path("card.md").read_text(encoding="utf-8").startswith("# small.fp16\n")
    assert load("small.fp16.onnx").metadata["export"]["kind"] == "fp16"


def test_a_list_of_classes_is_written_anew_from_a_model_that_is_loaded_once(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("l.txt").write_text(f"{CLASSES[0]}\nanother\n", encoding="utf-8")
    loaded: list[Path] = []

    def counting(path: Path) -> Model:
        loaded.append(path)
        return load(path)

    monkeypatch.setattr(loading, "load", counting)
    done = run("export", model.name, "--labels", "l.txt", "--card", "c.md")
    assert (done.code, loaded) == (0, [Path(model.name)])
    assert Path("l.txt").read_text(encoding="utf-8").splitlines() == list(CLASSES)


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ((0.015, -0.01, 0.04), "lost             1.5 points (95 % interval -1.0 to 4.0)"),
        ((-0.015, -0.04, 0.01), "gained           1.5 points (95 % interval -1.0 to 4.0)"),
        ((-0.0, -0.01, 0.01), "the same         0.0 points apart (95 % interval -1.0 to 1.0)"),
        ((-0.0004, -0.0, 0.0), "the same         0.0 points apart (95 % interval 0.0 to 0.0)"),
    ],
)
def test_what_is_lost_or_gained(loss: tuple[float, float, float], told: str) -> None:
    assert change_told(*loss) == told


def test_int8_in_json(run: Run, model: Path, photo_source: Path) -> None:
    done = run("export", "small.onnx", "--int8", "--calibrate", str(photo_source), "-o", "eight.onnx", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)["int8"]
    assert result["model"] == "eight.onnx"
    assert result["agreement"] is None
    assert result["images_per_second_after"] > 0
    assert run("verify", "eight.onnx").code == 0


def test_refusal_names_the_numbers_and_force_insists(
    run: Run, model: Path, photo_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tolerance = TOLERANCES["fp16"]
    monkeypatch.setitem(TOLERANCES, "fp16", type(tolerance)(golden=0, same=0, accuracy_loss=1))
    done = run("export", "small.onnx", "--fp16")
    assert done.code == 2
    assert "was not written" in done.err
    assert "(tolerance 0)" in done.err
    assert not Path("small.fp16.onnx").exists()
    done = run("export", "small.onnx", "--fp16", "--force")
    assert done.code == 0
    assert "forced although on golden images a probability differs by" in done.out
    assert "not compared on photos; give some with --check photos/" in done.out
    assert Path("small.fp16.onnx").exists()


def test_photos_to_check_on_of_which_none_can_be_used(run: Run, model: Path) -> None:
    for name in ("a", "b"):
        Path(f"texts/{name}").mkdir(parents=True)
        Path(f"texts/{name}/1.jpg").write_text(name)
    done = run("export", "small.onnx", "--fp16", "--check", "texts")
    assert done.code == 2
    assert "none of the 2 images to check on could be used; 'texts/" in done.err
    for others in ("too far", "alibrate"):
        assert others not in done.err
    done = run("export", "small.onnx", "--fp16", "--check", "texts", "--force")
    assert (done.code, "forced although none of the 2 images" in done.out) == (0, True)


@pytest.mark.parametrize(("kind", "told"), [("--fp16", False), ("--int8", True)])
def test_only_what_is_calibrated_is_to_be_calibrated_on_more(
    run: Run, model: Path, photo_source: Path, monkeypatch: pytest.MonkeyPatch, kind: str, told: bool
) -> None:
    for name, tolerance in list(TOLERANCES.items()):
        monkeypatch.setitem(TOLERANCES, name, type(tolerance)(golden=0, same=0, accuracy_loss=1))
    done = run("export", "small.onnx", kind, *(("--calibrate", str(photo_source)) if told else ()))
    assert (done.code, "calibrate on more photos" in done.err) == (2, told)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["small.onnx"], "say what to make of the model"),
        (["small.onnx", "--int8"], "needs photos to calibrate on"),
        (["small.onnx", "--int8", "--fp16"], "choose one of --int8 and --fp16"),
        (["small.onnx", "--card", "c.md", "--trainable"], "--trainable is for a page"),
        (["small.onnx", "--web", "site", "--start", "photos"], "--start is for a page that learns"),
        (["small.onnx", "--int8", "--calibrate", "nowhere"], "No such file or folder: 'nowhere'"),
        (["none.onnx", "--fp16"], "No such model: 'none.onnx'"),
        (["small.onnx", "--fp16", "--output", "small.onnx"], "'small.onnx' is the model itself; name another file"),
        (["none.onnx", "--web", "site"], "No such model: 'none.onnx'"),
        (["small.onnx", "--labels", "small.onnx/l.txt"], "Cannot write 'small.onnx/l.txt'"),
        (["small.onnx", "--fp16", "--output", "small.jpg"], "must be named *.onnx; got 'small.jpg'"),
        (["small.onnx", "--labels", "small.onnx"], "'small.onnx' is what the list of classes is made from"),
        (["small.onnx", "--card", "small.onnx"], "'small.onnx' is what the card is made from"),
        (["small.onnx", "--card", "notes.csv"], "There is a 'notes.csv' already, which is no card"),
        (["small.onnx", "--labels", "notes.csv"], "'notes.csv' already, which is no list of these classes"),
        (["small.onnx", "--labels", "."], "Cannot write the list of classes '.'"),
    ],
)
def test_what_does_not_fit(run: Run, model: Path, arguments: list[str], words: str) -> None:
    Path("notes.csv").write_text("path,label\n")
    before = model.read_bytes()
    done = run("export", *arguments)
    assert done.code == 2
    assert (model.read_bytes(), Path("notes.csv").read_text()) == (before, "path,label\n")
    assert words in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err


@pytest.mark.heavy
def test_the_guides_commands_run(run: Run, tmp_path: Path, photo_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `quickstudy` line of docs/ship.md; the page's needs npm's package, Core ML's coremltools."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(tmp_path / "cache"))
    net = add_small_backbone(tmp_path / "cache")
    weights = np.random.Generator(np.random.PCG64(0)).normal(size=(net.cut_shape[0], 3)).astype(np.float32)
    head = LinearHead(weights=weights, biases=np.zeros(3, np.float32))
    model = tmp_path / "photos.onnx"
    write_model(model, net, head, classes=("checks", "discs", "stripes"), training=TRAINING)
    shutil.copytree(photo_source, "photos")
    teachable = TeachableModel.of(model.read_bytes(), model, tmp_path / "cache")
    taught = teachable.classes_of(Path("photos"), tmp_path / "cache")
    Path("anna.json").write_text(written(teachable.teaching, taught[:2]))
    Path("ben.json").write_text(written(teachable.teaching, taught[1:]))
    runtime = Path(os.environ.get("QUICKSTUDY_TEST_WEB_RUNTIME") or ROOT / ".venv" / "onnxruntime-web-1.30.0.tgz")
    lines = re.findall(r"^    quickstudy (.*)$", (ROOT / "docs" / "ship.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)
        if "--coreml" in words and importlib.util.find_spec("coremltools") is None:
            continue
        if "--web" in words:
            if not runtime.is_file():
                continue
            words += ["--runtime", str(runtime)]
        done = run(*words)
        assert done.code == 0, f"{line}\n{done.err}"


def test_the_guides_preprocessing_is_close(model: Path, photo_source: Path) -> None:
    """The three lines of Python in docs/ship.md, as they stand but for the size."""
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "ship.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) == 3
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    for path in sorted(photo_source.rglob("*.jpg"))[::7]:
        names = {"path": path, "session": session, "Image": Image, "ImageOps": ImageOps, "np": np}
        exec(code.replace("288", "32"), names)
        assert np.abs(names["probabilities"] - load(model).predict_proba(path)[0]).max() < 0.1
