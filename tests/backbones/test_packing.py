"""Backbones in one file: the same on the other machine, and nothing that the file says is believed."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_networks import classifier, photos, run
from small_transformers import save_vit

from quickstudy.backbones.backbone import Backbone, find_backbone
from quickstudy.backbones.graphs.preprocessing import PREPROCESSINGS
from quickstudy.backbones.sources.adding import BackboneSource, add_from
from quickstudy.backbones.sources.packing import add_packed, is_packed, pack_backbone
from quickstudy.errors import BackboneError, UnsafeFileError, WriteError


@pytest.fixture
def vit(tmp_path: Path) -> Backbone:
    path = save_vit(tmp_path / "vit.onnx")
    return add_from(BackboneSource(place=str(path), preprocessing=PREPROCESSINGS["torch"]), tmp_path / "cache")[0]


def packed(backbone: Backbone, folder: Path) -> tuple[Path, dict[str, bytes]]:
    path = folder / "one.backbone"
    pack_backbone(backbone, path)
    with zipfile.ZipFile(path) as archive:
        return path, {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: dict[str, bytes], *, compressed: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def noted(members: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    note = json.loads(members["backbone.json"]) | changes
    return {**members, "backbone.json": json.dumps(note).encode()}


def test_it_is_the_same_on_the_other_machine(tmp_path: Path, vit: Backbone) -> None:
    path, members = packed(vit, tmp_path)
    assert sorted(members) == ["backbone.json", "backbone.onnx"]
    assert is_packed(path)
    assert not is_packed(tmp_path / "vit.onnx")
    added = add_packed(path, tmp_path / "elsewhere")
    for field in (
        "name",
        "fingerprint",
        "input",
        "cuts",
        "cut_shape",
        "levels",
        "classes",
        "origin",
        "licence",
        "top1",
    ):
        assert getattr(added, field) == getattr(vit, field), field
    images = photos()
    for tensor in ("features", "levels"):
        mine, theirs = (run(onnx.load(one.path), tensor, images) for one in (vit, added))
        np.testing.assert_array_equal(mine, theirs)
    other = add_packed(path, tmp_path / "elsewhere", name="other")
    assert (other.name, other.fingerprint) == ("other", vit.fingerprint)


def test_a_classifier_keeps_its_classes(tmp_path: Path) -> None:
    net, output = classifier()
    source = BackboneSource(
        place=str(net.save(tmp_path / "net.onnx", output)),
        preprocessing=PREPROCESSINGS["none"],
        classes=("a", "b", "c", "d", "é"),
    )
    backbone, _ = add_from(source, tmp_path / "cache")
    path, _ = packed(backbone, tmp_path)
    assert add_packed(path, tmp_path / "elsewhere").classes == ("a", "b", "c", "d", "é")


def test_the_same_backbone_gives_the_same_file(tmp_path: Path, vit: Backbone) -> None:
    first, _ = packed(vit, tmp_path)
    data = first.read_bytes()
    pack_backbone(vit, first)
    assert first.read_bytes() == data


def test_damage_is_noticed_wherever_it_is(tmp_path: Path, vit: Backbone) -> None:
    path, members = packed(vit, tmp_path)
    data = path.read_bytes()
    for place in range(100, len(data), len(data) // 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(BackboneError):
            add_packed(path, tmp_path / "elsewhere")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BackboneError, match="damaged or cut short"):
        add_packed(path, tmp_path / "elsewhere")
    changed = {**members, "backbone.onnx": members["backbone.onnx"] + b"\0"}
    with pytest.raises(BackboneError, match="hash"):
        add_packed(write(path, changed), tmp_path / "elsewhere")
    assert find_backbone("vit", tmp_path / "elsewhere") is None


def test_members_of_other_names_are_never_written(tmp_path: Path, vit: Backbone) -> None:
    path, members = packed(vit, tmp_path)
    with pytest.raises(BackboneError, match="backbone pack"):
        add_packed(write(path, {**members, "../escaped.txt": b"x"}), tmp_path / "elsewhere")
    assert not list(tmp_path.rglob("escaped.txt"))
    with pytest.raises(BackboneError, match="backbone pack"):
        add_packed(write(path, {"model.onnx": members["backbone.onnx"]}), tmp_path / "elsewhere")


def test_compressed_members_are_not_read(tmp_path: Path, vit: Backbone) -> None:
    path, members = packed(vit, tmp_path)
    with pytest.raises(UnsafeFileError, match="compressed"):
        add_packed(write(path, members, compressed=True), tmp_path / "elsewhere")


def test_graphs_are_checked_as_any_from_elsewhere(tmp_path: Path, vit: Backbone) -> None:
    path, members = packed(vit, tmp_path)
    foreign, outside = (onnx.ModelProto.FromString(members["backbone.onnx"]) for _ in range(2))
    foreign.graph.node[-1].domain = "com.example"
    tensor = outside.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="/etc/passwd")
    for graph, told in ((foreign, "com.example"), (outside, "/etc/passwd")):
        data = graph.SerializeToString()
        changed = noted({**members, "backbone.onnx": data}, sha256=hashlib.sha256(data).hexdigest())
        with pytest.raises(UnsafeFileError, match=told):
            add_packed(write(path, changed), tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"input": {"size": 99}},
        {"cuts": ["block_1"]},
        {"cuts": ["nowhere", "features"]},
        {"levels": [{"name": "features", "width": 3, "last": True}]},
        {"classes": ["cat", "dog"]},
        {"name": "../../escaped"},
        {"name": "efficientnet_lite0"},
        {"top1": "high"},
    ],
)
def test_notes_that_contradict_the_graph_are_refused(tmp_path: Path, vit: Backbone, changes: dict[str, object]) -> None:
    path, members = packed(vit, tmp_path)
    with pytest.raises(BackboneError):
        add_packed(write(path, noted(members, **changes)), tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").rglob("*.onnx"))


def test_it_says_where_it_cannot_be_written(tmp_path: Path, vit: Backbone) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="--output"):
        pack_backbone(vit, tmp_path / "file" / "one.backbone")
