"""What is worth trying on the hub: the table, and candidates of the race that are fetched from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from local_hub import LocalHub, Repository
from test_hub import vit_files
from test_suggesting import run_here

from quickstudy.backbones.backbone import check_name, find_backbone, on_hub
from quickstudy.backbones.sources import available
from quickstudy.backbones.sources.available import AVAILABLE, Available
from quickstudy.backbones.sources.hub import parse_place

pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")


def test_each_has_a_name_a_licence_and_a_source() -> None:
    assert len({one.name for one in AVAILABLE}) == len(AVAILABLE)
    for one in AVAILABLE:
        assert check_name(one.name)
        assert one.place.startswith("timm:") or (on_hub(one.place) and parse_place(one.place))
        assert one.licence
        assert (one.top1 is None) == (not one.source)
        assert one.top1 is None or 50 < one.top1 < 95


def test_candidates_are_announced_fetched_once_and_left_out_where_they_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry(place: str, extra: available.Extra = "hub") -> Available:
        return Available(place=place, megabytes=1, licence="mit", top1=None, source="", extra=extra)

    entries = (entry("hf:me/here"), entry("hf:me/gone"), entry("timm:net", "timm"))
    monkeypatch.setattr(available, "AVAILABLE", entries)
    monkeypatch.setattr(Available, "can_be_added", property(lambda one: one.extra == "hub"))
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with LocalHub() as hub:
        hub.repositories["me/here"] = Repository(vit_files(tmp_path / "repository"))
        hub.stand_in(monkeypatch, tmp_path / "hub")
        code, _, err = run_here(tmp_path, "retrain", "empty", "--backbone", "auto", "--download")
        assert code == 2  # there are no photos
        assert "Fetching hf:me/here (1 MB, licence mit)" in err
        assert "Left out: hf:me/gone" in err
        assert "Left out: timm:net" in err
        assert find_backbone("hf_me_here", tmp_path / "cache") is not None
        asked = len(hub.requests)
        _, _, err = run_here(tmp_path, "retrain", "empty", "--backbone", "auto", "--download")
        assert "Fetching hf:me/here" not in err
        assert not any("me/here" in path for _, path, _ in hub.requests[asked:])
    listed = json.loads(run_here(tmp_path, "backbone", "list", "--available", "--json")[1])
    assert [one["here"] for one in listed] == [True, False, False]
    code, _, err = run_here(tmp_path, "retrain", "empty", "--backbone", "efficientnet_lite0", "--download")
    assert (code, "--backbone auto" in err) == (2, True)
