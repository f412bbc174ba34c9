"""Models in 8-bit integers: a third of the size, about twice the speed, calibrated on photos.

ONNX Runtime's own static quantisation, with what was measured to matter (docs/ship.md): a scale for each channel's
weights; the first three convolutions and the last one in float32, as is all that follows it, since few weights lie
there and many decisions; weights in 7 bits. The last is for processors with AVX2 but without VNNI: they add pairs of
products of 8-bit numbers in 16 bits, which overflows with full-range weights (ONNX Runtime's documentation, "When and
why do I need to try reduce_range"). With 7 bits nothing overflows anywhere.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quickstudy.backbones.runtime import import_onnxruntime, optimised
from quickstudy.errors import ModelError, UnusableImageError
from quickstudy.images.decoding import InputSpec, Pixels, decode, fit
from quickstudy.images.identity import read_image_file
from quickstudy.progress import Progress, silent

CALIBRATION_IMAGES = 200
"""As many as are used; more changed nothing beyond chance."""
_LEAST_IMAGES = 8
_FLOAT_AT_START, _FLOAT_AT_END = 3, 1
_OPERATORS = ("Conv", "Add")


def quantised(
    model: onnx.ModelProto, spec: InputSpec, photos: Sequence[Path], *, progress: Progress = silent
) -> onnx.ModelProto:
    """The same graph with its convolutions in 8-bit integers, as ONNX's own operators (QuantizeLinear and its reverse).

    Args:
        model: takes `image`, gives `probabilities`; left as it is.
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

    with tempfile.TemporaryDirectory() as folder, _no_warnings():
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
                pixels.append(fit(decode(read_image_file(path)[0], spec), spec))
            progress.update(done=number, note="")
    finally:
        progress.finish()
    if len(pixels) < _LEAST_IMAGES:
        raise ModelError(
            f"{len(pixels)} of {len(chosen)} images to calibrate on could be used; at least {_LEAST_IMAGES} are "
            "needed, a hundred or two are better: --calibrate photos/"
        )
    return pixels


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """ONNX Runtime's quantiser recommends what has been done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
