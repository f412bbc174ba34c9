"""Speeds are measured once a machine and graph."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from quickstudy.backbones.backbone import Backbone, backbone_names
from quickstudy.backbones.engines import speed
from quickstudy.backbones.engines.speed import known_speed, measure_speed


@pytest.fixture
def copy(backbone: Backbone, tmp_path: Path) -> Backbone:
    """The default backbone in a folder of its own."""
    folder = tmp_path / "backbones"
    shutil.copytree(backbone.path.parent, folder)
    return replace(backbone, path=folder / backbone.path.name)


@pytest.fixture(autouse=True)
def _whatever_else_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run beside each other, so a speed counts whatever else is running."""
    monkeypatch.setattr(speed, "LEAST_SHARE", 0.0)


def test_what_was_measured_beside_other_programs_is_forgotten(copy: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LEAST_SHARE", 0.9)
    monkeypatch.setattr(time, "process_time", iter([5.0, 5.0]).__next__)  # others had the cores all the time
    assert measure_speed(copy, seconds=0.01) > 0
    assert known_speed(copy) is None


def test_what_was_measured_is_known(copy: Backbone) -> None:
    assert known_speed(copy) is None
    found = measure_speed(copy, seconds=0.05)
    assert found > 0
    assert known_speed(copy) == pytest.approx(found, abs=0.01)


def test_a_cut_does_not_change_it(copy: Backbone) -> None:
    whole, early = (measure_speed(backbone, seconds=0.2) for backbone in (copy, copy.at("stem")))
    assert early < 3 * whole


def test_another_graph_or_machine_is_another_matter(copy: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_speed(copy, seconds=0.01)
    assert known_speed(replace(copy, fingerprint="another")) is None
    monkeypatch.setattr(speed, "machine", lambda: "another machine")
    assert known_speed(copy) is None
    measure_speed(copy, seconds=0.01)
    note = json.loads((copy.path.parent / "efficientnet_lite0.speed.json").read_text())
    assert len(note["images_per_second"]) == 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"fingerprint": 1}', '{"images_per_second": 3}'])
def test_a_damaged_note_is_no_note(copy: Backbone, content: str) -> None:
    (copy.path.parent / "efficientnet_lite0.speed.json").write_text(content)
    assert known_speed(copy) is None
    measure_speed(copy, seconds=0.01)
    assert known_speed(copy) is not None


def test_a_speed_is_no_backbone(copy: Backbone) -> None:
    names = backbone_names(copy.path.parents[1])
    measure_speed(copy, seconds=0.01)
    assert backbone_names(copy.path.parents[1]) == names


def test_a_folder_that_cannot_be_written_costs_the_memory_only(copy: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(speed, "write_json_atomically", refuse)
    assert measure_speed(copy, seconds=0.01) > 0
    assert known_speed(copy) is None
