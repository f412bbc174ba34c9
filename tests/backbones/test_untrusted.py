"""ONNX files from others: what they may ask for, and what is refused before anything follows it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_networks import classifier, photos, run

from quickstudy.backbones.graphs.untrusted import MOST_GRAPH_BYTES, read_onnx
from quickstudy.errors import BackboneError, UnsafeFileError


@pytest.fixture
def model() -> onnx.ModelProto:
    net, output = classifier()
    return net.model(output)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


def refer(tensor: onnx.TensorProto, location: str, **facts: int) -> None:
    """Say that a tensor's values lie in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in {"location": location, **facts}.items():
        tensor.external_data.add(key=key, value=str(value))


def moved_out(model: onnx.ModelProto, folder: Path, location: str = "net.data", **facts: int) -> Path:
    """The model with the values of its first tensor at `location`, where they are."""
    first = model.graph.initializer[0]
    data = first.raw_data
    refer(first, location, **facts)
    path = saved(model, folder)
    (folder / "net.data").write_bytes(data)
    return path


def test_a_file_comes_back_as_it_is(model: onnx.ModelProto, tmp_path: Path) -> None:
    assert read_onnx(saved(model, tmp_path)).SerializeToString() == model.SerializeToString()


def test_weights_beside_the_file_are_read_into_it(model: onnx.ModelProto, tmp_path: Path) -> None:
    output = model.graph.output[0].name
    given = photos().transpose(0, 3, 1, 2).astype(np.float32)
    expected = run(model, output, given)
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    found = read_onnx(tmp_path / "net.onnx")
    assert not any(tensor.external_data for tensor in found.graph.initializer)
    np.testing.assert_array_equal(run(found, output, given), expected)


def test_weights_may_lie_in_a_folder_below(model: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    path = moved_out(model, tmp_path, "weights/net.data")
    (tmp_path / "net.data").rename(tmp_path / "weights" / "net.data")
    assert read_onnx(path).graph.initializer[0].raw_data


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret", "weights/../../secret", "C:\\secret", "..\\secret", "\\\\host\\share", "", "C:secret"],
)
def test_weights_outside_the_folder_are_refused(model: onnx.ModelProto, tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(10_000))
    path = moved_out(model, tmp_path / "here", location)
    with pytest.raises(UnsafeFileError, match="outside its folder; they were not read"):
        read_onnx(path)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")
def test_a_link_out_of_the_folder_is_refused_one_inside_is_not(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = moved_out(model, tmp_path / "here", "link")
    (tmp_path / "secret").write_bytes(bytes(10_000))
    (tmp_path / "here" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeFileError, match="a link out of its folder"):
        read_onnx(path)
    (tmp_path / "here" / "link").unlink()
    (tmp_path / "here" / "link").symlink_to("net.data")
    assert read_onnx(path).graph.initializer[0].raw_data
    (tmp_path / "here" / "link").unlink()
    (tmp_path / "here" / "link").symlink_to("link")
    with pytest.raises(UnsafeFileError, match="asks for weights in 'link'"):
        read_onnx(path)


def test_memory_addresses_of_onnx_runtime_are_only_names_of_missing_files(
    model: onnx.ModelProto, tmp_path: Path
) -> None:
    with pytest.raises(BackboneError, match="are missing"):
        read_onnx(moved_out(model, tmp_path, "*/_ORT_MEM_ADDR_/*", offset=4096, length=64))


@pytest.mark.parametrize(
    "facts",
    [{"offset": -1}, {"offset": 10**12}, {"length": 10**12}, {"length": -1}, {"offset": 4, "length": 10**6}],
)
def test_places_outside_the_weights_file_are_refused(
    model: onnx.ModelProto, tmp_path: Path, facts: dict[str, int]
) -> None:
    with pytest.raises(UnsafeFileError, match=r"lies outside of 'net\.data'"):
        read_onnx(moved_out(model, tmp_path, **facts))


def test_places_that_are_no_numbers_are_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match="lies outside of"):
        read_onnx(moved_out(model, tmp_path, offset="many"))


def test_many_tensors_in_one_large_file_are_too_much(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quickstudy.backbones.graphs.untrusted.MOST_GRAPH_BYTES", 10_000)
    for tensor in model.graph.initializer:
        refer(tensor, "net.data", length=4000)
    path = saved(model, tmp_path)
    (tmp_path / "net.data").write_bytes(bytes(4000))
    with pytest.raises(UnsafeFileError, match="and its weights are larger than"):
        read_onnx(path)


def test_weights_of_constants_inside_are_watched_too(model: onnx.ModelProto, tmp_path: Path) -> None:
    value = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "value")
    refer(value, "../secret")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=value))
    with pytest.raises(UnsafeFileError, match="outside its folder"):
        read_onnx(saved(model, tmp_path))


def test_an_enormous_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "net.onnx").open("wb") as file:
        file.truncate(MOST_GRAPH_BYTES + 1)  # sparse: takes no room
    with pytest.raises(UnsafeFileError, match="is larger than 2 GiB"):
        read_onnx(tmp_path / "net.onnx")


def with_custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def with_custom_operator_inside(model: onnx.ModelProto) -> None:
    foreign = helper.make_node("Magic", ["y"], ["z"], domain="com.example")
    body = helper.make_graph([foreign], "body", [], [onnx.ValueInfoProto(name="z")])
    model.graph.node.append(helper.make_node("If", ["y"], ["w"], then_branch=body, else_branch=body))


def with_optimised_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type, model.graph.node[0].domain = "FusedConv", "com.microsoft"


@pytest.mark.parametrize(
    ("change", "operator"),
    [
        (with_custom_operator, "com.example.Conv"),
        (with_custom_operator_inside, "com.example.Magic"),
        (with_optimised_operator, "com.microsoft.FusedConv"),
    ],
)
def test_operators_of_libraries_are_refused_by_name(
    model: onnx.ModelProto, tmp_path: Path, change: Callable[[onnx.ModelProto], None], operator: str
) -> None:
    change(model)
    with pytest.raises(UnsafeFileError, match=f"operators that need libraries: {operator}; export it with"):
        read_onnx(saved(model, tmp_path))


def test_operators_that_there_are_not_are_named(model: onnx.ModelProto, tmp_path: Path) -> None:
    model.graph.node[1].op_type, model.graph.node[2].op_type = "Swish9000", "Deform"
    with pytest.raises(BackboneError, match="that opset 17 does not have: Deform, Swish9000"):
        read_onnx(saved(model, tmp_path))


@pytest.mark.parametrize("version", [1, 6, 99])
def test_opsets_that_cannot_be_used_are_named(model: onnx.ModelProto, tmp_path: Path, version: int) -> None:
    model.opset_import[0].version = version
    with pytest.raises(BackboneError, match=f"is of opset {version}; expected 7 to "):
        read_onnx(saved(model, tmp_path))


def test_loops_are_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["z"], body=helper.make_graph([], "body", [], [])))
    with pytest.raises(BackboneError, match="uses Loop; networks with loops cannot be used"):
        read_onnx(saved(model, tmp_path))


def test_functions_are_refused_with_a_way_out(model: onnx.ModelProto, tmp_path: Path) -> None:
    model.functions.append(
        helper.make_function("own", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [])
    )
    with pytest.raises(BackboneError, match=r"functions of its own \(own\.Twice\); write it anew with"):
        read_onnx(saved(model, tmp_path))


def test_another_name_for_onnx_is_understood(model: onnx.ModelProto, tmp_path: Path) -> None:
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    assert {node.domain for node in read_onnx(saved(model, tmp_path)).graph.node} == {""}


def test_a_file_cut_anywhere_is_no_onnx_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    whole = model.SerializeToString()
    for length in (*range(0, len(whole) - 1, 97), len(whole) - 1):
        (tmp_path / "net.onnx").write_bytes(whole[:length])
        with pytest.raises(BackboneError, match=r"is not an ONNX file|is not valid ONNX"):
            read_onnx(tmp_path / "net.onnx")


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x89PNG\r\n\x1a\n", b"\x08\x08\x12\x00", bytes(1000)])
def test_other_files_are_no_onnx_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(data)
    with pytest.raises(BackboneError, match="is not an ONNX file"):
        read_onnx(tmp_path / "net.onnx")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(BackboneError, match="No such file: '"):
            read_onnx(path)


def test_a_graph_that_makes_no_sense_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    with pytest.raises(BackboneError, match="is not valid ONNX"):
        read_onnx(saved(model, tmp_path))
