"""Models as Core ML packages, for apps on Apple's devices, checked without one.

coremltools converts PyTorch programs only, so the graph is run in PyTorch (`backbones/graphs/autograd.py`), traced
there, and converted to Core ML's own language, MIL. Core ML itself exists on Apple's systems only. What can be checked
anywhere is that the traced network gives what the model gives, and that the MIL program does: its operators, those that
convolutional networks are made of, are run here one by one in PyTorch, by the definitions in coremltools' documentation
of MIL. Arithmetic stays float32, so that what was checked is what will run.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.backbones.graphs.cutting import keep_until
from quickstudy.backbones.graphs.runtime import optimised
from quickstudy.backbones.graphs.untrusted import parse_onnx
from quickstudy.errors import ModelError, WriteError, first_line
from quickstudy.images.decoding import MARGIN
from quickstudy.models.format import GOLDEN_TOLERANCE, golden_images
from quickstudy.models.loading import load_bytes, read_model_file
from quickstudy.version import VERSION

_CROP_AND_SCALE = {"crop": "centerCrop", "pad": "scaleFit", "squash": "scaleFill"}
_MARGINS = f" (the model has seen margins of grey, {MARGIN}; Vision chooses its own)"


@dataclass(frozen=True, kw_only=True)
class CoreMLPackage:
    """What was written, and what of it could be checked here."""

    path: Path
    """The package, a folder."""
    traced_difference: float
    """Largest difference of a probability on the golden images: the network that was converted against the model."""
    program_difference: float | None
    """Largest difference of a probability on the golden images: the MIL program, its operators run in PyTorch, against
    the model; None where it has operators that cannot be run."""
    unknown_operators: tuple[str, ...]
    """Names of the MIL program's operators that cannot be run here."""
    crop_and_scale: str
    """Vision's `imageCropAndScaleOption` that makes of a photo what the model was trained on, such as `centerCrop`."""
    strangeness_left_out: bool
    """Whether the model tells strangeness, which the package does not: a classifier of Core ML's has classes only."""

    @property
    def checked(self) -> str:
        """What was checked and what was not, in words."""
        if self.program_difference is None:
            program = f"the MIL program was not run: it has {', '.join(self.unknown_operators)}"
        else:
            program = f"its MIL program, run here in PyTorch, differs by at most {self.program_difference:.1g}"
        return (
            f"the network that was converted differs by at most {self.traced_difference:.1g}, {program}; "
            + ("it does not say how strange an image is; " if self.strangeness_left_out else "")
            + "Core ML itself runs on Apple's devices only, so try it there, with Vision's imageCropAndScaleOption "
            f".{self.crop_and_scale}{_MARGINS if self.crop_and_scale == 'scaleFit' else ''}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {
            "package": str(self.path),
            "traced_difference": self.traced_difference,
            "program_difference": self.program_difference,
            "unknown_operators": list(self.unknown_operators),
            "image_crop_and_scale_option": self.crop_and_scale,
            "strangeness_left_out": self.strangeness_left_out,
            "run_in_core_ml": False,
        }


def write_core_ml(model: Path, path: Path) -> CoreMLPackage:
    """Write a model as a Core ML package: an image in, the likeliest class and all probabilities out.

    Args:
        model: the model.
        path: the `.mlpackage` to create or replace.

    Raises:
        ModelError: the name does not fit, the model cannot be converted, or what came out differs from it.
        BackboneError: the graph has operators that cannot be run in PyTorch.
        WriteError: the package cannot be written, or something else is there.
    """
    if path.suffix != ".mlpackage":
        raise ModelError(f"A Core ML package must be named *.mlpackage; got '{path}'")
    if os.path.lexists(path) and not (path / "Manifest.json").is_file():
        raise WriteError(
            f"There is a '{path}' already, which is no Core ML package and would be lost; name another place"
        )
    data = read_model_file(model)
    loaded = load_bytes(data, model)
    if loaded.thresholds:
        raise ModelError(
            f"'{model}' gives any number of labels a photo, and a classifier of Core ML's gives one; export it with "
            "--fp16, --int8 or --web"
        )
    if loaded.input.fit not in _CROP_AND_SCALE:
        raise ModelError(
            f"'{model}' takes {loaded.input.tiles} squares of each photo, which Vision does not cut out; retrain with "
            "--fit crop, pad or squash, or export it otherwise"
        )
    if loaded.input.crop != 1:
        raise ModelError(
            f"'{model}' sees the middle {100 * loaded.input.crop:g} % of each photo, which Vision does not cut out; "
            "retrain with --fit pad or squash, which show all of it, or export it otherwise"
        )
    loaded.verify()
    images = golden_images(loaded.input)
    expected = loaded.predict_pixels(images)
    pictures = [torch.from_numpy(image[None].transpose(0, 3, 1, 2).astype(np.float32)) for image in images]
    classifier = keep_until(parse_onnx(data, model), "probabilities", (len(loaded.classes),))
    network = _ChannelsFirst(GraphModule(optimised(classifier))).eval()
    with torch.no_grad(), _quiet():
        traced = torch.jit.trace(network, pictures[0], check_trace=False)  # type: ignore[no-untyped-call]
        given = np.concatenate([traced(picture).numpy() for picture in pictures])
        difference = _difference(given, expected, "traced network")
        package = _convert(traced, loaded.input.size, list(loaded.classes))
        program = package._mil_program.functions["main"]
        unknown = unknown_operators(program)
        in_program = None
        if not unknown:
            ran = np.concatenate([run_program(program, picture).numpy() for picture in pictures])
            in_program = _difference(ran, expected, "MIL program")
    _check_interface(package, loaded.input.size, loaded.classes)
    scaling = _CROP_AND_SCALE[loaded.input.fit]
    package.short_description = (
        f"Image classifier of {len(loaded.classes)} classes. In Vision, imageCropAndScaleOption is .{scaling}"
    )
    package.version = VERSION
    _save(package, path)
    return CoreMLPackage(
        path=path,
        traced_difference=difference,
        program_difference=in_program,
        unknown_operators=unknown,
        crop_and_scale=scaling,
        strangeness_left_out=loaded.refusal is not None,
    )


class _ChannelsFirst(nn.Module):
    """Takes pixels as Core ML has them: float32, 1×3×size×size, from 0 to 255."""

    def __init__(self, network: GraphModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Give probabilities, 1×classes."""
        probabilities: Tensor = self.network(image.permute(0, 2, 3, 1))
        return probabilities


def _convert(traced: Any, size: int, classes: list[str]) -> Any:
    import coremltools

    try:
        return coremltools.convert(
            traced,
            inputs=[
                coremltools.ImageType(name="image", shape=(1, 3, size, size), color_layout=coremltools.colorlayout.RGB)
            ],
            classifier_config=coremltools.ClassifierConfig(classes),
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS15,
            compute_precision=coremltools.precision.FLOAT32,
        )
    except Exception as error:  # it raises whatever its parts raise
        raise ModelError(f"coremltools cannot convert the model: {first_line(error)}") from error


def _difference(given: NDArray[np.float32], expected: NDArray[np.float32], what: str) -> float:
    difference = float(np.abs(given - expected).max())
    if not difference <= GOLDEN_TOLERANCE:
        raise ModelError(
            f"The {what} differs from the model by {difference:.1e}; nothing was written. Please report this"
        )
    return difference


def _check_interface(package: Any, size: int, classes: tuple[str, ...]) -> None:
    """Check that the description which apps read says what was asked for.

    Raises:
        ModelError: it says something else.
    """
    spec = package.get_spec()
    [image] = spec.description.input
    kind = image.type.imageType
    labels = [
        name
        for function in spec.mlProgram.functions.values()
        for block in function.block_specializations.values()
        for step in block.operations
        if step.type == "classify"
        for binding in step.inputs["classes"].arguments
        for value in binding.value.immediateValue.list.values
        for name in value.immediateValue.tensor.strings.values
    ]
    if (kind.width, kind.height) != (size, size) or tuple(labels) != classes:
        raise ModelError(
            f"The Core ML package would take {kind.width}×{kind.height} pixels and know {len(labels)} classes; "
            f"expected {size}×{size} and {len(classes)}. Please report this"
        )


def _save(package: Any, path: Path) -> None:
    """Write a package, which is a folder, beside its place and move it there whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tmp-") as folder:
            made = Path(folder) / path.name
            with _quiet():
                package.save(str(made))
            before = Path(folder) / "before"  # goes with the folder, once the new one is in its place
            if path.exists():
                path.rename(before)
            try:
                made.rename(path)
            except OSError:
                if before.exists():
                    before.rename(path)
                raise
    except OSError as error:
        raise WriteError(f"Cannot write '{path}': {error.strerror}. Name another place") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep conversion quiet: it tells developers much on both streams, and what goes wrong comes as an exception."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


# MIL programs in PyTorch
def unknown_operators(program: Any) -> tuple[str, ...]:
    """Name the operators of a program that cannot be run here, sorted."""
    return tuple(
        sorted({step.op_type for step in program.operations} - PROGRAM_OPERATORS.keys() - {"const", "classify"})
    )


def run_program(program: Any, image: Tensor) -> Tensor:
    """Run a MIL program operator by operator: the probabilities that it gives.

    Raises:
        ModelError: it does something that is not known here.
    """
    [name] = program.inputs
    values: dict[str, Any] = {name: image}

    def value_of(operand: Any) -> Any:
        if isinstance(operand, (list, tuple)):
            return [value_of(part) for part in operand]
        if operand.val is None:
            return values[operand.name]
        known = operand.val
        return torch.from_numpy(known.copy()) if isinstance(known, np.ndarray) and known.dtype == np.float32 else known

    for step in program.operations:
        if step.op_type == "classify":
            result: Tensor = value_of(step.inputs["probabilities"])
            return result
        if step.op_type != "const":
            inputs = {key: value_of(operand) for key, operand in step.inputs.items() if operand is not None}
            values[step.outputs[0].name] = PROGRAM_OPERATORS[step.op_type](**inputs)
    raise ModelError("The MIL program does not end with a classification. Please report this")


def _ints(values: Any) -> list[int]:
    return [int(value) for value in np.asarray(values).ravel()]


def _padding(x: Tensor, pad_type: Any, pad: Any, value: float) -> Tensor:
    """Pad as a MIL program says: it lists (before, after) for each axis from the first on, PyTorch from the last on."""
    if str(pad_type) not in ("custom", "valid"):
        raise ModelError(f"The MIL program pads in a way that is not known here: {pad_type}. Please report this")
    if str(pad_type) == "valid":
        return x
    pairs = np.asarray(pad).reshape(-1, 2)[::-1]
    return functional.pad(x, _ints(pairs), value=value)


def _conv(
    x: Tensor, weight: Tensor, strides: Any, pad_type: Any, pad: Any, dilations: Any, groups: Any, bias: Any = None
) -> Tensor:
    x = _padding(x, pad_type, pad, 0.0)
    return functional.conv2d(x, weight, bias, _ints(strides), 0, _ints(dilations), int(groups))


def _pad(x: Tensor, pad: Any, mode: Any, constant_val: Any) -> Tensor:
    if str(mode) != "constant":
        raise ModelError(f"The MIL program pads in a way that is not known here: {mode}. Please report this")
    return _padding(x, "custom", pad, float(constant_val))


def _max_pool(x: Tensor, kernel_sizes: Any, strides: Any, pad_type: Any, pad: Any, ceil_mode: Any = False) -> Tensor:
    x = _padding(x, pad_type, pad, -torch.inf)
    return functional.max_pool2d(x, _ints(kernel_sizes), _ints(strides), ceil_mode=bool(ceil_mode))


PROGRAM_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "abs": lambda x: x.abs(),
    "add": lambda x, y: x + y,
    "cast": lambda x, dtype: x.float() if str(dtype) == "fp32" else x.to(getattr(torch, str(dtype))),
    "clip": lambda x, alpha, beta: x.clamp(float(alpha), float(beta)),
    "concat": lambda values, axis, interleave: torch.cat(values, int(axis)),  # noqa: ARG005 (never set here)
    "conv": _conv,
    "linear": lambda x, weight, bias=None: functional.linear(x, weight, bias),
    "max_pool": _max_pool,
    "maximum": lambda x, y: torch.maximum(x, y),
    "mul": lambda x, y: x * y,
    "pad": _pad,
    "real_div": lambda x, y: x / y,
    "reduce_l2_norm": lambda x, axes, keep_dims: torch.linalg.vector_norm(x, dim=_ints(axes), keepdim=bool(keep_dims)),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(_ints(axes), keepdim=bool(keep_dims)),
    "relu": lambda x: x.relu(),
    "reshape": lambda x, shape: x.reshape(_ints(shape)),
    "sigmoid": lambda x: x.sigmoid(),
    "sign": lambda x: x.sign(),
    "silu": lambda x: functional.silu(x),
    "softmax": lambda x, axis: x.softmax(int(axis)),
    "sqrt": lambda x: x.sqrt(),
    "squeeze": lambda x, axes: x.squeeze(_ints(axes)),
    "sub": lambda x, y: x - y,
    "transpose": lambda x, perm: x.permute(_ints(perm)),
}
