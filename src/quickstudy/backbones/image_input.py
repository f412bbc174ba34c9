"""What a network takes: which of its inputs is the image, of what size, with the channels where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from quickstudy.errors import BackboneError

LAYOUTS = ("NCHW", "NHWC")
_LARGEST_SIDE = 4096


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """What a network takes."""

    name: str
    layout: str
    """`NCHW` or `NHWC`."""
    size: int
    """Side of the square, in pixels."""
    as_bytes: bool
    """uint8; float32 otherwise."""
    batch: int | None
    """The number of images at a time that the file is made for; None for any."""


def find_image_input(model: onnx.ModelProto, *, size: int | None = None, layout: str | None = None) -> ImageInput:
    """The one input of a network that takes images.

    Args:
        model: as it came.
        size: side of the square in pixels, where the file leaves it open.
        layout: `NCHW` or `NHWC`, where the shape leaves it open.

    Raises:
        BackboneError: there is none, or several, or one that no colour image fits into, or something is left open.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in constants]
    described = ", ".join(f"'{info.name}' ({'×'.join(str(side) for side in _sides(info))})" for info in inputs)
    if len(inputs) != 1:
        raise BackboneError(f"The network takes {len(inputs)} inputs: {described or 'none'}; expected one, the image")
    sides, name, kind = _sides(inputs[0]), inputs[0].name, inputs[0].type.tensor_type.elem_type
    if len(sides) != 4:
        raise BackboneError(f"The network takes {described}; expected images: N×3×height×width or N×height×width×3")
    if kind not in (TensorProto.FLOAT, TensorProto.UINT8):
        raise BackboneError(
            f"The network takes {described} in {TensorProto.DataType.Name(kind).lower()}; "
            "expected float32 or uint8. Export it in float32"
        )
    layout = layout or _layout_of(sides, described)
    if layout not in LAYOUTS:
        raise BackboneError(f"Unknown layout '{layout}'; there are: {', '.join(LAYOUTS)}")
    channels = sides[layout.index("C")]
    height, width = sides[layout.index("H")], sides[layout.index("W")]
    if isinstance(channels, int) and channels != 3:
        raise BackboneError(f"The network takes {described}, {channels} channels in {layout}; expected 3, RGB")
    known = {side for side in (height, width) if isinstance(side, int)}
    if len(known) > 1:
        raise BackboneError(f"The network takes {described}; expected squares. Export it with a square input")
    if size is None and not known:
        raise BackboneError(f"The network takes {described}, of any size; say which with --size, such as --size 224")
    if size is not None and known not in (set(), {size}):
        raise BackboneError(
            f"--size is {size}, but the file is made for {known.pop()} pixels; leave --size out, or export it anew"
        )
    side = size or known.pop()
    if not 1 < side <= _LARGEST_SIDE:
        raise BackboneError(f"The input would be {side} pixels a side; expected at most {_LARGEST_SIDE}")
    batch = sides[0] if isinstance(sides[0], int) else None
    return ImageInput(name=name, layout=layout, size=side, as_bytes=kind == TensorProto.UINT8, batch=batch)


def _sides(info: onnx.ValueInfoProto) -> list[int | str]:
    sides = info.type.tensor_type.shape.dim
    return [side.dim_value if side.dim_value > 0 else side.dim_param or "?" for side in sides]


def _layout_of(sides: Sequence[int | str], described: str) -> str:
    first, last = sides[1] in (1, 3), sides[3] in (1, 3)
    if first == last:
        raise BackboneError(
            f"The network takes {described}; say which side the channels are with --layout NCHW or NHWC"
        )
    return "NCHW" if first else "NHWC"
