"""Model files made to do harm, with checksums that fit: refused with a clear error, never run, never a crash."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quickstudy.errors import ModelError
from quickstudy.models import loading as model_module
from quickstudy.models.format import sealed
from quickstudy.models.loading import load
from small_backbones import SIDE
from small_models import write_small_model

Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("hostile") / "small.onnx")


def tensor(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def attribute(proto: onnx.ModelProto, operator: str, name: str) -> onnx.AttributeProto:
    node = next(node for node in proto.graph.node if node.op_type == operator)
    return next(part for part in node.attribute if part.name == name)


def before_the_network(proto: onnx.ModelProto, nodes: list[onnx.NodeProto], **constants: np.ndarray) -> None:
    """Put nodes between the image, which they get as `image`, and the network, to which they give `other`."""
    for node in proto.graph.node:
        node.input[:] = ["other" if name == "image" else name for name in node.input]
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *rest])
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())


def set_property(proto: onnx.ModelProto, name: str, value: str) -> None:
    next(entry for entry in proto.metadata_props if entry.key == f"quickstudy.{name}").value = value


def external(proto: onnx.ModelProto) -> None:
    weights = tensor(proto, "c0.kernel")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../../etc/passwd")


def location_without_saying_so(proto: onnx.ModelProto) -> None:
    tensor(proto, "c0.kernel").external_data.add(key="location", value="/etc/passwd")


def endless_shape(proto: onnx.ModelProto) -> None:
    tensor(proto, "c0.kernel").dims[0] = 2**40


def negative_shape(proto: onnx.ModelProto) -> None:
    tensor(proto, "c0.kernel").dims[:] = [-8, -3, 3, 3]


def overflowing_shape(proto: onnx.ModelProto) -> None:
    """The product is the true number of values modulo 2^64."""
    weights = tensor(proto, "c0.kernel")
    weights.dims[:] = [2**32, 2**32, *weights.dims]


def too_few_weights(proto: onnx.ModelProto) -> None:
    weights = tensor(proto, "c1.kernel")
    weights.raw_data = weights.raw_data[:-4]


def texts_for_weights(proto: onnx.ModelProto) -> None:
    tensor(proto, "c1.kernel").data_type = TensorProto.STRING


def library(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))


def function(proto: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    proto.functions.append(helper.make_function("local", "F", ["x"], ["y"], [node], proto.opset_import))


def unknown_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = "Fly"


def loop(proto: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "times"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    proto.graph.node.insert(0, helper.make_node("Loop", ["times", "always"], [], body=body))


def branch(proto: onnx.ModelProto) -> None:
    output = helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])
    body = helper.make_graph([helper.make_node("Constant", [], ["b"], value_floats=[1.0])], "body", [], [output])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    proto.graph.node.insert(0, helper.make_node("If", ["always"], ["c"], then_branch=body, else_branch=body))


def much_padding(proto: onnx.ModelProto) -> None:
    attribute(proto, "Conv", "pads").ints[:] = [2**40] * 4


def much_padding_below_the_limit(proto: onnx.ModelProto) -> None:
    attribute(proto, "Conv", "pads").ints[:] = [2**20] * 4


def no_stride(proto: onnx.ModelProto) -> None:
    attribute(proto, "Conv", "strides").ints[:] = [0, 0]


def no_groups(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if node.op_type == "Conv")
    next(part for part in node.attribute if part.name == "group").i = 0


def tiles(proto: onnx.ModelProto) -> None:
    shrink = helper.make_node("Slice", ["many", "from", "to"], ["other"])
    tile = helper.make_node("Tile", ["image", "times"], ["many"])
    before_the_network(
        proto,
        [tile, shrink],
        times=np.array([1, 4096, 4096, 1]),
        **{"from": np.array([0, 0, 0, 0]), "to": np.array([2**63 - 1, SIDE, SIDE, 3])},
    )


def steering_numbers_that_overflow(proto: onnx.ModelProto) -> None:
    """Padded by 2^62 and cut by as much: what remains looks harmless."""
    pad = helper.make_node("Pad", ["image", "amounts"], ["other"])
    before_the_network(proto, [pad], amounts=np.array([0, 2**62, 0, 0, 0, -(2**62), 0, 0]))


def size_from_the_image(proto: onnx.ModelProto) -> None:
    """How many values there will be is known only when it has looked at the picture."""
    before_the_network(
        proto,
        [
            helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("NonZero", ["numbers"], ["places"]),
            helper.make_node("Identity", ["image"], ["other"]),
        ],
    )


def contradicting_shapes(proto: onnx.ModelProto) -> None:
    weights = tensor(proto, "dense.weights")
    weights.dims[:] = list(weights.dims)[::-1]


def circle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = proto.graph.output[0].name


def sparse(proto: onnx.ModelProto) -> None:
    proto.graph.sparse_initializer.add()


def opset_of_the_future(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 10**6


def huge_input(proto: onnx.ModelProto) -> None:
    side = 2**20
    for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:3]:
        dim.dim_value = side
    set_property(proto, "input", f'{{"size": {side}, "crop": 1.0, "resize": "reduce-bilinear-1"}}')


HARM: dict[str, tuple[Change, str]] = {
    "data in another file": (external, "it refers to data in other files, which are not read"),
    "a location that is not used": (location_without_saying_so, "it refers to data in other files"),
    "an endless shape": (endless_shape, r"'c0.kernel' should be of shape \[1099511627776, 3, 3, 3\], but holds 216"),
    "a negative shape": (negative_shape, "'c0.kernel' should be of shape"),
    "an overflowing shape": (overflowing_shape, "'c0.kernel' should be of shape"),
    "too few weights": (too_few_weights, "'c1.kernel' should be of shape .* but holds 199 values"),
    "texts for weights": (texts_for_weights, "'c1.kernel' holds values of kind 8, which is not known"),
    "an operator of a library": (library, "operators that need libraries: com.example.Transpose"),
    "a function": (function, "defines functions of its own"),
    "an unknown operator": (unknown_operator, "operators that opset 17 does not have: Fly"),
    "a loop": (loop, "loops|beyond 16,777,216"),
    "a branch": (branch, r"\(If\) holds graphs; branches are not allowed"),
    "much padding": (much_padding, r"'pads' of 'c0/conv' \(Conv\) is beyond 16,777,216"),
    "padding below the limit": (much_padding_below_the_limit, "values for one image; the limit is 536,870,912"),
    "no stride": (no_stride, r"'strides' of 'c0/conv' \(Conv\) is less than 1"),
    "no groups": (no_groups, r"'group' of 'c0/conv' \(Conv\) is less than 1"),
    "tiles": (tiles, "values for one image; the limit is"),
    "overflowing numbers": (steering_numbers_that_overflow, "'amounts' holds numbers beyond"),
    "a size from the image": (size_from_the_image, "the size of 'places' cannot be told before it is run"),
    "contradicting shapes": (contradicting_shapes, "its shapes contradict each other"),
    "a circle": (circle, "it is not valid ONNX"),
    "sparse weights": (sparse, "sparse weights"),
    "an opset of the future": (opset_of_the_future, "is of opset 1000000"),
    "a huge input": (huge_input, "its input has 1048576 pixels a side"),
    "nested metadata": (lambda p: set_property(p, "training", "[" * 10**5), "not a model that quickstudy wrote"),
    "no end of digits": (lambda p: set_property(p, "training", "9" * 10**5), "not a model that quickstudy wrote"),
    "sets of fewer classes": (
        lambda p: set_property(p, "training", '{"sets": {"by": "x", "given": ["AAA="]}}'),
        "it has sets of 1 class",
    ),
    "sets of nothing": (lambda p: set_property(p, "training", '{"sets": 3}'), "not a model that quickstudy wrote"),
    "options without names": (
        lambda p: set_property(p, "training", '{"options": ["none"]}'),
        "not a model that quickstudy wrote",
    ),
    "a class twice": (
        lambda p: set_property(p, "classes", '["a", "a", "b", "c"]'),
        "it has 4 classes, 3 of them different",
    ),
    "classes that are numbers": (lambda p: set_property(p, "classes", "[1, 2, 3, 4]"), "not a list of names"),
    "a crop of nothing": (
        lambda p: set_property(p, "input", '{"size": 32, "crop": 0.0, "resize": "reduce-bilinear-1"}'),
        "takes 0 of an image",
    ),
    "a crop that is no number": (
        lambda p: set_property(p, "input", '{"size": 32, "crop": NaN, "resize": "reduce-bilinear-1"}'),
        "unknown input specification|of an image",
    ),
}


def harmful(path: Path, folder: Path, change: Change) -> Path:
    proto = onnx.load(path)
    change(proto)
    (folder / "harmful.onnx").write_bytes(sealed(proto))
    return folder / "harmful.onnx"


@pytest.mark.parametrize("kind", HARM)
def test_is_refused_before_anything_is_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("ONNX Runtime was given a harmful graph")

    monkeypatch.setattr(model_module, "open_session", never)
    change, complaint = HARM[kind]
    with pytest.raises(ModelError, match=complaint):
        load(harmful(path, tmp_path, change))


def run_apart(code: str, *arguments: str) -> str:
    """In an interpreter of its own, which a crash would end."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


LOAD_ALL = """
import sys
from quickstudy.errors import ModelError
from quickstudy.models.loading import load
for path in sys.argv[1:]:
    try:
        load(path).verify()
        print("whole", path)
    except ModelError as error:
        assert path in str(error) or "golden checks" in str(error) or "cannot be run" in str(error), error
        print("refused", path)
"""


def test_none_of_it_ends_the_interpreter(path: Path, tmp_path: Path) -> None:
    files = [path]
    for number, (change, _) in enumerate(HARM.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        files.append(harmful(path, folder, change))
    original = path.read_bytes()
    draws = np.random.Generator(np.random.PCG64(1))
    for number, length in enumerate([0, 1, 2, 50, 5000, len(original) - 90, len(original) - 89, len(original) - 1]):
        files.append(tmp_path / f"cut{number}.onnx")
        files[-1].write_bytes(original[:length])
    for number in range(20):
        files.append(tmp_path / f"noise{number}.onnx")
        files[-1].write_bytes(draws.bytes(int(draws.integers(1, 40_000))))
    said = run_apart(LOAD_ALL, *map(str, files)).splitlines()
    assert said == [f"whole {path}"] + [f"refused {file}" for file in files[1:]]


FLIP_AND_SEAL = """
import sys
from pathlib import Path
import numpy as np
import onnx
from quickstudy.errors import ModelError
from quickstudy.models.loading import load
from quickstudy.models.format import sealed
original = Path(sys.argv[1]).read_bytes()[:-89]
draws = np.random.Generator(np.random.PCG64(2))
refused = 0
for _ in range(400):
    data = bytearray(original)
    for place in draws.integers(0, len(data), draws.integers(1, 4)):
        data[place] ^= 1 << draws.integers(0, 8)
    try:
        Path(sys.argv[2]).write_bytes(sealed(onnx.ModelProto.FromString(bytes(data))))
    except Exception:
        refused += 1  # nothing that could be sealed
        continue
    try:
        load(sys.argv[2]).verify()
    except ModelError:
        refused += 1
print(refused)
"""


def test_hundreds_of_flips_that_were_sealed_again_end_no_interpreter(path: Path, tmp_path: Path) -> None:
    """Who changes a file on purpose can seal it. Flips of weights' last bits remain unnoticed, as they must."""
    refused = int(run_apart(FLIP_AND_SEAL, str(path), str(tmp_path / "flipped.onnx")))
    assert 120 < refused < 400
