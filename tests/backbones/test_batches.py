"""Graphs take any number of images, and the size of all that is in them is known before they are run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from small_networks import SIZE, Net, photos, run

from quickstudy.backbones.graphs.batches import free_batch, settle_shapes
from quickstudy.backbones.graphs.untrusted import check_graph

HEADS, WIDTH = 2, 6


def given(count: int = 3) -> np.ndarray:
    return (photos(count).transpose(0, 3, 1, 2) / 255).astype(np.float32)


def test_shapes_for_one_image_become_shapes_for_any_number() -> None:
    net = Net(shape=(1, 3, SIZE, SIZE))
    x = net.op("Reshape", "x", np.array([1, 3, -1]), allowzero=1)
    output = net.op("Reshape", x, np.array([-1, 3, SIZE, SIZE]))
    model = net.model(output)
    free_batch(model)
    np.testing.assert_array_equal(run(model, output, given()), given())
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def attention_over_heads_times_images() -> tuple[onnx.ModelProto, str]:
    """One query, the same for all images, over the rows of each: heads and images in one axis, as torch writes it."""
    net = Net(shape=("N", 3, SIZE, SIZE))
    images = net.op("Gather", net.op("Shape", "x"), np.array([0]), axis=0)
    both = net.op("Mul", images, np.array([HEADS]))
    rows = net.op("MatMul", net.op("ReduceMean", "x", axes=[1], keepdims=0), net.random(SIZE, WIDTH))  # N×rows×width
    keys = net.op("Transpose", rows, perm=[1, 0, 2])
    shape = net.op("Concat", np.array([SIZE]), both, np.array([WIDTH // HEADS]), axis=0)
    keys = net.op("Transpose", net.op("Reshape", keys, shape), perm=[1, 0, 2])
    query = net.op("Tile", net.random(1, 1, WIDTH), net.op("Concat", np.array([1]), images, np.array([1]), axis=0))
    shape = net.op("Concat", both, np.array([1, WIDTH // HEADS]), axis=0)
    query = net.op("Reshape", net.op("Exp", query), shape)
    scores = net.op("MatMul", query, net.op("Transpose", keys, perm=[0, 2, 1]))
    found = net.op("MatMul", net.op("Softmax", scores, axis=-1), keys)
    output = net.op("Reshape", found, net.op("Concat", images, np.array([-1]), axis=0))
    return net.model(output), output


def test_what_follows_from_the_number_of_images_alone_is_settled(tmp_path: Path) -> None:
    model, output = attention_over_heads_times_images()
    expected = {count: run(model, output, given(count)) for count in (1, 2, 5)}
    settle_shapes(model)
    assert not {"Shape", "Tile", "Concat"} & {node.op_type for node in model.graph.node}
    for count, values in expected.items():
        assert values.shape == (count, WIDTH)
        np.testing.assert_allclose(run(model, output, given(count)), values, rtol=1e-5)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    check_graph(model, tmp_path / "model.onnx")


def test_a_graph_without_arithmetic_on_shapes_stays_as_it_is() -> None:
    net = Net(shape=("N", 3, SIZE, SIZE))
    output = net.op("Reshape", net.conv("x", 3, 8), np.array([0, -1]))
    model = net.model(output)
    before = [node.SerializeToString() for node in model.graph.node]
    settle_shapes(model)
    assert [node.SerializeToString() for node in model.graph.node] == before
