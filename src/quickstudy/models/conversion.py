"""Other forms of a model, smaller or faster, handed over only after they were run and compared with the original.

float16: weights are kept as float16 and widened when the file is loaded, half the size. What computes is the same graph
in float32, so nothing is slower on a processor (where float16 arithmetic would be: few have it) and only the weights'
rounding, to 11 bits, can make a difference. ONNX Runtime widens them once, when it folds constants. Good for downloads:
app bundles, web pages.

8-bit integers: a third of the size, faster, calibrated on photos. It is ONNX Runtime's own static quantisation, with
what was measured to matter (docs/ship.md): a scale for each channel's weights; the first three convolutions and the
last one in float32, as is all that follows it, since few weights lie there and many decisions; weights in 7 bits. The
last is for processors with AVX2 but without VNNI: they add pairs of products of 8-bit numbers in 16 bits, which
overflows with full-range weights (ONNX Runtime's documentation, "When and why do I need to try reduce_range"). With 7
bits nothing overflows anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quickstudy.backbones.engines.int8 import without_advice
from quickstudy.backbones.graphs.runtime import import_onnxruntime, open_session, optimised
from quickstudy.backbones.graphs.untrusted import parse_onnx
from quickstudy.errors import ModelError, UnusableImageError, WriteError
from quickstudy.images.decoding import InputSpec, Pixels, decode, to_input
from quickstudy.images.identity import read_image_file
from quickstudy.models.assemble import model_bytes, write_model_file
from quickstudy.models.checks import (
    Agreement,
    ComparedPhoto,
    Tolerance,
    agreement_of,
    images_per_second,
    on_golden_images,
)
from quickstudy.models.format import GOLDEN_TOLERANCE, STRANGENESS, golden_images, model_path
from quickstudy.models.loading import load_bytes, read_model_file, require_own_place
from quickstudy.progress import Progress, silent

Form = Literal["int8", "fp16"]
"""The forms: 8-bit integers, or float16 weights."""
TOLERANCES: dict[Form, Tolerance] = {
    "fp16": Tolerance(golden=0.02, same=0.99, accuracy_loss=0.005),
    "int8": Tolerance(golden=0.25, same=0.93, accuracy_loss=0.02),
}
"""How far a form may be from its original.

Golden images are noise, where 8 bits calibrated on photos may differ much; they catch what is broken."""
_ELSEWHERE: dict[Form, float] = {"fp16": GOLDEN_TOLERANCE, "int8": 0.1}
"""Largest difference of a probability of the same file on other machines.

In 8 bits, a value between two levels may fall to either, and what follows with it: with other optimisations of the same
runtime, 0.035 was measured on golden images."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A form of a model, and how it compares."""

    kind: Form
    """The form that was made."""
    source: Path
    """The original model file."""
    path: Path
    """The file that was written."""
    golden_difference: float
    """Largest difference of a probability from the original's, on the golden images."""
    agreement: Agreement | None
    """How the two agree on photos; None where none were given or usable."""
    bytes_before: int
    """Size of the original, in bytes."""
    bytes_after: int
    """Size of the file that was written, in bytes."""
    speed_before: float
    """Images a second of the original, one at a time, on one thread of this machine, the network alone."""
    speed_after: float
    """Images a second of the file that was written, measured like `speed_before`."""
    complaints: tuple[str, ...]
    """What is beyond the tolerance, in words; not empty only where it was forced."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {
            "kind": self.kind,
            "source": str(self.source),
            "model": str(self.path),
            "golden_difference": self.golden_difference,
            "agreement": self.agreement.to_dict() if self.agreement else None,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "images_per_second_before": self.speed_before,
            "images_per_second_after": self.speed_after,
            "beyond_tolerance": list(self.complaints),
        }


def convert(
    source: Path,
    output: Path,
    kind: Form,
    *,
    calibrate: Sequence[Path] = (),
    check: Sequence[ComparedPhoto] = (),
    force: bool = False,
    progress: Progress = silent,
) -> Conversion:
    """Write a model in another form, once it has been run and compared with the original.

    Args:
        source: the model.
        output: the `.onnx` file to create or replace.
        kind: `int8` (see `quantised`) or `fp16` (see `halved`).
        calibrate: photos to calibrate on, for `int8`.
        check: photos to compare on.
        force: write it even if it differs by more than `TOLERANCES` allows.
        progress: is told how far things are.

    Raises:
        ModelError: the source is no whole model, or what was made of it differs too much.
        WriteError: the output cannot be written, or is the source or another file.
        BackboneError: ONNX Runtime cannot load what was made of it.
    """
    model_path(output)
    if output.resolve() == source.resolve():
        raise WriteError(f"'{output}' is the model itself; name another file for what is made of it")
    require_own_place(output, f"export as {kind}", lambda said: said.get("export", {}).get("kind") == kind)
    original = read_model_file(source)  # once, so that what is converted is what was checked
    before = load_bytes(original, source)
    before.verify()
    graph = parse_onnx(original, source)
    changed = quantised(graph, before.input, calibrate, progress=progress) if kind == "int8" else halved(graph)
    outputs = [output.name for output in changed.graph.output]
    values = open_session(changed.SerializeToString()).run(outputs, {"image": golden_images(before.input)})
    given = dict(zip(outputs, values, strict=True))
    golden = given["probabilities"]
    difference = float(np.abs(golden - on_golden_images(before)).max())
    described = {name: value for name, value in before.metadata.items() if name not in ("golden", "versions", "sha256")}
    export = {"kind": kind, "source": hashlib.sha256(original).hexdigest(), "golden_difference": difference}
    # The file as it will be: what is compared is what is handed over.
    data = model_bytes(
        changed, {**described, "export": export}, golden, tolerance=_ELSEWHERE[kind], strange=given.get(STRANGENESS)
    )
    after = load_bytes(data, output)
    after.verify()
    agreement = agreement_of(before, after, check, progress=progress) if check else None
    complaints = TOLERANCES[kind].complaints(difference, agreement)
    if check and agreement is None:
        first = next(before.predict_each([check[0].path]))
        none = f"none of the {len(check):,} images to check on" if len(check) > 1 else "the only image to check on"
        unused = f"{none} could {'' if len(check) > 1 else 'not '}be used; '{check[0].path}': {first.reason}"
        if not force:
            raise ModelError(f"'{output}' was not written: {unused}. Check on others, or write it anyway with --force")
        complaints.append(unused)
    if complaints and not force:
        calibrate_more = "calibrate on more photos like those it is for, or " if kind == "int8" else ""
        raise ModelError(
            f"'{output}' was not written: as {kind}, the model is too far from '{source}': {'; '.join(complaints)}; "
            f"{calibrate_more}write it anyway with --force"
        )
    speeds = images_per_second([before, after])
    write_model_file(output, data)
    return Conversion(
        kind=kind,
        source=source,
        path=output,
        golden_difference=difference,
        agreement=agreement,
        bytes_before=len(original),
        bytes_after=len(data),
        speed_before=speeds[0],
        speed_after=speeds[1],
        complaints=tuple(complaints),
    )


# float16
_LEAST_VALUES = 256
"""The fewest values of a tensor that is kept as float16; smaller ones, such as biases, have nothing to gain."""


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make the same graph with batch norms folded and its large float32 weights kept as float16.

    Raises:
        BackboneError: ONNX Runtime cannot load it.
    """
    result = optimised(model)
    graph = result.graph
    widening = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _LEAST_VALUES:
            continue
        values = numpy_helper.to_array(tensor)
        if not np.abs(values).max() <= np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}/half"))
        widening.append(helper.make_node("Cast", [tensor.name], [name], name=name, to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*widening, *nodes])
    return result


# 8-bit integers
CALIBRATION_IMAGES = 200
"""The most photos that are used to calibrate; more changed nothing beyond chance."""
_LEAST_IMAGES = 8
_FLOAT_AT_START, _FLOAT_AT_END = 3, 1
_OPERATORS = ("Conv", "Add")


def quantised(
    model: onnx.ModelProto, spec: InputSpec, photos: Sequence[Path], *, progress: Progress = silent
) -> onnx.ModelProto:
    """Make the same graph with its convolutions in 8-bit integers, by ONNX's own QuantizeLinear and its reverse.

    Args:
        model: takes `image`, gives `probabilities` and perhaps `strangeness`; left as it is.
        spec: how an image becomes `image`.
        photos: like those that the model is for; up to CALIBRATION_IMAGES are used, evenly from the list.
        progress: is told how many have been decoded.

    Raises:
        ModelError: too few of the photos can be used, or there is nothing to quantise.
        BackboneError: ONNX Runtime cannot load the graph.
    """
    import_onnxruntime()  # first, with its telemetry off
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    plain = optimised(model)
    convolutions = [node.name for node in plain.graph.node if node.op_type == "Conv"]
    if len(convolutions) <= _FLOAT_AT_START + _FLOAT_AT_END:
        raise ModelError(f"The model has {len(convolutions)} convolutions, too few to gain by 8 bits; try --fp16")
    pixels = _calibration_pixels(spec, photos, progress)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[Pixels] = iter(pixels)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            image = next(self._images, None)
            return None if image is None else {"image": image[None]}

    with tempfile.TemporaryDirectory() as folder, without_advice():
        quantize_static(
            plain,
            str(Path(folder) / "int8.onnx"),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            nodes_to_exclude=convolutions[:_FLOAT_AT_START] + convolutions[-_FLOAT_AT_END:],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        result: onnx.ModelProto = onnx.load(Path(folder) / "int8.onnx")
    used = {node.domain for node in result.graph.node}
    kept: list[Any] = [entry for entry in result.opset_import if entry.domain in used]
    del result.opset_import[:]
    result.opset_import.extend(kept)
    return result


def _calibration_pixels(spec: InputSpec, photos: Sequence[Path], progress: Progress) -> list[Pixels]:
    step = max(1, len(photos) // CALIBRATION_IMAGES)
    chosen = photos[::step][:CALIBRATION_IMAGES]
    pixels: list[Pixels] = []
    progress.start("calibrating", len(chosen))
    try:
        for number, path in enumerate(chosen, start=1):
            with contextlib.suppress(UnusableImageError):  # one bad file ends nothing; too few good ones do
                pixels.append(to_input(decode(read_image_file(path)[0], spec), spec))
            progress.update(done=number, note="")
    finally:
        progress.finish()
    if len(pixels) < _LEAST_IMAGES:
        raise ModelError(
            f"{len(pixels)} of {len(chosen)} images to calibrate on could be used; at least {_LEAST_IMAGES} are "
            "needed, a hundred or two are better: --calibrate photos/"
        )
    return pixels
