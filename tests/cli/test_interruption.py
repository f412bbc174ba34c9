"""Ctrl-C and SIGTERM: what is said, and the exit status."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from in_process import Run
from quickstudy.learning.checkpoints import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("arguments", "function"),
    [
        (("retrain", "photos"), "quickstudy.retraining.retrain.retrain"),
        (("cache", "fill", "photos"), "quickstudy.backbones.loading.load_backbone"),
    ],
)
def test_what_was_computed_stays(
    number: signal.Signals,
    arguments: tuple[str, ...],
    function: str,
    run: Run,
    tmp_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        with Interrupts() as interrupts:
            signal.raise_signal(number)
            interrupts.raise_pending()

    monkeypatch.setattr(function, interrupted)
    done = run(*arguments[:-1], str(photos), "--cache", str(tmp_path / "cache"))
    assert done.code == 128 + number
    told = "interrupted; what has been computed stays in the cache, and the same command continues from there"
    assert done.err == f"\nquickstudy: {told}\n"


def test_an_end_for_another_reason_is_not_taken_for_a_signal(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: object, **__: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr("quickstudy.retraining.retrain.retrain", ended)
    done = run("retrain", str(photos))
    assert (done.code, done.err) == (3, "")
