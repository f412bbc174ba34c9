"""What a network takes is seen by its input's shape, or the error says what is missing."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import pytest
from onnx import TensorProto, helper

from quickstudy.backbones.graphs.cleaning import ImageInput, find_image_input
from quickstudy.errors import BackboneError, OptionError


def taking(*shapes: Sequence[int | str], kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in zip("xyz", shapes, strict=False)
    ]
    return helper.make_model(helper.make_graph([], "net", inputs, []))


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        (("N", 3, 224, 224), {}, ("NCHW", 224, None)),
        ((1, 3, 224, 224), {}, ("NCHW", 224, 1)),
        ((8, 299, 299, 3), {}, ("NHWC", 299, 8)),
        ((-1, 3, -1, -1), {"size": 96}, ("NCHW", 96, None)),
        (("N", "h", "w", 3), {"size": 96}, ("NHWC", 96, None)),
        (("N", 3, "h", "w"), {"size": 96}, ("NCHW", 96, None)),
        (("N", 3, 224, "w"), {}, ("NCHW", 224, None)),
        (("N", 3, 224, 224), {"size": 224}, ("NCHW", 224, None)),
        (("N", "c", 64, 64), {"layout": "NCHW"}, ("NCHW", 64, None)),
        (("N", 3, 3, 3), {"layout": "NHWC"}, ("NHWC", 3, None)),
        (("N", "a", "b", "c"), {"layout": "NHWC", "size": 64}, ("NHWC", 64, None)),
    ],
)
def test_inputs_that_take_images(
    shape: Sequence[int | str], options: dict[str, object], expected: tuple[str, int, int | None]
) -> None:
    layout, size, batch = expected
    found = find_image_input(taking(shape), **options)
    assert found == ImageInput(name="x", layout=layout, size=size, as_bytes=False, batch=batch)
    assert find_image_input(taking(shape, kind=TensorProto.UINT8), **options).as_bytes


@pytest.mark.parametrize(
    ("shapes", "options", "words"),
    [
        ([], {}, "takes 0 inputs: none; expected one, the image"),
        ([("N", 3, 8, 8), ("N", 3, 8, 8)], {}, "takes 2 inputs: 'x' .*, 'y' .*; expected one"),
        ([("N", 10)], {}, r"takes 'x' \(N×10\); expected images"),
        ([("N", 3, 8, 8, 8)], {}, "expected images"),
        ([("N", 1, 28, 28)], {}, "1 channels in NCHW; expected 3, RGB"),
        ([("N", 3, 100, 200)], {}, "expected squares"),
        ([("N", 3, "h", "w")], {}, "of any size; choose one with --size"),
        ([("N", 3, 224, 224)], {"size": 256}, "--size is 256, but the file is made for 224 pixels"),
        ([("N", 10, 224, 224)], {}, "say which side the channels are with --layout"),
        ([("N", "c", 224, 224)], {}, "say which side the channels are with --layout"),
        ([("N", 3, 3, 3)], {}, "say which side the channels are with --layout"),
        ([("N", 3, 8, 8)], {"layout": "NHWC"}, "8 channels in NHWC; expected 3"),
        ([("N", 3, 100_000, 100_000)], {}, "100000 pixels a side; expected at most 4096"),
        ([("N", 3, "h", "w")], {"size": -5}, "-5 pixels a side"),
    ],
)
def test_inputs_that_do_not(shapes: list[Sequence[int | str]], options: dict[str, object], words: str) -> None:
    with pytest.raises(BackboneError, match=words):
        find_image_input(taking(*shapes), **options)


def test_layouts_that_there_are_not() -> None:
    with pytest.raises(OptionError, match="Unknown layout 'HWCN'; there are: NCHW, NHWC"):
        find_image_input(taking(("N", 3, 224, 224)), layout="HWCN")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.STRING])
def test_other_types_are_named(kind: int) -> None:
    with pytest.raises(BackboneError, match=f"in {TensorProto.DataType.Name(kind).lower()}; expected float32 or uint8"):
        find_image_input(taking(("N", 3, 8, 8), kind=kind))
