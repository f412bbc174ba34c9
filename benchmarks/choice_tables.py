"""Tables of what cross-validation chooses: levels, fits and backbones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from markdown import load, percent, table

_FEWEST_DRAWS = 5  # of which an average is worth telling


def levels() -> str:
    """What levels and a second backbone gain, on whole sets and on draws of few images."""
    sets, heads = load("levels")["sets"], ("last", "all", "chosen")
    whole, few = [], []
    for name, presets in sets.items():
        for preset, found in presets.items():
            row, networks = found["whole"], {"good": "Lite0", "best": "Lite0 + Lite2"}[preset]
            cells = [f"{row[h]['cv_log_loss']:.3f} ({100 * row[h]['cv_accuracy']:.1f} %)" for h in ("last", "all")]
            tests = [f"{100 * row[h]['accuracy']:.1f} %" for h in ("last", "all")]
            whole.append([name, networks, *cells, *tests])
            for count in ("20", "50", "100", "500"):
                row = found[count]
                cells = [f"{100 * row[h]['accuracy']:.1f}" for h in heads]
                picked = f"{row['chosen']['all_levels']} of {len(row['last']['accuracies'])}"
                optimism = [f"{100 * row[h]['optimism']:+.1f}" for h in ("last", "chosen")]
                few.append([name, networks, count, *cells, picked, *optimism])
    return (
        table(["", "", "last, cross-validated log loss", "all levels", "test: last", "all levels"], whole)
        + "\n"
        + table(["", "", "images", "last, %", "all, %", "chosen, %", "all chosen", "optimism, last", "chosen"], few)
    )


def fit() -> str:
    """What each fit gives and costs, and what `auto` makes of it."""
    whole, few = [], []
    for name, found in load("fit")["sets"].items():
        for way, row in found.items():
            if way == "draws":
                continue
            shown = f"auto: {row['choices'][0]['chosen']}" if way == "auto" else way
            losses = f"{row['cv_log_loss']:.3f} ({100 * row['cv_accuracy']:.1f} %)"
            cost = [f"{row['forward_passes']:,}", f"{row['seconds']:.0f}"]
            whole.append([name, shown, losses, percent(row["test"]), *cost])
        for count, runs in found["draws"].items():
            picked = Counter(run["chosen"] for run in runs)
            chosen = ", ".join(f"{fit} {times}" for fit, times in picked.most_common())
            means = (f"{100 * sum(run[way] for run in runs) / len(runs):.1f} %" for way in ("crop", "auto"))
            few.append([name, count, chosen, *means])
    header = ["", "fit", "cross-validated log loss", "test (95 % interval)", "passes", "seconds, cold"]
    return table(header, whole) + "\n" + table(["", "images", "auto chose", "test: crop", "auto"], few)


def race() -> str:
    """What races of backbones found."""
    rows = []
    for name, runs in load("fit")["race"].items():
        for limit, run in runs.items():
            choice = run["choices"][0]
            rows.append(
                [
                    name,
                    f"{float(limit):.0f} s",
                    choice["chosen"],
                    "; ".join(f"{one['name']} {_behind(one)}" for one in choice["runners"]),
                    ", ".join(choice["not_tried"]) or "–",
                    f"{run['stages']['choices']:.0f}",
                    percent(run["test"]),
                ]
            )
    return table(["", "`--race`", "chosen", "log loss, behind", "not tried", "seconds of it", "test"], rows)


def _behind(runner: dict[str, Any]) -> str:
    low, high = runner["interval_95"]
    margin = f", {runner['behind']:+.3f} ({low:+.3f} to {high:+.3f})" if runner["standard_error"] else ""
    return f"{runner['log_loss']:.3f}{margin}"


def few() -> str:
    """What few photos promise, by how the strength was chosen."""
    tables = []
    for part in ("all", "all held-out images right"):
        rows = []
        for name, found in load("few")["sets"].items():
            for classes in ("two to four", "ten"):
                for photos, parts in found[classes].items():
                    row = parts[part]
                    if row["draws"] < _FEWEST_DRAWS:
                        continue
                    alone, prior = row["alone"], row["prior"]
                    losses = [f"{way['log_loss']:.3f} ({way['median_log_loss']:.3f})" for way in (alone, prior)]
                    shares = [f"{100 * way['promised']:.1f}, {100 * way['accuracy']:.1f}" for way in (alone, prior)]
                    change = f"{row['change']:+.3f} ±{row['standard_error']:.3f}"
                    rows.append([name, classes, photos, str(row["draws"]), *losses, change, *shares])
        header = ["", "classes", "photos of each", "draws", "log loss alone", "now", "change"]
        tables.append(table([*header, "promised, right, % alone", "now"], rows))
    return "\n".join(tables)


CHOICE_TABLES: dict[str, Callable[[], str]] = {"levels": levels, "fit": fit, "race": race, "few": few}
