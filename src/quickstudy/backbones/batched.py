"""The frozen part of a backbone on a GPU: images from many threads, gathered into batches.

The same interpreter of ONNX operators that trains suffixes runs the prefix here, channels last, layers multiplying in
bfloat16 where the GPU can (float16 where it cannot), compiled where Triton is installed. All batches have the same
size, filled up with black images where need be, so that what comes of an image does not depend on its company. The
engine's name is in the key of every bottleneck: bfloat16 differs in the third digit.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from quickstudy.backbones.autograd import GraphModule
from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engine import Engine
from quickstudy.backbones.runtime import optimised
from quickstudy.backbones.tiles import prefix_graph
from quickstudy.errors import DeviceError

_BATCH = 32

_Waiting = tuple[NDArray[np.uint8], "Future[NDArray[np.float32]]"]


def engine_on(device: str) -> Engine:
    """Make the engine that computes bottlenecks in PyTorch on a device, such as `cuda` or `cuda:1`.

    Raises:
        DeviceError: PyTorch cannot use the device.
    """
    precision = _precision_on(torch.device(device))
    return Engine(
        name=f"torch-{str(precision).removeprefix('torch.')}",
        open=partial(BatchedPrefix, device=device, precision=precision),
        threads=2 * _BATCH,  # one batch is decoded while another one runs
    )


def _precision_on(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    if not torch.cuda.is_available():
        raise DeviceError(
            f"PyTorch finds no CUDA device here, so '{device}' cannot be used; leave out --engine to use the processor"
        )
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


class BatchedPrefix:
    """The frozen part of a backbone, up to a cut. It is made to be called from many threads at once."""

    def __init__(
        self,
        backbone: Backbone,
        cut: str,
        shape: tuple[int, ...],
        *,
        device: str,
        precision: torch.dtype,
        batch: int = _BATCH,
    ) -> None:
        self._device, self._precision, self._batch = torch.device(device), precision, batch
        module = GraphModule(optimised(prefix_graph(backbone, cut, shape))).requires_grad_(False).to(self._device)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        compiled = self._device.type == "cuda" and importlib.util.find_spec("triton") is not None
        self._run = torch.compile(module, dynamic=False) if compiled else module
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="quickstudy-prefix", daemon=True)
        self._thread.start()

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the bottlenecks (N × shape of the cut) of images (uint8, N × the shape of an input)."""
        answers: list[Future[NDArray[np.float32]]] = [Future() for _ in images]
        for image, answer in zip(images, answers, strict=True):
            self._waiting.put((image, answer))
        return np.stack([answer.result() for answer in answers])

    def close(self) -> None:
        """End the thread that runs batches, after those that wait."""
        self._waiting.put(None)
        self._thread.join()

    def _serve(self) -> None:
        for batch in self._batches():
            try:
                bottlenecks = self._compute(np.stack([image for image, _ in batch]))
            except BaseException as error:  # handed to the threads that wait
                for _, answer in batch:
                    answer.set_exception(error)
            else:
                for (_, answer), bottleneck in zip(batch, bottlenecks, strict=True):
                    answer.set_result(bottleneck)

    def _batches(self) -> Iterator[list[_Waiting]]:
        """Yield whatever waits when the device is free, up to a whole batch; only the first image is waited for."""
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._batch and not self._waiting.empty():
                item = self._waiting.get()
                if item is None:
                    self._waiting.put(None)
                    break
                batch.append(item)
            yield batch

    def _compute(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        whole = np.zeros((self._batch, *images.shape[1:]), np.uint8)
        whole[: len(images)] = images
        lower = self._precision is not torch.float32
        with torch.inference_mode(), torch.autocast(self._device.type, self._precision, enabled=lower):
            bottlenecks: NDArray[np.float32] = self._run(torch.from_numpy(whole).to(self._device)).float().cpu().numpy()
        return bottlenecks[: len(images)]
