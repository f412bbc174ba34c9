"""Fine-tuning on a device that refuses tensors left behind: all steps of it, with the processor's results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quickstudy
from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines import named as engines
from quickstudy.backbones.engines.named import Prefix
from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.errors import DeviceError
from quickstudy.learning.checkpoints import Checkpoints
from quickstudy.retraining import tuning
from quickstudy.retraining.network import SuffixNetwork, features_of, suffix_graph
from quickstudy.retraining.tuning import Candidate, FineTuned, TuningImages, fine_tune, suffix_logits
from small_backbones import SIDE, add_small_backbone, method_of
from stand_in import DEVICE, rounding, waits

CLASSES = 3
METHOD = replace(method_of(epochs=3, rate=1e-2), batch=16, precision="float32", mixup=0.3)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return add_small_backbone(tmp_path_factory.mktemp("cache")).at("block_1")


@pytest.fixture(scope="module")
def examples(net: Backbone) -> tuple[TuningImages, TuningImages]:
    """Images of noise, brighter from class to class, in two views, as activations at a cut."""
    count = 70
    draws = np.random.Generator(np.random.PCG64(5))
    labels = np.arange(count) % CLASSES
    pixels = draws.integers(0, 100, (2, count, SIDE, SIDE, 3)) + (40 * labels)[:, None, None, None]
    prefix = Prefix(net, net.cut, net.cut_shape)
    digests = tuple(bytes([row]) * 32 for row in range(count))
    values = [dict(zip(digests, prefix(view), strict=True)) for view in pixels.astype(np.uint8)]

    def gather(wanted: tuple[bytes, ...], view: int) -> np.ndarray:
        return np.stack([values[view][digest] for digest in wanted]).astype(np.float16)

    train = TuningImages(digests=digests[:50], labels=labels[:50], gather=gather, views=1)
    return train, TuningImages(digests=digests[50:], labels=labels[50:], gather=gather)


def fresh(net: Backbone, device: str) -> SuffixNetwork:
    draws = np.random.Generator(np.random.PCG64(1))
    weights = draws.normal(0, 0.1, (24, CLASSES)).astype(np.float32)
    return SuffixNetwork(GraphModule(suffix_graph(net)).to(device), weights, np.zeros(CLASSES, np.float32))


def values_of(network: SuffixNetwork) -> list[torch.Tensor]:
    return [parameter.detach().cpu() for parameter in network.parameters()]


@pytest.fixture(scope="module")
def on_the_processor(net: Backbone, examples: tuple[TuningImages, TuningImages]) -> FineTuned:
    return fine_tune(fresh(net, "cpu"), *examples, METHOD)


def test_batches_on_a_device_are_those_of_the_processor(examples: tuple[TuningImages, TuningImages]) -> None:
    train, there = examples[0], examples[0].on(torch.device(DEVICE))
    for step in range(9):
        for expected, found in zip(train.batch(step, size=16, seed=3), there.batch(step, size=16, seed=3), strict=True):
            assert found.device.type == DEVICE
            assert torch.equal(found.cpu(), expected)
    for expected, found in zip(train.plain(batch=7), there.plain(batch=7), strict=True):
        assert torch.equal(found.cpu(), expected)


def test_the_same_comes_out_as_on_the_processor(
    net: Backbone, examples: tuple[TuningImages, TuningImages], on_the_processor: FineTuned
) -> None:
    network = fresh(net, DEVICE)
    assert {parameter.device.type for parameter in network.parameters()} == {DEVICE}
    found = fine_tune(network, *examples, METHOD)
    assert found.kept.epoch == on_the_processor.kept.epoch > 0
    for one, other in zip(found.candidates, on_the_processor.candidates, strict=True):
        assert (one.epoch, one.share, one.right, one.n) == (other.epoch, other.share, other.right, other.n)
    for value, expected in zip(values_of(network), values_of(on_the_processor.network), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    logits = suffix_logits(network, examples[1])
    torch.testing.assert_close(logits, suffix_logits(on_the_processor.network, examples[1]), rtol=1e-3, atol=1e-3)
    features = features_of(network.suffix, examples[1].plain())
    assert features.shape == (20, 24)
    deeper = network.deepened(GraphModule(suffix_graph(net)).to(DEVICE))
    assert torch.equal(suffix_logits(deeper, examples[1]), logits)


def test_without_room_activations_come_batch_by_batch(
    net: Backbone,
    examples: tuple[TuningImages, TuningImages],
    on_the_processor: FineTuned,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "RESIDENT_SHARE", 0.0)
    assert examples[0].on(torch.device(DEVICE)).batch(0, size=16, seed=0)[0].device.type == DEVICE
    fine_tune(network := fresh(net, DEVICE), *examples, METHOD)
    for value, expected in zip(values_of(network), values_of(on_the_processor.network), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resident", [True, False])
def test_steps_do_not_wait_for_the_device(
    net: Backbone, examples: tuple[TuningImages, TuningImages], resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More steps an epoch, but no more epochs: nothing more is waited for, however activations come there."""
    monkeypatch.setattr(tuning, "SHARES", (0.75,))
    monkeypatch.setattr(tuning, "RESIDENT_SHARE", 0.5 if resident else 0.0)
    counts = []
    for batch in (16, 5):
        with waits() as found:
            fine_tune(fresh(net, DEVICE), *examples, replace(METHOD, epochs=2, patience=99, batch=batch))
        counts.append(len(found))
    assert counts[0] == counts[1]


def test_values_of_the_processor_do_not_depend_on_a_gpus_rounding(
    net: Backbone, examples: tuple[TuningImages, TuningImages]
) -> None:
    here, there = fresh(net, "cpu"), fresh(net, DEVICE)
    with rounding():
        logits = suffix_logits(there, examples[1])
        features = features_of(there.suffix, examples[1].plain())
    torch.testing.assert_close(logits, suffix_logits(here, examples[1]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features, features_of(here.suffix, examples[1].plain()), rtol=1e-5, atol=1e-5)
    assert torch.backends.cudnn.allow_tf32


def test_a_killed_run_goes_on_to_the_same_bits(
    net: Backbone, examples: tuple[TuningImages, TuningImages], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(done: int, _steps: int, _kept: Candidate) -> None:
        if done == 6:
            raise Killed

    fine_tune(whole := fresh(net, DEVICE), *examples, METHOD)
    monkeypatch.setattr(tuning, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Killed):
        fine_tune(fresh(net, DEVICE), *examples, METHOD, checkpoints=Checkpoints(tmp_path, keep=1), report=kill)
    fine_tune(resumed := fresh(net, DEVICE), *examples, METHOD, checkpoints=Checkpoints(tmp_path, keep=1))
    for one, other in zip(values_of(resumed), values_of(whole), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("progressive", [False, True])
def test_retrain_with_a_cut_from_photos_to_the_model(
    progressive: bool, photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extraction, fine-tuning, its validation, the temperature, strangeness, and the model with its golden checks."""
    monkeypatch.setattr(engines, "GPUS", ("cuda", DEVICE))
    add_small_backbone(cache)
    options: dict[str, Any] = {"backbone": "small", "cut": "block_1", "epochs": 3, "rate": 1e-2, "views": 1}
    with rounding():  # the model must agree with the processor all the same
        found = quickstudy.retrain(
            photos, tmp_path / "there.onnx", engine=DEVICE, progressive=progressive, cache=cache, **options
        )
    assert found.computed == 2 * 36 * (len(found.tuning) if progressive else 1)
    assert [len(stage["epochs"]) > 1 for stage in found.tuning] == [True] * len(found.tuning)
    assert found.test is not None
    assert found.test.score.n > 0


def test_too_little_memory_is_an_error_that_says_what_helps(
    photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(engines, "GPUS", ("cuda", DEVICE))
    monkeypatch.setattr(tuning.FineTuning, "run", no_room)
    add_small_backbone(cache)
    with pytest.raises(DeviceError, match=rf"^'{DEVICE}' has too little free memory for this; cut nearer"):
        quickstudy.retrain(
            photos, tmp_path / "there.onnx", engine=DEVICE, cache=cache, backbone="small", cut="block_1", epochs=1
        )
