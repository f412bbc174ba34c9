"""Models in float16 and in 8 bits: what they compute, what is compared, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from quickstudy.backbones.graphs.runtime import open_session, optimised
from quickstudy.errors import ModelError, WriteError
from quickstudy.files import sha256_of_file
from quickstudy.images.decoding import InputSpec
from quickstudy.models import conversion
from quickstudy.models.checks import ComparedPhoto, photos_for_checking
from quickstudy.models.conversion import TOLERANCES, convert, halved, quantised
from quickstudy.models.format import golden_images
from quickstudy.models.loading import load
from small_backbones import SIDE, small_graph
from small_models import CLASSES, write_small_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("conversion") / "small.onnx")


@pytest.fixture(scope="module")
def photos(photo_source: Path) -> list[Path]:
    return sorted(photo_source.rglob("*.jpg"))


def probabilities(graph: onnx.ModelProto) -> np.ndarray:
    [given] = open_session(graph.SerializeToString()).run(
        ["probabilities"], {"image": golden_images(InputSpec(size=SIDE))}
    )
    return given


class TestHalf:
    def test_is_the_graph_with_its_large_weights_rounded_to_float16(self) -> None:
        graph = small_graph()
        rounded = optimised(graph)
        sizes = {}
        for tensor in rounded.graph.initializer:
            values = numpy_helper.to_array(tensor)
            sizes[tensor.name] = values.size
            if values.size >= 256 and values.dtype == np.float32:
                kept = values.astype(np.float16).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(kept, tensor.name))
        half = halved(graph)
        np.testing.assert_allclose(probabilities(half), probabilities(rounded), rtol=0, atol=1e-7)
        kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
        wide = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16}
        assert wide == {f"{name}/half" for name, size in sizes.items() if size >= 256}
        assert len(wide) >= 3

    def test_weights_that_float16_cannot_hold_stay(self) -> None:
        graph = small_graph()
        [tensor] = [tensor for tensor in graph.graph.initializer if tensor.name == "c4.kernel"]
        values = numpy_helper.to_array(tensor).copy()
        values[0, 0, 0, 0] = 1e6
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        half = halved(graph)
        np.testing.assert_allclose(probabilities(half), probabilities(graph), rtol=0, atol=1e-2)


class TestInt8:
    def test_convolutions_but_the_first_three_and_the_last_are_in_8_bits(self, path: Path, photos: list[Path]) -> None:
        graph = onnx.load(path)
        result = quantised(graph, load(path).input, photos)
        made = {name: node for node in result.graph.node for name in node.output}
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
        convolutions = [node for node in result.graph.node if node.op_type == "Conv"]
        assert len(convolutions) == 6
        in_eight_bits = [made.get(node.input[1]) for node in convolutions]
        assert [node is not None for node in in_eight_bits] == [False, False, False, True, True, False]
        for node in in_eight_bits[3:5]:
            assert node is not None
            assert node.op_type == "DequantizeLinear"
            kernel, scales = weights[node.input[0]], weights[node.input[1]]
            assert kernel.dtype == np.int8
            assert np.abs(kernel.astype(int)).max() <= 64, "7 bits, so that no processor overflows"
            assert scales.shape == (16,), "one a channel"
        assert {node.domain for node in result.graph.node} == {""}
        assert [entry.domain for entry in result.opset_import] == [""]
        assert np.abs(probabilities(result) - probabilities(graph)).max() < 0.1

    def test_says_how_many_photos_it_needs(self, path: Path, photos: list[Path], tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"none")
        with pytest.raises(ModelError, match="7 of 8 images to calibrate on could be used; at least 8 are needed"):
            quantised(onnx.load(path), load(path).input, [*photos[:7], tmp_path / "bad.jpg"])

    def test_refuses_networks_without_convolutions(self, photos: list[Path]) -> None:
        graph = small_graph()
        kept = [node for node in graph.graph.node if node.op_type in ("Cast", "Flatten", "Softmax")]
        kept[1].input[0], kept[2].input[0] = kept[0].output[0], kept[1].output[0]
        kept[0].input[0] = "image"
        del graph.graph.node[:]
        graph.graph.node.extend(kept)
        graph.graph.output[0].type.tensor_type.ClearField("shape")
        with pytest.raises(ModelError, match="0 convolutions, too few to gain by 8 bits; try --fp16"):
            quantised(graph, InputSpec(size=SIDE), photos)


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_the_export_is_a_whole_model_that_says_where_it_comes_from(
    path: Path, photos: list[Path], photo_source: Path, tmp_path: Path, kind: conversion.Form
) -> None:
    done = convert(
        path,
        tmp_path / "other.onnx",
        kind,
        calibrate=photos,
        check=photos_for_checking(photo_source, load(path), None),
        force=True,
    )
    before, after = load(path), load(tmp_path / "other.onnx")
    assert after.verify() <= after.golden_tolerance
    assert after.golden_tolerance == {"int8": 0.1, "fp16": 1e-4}[kind]
    assert (after.classes, after.input) == (before.classes, before.input)
    assert after.metadata["training"] == before.metadata["training"]
    export = after.metadata["export"]
    assert export == {"kind": kind, "source": sha256_of_file(path), "golden_difference": done.golden_difference}
    images = golden_images(InputSpec(size=SIDE))
    difference = np.abs(after.predict_pixels(images) - before.predict_pixels(images)).max()
    assert done.golden_difference == pytest.approx(difference, abs=1e-6)
    assert done.agreement is not None
    assert done.agreement.labelled is not None
    assert done.agreement.n == done.agreement.labelled.first.n == len(photos)
    expected = [before.predict(photo) == after.predict(photo) for photo in photos]
    assert done.agreement.same == sum(expected)
    assert done.bytes_after == (tmp_path / "other.onnx").stat().st_size
    assert done.to_dict()["agreement"]["n"] == len(photos)


def test_beyond_the_tolerance_nothing_is_written_unless_forced(
    path: Path, photo_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(TOLERANCES["fp16"], same=1.01)
    monkeypatch.setitem(TOLERANCES, "fp16", strict)
    check = photos_for_checking(photo_source, load(path), None)
    output = tmp_path / "half.onnx"
    with pytest.raises(
        ModelError, match=r"was not written: as fp16, .* 36 of 36 images .*, 100.0 % \(tolerance 101 %\).*--force"
    ):
        convert(path, output, "fp16", check=check)
    assert list(tmp_path.iterdir()) == []
    done = convert(path, output, "fp16", check=check, force=True)
    assert len(done.complaints) == 1
    assert load(output).classes == CLASSES


def test_another_model_is_not_written_over(path: Path, tmp_path: Path) -> None:
    other, half = Path(shutil.copy(path, tmp_path / "other.onnx")), tmp_path / "half.onnx"
    before = other.read_bytes()
    with pytest.raises(WriteError, match=r"other\.onnx' already, which is no export as fp16 and would be lost"):
        convert(path, other, "fp16")
    assert other.read_bytes() == before
    convert(path, half, "fp16")
    convert(path, half, "fp16")
    half.write_text("my notes")
    with pytest.raises(WriteError):
        convert(path, half, "fp16")
    assert half.read_text() == "my notes"


def test_images_to_check_on_that_cannot_be_used_are_no_check(path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"none")
    with pytest.raises(ModelError, match=r"the only image to check on could not be used.*bad\.jpg"):
        convert(path, tmp_path / "half.onnx", "fp16", check=photos_for_checking(tmp_path, load(path), None))


def test_a_source_that_fails_its_golden_checks_is_not_exported(path: Path, tmp_path: Path) -> None:
    graph = onnx.load(path)
    [entry] = [entry for entry in graph.metadata_props if entry.key == "quickstudy.golden"]
    entry.value = entry.value.replace("0.", "0.9", 1)
    from quickstudy.models.format import sealed

    (tmp_path / "wrong.onnx").write_bytes(sealed(graph))
    with pytest.raises(ModelError, match="fails its golden checks"):
        convert(tmp_path / "wrong.onnx", tmp_path / "half.onnx", "fp16")


@pytest.mark.heavy
def test_fp16_of_the_real_network_on_real_photos(test_data: Path, tmp_path: Path) -> None:
    """With a head from a few photos; every bottleneck is computed anew, so few."""
    import quickstudy

    photos = tmp_path / "photos"
    for name in ("hat", "pants"):
        (photos / name).mkdir(parents=True)
        for file in sorted((test_data / "clothing" / "train" / name).glob("*.jpg"))[:8]:
            (photos / name / file.name).symlink_to(file)
    model = quickstudy.retrain(photos, tmp_path / "model.onnx", cache=tmp_path / "cache").model
    check = [ComparedPhoto(path=path, labels=(path.parent.name,)) for path in sorted(photos.rglob("*.jpg"))]
    done = convert(model, tmp_path / "half.onnx", "fp16", check=check)
    assert done.agreement is not None
    assert done.agreement.same == done.agreement.n == 16
    assert done.bytes_after < 0.51 * done.bytes_before
    eight = convert(model, tmp_path / "int8.onnx", "int8", calibrate=[photo.path for photo in check], check=check)
    assert eight.agreement is not None
    assert eight.agreement.same >= 15
    assert eight.bytes_after < 0.4 * eight.bytes_before
