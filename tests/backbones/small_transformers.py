"""A small vision transformer as an ONNX graph, written as exporters write those of transformers, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from small_networks import SIZE, Net

WIDTH, HEADS, PATCH = 24, 2, 8
"""Width of a token, number of attention's heads, and side of a patch in pixels."""


def save_vit(
    path: Path,
    *,
    blocks: int = 2,
    registers: int = 0,
    class_token: bool = True,
    dynamic: bool = False,
    projects: bool = False,
    text: bool = False,
    opset: int = 17,
    external: str = "",
) -> Path:
    """Write N×3×32×32 to tokens, 16 of them patches, as `last_hidden_state`.

    Args:
        path: the file.
        blocks: number of blocks of attention and two layers.
        registers: number of tokens between class token and patches.
        class_token: whether there is one.
        dynamic: whether all sides of the input are left open, as Optimum does it.
        projects: whether there are `pooler_output` and, last of all, `image_embeds`, as in CLIP.
        text: whether there is a text tower, too, with `input_ids` and `text_embeds`.
        opset: version of ONNX's operators.
        external: name of a file beside, for the weights; empty to keep them inside.
    """
    sides = ["batch_size", "num_channels", "height", "width"] if dynamic else ["batch_size", 3, SIZE, SIZE]
    net = Net(shape=sides, name="pixel_values")
    outputs = {"last_hidden_state": 3}
    patches = net.op("Conv", "pixel_values", net.random(WIDTH, 3, PATCH, PATCH), net.random(WIDTH), strides=[PATCH] * 2)
    # N×C×h×w to N×C×(h·w) by what the shape says, as torch's exporter writes flatten(2).
    sides_of = net.op("Shape", patches)
    kept = net.op("Slice", sides_of, np.array([0]), np.array([2]), np.array([0]))
    flat = net.op("Reshape", patches, net.op("Concat", kept, np.array([-1]), axis=0))
    x = net.op("Transpose", flat, perm=[0, 2, 1])
    batch = net.op("Gather", net.op("Shape", "pixel_values"), np.array([0]), axis=0)

    def expanded(count: int) -> str:
        shape = net.op("Concat", batch, np.array([count, WIDTH]), axis=0)
        return net.op("Expand", net.random(1, count, WIDTH) + 0.1, shape)

    count = (SIZE // PATCH) ** 2
    if class_token:
        x = net.op("Concat", expanded(1), x, axis=1)
        count += 1
    x = net.op("Add", x, net.random(1, count, WIDTH))
    if registers:
        first = net.op("Slice", x, np.array([0]), np.array([1]), np.array([1]))
        rest = net.op("Slice", x, np.array([1]), np.array([np.iinfo(np.int64).max]), np.array([1]))
        x = net.op("Concat", first, expanded(registers), rest, axis=1)
    for _ in range(blocks):
        x = net.op("Add", x, _attention(net, _norm(net, x)))
        x = net.op("Add", x, _two_layers(net, _norm(net, x)))
    _norm(net, x, out="last_hidden_state")
    if projects:
        cls = net.op("Gather", "last_hidden_state", np.array(0), axis=1)
        _norm(net, cls, out="pooler_output")
        net.op("MatMul", "pooler_output", net.random(WIDTH, 10), out="image_embeds")
        outputs |= {"pooler_output": 2, "image_embeds": 2}
    inputs = [net.input]
    if text:
        inputs.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "length"]))
        words = net.op("Gather", net.random(50, WIDTH), "input_ids")
        net.op("ReduceMean", words, axes=[1], keepdims=0, out="text_embeds")
        outputs["text_embeds"] = 2
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}_{side}" for side in range(rank)])
        for name, rank in outputs.items()
    ]
    graph = helper.make_graph(net.nodes, "vit", inputs, infos, net.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def _norm(net: Net, x: str, *, out: str | None = None) -> str:
    return net.op("LayerNormalization", x, net.random(WIDTH) + 1, net.random(WIDTH), axis=-1, epsilon=1e-6, out=out)


def _dense(net: Net, x: str, before: int, after: int) -> str:
    return net.op("Add", net.op("MatMul", x, net.random(before, after)), net.random(after) / 10)


def _attention(net: Net, x: str) -> str:
    heads = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):  # queries, keys, values
        split = net.op("Reshape", _dense(net, x, WIDTH, WIDTH), np.array([0, -1, HEADS, WIDTH // HEADS]))
        heads.append(net.op("Transpose", split, perm=perm))
    queries, keys, values = heads
    scores = net.op("Mul", net.op("MatMul", queries, keys), np.array((WIDTH / HEADS) ** -0.5))
    found = net.op("MatMul", net.op("Softmax", scores, axis=-1), values)
    together = net.op("Reshape", net.op("Transpose", found, perm=[0, 2, 1, 3]), np.array([0, -1, WIDTH]))
    return _dense(net, together, WIDTH, WIDTH)


def _two_layers(net: Net, x: str) -> str:
    wide = _dense(net, x, WIDTH, 4 * WIDTH)
    erf = net.op("Erf", net.op("Div", wide, np.array(2**0.5)))
    gelu = net.op("Mul", net.op("Mul", wide, net.op("Add", erf, np.array(1.0))), np.array(0.5))
    return _dense(net, gelu, 4 * WIDTH, WIDTH)
