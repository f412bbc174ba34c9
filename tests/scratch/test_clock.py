"""The clock of a run: what counts as training, over several processes, told by a time that the test sets."""

from __future__ import annotations

import pytest

from quickstudy.scratch.state import Clock


class Time:
    """Stands for the system's clock."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr("time.perf_counter", made)
    return made


def test_start_up_and_pauses_are_time_of_the_run_but_not_of_training(system: Time) -> None:
    clock = Clock()
    system.now += 7
    clock.begin_steps(0)
    assert (clock.run_seconds, clock.training_seconds) == (7, 0)
    system.now += 10
    with clock.paused():
        system.now += 5
    system.now += 1
    assert (clock.run_seconds, clock.training_seconds) == (23, 11)


def test_a_lap_has_the_mean_time_of_its_steps_without_pauses(system: Time) -> None:
    clock = Clock()
    clock.begin_steps(40)
    system.now += 6
    with clock.paused():
        system.now += 50
    assert clock.lap(43) == 2
    system.now += 3
    assert clock.lap(44) == 3


def test_times_add_up_over_the_processes_of_a_run(system: Time) -> None:
    first = Clock()
    system.now += 2
    first.begin_steps(0)
    system.now += 10
    saved = first.state_dict()
    assert saved == {"seconds": 12, "idle_seconds": 2}
    system.now += 1000  # between the processes
    second = Clock()
    system.now += 3
    second.load_state_dict(saved)
    second.begin_steps(5)
    system.now += 20
    assert (second.run_seconds, second.training_seconds) == (35, 30)


def test_the_time_since_a_checkpoint_begins_with_the_steps(system: Time) -> None:
    clock = Clock()
    system.now += 7
    clock.begin_steps(0)
    system.now += 4
    assert clock.seconds_since_checkpoint == 4
    clock.checkpoint_written()
    system.now += 1
    assert clock.seconds_since_checkpoint == 1
