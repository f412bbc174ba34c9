"""The pipeline: what is in a batch depends on seed and step alone, and threads only make it come sooner."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quickstudy.images.pixels import PixelSet
from quickstudy.scratch.input import Augmentation, Batch, Moments, Pipeline, evaluation_batches

CLASSIC = Augmentation(crop=5, brightness=63, contrast=(0.2, 1.8))
PLAIN = Augmentation(flip=False, standardise="none")
PATIENCE_SECONDS = 60
"""Far more than anything here takes; a test that waits so long fails."""


def images(n: int = 50, *, side: int = 8, channels: int = 3, classes: int = 7) -> PixelSet:
    draws = np.random.Generator(np.random.PCG64(n))
    return PixelSet(
        pixels=draws.integers(0, 256, (n, side, side, channels), np.uint8),
        labels=draws.integers(0, classes, n),
        classes=tuple(f"class {number}" for number in range(classes)),
    )


def numbered(n: int) -> PixelSet:
    """Images whose only pixel is their number, and whose label it is, too."""
    pixels = np.arange(n, dtype=np.uint8)[:, None, None, None]
    return PixelSet(pixels=pixels, labels=np.arange(n), classes=tuple(str(number) for number in range(n)))


def pipeline(data: PixelSet, augmentation: Augmentation = CLASSIC, **options: object) -> Pipeline:
    values = {"batch": 8, "seed": 3, "moments": Moments.of(data.pixels), "threads": 0} | options
    return Pipeline(data, augmentation, **values)  # type: ignore[arg-type]


def numbers(batch: Batch) -> list[int]:
    found = (batch.images.flatten() * 255).round().long().tolist()
    assert found == batch.labels.tolist()
    return [int(number) for number in found]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.step for batch in first] == [batch.step for batch in second]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("threads", [1, 2, 5, 16])
def test_threads_change_nothing(threads: int) -> None:
    data = images()
    alone = list(pipeline(data).batches(range(40)))
    assert [batch.step for batch in alone] == list(range(40))
    assert_same(list(pipeline(data, threads=threads).batches(range(40))), alone)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("start", [1, 6, 7, 25])
def test_a_run_that_goes_on_gets_the_same_batches(start: int, threads: int) -> None:
    data = images()
    whole = list(pipeline(data).batches(range(30)))
    assert_same(list(pipeline(data, threads=threads).batches(range(start, 30))), whole[start:])


def test_made_twice_in_any_order_it_is_the_same() -> None:
    data = images()
    made = pipeline(data, augmentation=Augmentation(pad=2, alternate=True))
    forwards = [made.make(step) for step in range(30)]
    backwards = [made.make(step) for step in reversed(range(30))]
    assert_same(forwards, backwards[::-1])
    assert_same(forwards, list(pipeline(data, augmentation=Augmentation(pad=2, alternate=True)).batches(range(30))))


def test_another_seed_gives_other_batches() -> None:
    data = images()
    first, second = pipeline(data, seed=3), pipeline(data, seed=4)
    assert first.rows(0).tolist() != second.rows(0).tolist()
    # Distortions, too, are others: one image, whose order is always the same.
    one = images(1, side=32)
    many = Augmentation(crop=24, brightness=63, contrast=(0.2, 1.8))
    assert not torch.equal(pipeline(one, many, seed=3).make(0).images, pipeline(one, many, seed=4).make(0).images)


def test_no_two_steps_have_the_same_distortions() -> None:
    one = images(1, side=32)
    made = pipeline(one, Augmentation(brightness=63, flip=False, standardise="none"), batch=4)
    values = [image.flatten()[0].item() for step in range(100) for image in made.make(step).images]
    assert len(set(values)) == len(values)


@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**63 - 1))
def test_every_image_comes_once_an_epoch_and_batches_straddle_epochs(n: int, batch: int, seed: int) -> None:
    made = pipeline(numbered(n), PLAIN, batch=batch, seed=seed)
    steps = -(-3 * n // batch)
    stream = [number for step in range(steps) for number in numbers(made.make(step))]
    assert len(stream) == steps * batch  # every batch is full
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert [row for step in range(steps) for row in made.rows(step)] == stream


def test_orders_differ_between_epochs_and_are_shuffled() -> None:
    n = 60
    made = pipeline(numbered(n), PLAIN, batch=n)
    orders = [tuple(numbers(made.make(epoch))) for epoch in range(20)]
    assert len(set(orders)) == 20
    assert tuple(range(n)) not in orders
    # Each image comes early and late.
    places = np.argsort(orders, axis=1)
    assert abs(places.mean(axis=0) - (n - 1) / 2).max() < 20
    assert abs(np.corrcoef(orders) - np.eye(20)).max() < 0.6


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("augmentation", [CLASSIC, Augmentation(pad=2, alternate=True)], ids=["classic", "alternate"])
def test_replicas_parts_together_are_the_whole_batch(world: int, augmentation: Augmentation) -> None:
    data = images(30)
    whole = pipeline(data, augmentation)
    parts = [pipeline(data, augmentation, rank=rank, world=world, threads=2) for rank in range(world)]
    for step, *batches in zip(range(10), *(part.batches(range(10)) for part in parts), strict=True):
        expected = whole.make(step)
        assert [len(batch.labels) for batch in batches] == [8 // world] * world
        assert torch.equal(torch.cat([batch.images for batch in batches]), expected.images)
        assert torch.equal(torch.cat([batch.labels for batch in batches]), expected.labels)
        assert all(part.rows(step).tolist() == whole.rows(step).tolist() for part in parts)


def test_alternate_mirroring_alternates() -> None:
    n, epochs = 24, 6
    pixels = np.zeros((n, 2, 2, 1), np.uint8)
    pixels[:, :, 0, 0] = np.arange(1, n + 1)[:, None]  # left says who it is, right is black
    data = PixelSet(pixels=pixels, labels=np.arange(n), classes=tuple(map(str, range(n))))
    made = pipeline(data, Augmentation(alternate=True, standardise="none"), batch=9)
    mirrored: dict[int, list[bool]] = {number: [] for number in range(n)}
    for step in range(n * epochs // 9):
        batch = made.make(step)
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            assert round(float(image.max()) * 255) == label + 1
            mirrored[label].append(bool(image[0, 0, 0] == 0))
    for history in mirrored.values():
        assert history == [history[0] != (epoch % 2 == 1) for epoch in range(epochs)]
    assert 4 <= sum(history[0] for history in mirrored.values()) <= n - 4  # at first by chance


class Counted:
    """Stands before a pipeline's `make` and counts."""

    def __init__(self, made: Pipeline, *, fails_at: int = -1) -> None:
        self.begun: list[int] = []
        self.fails_at = fails_at
        self._make, self._changed = made.make, threading.Condition()
        made.make = self  # type: ignore[assignment, method-assign]

    def __call__(self, step: int) -> Batch:
        with self._changed:
            self.begun.append(step)
            self._changed.notify_all()
        if step == self.fails_at:
            raise ValueError(f"no batch {step}")
        return self._make(step)

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= count, PATIENCE_SECONDS)


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_prepared_ahead_but_not_without_bound(threads: int) -> None:
    made = pipeline(images(), threads=threads)
    counted = Counted(made)
    for taken, batch in enumerate(made.batches(range(100))):
        assert batch.step == taken
        ahead = min(taken + 1 + 2 * threads, 100)
        counted.wait_for(ahead)  # they come without being asked for
        assert len(counted.begun) == ahead
    assert sorted(counted.begun) == list(range(100))


def test_without_threads_nothing_is_prepared_ahead() -> None:
    made = pipeline(images())
    counted = Counted(made)
    for batch in made.batches(range(5)):
        assert counted.begun == list(range(batch.step + 1))


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("fails_at", [0, 7, 19])
def test_an_error_in_a_worker_reaches_the_consumer(threads: int, fails_at: int) -> None:
    before = set(threading.enumerate())
    made = pipeline(images(), threads=threads)
    Counted(made, fails_at=fails_at)
    came = []
    with pytest.raises(ValueError, match=f"no batch {fails_at}"):
        for batch in made.batches(range(20)):
            came.append(batch.step)
    assert came == list(range(fails_at))
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("how", ["closed", "dropped", "broken off", "finished"])
def test_no_threads_are_left_behind(how: str) -> None:
    before = set(threading.enumerate())
    made = pipeline(images(), threads=4)
    counted = Counted(made)
    batches: Iterator[Batch] | None = made.batches(range(1000 if how != "finished" else 10))
    assert batches is not None
    next(batches)
    assert len(set(threading.enumerate()) - before) > 0
    if how == "closed":
        batches.close()  # type: ignore[attr-defined]
    elif how == "dropped":
        batches = None
        gc.collect()
    elif how == "broken off":
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    else:
        assert len(list(batches)) == 9
    assert set(threading.enumerate()) <= before
    assert len(counted.begun) <= 10


def test_torchs_thread_count_stays_as_it_is() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for _ in pipeline(images(), threads=4).batches(range(30)):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_torchs_thread_count_stays_as_it_is_in_a_process_that_has_not_computed_yet() -> None:
    script = """
import numpy as np, threading, torch
from quickstudy.images.pixels import PixelSet
from quickstudy.scratch.input import Augmentation, Moments
from quickstudy.scratch.input import Pipeline
data = PixelSet(pixels=np.zeros((9, 8, 8, 3), np.uint8), labels=np.zeros(9, np.int64), classes=("a",))
made = Pipeline(data, Augmentation(), batch=3, seed=0, moments=Moments(mean=(0,) * 3, deviation=(1,) * 3), threads=2)
list(made.batches(range(9)))
print(torch.get_num_threads())
later = threading.Thread(target=lambda: print(torch.get_num_threads()))
later.start(); later.join()
"""
    two = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], env=two, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2"]


@pytest.mark.parametrize("n", [1, 9, 10, 11, 25])
def test_evaluation_gives_all_images_the_last_part_too(n: int) -> None:
    data = numbered(n)
    batches = list(evaluation_batches(data.pixels, PLAIN, Moments.of(data.pixels), batch=10))
    assert [len(batch) for batch in batches] == [10] * (n // 10) + ([n % 10] if n % 10 else [])
    assert (torch.cat(batches).flatten() * 255).round().long().tolist() == list(range(n))


def test_evaluation_does_not_distort() -> None:
    data = images(7, side=9)
    augmentation = Augmentation(crop=5, pad=2, brightness=63, contrast=(0.2, 1.8), standardise="none")
    (batch,) = evaluation_batches(data.pixels, augmentation, Moments.of(data.pixels))
    expected = data.pixels[:, 2:7, 2:7].transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(batch.numpy(), expected, atol=1e-6)


def test_evaluation_does_not_depend_on_the_batch() -> None:
    data = images(23)
    moments = Moments.of(data.pixels)
    whole = torch.cat(list(evaluation_batches(data.pixels, CLASSIC, moments)))
    for batch in (1, 7, 22, 23):
        assert torch.equal(torch.cat(list(evaluation_batches(data.pixels, CLASSIC, moments, batch=batch))), whole)


def test_labels_come_as_they_are_counted() -> None:
    data = images(40)
    made = pipeline(data, batch=40)
    assert Counter(made.make(0).labels.tolist()) == Counter(data.labels.tolist())
    for step in range(3):
        assert made.make(step).labels.tolist() == data.labels[made.rows(step)].tolist()
