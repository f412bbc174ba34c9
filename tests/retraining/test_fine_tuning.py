"""Fine-tuning: begins where the linear head is, keeps the best, goes on after a kill to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import Prefix
from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.errors import TrainingError
from quickstudy.learning.checkpoints import Checkpoints
from quickstudy.learning.selection import Head, fit_head
from quickstudy.retraining import tuning
from quickstudy.retraining.network import SuffixNetwork, features_of, suffix_graph
from quickstudy.retraining.tuning import Candidate, FineTuned, TuningImages, fine_tune, suffix_logits
from small_backbones import add_small_backbone, method_of

CLASSES = 3
METHOD = method_of(epochs=4, rate=3e-3)
METHOD = replace(METHOD, batch=16, precision="float32")
HARMFUL = replace(method_of(epochs=4, rate=5e-1), batch=16, precision="float32")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return add_small_backbone(tmp_path_factory.mktemp("cache")).at("block_1")


class World:
    """Images of coloured bars, each in three views, as activations at a cut."""

    def __init__(self, net: Backbone, count: int = 240) -> None:
        draws = np.random.Generator(np.random.PCG64(5))
        labels = np.arange(count) % CLASSES
        pixels = draws.integers(0, 120, (3, count, 32, 32, 3), np.uint8)
        for row, label in enumerate(labels):
            place = int(draws.integers(0, 24))
            if label == 0:
                pixels[:, row, place : place + 6] += 60
            elif label == 1:
                pixels[:, row, :, place : place + 6] += 60
            else:
                pixels[:, row, place : place + 6, place : place + 6] += 90
        prefix = Prefix(net, net.cut, net.cut_shape)
        digests = tuple(bytes([row]) * 32 for row in range(count))
        self.values = [dict(zip(digests, prefix(view), strict=True)) for view in pixels]
        cut = count * 2 // 3
        self.train = TuningImages(digests=digests[:cut], labels=labels[:cut], gather=self.gather, views=2)
        self.validation = TuningImages(digests=digests[cut:], labels=labels[cut:], gather=self.gather)

    def gather(self, digests: list[bytes], view: int) -> np.ndarray:
        return np.stack([self.values[view][digest] for digest in digests]).astype(np.float16)


@pytest.fixture(scope="module")
def world(net: Backbone) -> World:
    return World(net)


@pytest.fixture(scope="module")
def head(net: Backbone, world: World) -> Head:
    features = features_of(GraphModule(suffix_graph(net)), world.train.plain())
    return fit_head(features, world.train.labels, world.train.digests, classes=CLASSES)


@pytest.fixture
def fresh(net: Backbone, head: Head) -> Callable[[], SuffixNetwork]:
    return lambda: SuffixNetwork(GraphModule(suffix_graph(net)), head.weights, head.biases)


def weights_of(network: SuffixNetwork) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_begins_with_exactly_what_the_linear_head_gives(
    net: Backbone, world: World, head: Head, fresh: Callable[[], SuffixNetwork]
) -> None:
    result = fine_tune(fresh(), world.train, world.validation, replace(METHOD, epochs=1))
    features = features_of(GraphModule(suffix_graph(net)), world.validation.plain())
    linear = head.logits(features)
    assert result.candidates[0].right == int((linear.argmax(1) == world.validation.labels).sum())
    assert result.candidates[0].n == len(world.validation)
    network = fresh()
    found = suffix_logits(network, world.validation).numpy()
    np.testing.assert_allclose(found, linear, rtol=1e-5, atol=1e-5)


def test_training_helps_here(world: World, fresh: Callable[[], SuffixNetwork]) -> None:
    network = fresh()
    result = fine_tune(network, world.train, world.validation, replace(method_of(epochs=30, rate=1e-2), batch=16))
    assert result.kept.right > result.start.right
    assert result.kept == result.candidates[-1]
    logits = suffix_logits(network, world.validation)
    assert int((logits.argmax(1).numpy() == world.validation.labels).sum()) == result.kept.right
    assert result.network is network


def test_no_more_of_the_trained_weights_is_kept_than_the_validation_images_bear(
    world: World, fresh: Callable[[], SuffixNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the obvious: the averaged weights after the last epoch, mixed by hand, the most trained first."""
    method = replace(method_of(epochs=2, rate=2e-2), batch=16, precision="float32")
    monkeypatch.setattr(tuning, "SHARES", (1.0,))
    patient = world.validation  # everything is borne by images that are all wrong at the start
    worst = replace(patient, labels=(suffix_logits(fresh(), patient).argmin(1).numpy()).astype(np.intp))
    fine_tune(whole := fresh(), world.train, worst, method)
    monkeypatch.setattr(tuning, "SHARES", shares := (0.9, 0.6, 0.3))
    result = fine_tune(found := fresh(), world.train, world.validation, method)
    rights = {}
    for share in (0.0, *shares):
        mixed = fresh()
        with torch.no_grad():
            for parameter, trained in zip(mixed.parameters(), whole.parameters(), strict=True):
                parameter.lerp_(trained, share)
        logits = suffix_logits(mixed, world.validation).argmax(1).numpy()
        rights[share] = int((logits == world.validation.labels).sum())
    last = result.candidates[-1]
    borne = [share for share in shares if rights[share] >= rights[0.0]]
    assert last.share == (borne[0] if borne else shares[-1])
    assert last.right == rights[last.share]
    assert (result.kept == last) == bool(borne)
    assert not same(weights_of(found), weights_of(whole))


def test_where_training_harms_the_linear_head_stays(world: World, fresh: Callable[[], SuffixNetwork]) -> None:
    network = fresh()
    before = weights_of(network)
    wrong = replace(world.train, labels=(world.train.labels + 1) % CLASSES)
    result = fine_tune(network, wrong, world.validation, HARMFUL)
    assert result.kept.epoch == 0
    assert same(weights_of(network), before)


def test_it_ends_when_it_only_does_harm(world: World, fresh: Callable[[], SuffixNetwork]) -> None:
    wrong = replace(world.train, labels=(world.train.labels + 1) % CLASSES)
    result = fine_tune(fresh(), wrong, world.validation, replace(HARMFUL, epochs=20, patience=2))
    assert result.stopped_early
    assert [candidate.epoch for candidate in result.candidates] == [0, 1, 2]
    assert result.steps == 2 * world.train.steps_per_epoch(METHOD.batch)


def test_two_runs_give_the_same_to_the_bit(world: World, fresh: Callable[[], SuffixNetwork]) -> None:
    method = replace(METHOD, epochs=2, mixup=0.3)
    first, second, other = fresh(), fresh(), fresh()
    fine_tune(first, world.train, world.validation, method)
    fine_tune(second, world.train, world.validation, method)
    assert same(weights_of(first), weights_of(second))
    result = fine_tune(other, world.train, world.validation, replace(method, seed=1))
    assert result.kept.epoch == 0 or not same(weights_of(first), weights_of(other))


class Killed(BaseException):
    """Ends a run at once, as a kill does."""


@pytest.fixture(scope="module")
def undisturbed(net: Backbone, world: World, head: Head) -> tuple[FineTuned, list[torch.Tensor]]:
    """What comes of a run in one go, and its weights."""
    network = SuffixNetwork(GraphModule(suffix_graph(net)), head.weights, head.biases)
    return fine_tune(network, world.train, world.validation, METHOD), weights_of(network)


@pytest.mark.parametrize("step", [1, 3, 6, 11])
def test_a_killed_run_goes_on_to_the_same_bits(
    step: int,
    world: World,
    fresh: Callable[[], SuffixNetwork],
    undisturbed: tuple[FineTuned, list[torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "CHECKPOINT_SECONDS", 0.0)
    expected, weights = undisturbed

    def kill(done: int, _steps: int, _kept: Candidate) -> None:
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        fine_tune(
            fresh(), world.train, world.validation, METHOD, checkpoints=Checkpoints(tmp_path, keep=1), report=kill
        )
    begun: list[int] = []
    result = fine_tune(
        resumed := fresh(),
        world.train,
        world.validation,
        METHOD,
        checkpoints=Checkpoints(tmp_path, keep=1),
        report=lambda done, _steps, _kept: begun.append(done),
    )
    assert begun[0] == step
    assert same(weights, weights_of(resumed))
    assert result.candidates == expected.candidates
    assert result.kept == expected.kept


def test_a_loss_that_is_no_number_ends_it_with_the_step_named(world: World, fresh: Callable[[], SuffixNetwork]) -> None:
    network = fresh()
    with torch.no_grad():
        next(network.suffix.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="not a number in step 0 of fine-tuning"):
        fine_tune(network, world.train, world.validation, METHOD)


def test_an_epoch_goes_through_all_images_once_and_steps_are_functions_of_their_number(world: World) -> None:
    labels = {digest: int(label) for digest, label in zip(world.train.digests, world.train.labels, strict=True)}
    seen: list[tuple[float, ...]] = []
    count = world.train.steps_per_epoch(16)
    assert count == 10
    for step in range(count):
        activations, classes = world.train.batch(step, size=16, seed=0)
        again, _ = world.train.batch(step, size=16, seed=0)
        assert torch.equal(activations, again)
        assert len(activations) == len(classes) == 16
        seen += [tuple(row.flatten()[:40].tolist()) for row in activations]
    known = {
        tuple(torch.from_numpy(world.gather([digest], view))[0].float().flatten()[:40].tolist()): (digest, view)
        for digest in labels
        for view in range(3)
    }
    assert sorted(known[row][0] for row in seen) == sorted(labels)
    assert {known[row][1] for row in seen} == {0, 1, 2}
    other, _ = world.train.batch(count, size=16, seed=0)
    assert not torch.equal(other, world.train.batch(0, size=16, seed=0)[0])


def test_class_weights_count(world: World, fresh: Callable[[], SuffixNetwork]) -> None:
    method = replace(METHOD, epochs=1)
    only_first = np.array([1, 0, 0], np.float32)
    result: FineTuned = fine_tune(network := fresh(), world.train, world.validation, method, class_weights=only_first)
    plain = fine_tune(fresh(), world.train, world.validation, method)
    assert result.candidates[1] != plain.candidates[1]
    del network
