"""ONNX files of all kinds become backbones that compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_networks import CLASSES, SIZE, Net, classifier, photos, run, softmax

from quickstudy.backbones.backbone import add_backbone, imagenet_classes
from quickstudy.backbones.graphs.preprocessing import PREPROCESSINGS, Preprocessing
from quickstudy.backbones.sources.adding import import_onnx, read_classes
from quickstudy.backbones.sources.graph_import import Imported
from quickstudy.errors import BackboneError

NONE = PREPROCESSINGS["none"]
PLAIN = np.array([[0.485], [0.456], [0.406]]), np.array([[0.229], [0.224], [0.225]])


def torch_style(images: np.ndarray) -> np.ndarray:
    """ImageNet's normalisation, written out: N×3×H×W."""
    mean, std = (values.reshape(1, 3, 1, 1) for values in PLAIN)
    return ((images.transpose(0, 3, 1, 2) / 255 - mean) / std).astype(np.float32)


def probabilities(imported: Imported, images: np.ndarray) -> np.ndarray:
    return run(imported.graph, "probabilities", images)


def check(imported: Imported) -> None:
    """What holds for every backbone."""
    graph = imported.graph.graph
    onnx.checker.check_model(imported.graph, full_check=True)
    assert [(i.name, i.type.tensor_type.elem_type) for i in graph.input] == [("image", TensorProto.UINT8)]
    sides = [side.dim_param or side.dim_value for side in graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["N", imported.input_spec.size, imported.input_spec.size, 3]
    assert [output.name for output in graph.output] == ["probabilities" if imported.classes else "features"]
    assert imported.cuts[-1] == "features"
    assert imported.difference <= 1e-5
    tensors = {name for node in graph.node for name in node.output}
    assert set(imported.cuts) <= tensors
    assert not {tensor.name for tensor in graph.initializer} - {name for node in graph.node for name in node.input}


def test_a_classifier_with_logits(tmp_path: Path) -> None:
    net, output = classifier()
    imported = import_onnx(net.save(tmp_path / "My net.onnx", output), preprocessing=PREPROCESSINGS["torch"])
    check(imported)
    images = photos()
    expected = softmax(run(tmp_path / "My net.onnx", output, torch_style(images)))
    np.testing.assert_allclose(probabilities(imported, images), expected, atol=1e-6)
    assert imported.name == "my_net"
    assert imported.origin == "My net.onnx"
    assert imported.cuts == ("stem", "block_1", "head", "features")
    assert imported.classes == tuple(f"class_{number}" for number in range(CLASSES))
    assert run(imported.graph, "features", images).shape == (3, 16)
    assert run(imported.graph, "block_1", images).shape == (3, 8, 16, 16)


def test_it_can_be_kept_and_cut(tmp_path: Path) -> None:
    net, output = classifier()
    imported = import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=NONE)
    added = add_backbone(
        "mine",
        imported.graph,
        tmp_path,
        input_spec=imported.input_spec,
        cuts=imported.cuts,
        classes=imported.classes,
        origin=imported.origin,
    )
    assert [(cut.name, cut.shape, cut.parameters_after) for cut in added.cuts] == [
        # 3×3 kernels of 8×8 twice and of 8×16, with their biases.
        ("stem", (8, 16, 16), 2 * (9 * 64 + 8) + 9 * 128 + 16),
        ("block_1", (8, 16, 16), 9 * 128 + 16),
        ("head", (16, 8, 8), 0),
        ("features", (16,), 0),
    ]
    assert added.cuts[0].multiply_adds == 16 * 16 * 8 * 27


def test_channels_last_with_softmax(tmp_path: Path) -> None:
    net = Net(shape=("batch", SIZE, SIZE, 3))
    x = net.body(net.op("Transpose", "x", perm=[0, 3, 1, 2]))
    x = net.op("ReduceMean", net.op("Transpose", x, perm=[0, 2, 3, 1]), axes=[1, 2], keepdims=0)
    output = net.op("Softmax", net.op("Add", net.op("MatMul", x, net.random(16, CLASSES)), net.random(CLASSES)))
    imported = import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=PREPROCESSINGS["tf"])
    check(imported)
    images = photos()
    given = (images / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(probabilities(imported, images), run(tmp_path / "net.onnx", output, given), atol=1e-6)
    assert imported.cuts == ("stem", "block_1", "head", "features")
    assert [node.op_type for node in imported.graph.graph.node].count("Transpose") == 1


def test_caffe_takes_blue_first(tmp_path: Path) -> None:
    net, output = classifier()
    imported = import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=PREPROCESSINGS["caffe"])
    images = photos()
    given = images[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32)
    expected = softmax(run(tmp_path / "net.onnx", output, given.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(probabilities(imported, images), expected, atol=1e-5)


def test_a_network_that_takes_bytes(tmp_path: Path) -> None:
    net = Net(shape=("N", SIZE, SIZE, 3), dtype=TensorProto.UINT8)
    x = net.op("Mul", net.op("Cast", "x", to=TensorProto.FLOAT), np.array(1 / 255.0))
    output = net.logits(net.pooled(net.body(net.op("Transpose", x, perm=[0, 3, 1, 2]))))
    imported = import_onnx(net.save(tmp_path / "net.onnx", output))
    check(imported)
    images = photos()
    np.testing.assert_allclose(
        probabilities(imported, images), softmax(run(tmp_path / "net.onnx", output, images)), atol=1e-6
    )
    with pytest.raises(BackboneError, match="'x' takes bytes"):
        import_onnx(tmp_path / "net.onnx", preprocessing=PREPROCESSINGS["tf"])


@pytest.mark.parametrize("high", [1, 255])
def test_normalisation_in_the_graph_says_what_it_is_made_for(tmp_path: Path, high: int) -> None:
    net = Net()
    mean, std = (high * values.reshape(1, 3, 1, 1) for values in PLAIN)
    x = net.op("Div", net.op("Sub", "x", mean), std)
    output = net.logits(net.pooled(net.body(x)))
    imported = import_onnx(net.save(tmp_path / "net.onnx", output))
    check(imported)
    images = photos()
    expected = softmax(run(tmp_path / "net.onnx", output, (images.transpose(0, 3, 1, 2) * (high / 255)).astype("f4")))
    np.testing.assert_allclose(probabilities(imported, images), expected, atol=1e-5)
    assert imported.found["preprocessing"] == f"in the network, which takes values from 0 to {high}"


def test_normalisation_nobody_tells_is_an_error_that_lists_what_there_is(tmp_path: Path) -> None:
    net, output = classifier()
    with pytest.raises(BackboneError, match="does not say how pixel values are scaled before 'x'") as caught:
        import_onnx(net.save(tmp_path / "net.onnx", output))
    for name in PREPROCESSINGS:
        assert f"{name}: " in str(caught.value)
    net = Net()
    output = net.logits(net.pooled(net.body(net.op("Mul", "x", np.array(0.9)))))
    with pytest.raises(BackboneError, match=r"standard deviation 1\.11 to 1\.11, which fits neither"):
        import_onnx(net.save(tmp_path / "net.onnx", output))


def test_a_shape_that_the_network_computes_from_its_input_is_folded(tmp_path: Path) -> None:
    """As PyTorch's `x.view(x.size(0), -1)` used to be exported; it would lead around every cut."""
    net = Net()
    pooled = net.op("GlobalAveragePool", net.body("x"))
    batch = net.op("Gather", net.op("Shape", "x"), np.array(0), axis=0)
    shape = net.op("Concat", net.op("Unsqueeze", batch, np.array([0])), np.array([-1]), axis=0)
    output = net.logits(net.op("Reshape", pooled, shape))
    imported = import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=NONE)
    check(imported)
    assert not {"Shape", "Gather", "Concat"} & {node.op_type for node in imported.graph.graph.node}
    assert imported.cuts == ("stem", "block_1", "head", "features")
    images = photos(4)
    one_by_one = np.concatenate([probabilities(imported, image[None]) for image in images])
    np.testing.assert_allclose(probabilities(imported, images), one_by_one, atol=1e-6)


@pytest.mark.parametrize("shape", [[1, 16], [1, -1], [-1, 16]])
def test_a_file_for_one_image_takes_any_number(tmp_path: Path, shape: list[int]) -> None:
    net = Net(shape=(1, 3, SIZE, SIZE))
    output = net.logits(net.op("Reshape", net.op("GlobalAveragePool", net.body("x")), np.array(shape)))
    imported = import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=NONE)
    check(imported)
    assert probabilities(imported, photos(4)).shape == (4, CLASSES)


def test_a_file_that_cannot_take_several_images_says_so(tmp_path: Path) -> None:
    net = Net(shape=(1, 3, SIZE, SIZE))
    x = net.relu(net.op("Squeeze", net.body("x"), np.array([0])))
    output = net.logits(net.pooled(net.op("Unsqueeze", x, np.array([0]))))
    with pytest.raises(BackboneError, match="takes only one image at a time"):
        import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=NONE)
    net = Net(shape=(8, 3, SIZE, SIZE))
    with pytest.raises(BackboneError, match="is made for 8 images at a time"):
        import_onnx(net.save(tmp_path / "net.onnx", net.pooled(net.body("x"))), preprocessing=NONE)


def test_what_joins_images_and_places_takes_any_number(tmp_path: Path) -> None:
    """As layers on N·H·W×C do, between two changes of shape."""
    net = Net(shape=(1, 3, SIZE, SIZE))
    x = net.op("Transpose", net.body("x"), perm=[0, 2, 3, 1])
    x = net.op("Gemm", net.op("Reshape", x, np.array([64, 16])), net.random(16, 16))
    x = net.op("Transpose", net.op("Reshape", x, np.array([1, 8, 8, 16])), perm=[0, 3, 1, 2])
    output = net.logits(net.pooled(net.relu(x)))
    imported = import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=NONE)
    check(imported)
    images = photos(4)
    one_by_one = np.concatenate([probabilities(imported, image[None]) for image in images])
    np.testing.assert_allclose(probabilities(imported, images), one_by_one, atol=1e-6)


def test_a_transformers_class_token_takes_the_other_way(tmp_path: Path) -> None:
    """Folded for one image, the token would be a constant for one image."""
    net = Net()
    patches = net.op("Conv", "x", net.random(12, 3, 8, 8), strides=[8, 8], kernel_shape=[8, 8])
    tokens = net.op("Transpose", net.op("Reshape", patches, np.array([0, 12, 16])), perm=[0, 2, 1])
    batch = net.op("Slice", net.op("Shape", "x"), np.array([0]), np.array([1]))
    shape = net.op("Concat", batch, np.array([1, 12]), axis=0)
    tokens = net.op("Concat", net.op("Expand", net.random(1, 1, 12), shape), tokens, axis=1)
    mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", tokens, net.random(12, 17))), tokens)
    output = net.logits(net.op("Gather", mixed, np.array(0), axis=1), before=12)
    imported = import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=PREPROCESSINGS["tf"])
    check(imported)
    assert imported.cuts[-1] == "features"
    images = photos()
    given = (images.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
    expected = softmax(run(tmp_path / "net.onnx", output, given))
    np.testing.assert_allclose(probabilities(imported, images), expected, atol=1e-6)


def test_a_classifier_that_is_a_convolution(tmp_path: Path) -> None:
    net = Net()
    pooled = net.op("GlobalAveragePool", net.body("x"))
    output = net.op("Softmax", net.op("Flatten", net.conv(pooled, 16, CLASSES, side=1)))
    imported = import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=NONE)
    check(imported)
    assert run(imported.graph, "features", photos()).shape == (3, 16)
    assert len(imported.classes) == CLASSES


def test_a_network_that_classifies_places_and_averages(tmp_path: Path) -> None:
    """As SqueezeNet does: its features are the average of what the last convolution takes."""
    net = Net()
    before = net.body("x")
    output = net.op("Softmax", net.pooled(net.relu(net.conv(before, 16, CLASSES, side=1))))
    imported = import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=NONE)
    check(imported)
    images = photos()
    given = images.transpose(0, 3, 1, 2).astype(np.float32)
    expected = run(tmp_path / "net.onnx", before, given).mean(axis=(2, 3))
    np.testing.assert_allclose(run(imported.graph, "features", images), expected, rtol=1e-4)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_network_without_a_classifier(tmp_path: Path, layout: str, pooled: bool) -> None:
    net = Net(shape=("N", 3, SIZE, SIZE) if layout == "NCHW" else ("N", SIZE, SIZE, 3))
    x = net.body("x" if layout == "NCHW" else net.op("Transpose", "x", perm=[0, 3, 1, 2]))
    if pooled:
        x = net.pooled(x)
    elif layout == "NHWC":
        x = net.op("Transpose", x, perm=[0, 2, 3, 1])
    imported = import_onnx(net.save(tmp_path / "net.onnx", x), preprocessing=NONE)
    check(imported)
    assert imported.classes == ()
    assert imported.cuts == ("stem", "block_1", "head", "features")
    images = photos()
    given = images.astype(np.float32)
    expected = run(tmp_path / "net.onnx", x, given.transpose(0, 3, 1, 2) if layout == "NCHW" else given)
    if not pooled:
        expected = expected.mean(axis=(2, 3) if layout == "NCHW" else (1, 2))
    np.testing.assert_allclose(run(imported.graph, "features", images), expected, rtol=1e-4)


def test_features_may_be_named(tmp_path: Path) -> None:
    net = Net()
    middle = net.op("Identity", net.relu(net.conv("x", 3, 8, stride=2)), out="the middle")
    output = net.logits(net.pooled(net.conv(middle, 8, 16)))
    imported = import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=NONE, features="the middle")
    check(imported)
    images = photos()
    expected = run(tmp_path / "net.onnx", middle, images.transpose(0, 3, 1, 2).astype(np.float32)).mean(axis=(2, 3))
    np.testing.assert_allclose(run(imported.graph, "features", images), expected, rtol=1e-4)
    assert len(imported.classes) == CLASSES
    last = import_onnx(tmp_path / "net.onnx", preprocessing=NONE, features=output)
    assert last.classes == ()
    assert run(last.graph, "features", images).shape == (3, CLASSES)
    with pytest.raises(BackboneError, match="no tensor 'the muddle'; it has, among others: the middle"):
        import_onnx(tmp_path / "net.onnx", preprocessing=NONE, features="the muddle")


def test_several_labels_an_image_are_no_classes(tmp_path: Path) -> None:
    net, output = classifier()
    imported = import_onnx(net.save(tmp_path / "net.onnx", net.op("Sigmoid", output)), preprocessing=NONE)
    check(imported)
    assert imported.classes == ()
    assert run(imported.graph, "features", photos()).shape == (3, 16)


def test_names_that_are_taken(tmp_path: Path) -> None:
    net = Net(name="image")
    x = net.relu(net.conv("image", 3, 8, stride=2, out="block_1"), out="features")
    x = net.relu(net.op("Add", x, net.conv(x, 8, 8, out="head")), out="stem")
    x = net.relu(net.conv(x, 8, 16), out="probabilities")
    net.logits(net.op("Flatten", net.op("GlobalAveragePool", x), out="input/cast"), out="logits")
    imported = import_onnx(net.save(tmp_path / "net.onnx", "logits"), preprocessing=PREPROCESSINGS["tf"])
    check(imported)
    images = photos()
    given = (images.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
    expected = softmax(run(tmp_path / "net.onnx", "logits", given))
    np.testing.assert_allclose(probabilities(imported, images), expected, atol=1e-6)


def test_files_from_before_initializers_were_no_inputs(tmp_path: Path) -> None:
    net, output = classifier()
    model = net.model(output, opset=8, ir_version=3)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", CLASSES]))
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    onnx.save(model, tmp_path / "net.onnx")
    imported = import_onnx(tmp_path / "net.onnx", preprocessing=NONE)
    check(imported)


def test_classes_by_name_and_by_number(tmp_path: Path) -> None:
    net, output = classifier()
    path = net.save(tmp_path / "net.onnx", output)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\nemu\n")
    names = read_classes(tmp_path / "names.txt")
    assert import_onnx(path, preprocessing=NONE, classes=names).classes == ("ant", "bee", "cat", "dog", "emu")
    with pytest.raises(BackboneError, match="2 names of classes are given, but the network gives 5 classes"):
        import_onnx(path, preprocessing=NONE, classes=names[:2])
    net = Net()
    path = net.save(tmp_path / "net.onnx", net.logits(net.pooled(net.body("x")), classes=1000))
    assert import_onnx(path, preprocessing=NONE).classes == imagenet_classes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"ant\nant\n", "has a name twice or an empty line"),
        (b"ant\n\nbee\n", "has a name twice or an empty line"),
        (b"\xff\xfe", "Cannot read the classes"),
        (None, "Cannot read the classes"),
    ],
)
def test_lists_of_classes_that_are_none(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(BackboneError, match=words):
        read_classes(tmp_path / "names.txt")


def test_a_preprocessing_with_three_deviations(tmp_path: Path) -> None:
    net, output = classifier()
    chosen = Preprocessing(low=0, high=2, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    imported = import_onnx(net.save(tmp_path / "net.onnx", output), preprocessing=chosen)
    check(imported)
    images = photos()
    given = (images / 255 * 2 - [0.1, 0.2, 0.3]) / [1, 2, 4]
    expected = softmax(run(tmp_path / "net.onnx", output, given.transpose(0, 3, 1, 2).astype(np.float32)))
    np.testing.assert_allclose(probabilities(imported, images), expected, atol=1e-6)


def test_any_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """Bytes of everything but the weights, changed at random: names, operators, shapes, versions, lengths."""
    net, output = classifier()
    path = net.save(tmp_path / "net.onnx", output)
    whole = path.read_bytes()
    places = np.ones(len(whole), bool)
    for tensor in onnx.load(path).graph.initializer:
        start = whole.find(tensor.raw_data)
        places[start : start + len(tensor.raw_data)] = False
    draws, harmless = np.random.Generator(np.random.PCG64(0)), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draws.choice(np.flatnonzero(places))] = draws.integers(256)
        path.write_bytes(damaged)
        try:
            check(import_onnx(path, preprocessing=NONE))
            harmless += 1
        except BackboneError:
            pass
    assert 0 < harmless < 150


ENDINGS = {
    "divided": lambda net, x: net.op("Div", x, np.array(1.7)),
    "multiplied": lambda net, x: net.op("Mul", net.op("Constant", value_float=0.3), x),
    "by class": lambda net, x: net.op("Mul", x, net.random(CLASSES) ** 2 + 0.5),
    "shifted": lambda net, x: net.op("Sub", x, net.random(CLASSES)),
    "reshaped and divided": lambda net, x: net.op("Div", net.op("Reshape", x, np.array([-1, CLASSES])), np.array(2.5)),
    "normalised": lambda net, x: net.op(
        "BatchNormalization", x, *(net.random(CLASSES) ** 2 + 0.5 for _ in range(2)), net.random(CLASSES),
        net.random(CLASSES) ** 2 + 0.5,
    ),
    "cast and divided": lambda net, x: net.op(
        "Div", net.op("Cast", net.op("Cast", x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT), np.array(0.7)
    ),
}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_only_scales_the_scores_hides_no_classifier(tmp_path: Path, ending: str) -> None:
    net, output = classifier()
    path = net.save(tmp_path / "net.onnx", ENDINGS[ending](net, output))
    imported = import_onnx(path, preprocessing=PREPROCESSINGS["torch"])
    check(imported)
    assert len(imported.classes) == CLASSES
    images = photos()
    assert run(imported.graph, "features", images).shape == (3, 16)
    given = onnx.load(path).graph.output[0].name
    expected = softmax(run(path, given, torch_style(images)))
    np.testing.assert_allclose(probabilities(imported, images), expected, atol=1e-6)


def test_one_over_a_score_is_no_score(tmp_path: Path) -> None:
    net, output = classifier()
    imported = import_onnx(net.save(tmp_path / "net.onnx", net.op("Div", np.array(1.0), output)), preprocessing=NONE)
    assert imported.classes == ()


@pytest.mark.parametrize("inside", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_with_float32_at_both_ends(tmp_path: Path, inside: int) -> None:
    net, output = classifier()
    model = net.model(output)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = helper.make_tensor(tensor.name, inside, tensor.dims, numpy_helper.to_array(tensor).flatten())
            tensor.CopyFrom(half)
    for node in model.graph.node:
        node.input[:] = ["half" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["half"], to=inside))
    model.graph.node.append(helper.make_node("Cast", [output], ["wide"], to=TensorProto.FLOAT))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("wide", TensorProto.FLOAT, ["N", CLASSES]))
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "half.onnx")
    imported = import_onnx(tmp_path / "half.onnx", preprocessing=PREPROCESSINGS["torch"])
    check(imported)
    assert imported.cuts == ("stem", "block_1", "head", "features")
    assert len(imported.classes) == CLASSES
    images = photos()
    expected = softmax(run(net.save(tmp_path / "net.onnx", output), output, torch_style(images)))
    np.testing.assert_allclose(probabilities(imported, images), expected, atol=0.02)
    assert run(imported.graph, "block_1", images).dtype == np.float32


def test_several_outputs_are_named(tmp_path: Path) -> None:
    net, output = classifier()
    side = net.logits(net.nodes[-1].input[0], classes=3)
    model = net.model(output)
    model.graph.output.append(helper.make_tensor_value_info(side, TensorProto.FLOAT, ["N", 3]))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(BackboneError, match=f"2 outputs: '{output}', '{side}'; choose one with --output"):
        import_onnx(tmp_path / "two.onnx", preprocessing=NONE)
    with pytest.raises(BackboneError, match=f"no output 'logits'; it has: '{output}', '{side}'"):
        import_onnx(tmp_path / "two.onnx", preprocessing=NONE, output="logits")
    for chosen, classes in ((output, CLASSES), (side, 3)):
        imported = import_onnx(tmp_path / "two.onnx", preprocessing=NONE, output=chosen)
        check(imported)
        assert len(imported.classes) == classes


@pytest.mark.parametrize("kind", ["Dropout", "BatchNormalization"])
def test_training_mode_is_refused_by_its_layer(tmp_path: Path, kind: str) -> None:
    net = Net()
    x = net.pooled(net.body("x"))
    if kind == "Dropout":
        x = net.op("Dropout", x, np.array(0.5), net.op("Constant", value=numpy_helper.from_array(np.array(True))))
    else:
        x = net.op("BatchNormalization", x, *[np.ones(16, np.float32)] * 4, training_mode=1)
        net.nodes[-1].output.extend(["mean", "variance"])
    path = net.save(tmp_path / "net.onnx", net.logits(x))
    with pytest.raises(BackboneError, match=rf"training mode: '{x}' \({kind}\)"):
        import_onnx(path, preprocessing=NONE)


@pytest.mark.parametrize("name", ["tf", "torch"])
def test_images_are_not_normalised_twice(tmp_path: Path, name: str) -> None:
    net = Net()
    x = net.op("Sub", net.op("Mul", "x", np.array(1 / 127.5)), np.array(1.0))
    path = net.save(tmp_path / "net.onnx", net.logits(net.pooled(net.body(x))))
    with pytest.raises(BackboneError, match=r"normalises images itself .* from 0 to 255"):
        import_onnx(path, preprocessing=PREPROCESSINGS[name])
    assert import_onnx(path, preprocessing=NONE).difference == import_onnx(path).difference
