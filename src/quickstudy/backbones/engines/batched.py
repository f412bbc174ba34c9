"""The frozen part of a backbone on a GPU, many images at a time.

The same interpreter of ONNX operators that trains suffixes runs the prefix here, channels last, layers multiplying in
bfloat16 where the GPU can (float16 where it cannot). Nothing is compiled: on an H200, the bare network takes 12,310
images of 288 pixels a second at 512 a batch as it stands, and 11,820 compiled, after half a minute; at 32 a batch 5,710
and 3,247. All batches have the same size, filled up with black images where need be, so that what comes of
an image does not depend on its company. The engine's name is in the key of every bottleneck: bfloat16 differs in the
third digit.

Several threads may call it at once, each with a stream and a buffer of its own in memory that the GPU reads directly:
while one waits for its results, another one's images are on their way. They ask the GPU for the network in turn, so
that one of them at a time holds memory for activations: 512 images take it 42 ms, and to ask for them 6 at most, as
long as 32 images take.
"""

from __future__ import annotations

import contextlib
import threading
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.engine import Engine
from quickstudy.backbones.engines.tiles import prefix_graph
from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.backbones.graphs.runtime import optimised
from quickstudy.errors import DeviceError, first_line

_BATCH = 512
"""Images that pass at once on a GPU, where its memory allows; else half of them, or a quarter, and so on."""
_BATCH_HERE = 32
"""Images that pass at once on the processor."""
_LEAST_BATCH = 8
_THREADS = 3
"""Threads to call it from: one waits for the GPU, while the batches of two are made ready."""


def engine_on(device: str) -> Engine:
    """Make the engine that computes bottlenecks in PyTorch on a device, such as `cuda` or `cuda:1`.

    Raises:
        DeviceError: PyTorch cannot use the device, or there is none of this number.
    """
    place = torch.device(device)
    precision, batch = _precision_on(place), _BATCH_HERE if place.type == "cpu" else _BATCH
    return Engine(
        name=f"torch-{str(precision).removeprefix('torch.')}",
        open=partial(BatchedPrefix, device=device, precision=precision, batch=batch),
        threads=_THREADS,
        batch=batch,
    )


def _precision_on(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise DeviceError(
            f"PyTorch finds no CUDA device here, so '{device}' cannot be used; leave out --engine to use the processor"
        )
    if device.index is not None and device.index >= count:
        there = "cuda:0 only" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise DeviceError(f"PyTorch finds {there} here, so '{device}' cannot be used; name one of these in --engine")
    try:
        major, _ = torch.cuda.get_device_capability(device)
    except RuntimeError as error:
        raise DeviceError(
            f"PyTorch cannot use '{device}': {first_line(error)}; leave out --engine to use the processor"
        ) from error
    # From this generation on, GPUs multiply bfloat16; of older ones PyTorch says so, too, but they do it in many steps.
    return torch.bfloat16 if major >= 8 else torch.float16


class BatchedPrefix:
    """The frozen part of a backbone, up to a cut. Several threads may call it at once."""

    def __init__(
        self,
        backbone: Backbone,
        cut: str,
        shape: tuple[int, ...],
        *,
        device: str,
        precision: torch.dtype,
        batch: int = _BATCH_HERE,
    ) -> None:
        """Load it, and find out how many images fit into the device's memory: `batch` at most, 8 at least.

        Raises:
            DeviceError: not even 8 images do.
        """
        self._device, self._precision = torch.device(device), precision
        module = GraphModule(optimised(prefix_graph(backbone, cut, shape))).requires_grad_(False)
        for parameter in module.parameters():  # once, where autocast would do so for every batch
            parameter.data = parameter.data.to(precision) if parameter.ndim > 1 else parameter.data
        self._run = module.to(self._device)
        self._run.lay_channels_last()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the streams that it is called on do not wait for this one
        self._of_thread = threading.local()
        self._asking: AbstractContextManager[Any] = (
            contextlib.nullcontext() if self._device.type == "cpu" else threading.Lock()
        )
        """Held by the thread that asks for the network's operators; on the processor, asking is computing."""
        self.batch = batch
        """Number of images that pass at once."""
        while True:
            try:
                self(np.zeros((1, *backbone.input.shape), np.uint8))
                break
            except torch.OutOfMemoryError:
                if self.batch // 2 < _LEAST_BATCH:
                    raise DeviceError(
                        f"'{device}' has too little free memory for {self.batch} images; end what else uses it, or "
                        "leave out --engine to use the processor"
                    ) from None
            self.batch //= 2
            self.close()

    def network(self, images: Tensor) -> Tensor:
        """Compute bottlenecks (N × shape of the cut) of images on the device (uint8, N × the shape of an input)."""
        lower = self._precision is not torch.float32
        with torch.inference_mode(), torch.autocast(self._device.type, self._precision, enabled=lower):
            result: Tensor = self._run(images)
        return result

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the bottlenecks (N × shape of the cut) of images (uint8, N × the shape of an input)."""
        parts = [self._compute(images[start : start + self.batch]) for start in range(0, len(images), self.batch)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def close(self) -> None:
        """Let go of the buffers, and of memory that PyTorch keeps; the network goes with this object.

        Fine-tuning, which comes next, keeps as many activations on a GPU as have room in what is free.
        """
        self._of_thread = threading.local()
        if self._device.type != "cpu":
            torch.cuda.empty_cache()

    def _compute(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        whole, stream = self._buffer(images.shape[1:])
        there = whole.numpy()
        there[: len(images)] = images
        there[len(images) :] = 0
        with torch.inference_mode(), stream:
            there_too = whole.to(self._device, non_blocking=True)
            with self._asking:
                bottlenecks = self.network(there_too)[: len(images)].float()
            result: NDArray[np.float32] = bottlenecks.cpu().numpy()  # which waits, so the buffer may be filled again
        return result

    def _buffer(self, shape: tuple[int, ...]) -> tuple[Tensor, AbstractContextManager[Any]]:
        """Give this thread's buffer (batch × `shape`, uint8) and stream; both are kept from call to call."""
        kept = getattr(self._of_thread, "kept", None)
        if kept is None or kept[0].shape[1:] != shape:
            on_a_gpu = self._device.type == "cuda"
            buffer = torch.zeros((self.batch, *shape), dtype=torch.uint8, pin_memory=on_a_gpu)
            stream = torch.cuda.Stream(self._device) if on_a_gpu else None  # type: ignore[no-untyped-call]
            kept = self._of_thread.kept = (buffer, stream)
        buffer, stream = kept
        return buffer, contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)
