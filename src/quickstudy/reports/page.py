"""The report's page is made of the findings: what its template shows, and the data that its script works on.

Nothing of the user's is put into the page but through Jinja's automatic escaping or as JSON without any `<`, `>` or
`&`, and the script writes it as text only. A content security policy names the hashes of the page's own script and
style, and forbids everything else, the network above all.
"""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from quickstudy.files import sha256_of_file
from quickstudy.learning.calibration import (
    BINS,
    CoveragePoint,
    coverage_curve,
    expected_calibration_error,
    reliability,
    thinned,
)
from quickstudy.learning.learning_curve import LearningCurve
from quickstudy.learning.ridge import LeaveOneOut
from quickstudy.learning.scores import SEVERAL_FIGURES, Score, told_of_never_held_out
from quickstudy.learning.strangeness import FEWEST
from quickstudy.models.properties import refusal_in
from quickstudy.models.web import PAGE, hash_for_policy
from quickstudy.reports import charts
from quickstudy.reports.charts import PER_SHEET, SHEET_COLUMNS, SHEET_SIDE
from quickstudy.reports.findings import Audit, DuplicateGroup
from quickstudy.reports.judged import By, JudgedImages
from quickstudy.retraining.config import RetrainConfig
from quickstudy.version import VERSION
from quickstudy.wording import as_percent, count, pasted

_TEMPLATES = resources.files("quickstudy.reports") / "templates"
_MOST_SHOWN = 200
_CURVE_POINTS = 200
_FLAWS = {
    "tiny": "few pixels",
    "thumbnail": "a thumbnail",
    "screenshot": "a screenshot, or in a frame",
    "grey": "grey where data are missing",
    "shallow": "fewer bits than the set",
    "narrow": "extreme aspect ratio",
    "blurred": "blurred",
    "dark": "almost black",
    "bright": "blown out",
    "blank": "of one colour",
}
_SPLITS = ("train", "validation", "test")
_CALIBRATING: tuple[By, ...] = ("validation", "cross-validation", "test")  # what the temperature came from first
_WAYS: tuple[By, ...] = ("cross-validation", "validation", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """Holds all that a page is made of."""

    judged: JudgedImages
    """The model, the images, and what was said of each unseen."""
    audit: Audit
    """What was found wrong with the images."""
    curve: LearningCurve | None
    """What more images would bring; None where that cannot be told."""
    left_out: LeaveOneOut | None
    """What leaving out single images changes; None where that cannot be told."""
    places: NDArray[np.float64]
    """Places of the images on the map (n×2), each coordinate from 0 to 1."""
    sheets: Sequence[bytes]
    """Sheets of thumbnails, as `charts.sprite_sheets` makes them."""


def render(contents: Contents) -> str:
    """Render the whole page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = lambda share: "–" if share is None else as_percent(share).replace(" ", "\u00a0")
    environment.filters["number"] = lambda number: f"{number:,}"
    environment.filters["count"] = count
    # Our own files, not the user's.
    elements = PAGE.joinpath("elements.js").read_text("utf-8").replace("\nexport ", "\n")
    style, script = Markup(_read("report.css")), Markup(f'"use strict";\n{elements}{_read("report.js")}')  # noqa: S704
    return environment.get_template("report.html").render(
        style=style,
        script=script,
        policy=(
            "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
            f"script-src '{hash_for_policy(script)}'; style-src '{hash_for_policy(style)}'"
        ),
        data=_script_data(contents),
        **_shown(contents),
    )


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _shown(contents: Contents) -> dict[str, Any]:
    """Gather what the template names."""
    judged, audit = contents.judged, contents.audit
    training, evidence = judged.metadata["training"], judged.evidence
    test = _evaluate(judged, "test")
    by = next((way for way in _CALIBRATING if len(judged.rows(way)) and not evidence.several), None)
    return {
        "several": evidence.several,
        "title": judged.model.name,
        "source": _source(judged),
        "images": len(evidence.images),
        "classes": evidence.classes,
        "scores": _scores(contents),
        "unchanged": judged.unchanged,
        "remembered": judged.remembered,
        "fine_tuned": judged.fine_tuned,
        "table": _class_table(judged, test),
        "gains": _gains(contents.curve, evidence.classes),
        "curve": _curve(contents.curve),
        "calibration": _calibration(judged, by) if by else None,
        "counts": [
            ("label-errors", "label to look at", "labels to look at", len(audit.label_errors)),
            ("duplicates", "group of duplicates", "groups of duplicates", len(audit.duplicates)),
            ("outliers", "outlier", "outliers", len(audit.outliers)),
            ("quality-flaws", "quality flaw", "quality flaws", len(audit.quality)),
            ("skipped", "skipped", "skipped", len(evidence.skipped)),
        ],
        "leaks": len(audit.leaks),
        "conflicts": len(audit.conflicts),
        "alike": audit.alike[:8],
        "skipped": [
            {"path": _name(judged, item.path), "reason": item.reason} for item in evidence.skipped[:_MOST_SHOWN]
        ],
        "skipped_in_all": len(evidence.skipped),
        "most_shown": _MOST_SHOWN,
        "facts": _facts(judged, training),
    }


def _scores(contents: Contents) -> list[dict[str, Any]]:
    """Gather accuracies with n and interval, each with what it is the accuracy of."""
    judged = contents.judged
    if judged.evidence.several:
        return _figures(judged)
    held_out = judged.score("cross-validation")
    alone = told_of_never_held_out(judged.never_held_out, held_out.n) if held_out else ""
    scores: list[tuple[str, Score | None, str]] = [
        ("Test", judged.score("test"), "images held out of training and of every choice, looked at once"),
        ("Validation", judged.score("validation"), "images held out of fine-tuning, used to choose its result"),
        (
            "Cross-validation",
            held_out,
            "training images, each predicted by a head that had not seen it"
            + (", before fine-tuning" if judged.fine_tuned else "")
            + (alone and f"; {alone}"),
        ),
    ]
    if contents.left_out:
        found = Score(right=contents.left_out.best.right, n=contents.left_out.n)
        scores.append(
            ("Leave-one-out", found, "training images, each predicted by a ridge head fitted to all the others")
        )
    return [
        {"name": name, "accuracy": score.accuracy, "n": score.n, "interval": score.interval, "of": of}
        for name, score, of in scores
        if score
    ]


def _figures(judged: JudgedImages) -> list[dict[str, Any]]:
    """Gather what is measured where an image may have several labels, on the test, or else in cross-validation."""
    by: By = "test" if len(judged.rows("test")) else "cross-validation"
    scores = judged.scores(by)
    of = (
        "images held out of training and of every choice, looked at once"
        if by == "test"
        else ("training images, each judged by heads that had not seen it, which the thresholds were chosen on")
    )
    if by == "cross-validation" and judged.never_held_out:
        of += "; " + told_of_never_held_out(judged.never_held_out, scores.score.n, several=True)
    return [
        {
            "name": called,
            "accuracy": figure.value,
            "n": scores.score.n,
            "interval": (figure.low, figure.high),
            "of": of,
        }
        for name, called in SEVERAL_FIGURES.items()
        if scores.several and (figure := getattr(scores.several, name)).value is not None
    ]


def _evaluate(judged: JudgedImages, by: By) -> dict[str, tuple[int, float | None, float | None]]:
    """Count the images of each class, and work out its precision and recall."""
    return {c.name: (c.n, c.precision, c.recall) for c in judged.scores(by).classes}


def _class_table(judged: JudgedImages, test: dict[str, tuple[int, float | None, float | None]]) -> list[dict[str, Any]]:
    trained = _evaluate(judged, "cross-validation")
    counts = judged.metadata["training"].get("train_counts", {})
    return [
        {
            "name": name,
            "train": counts.get(name, 0),
            "cv_precision": trained[name][1],
            "cv_recall": trained[name][2],
            "test": test[name][0],
            "test_precision": test[name][1],
            "test_recall": test[name][2],
        }
        for name in judged.evidence.classes
    ]


def _curve(curve: LearningCurve | None) -> dict[str, Any] | None:
    if curve is None:
        return None
    (now, _), (twice, deviation) = curve.forecast(curve.images), curve.forecast(2 * curve.images)
    return {
        "chart": charts.learning_chart(curve),
        "twice": twice,
        "gain": 100 * (twice - now),
        "deviation": 100 * deviation,
    }


def _gains(curve: LearningCurve | None, classes: Sequence[str]) -> list[dict[str, Any]]:
    if curve is None:
        return []
    ranked = sorted(curve.gains, key=lambda gain: -gain.points)
    return [
        {
            "name": classes[gain.name],
            "images": gain.images,
            "recall": gain.recall,
            "more": gain.more,
            "points": gain.points,
            "deviation": gain.deviation,
        }
        for gain in ranked
    ]


def _calibration(judged: JudgedImages, by: By) -> dict[str, Any]:
    """Describe reliability and coverage on the images that were predicted in this way."""
    rows = judged.rows(by)
    truth, temperature = judged.truth[rows], float(judged.metadata["training"]["temperature"])
    probabilities = judged.evidence.probabilities[rows].astype(np.float64)
    # Before the temperature: p^T, normalised, as logits were divided by T.
    powers = probabilities**temperature
    before = powers / powers.sum(axis=1, keepdims=True)
    right = probabilities.argmax(axis=1) == truth
    confidences, raw = probabilities.max(axis=1), before.max(axis=1)
    curve = coverage_curve(confidences, right)
    # The few most confident images say little: the curve begins where a fiftieth is answered.
    drawn = [point for point in thinned(curve, _CURVE_POINTS) if point.coverage >= 0.02] or list(curve)
    chosen = judged.metadata["training"].get("abstention")
    point = (
        CoveragePoint(
            threshold=chosen["threshold"],
            coverage=chosen["answered"] / chosen["n"],
            accuracy=chosen["right"] / chosen["answered"],
        )
        if chosen
        else None
    )
    return {
        "bins": min(BINS, len(rows)),
        "fewest": FEWEST,
        "by": by,
        "n": len(rows),
        "temperature": temperature,
        "refusal": refusal_in(judged.metadata),
        "reliability": charts.reliability_chart(
            reliability(confidences, right, equal_mass=True), reliability(raw, right, equal_mass=True)
        ),
        "coverage": charts.coverage_chart(drawn, point),
        "errors": [
            {
                "name": name,
                "before": expected_calibration_error(raw, right, equal_mass=mass),
                "after": expected_calibration_error(confidences, right, equal_mass=mass),
            }
            for name, mass in (("equal mass", True), ("equal width", False))
        ],
        "chosen": point,
    }


def _facts(judged: JudgedImages, training: dict[str, Any]) -> list[tuple[str, str]]:
    """Gather what it takes to make the model again, as names and values."""
    origin, versions = judged.metadata["backbone"], judged.metadata.get("versions", {})
    words = ["retrain", _source(judged), *RetrainConfig.recalled(training["options"]).command_line()]
    return [
        ("Command", pasted(*words)),
        ("Model", sha256_of_file(judged.model)),
        ("Data (content, labels and split)", str(training.get("data_fingerprint"))),
        ("Backbone", f"{origin['name']}, cut at {origin['cut']}, {origin['fingerprint']}"),
        ("Split", str(training.get("split"))),
        ("Regularisation", f"{training['l2']:.6g}"),
        ("Temperature", f"{training['temperature']:.4f}"),
        (
            "Seeds",
            "0 for subsets, bootstrap and map; folds and splits need none, as they follow from the images' content",
        ),
        ("Software that made the model", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))),
        ("Software that made the report", f"quickstudy {VERSION}"),
    ]


def _script_data(contents: Contents) -> dict[str, Any]:
    """Gather what the script works on: columns by image, then findings that name images by number."""
    judged, audit = contents.judged, contents.audit
    evidence = judged.evidence
    probabilities = np.where(evidence.unseen[:, None], evidence.probabilities, 0)
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
    first = {row for by in _WAYS for row in judged.rows(by).tolist()}
    names = [_name(judged, image.path) for image in evidence.images]
    return {
        "classes": list(evidence.classes),
        "several": evidence.several,
        "splits": list(_SPLITS),
        "ways": list(_WAYS),
        "sprites": {
            "side": SHEET_SIDE,
            "columns": SHEET_COLUMNS,
            "perSheet": PER_SHEET,
            "sheets": [base64.b64encode(sheet).decode() for sheet in contents.sheets],
        },
        "images": {
            "name": names,
            "label": [image.label or "" for image in evidence.images],
            "has": [np.flatnonzero(row).tolist() for row in judged.marks],
            "gets": [
                np.flatnonzero(row).tolist() if seen else None
                for row, seen in zip(judged.given, evidence.unseen, strict=True)
            ],
            "split": [_SPLITS.index(image.split) if image.split else -1 for image in evidence.images],
            "by": [_WAYS.index(by) if by and row in first else -1 for row, by in enumerate(judged.by)],
            "top": [
                [[int(n), round(float(row[n]), 3)] for n in order] if seen else []
                for row, order, seen in zip(probabilities, top.tolist(), evidence.unseen.tolist(), strict=True)
            ],
            "x": np.round(contents.places[:, 0], 4).tolist(),
            "y": np.round(contents.places[:, 1], 4).tolist(),
        },
        "mistakes": _confident_mistakes(judged),
        "labelErrors": [
            [e.image, e.given, e.suggested, round(e.probability_suggested, 3)] for e in audit.label_errors[:_MOST_SHOWN]
        ],
        "duplicates": [_group(group) for group in audit.duplicates[:_MOST_SHOWN]],
        "outliers": [[o.image, round(o.score, 1)] for o in audit.outliers[:_MOST_SHOWN]],
        "flaws": [[f.image, _FLAWS[f.kind], f"{f.value:.3g}", f"{f.limit:.3g}"] for f in audit.quality[:_MOST_SHOWN]],
        "totals": Counter(
            {
                "labelErrors": len(audit.label_errors),
                "duplicates": len(audit.duplicates),
                "outliers": len(audit.outliers),
                "flaws": len(audit.quality),
            }
        ),
    }


def _confident_mistakes(judged: JudgedImages) -> list[int]:
    """Find the images that are called wrongly, those with the greatest confidence first."""
    rows = np.concatenate([judged.rows(by) for by in _WAYS])
    mistaken = judged.marks[rows] != judged.given[rows]
    wrong = rows[mistaken.any(axis=1)]
    shares = judged.evidence.probabilities[wrong]
    if judged.evidence.several:
        shares = np.where(
            judged.marks[wrong] != judged.given[wrong], np.where(judged.given[wrong], shares, 1 - shares), 0
        )
    confidences = shares.max(axis=1, initial=0)
    found: list[int] = wrong[np.argsort(-confidences, kind="stable")][:_MOST_SHOWN].tolist()
    return found


def _group(group: DuplicateGroup) -> dict[str, Any]:
    notes = ["the same file" if group.exact else "the same picture"]
    if group.leaks:
        notes.append(f"in {' and '.join(group.splits)}: leakage")
    if group.conflicts:
        notes.append(f"labelled {' and '.join(group.labels)}")
    return {"members": list(group.members), "notes": "; ".join(notes), "bad": group.leaks or group.conflicts}


def _source(judged: JudgedImages) -> str:
    """Name the image set without the folders that it lies in, which are no business of those who get the report."""
    return _text(judged.evidence.source.resolve().name)


def _name(judged: JudgedImages, path: os.PathLike[str]) -> str:
    """Name a file by its path below the image set, fit to be shown."""
    root = judged.evidence.source
    root = root if root.is_dir() else root.parent
    name = os.path.relpath(path, root) if os.path.isabs(path) == os.path.isabs(root) else os.fspath(path)  # noqa: PTH117
    return _text(name)


def _text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()  # a file's name need not be valid text
