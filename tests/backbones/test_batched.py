"""Prefixes in PyTorch: the same bottlenecks as ONNX Runtime's, batched from many threads, whatever their company."""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines import batched as batched_module
from quickstudy.backbones.engines.batched import BatchedPrefix, engine_on
from quickstudy.backbones.engines.engine import AnyPrefix
from quickstudy.backbones.engines.named import ONNX_RUNTIME, Prefix, device_of, engine_for
from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import DeviceError, OptionError
from small_backbones import SIDE, add_small_backbone


@pytest.fixture
def net(tmp_path: Path) -> Backbone:
    return add_small_backbone(tmp_path)


def images(count: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(3)).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def batched(net: Backbone, batch: int) -> BatchedPrefix:
    return BatchedPrefix(net, net.cut, net.cut_shape, device="cpu", precision=torch.float32, batch=batch)


@pytest.mark.parametrize("cut", ["block_1", "features"])
def test_they_are_those_of_onnx_runtime(net: Backbone, cut: str) -> None:
    at = net.at(cut)
    prefix = engine_on("cpu").open(at, at.cut, at.cut_shape)
    expected = Prefix(at, at.cut, at.cut_shape)(images(5))
    found = prefix(images(5))
    prefix.close()
    assert found.shape == (5, *at.cut_shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_they_do_not_depend_on_their_company(net: Backbone, threads: int) -> None:
    many = images(50)
    alone = batched(net, 4)
    expected = np.concatenate([alone(image[None]) for image in many])
    alone.close()
    prefix = batched(net, 4)
    with ThreadPoolExecutor(threads) as pool:
        found = np.concatenate(list(pool.map(lambda image: prefix(image[None]), many)))
    prefix.close()
    np.testing.assert_array_equal(found, expected)


def test_an_error_reaches_those_who_wait_and_the_others_go_on(net: Backbone) -> None:
    prefix = batched(net, 2)
    with pytest.raises(RuntimeError):
        prefix(np.zeros((1, SIDE, SIDE, 4), np.uint8))
    assert prefix(images(1)).shape == (1, *net.cut_shape)
    prefix.close()


def test_the_store_keeps_engines_apart(net: Backbone, photos: Path, tmp_path: Path) -> None:
    paths, store = sorted(photos.rglob("*.jpg"))[:6], Store(tmp_path / "store")
    usual = extract(paths, net, store)
    other = extract(paths, net, store, engine=engine_on("cpu"))
    assert (other.computed, other.cached) == (6, 0)
    assert extract(paths, net, store, engine=engine_on("cpu")).computed == 0
    digests = [digest for digest in usual.digests if digest is not None]
    np.testing.assert_allclose(other.gather(digests), usual.gather(digests), rtol=2e-3, atol=1e-3)  # float16
    assert usual.source.spec.to_dict().keys() ^ other.source.spec.to_dict().keys() == {"engine"}


@pytest.mark.parametrize("census", [False, True])
def test_extraction_in_batches_is_extraction(net: Backbone, photos: Path, tmp_path: Path, census: bool) -> None:
    """Copies, broken files, views, images that are in memory, and what the store has: as one by one."""
    paths = sorted(photos.rglob("*.jpg"))
    (tmp_path / "broken.jpg").write_bytes(paths[0].read_bytes()[:3000])
    copy = Path(shutil.copy(paths[3], tmp_path / "copy.jpg"))
    mixed = [tmp_path / "broken.jpg", *paths[:20], tmp_path / "missing.jpg", copy, paths[30].read_bytes()]
    digests = None
    if census:
        mixed = [image for image in mixed if isinstance(image, Path) and image.exists()]
        digests = [hashlib.sha256(image.read_bytes()).digest() for image in mixed if isinstance(image, Path)]
    runs = []
    for engine in (ONNX_RUNTIME, engine_on("cpu")):
        store = Store(tmp_path / engine.name)
        first = extract(mixed[:9], net, store, digests=None if digests is None else digests[:9], views=2, engine=engine)
        found = extract(mixed, net, store, digests=digests, views=2, engine=engine)
        more = extract(mixed, net, store, digests=digests, views=45, engine=engine)  # more than a batch takes
        assert extract(mixed, net, store, digests=digests, views=45, engine=engine).computed == 0
        runs.append([(run.digests, run.reasons, run.computed, run.cached) for run in (first, found, more)])
        usable = [digest for digest in more.digests if digest is not None]
        runs[-1].append([more.gather(usable, view) for view in (0, 1, 45)])
        assert found.timings.decode > 0
    assert runs[0][:3] == runs[1][:3]
    for one, other in zip(runs[0][3], runs[1][3], strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-3)


def test_an_engine_that_fails_ends_the_extraction_with_its_error(net: Backbone, photos: Path, tmp_path: Path) -> None:
    def fail(*_: object) -> AnyPrefix:
        raise DeviceError("no room")

    engine = replace(engine_on("cpu"), open=fail)
    with pytest.raises(DeviceError, match="no room"):
        extract(sorted(photos.rglob("*.jpg")), net, Store(tmp_path / "store"), engine=engine)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_on_a_device_that_refuses_what_was_left_behind(net: Backbone, precision: torch.dtype) -> None:
    from stand_in import DEVICE, waits

    at = net.at("features")
    prefix = BatchedPrefix(at, at.cut, at.cut_shape, device=DEVICE, precision=precision, batch=8)
    with waits() as found:
        there = prefix(images(20))
    prefix.close()
    assert len(found) == 3  # a batch's bottlenecks come back, and nothing else
    expected = Prefix(at, at.cut, at.cut_shape)(images(20))
    assert np.abs(there - expected).max() < (1e-4 if precision is torch.float32 else 0.05) * np.abs(expected).max()


def test_threads_ask_a_device_for_the_network_in_turn(net: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """So activations of one batch are there at a time, and three threads need no more memory than one."""
    from stand_in import DEVICE

    class Asked(GraphModule):
        inside = most = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Asked.inside += 1
            Asked.most = max(Asked.most, Asked.inside)
            result = super().forward(x)
            Asked.inside -= 1
            return result

    monkeypatch.setattr(batched_module, "GraphModule", Asked)
    at = net.at("features")
    prefix = BatchedPrefix(at, at.cut, at.cut_shape, device=DEVICE, precision=torch.float32, batch=4)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(prefix, [images(4)] * 12))
    prefix.close()
    assert Asked.most == 1


def test_memory_that_is_kept_goes_back_at_the_end(net: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    from stand_in import DEVICE

    given_back: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    at = net.at("features")
    prefix = BatchedPrefix(at, at.cut, at.cut_shape, device=DEVICE, precision=torch.float32, batch=4)
    prefix(images(4))
    assert not given_back
    prefix.close()
    assert given_back


def test_fewer_images_at_once_where_memory_is_short(net: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(GraphModule):
        most = 20

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > self.most:
                raise torch.OutOfMemoryError
            return super().forward(x)

    monkeypatch.setattr(batched_module, "GraphModule", Small)
    prefix = batched(net, 64)
    assert prefix.batch == 16
    np.testing.assert_allclose(
        prefix(images(40)), Prefix(net, net.cut, net.cut_shape)(images(40)), rtol=1e-5, atol=1e-5
    )
    prefix.close()
    Small.most = 3
    with pytest.raises(DeviceError, match="too little free memory for 8 images"):
        batched(net, 64)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_for("onnxruntime") is ONNX_RUNTIME
    assert (device_of("onnxruntime"), device_of("openvino"), device_of("cuda:1")) == ("cpu", "cpu", "cuda:1")
    with pytest.raises(OptionError, match="The engine is 'gpu'; expected onnxruntime, onnxruntime-int8"):
        engine_for("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="finds no CUDA device here, so 'cuda'"):
        engine_for("cuda")


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "cuda:-1", "cudas"])
def test_a_gpu_that_nobody_could_mean_is_no_engine(name: str) -> None:
    with pytest.raises(OptionError, match="expected onnxruntime, onnxruntime-int8, openvino or cuda"):
        engine_for(name)


@pytest.mark.parametrize(("count", "there"), [(1, "cuda:0 only"), (2, "cuda:0 to cuda:1")])
def test_a_gpu_of_a_number_that_is_not_there(count: int, there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(DeviceError, match=f"finds {there} here, so 'cuda:3'"):
        engine_for("cuda:3")


@pytest.mark.parametrize(
    ("capability", "name"), [((7, 5), "torch-float16"), ((8, 0), "torch-bfloat16"), ((9, 0), "torch-bfloat16")]
)
def test_layers_multiply_in_what_the_gpu_itself_multiplies(
    capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert engine_for("cuda").name == name


def test_a_gpu_that_fails_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_device: object) -> tuple[int, int]:
        raise RuntimeError("CUDA error: all devices are busy or unavailable\nand much more")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", fail)
    with pytest.raises(DeviceError, match=r"cannot use 'cuda': CUDA error: all devices are busy or unavailable; leave"):
        engine_for("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(net: Backbone) -> None:
    at = net.at("features")
    prefix = engine_for("cuda").open(at, at.cut, at.cut_shape)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = np.concatenate(list(pool.map(lambda image: prefix(image[None]), images(40))))
    prefix.close()
    expected = Prefix(at, at.cut, at.cut_shape)(images(40))
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
