"""How far the report's figures can be trusted: leave-one-out, calibration, "don't know", forecasts against the truth.

    python benchmarks/trust.py FOLDER --cache CACHE [--name trust] [--seeds 10] [--limit IMAGES]

The forecasts are back-tested on the training images. For all classes together: from half of each class, what accuracy
is forecast for all of them, and what cross-validation of all of them gives. For one class: from half of its images and
all of the others', how much more often it will be recognised with its other half, and how much more often it is, on the
same images.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import save, spread
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract_census
from quickstudy.bottlenecks.store import Store
from quickstudy.images.census import take_census
from quickstudy.images.imageset import load_image_set
from quickstudy.learning.calibration import expected_calibration_error, probabilities_of, suggest_abstention
from quickstudy.learning.learning_curve import learning_curve
from quickstudy.learning.ridge import leave_one_out
from quickstudy.learning.scores import Score
from quickstudy.learning.selection import Head, fit_head


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--name", default="trust")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--limit", type=int, help="Take so many training images, by content hash.")
    options = parser.parse_args()
    data = read(options.folder, options.cache, options.limit)
    head = fit(data, np.arange(len(data["labels"])))
    right = verdict(head, data["labels"])
    overall = [backtest(data, right, seed) for seed in range(options.seeds)]
    for row in overall:
        print(row, flush=True)
    by_class = [
        row for seed in range(max(1, options.seeds // 5)) for row in backtest_classes(data, right, head.l2, seed)
    ]
    errors = np.array([row["forecast"] - row["actual"] for row in overall])
    gains = np.array(
        [[row["forecast"], row["actual"], np.hypot(row["deviation"], row["actual_deviation"])] for row in by_class]
    )
    save(
        options.name,
        {
            "training_images": len(data["labels"]),
            "classes": len(data["classes"]),
            "leave_one_out": measure_leave_one_out(data),
            "cross_validation": Score(right=head.held_out_right, n=len(head.held_out)).to_dict(),
            "calibration": measure_calibration(data, head),
            "test": measure_test(data, head),
            "learning_curve_seconds": seconds(data, head),
            "forecast_of_the_whole_from_half": {
                "seeds": overall,
                "mean_absolute_error_points": 100 * float(np.abs(errors).mean()),
                "mean_error_points": 100 * float(errors.mean()),
                "no_forecast_mean_absolute_error_points": 100
                * float(np.mean([abs(row["half"] - row["actual"]) for row in overall])),
                "within_two_deviations": float(
                    np.mean([abs(row["forecast"] - row["actual"]) <= 2 * row["deviation"] for row in overall])
                ),
            },
            "forecast_of_one_class_from_half_of_it": {
                "classes": by_class,
                "mean_absolute_error_points": float(np.abs(gains[:, 0] - gains[:, 1]).mean()),
                "mean_error_points": float((gains[:, 0] - gains[:, 1]).mean()),
                "no_forecast_mean_absolute_error_points": float(np.abs(gains[:, 1]).mean()),
                "within_two_deviations": float(np.mean(np.abs(gains[:, 0] - gains[:, 1]) <= 2 * gains[:, 2])),
            },
        },
    )


def read(folder: Path, cache: Path, limit: int | None) -> dict[str, Any]:
    """Bottlenecks and labels of the training and the test images."""
    found = load_image_set(folder)
    if limit:  # evenly over the listing, which goes class by class
        places = np.linspace(0, len(found.files) - 1, min(limit, len(found.files)))
        found = replace(found, files=tuple(found.files[int(place)] for place in places), skipped=())
    net, store = load_backbone("efficientnet_lite0", cache), Store(cache / "bottlenecks")
    census = take_census(found, store.index_path)
    extraction = extract_census(census, net, store)
    census = census.without(extraction.unusable)
    # Of a set without splits all images are learned from.
    train = census.digests("train", "validation") if census.given else list(census.labels)
    test = census.digests("test") if census.given else []
    classes = sorted({census.labels[digest] for digest in train})
    number_of = {name: number for number, name in enumerate(classes)}
    return {
        "classes": classes,
        "keys": train,
        "features": extraction.gather(train),
        "labels": np.array([number_of[census.labels[digest]] for digest in train], np.intp),
        "test_features": extraction.gather(test) if test else None,
        "test_labels": np.array([number_of[census.labels[digest]] for digest in test], np.intp),
    }


def fit(data: dict[str, Any], rows: NDArray[np.intp], l2: float | None = None) -> Head:
    """A head on these training images."""
    keys = [data["keys"][row] for row in rows]
    return fit_head(data["features"][rows], data["labels"][rows], keys, classes=len(data["classes"]), l2=l2)


def verdict(head: Head, labels: NDArray[np.intp]) -> NDArray[np.float64]:
    """1 where cross-validation was right, 0 where it was wrong, NaN where it held nothing out."""
    right = np.full(len(labels), np.nan)
    right[head.held_out] = head.held_out_classes == labels[head.held_out]
    return right


def curve_of(data: dict[str, Any], rows: NDArray[np.intp], head: Head, *, more: int, seed: int) -> Any:
    """The learning curve of these training images."""
    labels = data["labels"][rows]
    return learning_curve(
        data["features"][rows],
        labels,
        [data["keys"][row] for row in rows],
        classes=len(data["classes"]),
        l2=head.l2,
        right=verdict(head, labels),
        more=more,
        seed=seed,
    )


def half_of(labels: NDArray[np.intp], seed: int, only: int | None = None) -> NDArray[np.intp]:
    """The rows of half of each class, or of half of one class and all of the others."""
    draws = np.random.default_rng(seed)
    kept = [
        members if only is not None and number != only else draws.permutation(members)[: (len(members) + 1) // 2]
        for number in range(labels.max() + 1)
        for members in [np.flatnonzero(labels == number)]
    ]
    return np.sort(np.concatenate(kept))


def backtest(data: dict[str, Any], right: NDArray[np.float64], seed: int) -> dict[str, float]:
    """Accuracy of cross-validation on all images, forecast from half of them."""
    rows = half_of(data["labels"], seed)
    curve = curve_of(data, rows, fit(data, rows), more=100, seed=seed)
    forecast, deviation = curve.forecast(0.8 * len(data["labels"]))
    return {
        "half": curve.points[-1].accuracy,
        "forecast": forecast,
        "deviation": deviation,
        "actual": float(np.nanmean(right)),
    }


def backtest_classes(
    data: dict[str, Any], right: NDArray[np.float64], l2: float, seed: int
) -> list[dict[str, float | str]]:
    """Points by which each class is recognised more often with the other half of its images, forecast and found."""
    found = []
    for number, name in enumerate(data["classes"]):
        rows = half_of(data["labels"], seed, only=number)
        head = fit(data, rows, l2)
        own = data["labels"][rows] == number
        more = int(np.sum(data["labels"] == number) - own.sum())
        curve = curve_of(data, rows, head, more=more, seed=seed)
        gain = next(gain for gain in curve.gains if gain.name == number)
        before, after = verdict(head, data["labels"][rows])[own], right[rows][own]
        change = after - before
        row = {
            "class": name,
            "images": int(own.sum()),
            "forecast": gain.points,
            "deviation": gain.deviation,
            "actual": 100 * float(np.nanmean(change)),
            # What is found scatters, too: few images change sides.
            "actual_deviation": 100 * float(np.nanstd(change) / np.sqrt(np.sum(~np.isnan(change)))),
        }
        print(row, flush=True)
        found.append(row)
    return found


def measure_leave_one_out(data: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and seconds of the ridge head's leave-one-out."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        found = leave_one_out(data["features"], data["labels"], classes=len(data["classes"]))
        times.append(time.perf_counter() - started)
    return {**Score(right=found.best.right, n=found.n).to_dict(), "l2": found.best.l2, "seconds": spread(times)}


def measure_calibration(data: dict[str, Any], head: Head) -> dict[str, Any]:
    """Expected calibration error before and after the temperature, and the threshold of "don't know"."""
    return {
        "temperature": head.temperature,
        **_errors(head.held_out_logits, data["labels"][head.held_out], head.temperature),
    }


def measure_test(data: dict[str, Any], head: Head) -> dict[str, Any] | None:
    """The same on the test images, with the temperature and the threshold of cross-validation."""
    if data["test_features"] is None:
        return None
    logits, labels = head.logits(data["test_features"]), data["test_labels"]
    probabilities = probabilities_of(logits)
    confidences, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    held_out = probabilities_of(head.held_out_logits)
    chosen = suggest_abstention(held_out.max(axis=1), held_out.argmax(axis=1) == data["labels"][head.held_out])
    answered = confidences >= chosen.threshold if chosen else np.ones(len(labels), bool)
    return {
        **_errors(logits, labels, head.temperature),
        "accuracy": Score(right=int(right.sum()), n=len(labels)).to_dict(),
        "threshold": chosen.threshold if chosen else None,
        "threshold_in_cross_validation": {"coverage": chosen.coverage, "accuracy": chosen.accuracy} if chosen else None,
        "answered": Score(right=int(right[answered].sum()), n=int(answered.sum())).to_dict(),
        "coverage": float(answered.mean()),
    }


def _errors(logits: NDArray[np.floating], labels: NDArray[np.intp], temperature: float) -> dict[str, Any]:
    errors = {}
    for name, scale in (("before", temperature), ("after", 1.0)):
        probabilities = probabilities_of(logits * scale)
        confidences, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        errors[name] = {
            "equal_mass": expected_calibration_error(confidences, right),
            "equal_width": expected_calibration_error(confidences, right, equal_mass=False),
        }
    return errors


def seconds(data: dict[str, Any], head: Head) -> dict[str, float]:
    """Wall time of the learning curve."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        curve_of(data, np.arange(len(data["labels"])), head, more=100, seed=0)
        times.append(time.perf_counter() - started)
    return spread(times)


if __name__ == "__main__":
    main()
