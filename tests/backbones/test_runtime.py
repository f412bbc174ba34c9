"""Running graphs: the prefix gives the graph's own values, from one thread or many."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import Prefix
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.errors import BackboneError
from quickstudy.process import usable_cores


def images(count: int, size: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(4)).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.fixture(scope="module")
def prefix(backbone: Backbone) -> Prefix:
    return Prefix(backbone, backbone.cut, backbone.cut_shape)


def test_the_features_lead_to_the_graphs_probabilities(backbone: Backbone, prefix: Prefix) -> None:
    import onnx
    from onnx import numpy_helper

    batch = images(2, backbone.input.size)
    features = prefix(batch)
    assert (features.shape, features.dtype) == ((2, 1280), np.float32)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(backbone.path).graph.initializer}
    logits = features @ constants["_fc.weight"].T + constants["_fc.bias"]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = open_session(backbone.path).run(["probabilities"], {"image": batch})[0]
    np.testing.assert_allclose(exponents / exponents.sum(axis=1, keepdims=True), expected, atol=1e-5)


def test_an_image_has_the_same_bottleneck_alone_and_in_company(backbone: Backbone, prefix: Prefix) -> None:
    batch = images(3, backbone.input.size)
    alone = np.concatenate([prefix(image[None]) for image in batch])
    np.testing.assert_allclose(prefix(batch), alone, atol=1e-4)


def test_threads_may_share_a_prefix(backbone: Backbone, prefix: Prefix) -> None:
    batch = images(3, backbone.input.size)
    expected = [prefix(image[None]) for image in batch]
    found: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: prefix(batch[n : n + 1])})) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        np.testing.assert_array_equal(found[number], expected[number])


def test_an_unknown_cut_is_refused(backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match="has no tensor 'block_99'"):
        Prefix(backbone, "block_99", (1,))


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x08\x08\x12\x00"])
def test_a_graph_that_cannot_be_loaded_is_an_error_of_ours(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BackboneError, match="ONNX Runtime cannot load the graph"):
        open_session(data)
    (tmp_path / "graph.onnx").write_bytes(data)
    with pytest.raises(BackboneError, match="ONNX Runtime cannot load the graph"):
        open_session(tmp_path / "graph.onnx")


def test_a_missing_graph_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="ONNX Runtime cannot load the graph"):
        open_session(tmp_path / "none.onnx")


def test_there_is_a_core_to_run_on() -> None:
    assert usable_cores() >= 1
