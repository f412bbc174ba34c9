"""Prefixes in PyTorch: the same bottlenecks as ONNX Runtime's, batched from many threads, whatever their company."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.batched import BatchedPrefix, engine_on
from quickstudy.backbones.engines import device_of, engine_for
from quickstudy.backbones.runtime import ONNX_RUNTIME, Prefix
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import BackboneError, DeviceError
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


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_for("onnxruntime") is ONNX_RUNTIME
    assert (device_of("onnxruntime"), device_of("openvino"), device_of("cuda:1")) == ("cpu", "cpu", "cuda:1")
    with pytest.raises(BackboneError, match="The engine is 'gpu'; expected onnxruntime, openvino or cuda"):
        engine_for("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="finds no CUDA device here, so 'cuda'"):
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
