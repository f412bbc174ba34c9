"""Prefixes in OpenVINO: the same bottlenecks as ONNX Runtime's, kept apart from them, and nothing said to anybody."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines import openvino as engine_room
from quickstudy.backbones.engines.engine import Engine
from quickstudy.backbones.engines.named import ONNX_RUNTIME, Prefix, engine_for, engine_named
from quickstudy.backbones.engines.openvino import OpenVinoPrefix, openvino_engine
from quickstudy.backbones.engines.speed import known_speed, measure_speed
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import MissingExtraError, OptionError
from quickstudy.models.loading import load
from quickstudy.reports.audit import audit
from quickstudy.reports.report import report
from quickstudy.retraining.record import load_record
from quickstudy.retraining.retrain import retrain
from quickstudy.retraining.transformer import Bottleneck
from small_backbones import SIDE, add_small_backbone

FLOAT32 = Engine(name="openvino-float32", open=partial(OpenVinoPrefix, precision="float32"))


@pytest.fixture
def net(cache: Path) -> Backbone:
    return add_small_backbone(cache)


def images(count: int, side: int = SIDE) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(3)).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize("cut", ["block_1", "features"])
def test_they_are_those_of_onnx_runtime(net: Backbone, cut: str) -> None:
    at = net.at(cut)
    expected = Prefix(at, at.cut, at.cut_shape)(images(5))
    found = FLOAT32.open(at, at.cut, at.cut_shape)(images(5))
    assert (found.shape, found.dtype) == ((5, *at.cut_shape), np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("cut", ["block_12", "features"])
def test_the_real_network_at_both_precisions(backbone: Backbone, cut: str) -> None:
    at = backbone.at(cut)
    expected = Prefix(at, at.cut, at.cut_shape)(images(4, at.input.size))
    exact = FLOAT32.open(at, at.cut, at.cut_shape)(images(4, at.input.size))
    assert np.abs(exact - expected).max() < 1e-4 * np.abs(expected).max()
    usual = openvino_engine().open(at, at.cut, at.cut_shape)(images(4, at.input.size))
    assert np.linalg.norm(usual - expected) < 0.1 * np.linalg.norm(expected)


def test_threads_change_nothing(net: Backbone) -> None:
    prefix = openvino_engine().open(net, net.cut, net.cut_shape)
    expected = np.concatenate([prefix(image[None]) for image in images(40)])
    with ThreadPoolExecutor(8) as pool:
        found = np.concatenate(list(pool.map(lambda image: prefix(image[None]), images(40))))
    np.testing.assert_array_equal(found, expected)


def test_the_store_keeps_engines_apart(net: Backbone, photos: Path, tmp_path: Path) -> None:
    paths, store = sorted(photos.rglob("*.jpg"))[:6], Store(tmp_path / "store")
    assert extract(paths, net, store).computed == 6
    assert extract(paths, net, store, engine=openvino_engine()).computed == 6
    assert extract(paths, net, store, engine=openvino_engine()).cached == 6


def test_without_bfloat16_it_is_float32(monkeypatch: pytest.MonkeyPatch, net: Backbone) -> None:
    class Plain:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(engine_room.openvino, "Core", Plain)
    assert openvino_engine().name == "openvino-float32"


def test_a_model_that_any_runtime_runs_and_a_report_without_another_pass(
    net: Backbone, photos: Path, cache: Path, tmp_path: Path
) -> None:
    result = retrain(photos, tmp_path / "m.onnx", backbone="small", cache=cache, engine="openvino")
    assert (result.computed, result.cached) == (36, 0)
    model = load(result.model)
    assert model.metadata["training"]["engine"] == openvino_engine().name
    assert result.test is not None
    tests = [p for p in sorted(photos.rglob("*.jpg")) if model.predict([p])[0] == p.parent.name]
    assert len(tests) >= 30
    record = load_record(cache, result.model)
    assert record is not None
    audit(photos, backbone="small", cache=cache, engine="openvino")
    Bottleneck("small", cache=cache, engine="openvino").transform(sorted(photos.rglob("*.jpg")))
    page = report(result.model, cache=cache).read_text()
    assert "--engine openvino" in page
    assert len(list((cache / "bottlenecks").glob("*/source.json"))) == 2  # OpenVINO's bottlenecks, and the looks


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_for("openvino").name == engine_named(openvino_engine().name).name
    for name in ("onnxruntime", "openvino-float8", "torch-bfloat16x", "another"):
        assert engine_named(name) is ONNX_RUNTIME
    with pytest.raises(OptionError, match="The engine is 'tvm'; expected onnxruntime, onnxruntime-int8"):
        engine_for("tvm")
    usual = openvino_engine().name
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"'openvino' needs openvino, .* install .*\[openvino\]"):
        engine_for("openvino")
    assert engine_named(usual) is ONNX_RUNTIME


def test_a_budget_is_for_onnx_runtime(net: Backbone, photos: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--budget plans for .* with 'openvino'"):
        retrain(photos, tmp_path / "m.onnx", backbone="small", cache=cache, engine="openvino", budget_seconds=60)


def test_its_speed_is_measured_and_not_taken_for_the_usual(net: Backbone) -> None:
    assert measure_speed(net, seconds=0.1, engine=openvino_engine()) > 0
    assert known_speed(net) is None


def test_nothing_is_sent(net: Backbone, cache: Path) -> None:
    """OpenVINO's package comes with telemetry for its converters; running networks must not wake it."""
    script = f"""
import socket, sys
def refuse(*_args, **_kwargs):
    raise SystemExit("a connection was tried")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from pathlib import Path
import numpy as np
from quickstudy.backbones.loading import load_backbone
from quickstudy.backbones.engines.named import engine_for
net = load_backbone("small", Path({str(cache)!r}))
engine_for("openvino").open(net, net.cut, net.cut_shape)(np.zeros((1, {SIDE}, {SIDE}, 3), np.uint8))
print("ran")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
