"""LitServe around the same ONNX file in ONNX Runtime, a worker process a core.

    python litserve_onnx.py MODEL.onnx --port 8000 --side 224

Images come as a form's file, as LitServe's documentation has it. Needs litserve, onnxruntime, pillow, python-multipart.
"""

from __future__ import annotations

import argparse
import io
import os

import litserve
import numpy as np
import onnxruntime
from PIL import Image


class Classifier(litserve.LitAPI):
    """Decodes, runs, answers."""

    def __init__(self, path: str, side: int) -> None:
        super().__init__()
        self.path = path
        self.side = side

    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe's interface)
        """Load the network, one thread a process."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """From the form to pixels."""
        picture = Image.open(io.BytesIO(request["image"].file.read())).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        return np.asarray(square.resize((self.side, self.side), Image.Resampling.BILINEAR))[None]

    def predict(self, pixels):  # type: ignore[no-untyped-def]
        """One image."""
        return self.session.run(["probabilities"], {"image": pixels})[0][0]

    def encode_response(self, probabilities):  # type: ignore[no-untyped-def]
        """As quickstudy answers."""
        order = probabilities.argsort()[::-1]
        return {"classes": [{"label": str(i), "probability": float(probabilities[i])} for i in order]}


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--side", type=int, default=224)
    options = parser.parse_args()
    server = litserve.LitServer(
        Classifier(options.model, options.side), accelerator="cpu", workers_per_device=len(os.sched_getaffinity(0))
    )
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
