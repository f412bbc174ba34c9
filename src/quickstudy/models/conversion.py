"""Other forms of a model, handed over only after they were run and compared with the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from quickstudy.backbones.runtime import open_session
from quickstudy.errors import ModelError
from quickstudy.files import sha256_of_file
from quickstudy.models.assemble import model_bytes, write_model_file
from quickstudy.models.checks import Agreement, Photo, Tolerance, compare, images_per_second, on_golden_images
from quickstudy.models.golden import GOLDEN_TOLERANCE, golden_images
from quickstudy.models.half import halved
from quickstudy.models.model import load, load_bytes
from quickstudy.models.quantise import quantised
from quickstudy.progress import Progress, silent

Kind = Literal["int8", "fp16"]
TOLERANCES: dict[Kind, Tolerance] = {
    "fp16": Tolerance(golden=0.02, same=0.99, accuracy_loss=0.005),
    "int8": Tolerance(golden=0.25, same=0.93, accuracy_loss=0.02),
}
"""Golden images are noise, where 8 bits calibrated on photos may differ much; they catch what is broken."""
_ELSEWHERE: dict[Kind, float] = {"fp16": GOLDEN_TOLERANCE, "int8": 0.1}
"""By how much the same file may differ on other machines. In 8 bits, a value between two levels may fall to either, and
what follows with it: with other optimisations of the same runtime, 0.035 was measured on golden images."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A form of a model, and how it compares."""

    kind: Kind
    source: Path
    path: Path
    """The file that was written."""
    golden_difference: float
    """Largest difference of a probability from the original's, on the golden images."""
    agreement: Agreement | None
    """On photos, where some were given."""
    bytes_before: int
    bytes_after: int
    speed_before: float
    """Images a second, one at a time, on one thread of this machine, the network alone."""
    speed_after: float
    complaints: tuple[str, ...]
    """What is beyond the tolerance; not empty only where it was forced."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
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
    kind: Kind,
    *,
    calibrate: Sequence[Path] = (),
    check: Sequence[Photo] = (),
    force: bool = False,
    progress: Progress = silent,
) -> Conversion:
    """Write a model in another form, once it has been run and compared with the original.

    Args:
        source: the model.
        output: the `.onnx` file to create or replace.
        kind: `int8` (see `quantise.py`) or `fp16` (see `half.py`).
        calibrate: photos to calibrate on, for `int8`.
        check: photos to compare on.
        force: write it even if it differs by more than `TOLERANCES` allows.
        progress: is told how far things are.

    Raises:
        ModelError: the source is no whole model, what was made of it differs too much, or it cannot be written.
        BackboneError: ONNX Runtime cannot load what was made of it.
    """
    if output.resolve() == source.resolve():
        raise ModelError(f"'{output}' is the model itself; name another file for what is made of it")
    before = load(source)
    before.verify()
    graph = onnx.load(source, load_external_data=False)
    changed = quantised(graph, before.input, calibrate, progress=progress) if kind == "int8" else halved(graph)
    golden = open_session(changed.SerializeToString()).run(
        ["probabilities"], {"image": golden_images(before.input.size)}
    )[0]
    difference = float(np.abs(golden - on_golden_images(before)).max())
    described = {name: value for name, value in before.metadata.items() if name not in ("golden", "versions", "sha256")}
    export = {"kind": kind, "source": sha256_of_file(source), "golden_difference": difference}
    # The file as it will be: what is compared is what is handed over.
    data = model_bytes(changed, {**described, "export": export}, golden, tolerance=_ELSEWHERE[kind])
    after = load_bytes(data, output)
    after.verify()
    agreement = compare(before, after, check, progress=progress) if check else None
    complaints = TOLERANCES[kind].complaints(difference, agreement)
    if check and agreement is None:
        complaints.append("not one of the images to check on could be used")
    if complaints and not force:
        raise ModelError(
            f"'{output}' was not written: as {kind}, the model is too far from '{source}': {'; '.join(complaints)}. "
            "Calibrate on more photos like those it is for, or insist with --force"
        )
    speeds = images_per_second([before, after])
    write_model_file(output, data)
    return Conversion(
        kind=kind,
        source=source,
        path=output,
        golden_difference=difference,
        agreement=agreement,
        bytes_before=source.stat().st_size,
        bytes_after=len(data),
        speed_before=speeds[0],
        speed_after=speeds[1],
        complaints=tuple(complaints),
    )
