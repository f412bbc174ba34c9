"""What becomes of an image's bytes before a network sees them: range, mean, standard deviation, order of the channels.

Networks differ in this, and nothing fails when it is wrong; accuracy only sinks. It is therefore put into the graph
once, when a network is imported, and never asked for again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quickstudy.backbones.graphs.cleaning import BATCH, ImageInput
from quickstudy.backbones.graphs.cutting import keep_until, shapes_of
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.errors import OptionError

_NORMALISING = ("Sub", "Add", "Mul", "Div", "BatchNormalization")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Bytes from 0 to 255 are spread over `low` to `high`; then the mean is subtracted, then divided by `std`."""

    low: float = 0.0
    """The value that the byte 0 becomes."""
    high: float = 255.0
    """The value that the byte 255 becomes."""
    mean: tuple[float, ...] = (0.0,)
    """The mean to subtract, in units of the range: one for all channels, or one for each in the network's order."""
    std: tuple[float, ...] = (1.0,)
    """The standard deviation to divide by, given like `mean`."""
    bgr: bool = False
    """Whether the network takes blue first; red otherwise."""

    @property
    def centre(self) -> NDArray[np.float64]:
        """The byte, not always a whole number, that becomes 0, by channel (3)."""
        values = (np.array(self.mean) - self.low) * 255 / (self.high - self.low)
        return np.broadcast_to(values, 3)

    @property
    def scale(self) -> NDArray[np.float64]:
        """The difference that one level of a byte makes to the network's input, by channel (3)."""
        return np.broadcast_to((self.high - self.low) / 255 / np.array(self.std), 3)

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn images (N×H×W×3, RGB) into what the network takes, channels still last."""
        ordered = images[..., ::-1] if self.bgr else images
        return ((ordered - self.centre) * self.scale).astype(np.float32)

    def __str__(self) -> str:
        parts = [f"{self.low:g} to {self.high:g}"]
        if any(self.mean):
            parts.append(f"mean {_numbers(self.mean)}")
        if set(self.std) != {1.0}:
            parts.append(f"standard deviation {_numbers(self.std)}")
        return ", ".join([*parts, "BGR" if self.bgr else "RGB"])


PREPROCESSINGS = {
    "tf": Preprocessing(low=-1, high=1),
    "torch": Preprocessing(low=0, high=1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "caffe": Preprocessing(mean=(103.939, 116.779, 123.68), bgr=True),
    "none": Preprocessing(),
}
"""The usual ways, by the names that Keras gives them (keras.applications.imagenet_utils.preprocess_input)."""


def explain_preprocessings() -> str:
    """List the preprocessings that have a name in one line, for messages and help."""
    return "; ".join(f"{name}: {one}" for name, one in PREPROCESSINGS.items())


def choose_preprocessing(
    name: str | None = None,
    *,
    value_range: str | None = None,
    mean: str | None = None,
    std: str | None = None,
) -> Preprocessing | None:
    """Make the preprocessing that a user asks for in words; None where nothing is asked for.

    Args:
        name: a name in `PREPROCESSINGS`.
        value_range: instead of a name, what 0 and 255 become, such as `0..1` and `-1..1`; `0..255` if left out.
        mean: a number, or three with commas between them, in the range's units.
        std: a number or three, as for `mean`.

    Raises:
        OptionError: a value cannot be read, or a name and numbers contradict each other.
    """
    if name is not None:
        if value_range or mean or std:
            raise OptionError(f"--preprocessing {name} says range, mean and standard deviation; give it or these")
        if name not in PREPROCESSINGS:
            raise OptionError(f"Unknown preprocessing '{name}'; there are: {explain_preprocessings()}")
        return PREPROCESSINGS[name]
    if not (value_range or mean or std):
        return None
    low, high = _range(value_range or "0..255")
    chosen = Preprocessing(low=low, high=high, mean=_triple("--mean", mean, 0), std=_triple("--std", std, 1))
    if 0 in chosen.std:
        raise OptionError(f"--std {std} divides by zero; standard deviations are positive")
    return chosen


def put_before(graph: onnx.GraphProto, image: ImageInput, preprocessing: Preprocessing) -> None:
    """Replace the graph's input by `image` (uint8, N×size×size×3, RGB), and make of it what the network takes.

    Args:
        graph: changed in place.
        image: what the network takes.
        preprocessing: how it takes it.
    """
    layout = image.layout
    steps: list[tuple[str, list[NDArray[Any]], dict[str, Any]]] = []
    # Channels are moved while still one byte a value: a quarter of the traffic.
    if layout == "NCHW":
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    if preprocessing.bgr:
        steps.append(("Gather", [np.array([2, 1, 0])], {"axis": 1 if layout == "NCHW" else 3}))
    if not image.as_bytes:
        steps.append(("Cast", [], {"to": TensorProto.FLOAT}))
        if preprocessing.centre.any():
            steps.append(("Sub", [_by_channel(preprocessing.centre, layout)], {}))
        if (preprocessing.scale != 1).any():
            steps.append(("Mul", [_by_channel(preprocessing.scale, layout)], {}))
    nodes, current = [], "image"
    for number, (operator, constants, attributes) in enumerate(steps):
        step = f"input/{operator.lower()}"
        graph.initializer.extend(numpy_helper.from_array(value, f"{step}/by") for value in constants)
        output = image.name if number == len(steps) - 1 else step
        inputs = [current, *(f"{step}/by" for _ in constants)]
        nodes.append(helper.make_node(operator, inputs, [output], name=step, **attributes))
        current = output
    if not nodes:
        nodes.append(helper.make_node("Identity", ["image"], [image.name], name="input/1"))
    rest = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *rest])
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, [BATCH, image.size, image.size, 3]))


def read_from_graph(model: onnx.ModelProto, image: ImageInput) -> tuple[Preprocessing | None, str]:
    """Read from a graph the range that its first normalisation is made for; or None, and why it cannot be told."""
    constants = {tensor.name for tensor in model.graph.initializer}
    tensor, normalised = image.name, False
    while True:
        users = [node for node in model.graph.node if tensor in node.input]
        if len(users) != 1 or not constants >= set(users[0].input) - {tensor, ""}:
            break
        if users[0].op_type in _NORMALISING:
            normalised = True
        elif users[0].op_type not in ("Cast", "Transpose", "Identity"):
            break
        tensor = users[0].output[0]
    if not normalised:
        return None, ""
    part = open_session(keep_until(model, tensor, shapes_of(model)[tensor]).SerializeToString())
    shape = [1, *part.get_inputs()[0].shape[1:]]
    black, white = (
        part.run([tensor], {image.name: np.full(shape, value, np.float32)})[0].astype(np.float64) for value in (0, 1)
    )
    with np.errstate(all="ignore"):
        mean, std = -black / (white - black), 1 / (white - black)
    if ((mean > 0.2) & (mean < 0.8)).all():
        return Preprocessing(low=0, high=1), ""
    if ((mean > 50) & (mean < 200)).all() or ((abs(mean) < 1) & (std > 100) & (std < 300)).all():
        return Preprocessing(), ""
    return None, (
        f" (it begins with a normalisation of mean {mean.min():.3g} to {mean.max():.3g} and standard deviation "
        f"{std.min():.3g} to {std.max():.3g}, which fits neither 0 to 1 nor 0 to 255)"
    )


def _by_channel(values: NDArray[np.float64], layout: str) -> NDArray[np.float32]:
    """Make a constant that broadcasts over images; one number where the channels agree."""
    if len(set(values.tolist())) == 1:
        return np.array(values[0], np.float32)
    return values.astype(np.float32).reshape((3, 1, 1) if layout == "NCHW" else (3,))


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(".."))
    except ValueError:
        low = high = 0.0
    if not -np.inf < low < high < np.inf:
        raise OptionError(f"--range is '{text}'; expected what 0 and 255 become, such as 0..1, -1..1 or 0..255")
    return low, high


def _triple(option: str, text: str | None, otherwise: float) -> tuple[float, ...]:
    if text is None:
        return (otherwise,)
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not np.isfinite(values).all():
        raise OptionError(f"{option} is '{text}'; expected a number, or three such as 0.485,0.456,0.406")
    return values


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
