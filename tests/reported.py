"""A report to test: 126 pictures of three classes with names that try to break out of the page, and planted faults."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest

from drawn_photos import draw_photo
from quickstudy import report, retrain
from small_backbones import add_small_backbone

SCRIPT = "</script><script>window.hacked = 1</script>"
QUOTES = "\"double\" & 'single' <b onmouseover=alert(1)>"
MIXED = "שלום \u202eevil 🎉 " + "very long " * 12
CLASSES = {"checks": SCRIPT, "discs": QUOTES, "stripes": MIXED.strip()}
NAMES = ("<img src=x onerror=window.hacked=1> {}.jpg", "\"';{{{{7*7}}}} {}.jpg", "🎉‮ שלום {}.jpg", "n" * 180 + "{}.jpg")


@dataclass(frozen=True)
class Reported:
    folder: Path
    manifest: Path
    model: Path
    page: Path
    cache: Path


_made: list[Reported] = []


def make_report(factory: pytest.TempPathFactory) -> Reported:
    """The report, made once."""
    if not _made:
        _made.append(_make(factory))
    return _made[0]


def _make(factory: pytest.TempPathFactory) -> Reported:
    folder = factory.mktemp("report")
    rows = []
    for name, label in CLASSES.items():
        for number in range(42):
            path = folder / NAMES[number % len(NAMES)].format(f"{name}{number}")
            draw_photo(name, number).save(path, quality=90)
            rows.append((path.name, label))
    # A disc among the stripes, the first of the checks once more, and a file that is no image.
    draw_photo("discs", 50).save(folder / "swapped.jpg", quality=90)
    rows.append(("swapped.jpg", CLASSES["stripes"]))
    draw_photo("checks", 0).save(folder / "again.jpg", quality=60)
    rows.append(("again.jpg", CLASSES["checks"]))
    (folder / "<i>broken</i>".replace("/", "|")).with_suffix(".jpg").write_bytes(b"<html>")
    rows.append(("<i>broken<|i>.jpg", CLASSES["checks"]))
    manifest = folder / "labels.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    model, cache = folder / "model.onnx", folder / "cache"
    add_small_backbone(cache)
    retrain(manifest, model, cache=cache, backbone="small")
    return Reported(folder, manifest, model, report(model, cache=cache), cache)
