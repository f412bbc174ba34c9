"""Tables of what makes a model trustworthy and fit for use: audit, forecasts, report, exports, cold start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markdown import load, ranged, table


def audit_labels() -> str:
    """Label errors found, beside cleanlab."""
    values = load("audit_labels")
    rows = [
        [name, f"{figures['mean_precision']:.3f}", f"{figures['mean_recall']:.3f}"]
        for name, figures in values["found"].items()
    ]
    return table([f"{len(values['seeds'])} seeds", "precision", "recall"], rows)


def audit_few() -> str:
    """Few wrong labels in small folders."""
    values = load("audit_few")
    rows = [
        [
            planted,
            f"{100 * figures['one_among_first']:.0f} %" if planted != "0" else "",
            *(f"{figures[key]:.2f}" for key in ("mean_named", "mean_others_named")),
        ]
        for planted, figures in values["planted"].items()
    ]
    first = f"one of them among the first three, of {values['draws']} draws"
    return table(["changed", first, "of them named", "others named"], rows)


def audit_planted() -> str:
    """Planted faults found."""
    values = load("audit_planted")
    turned = values["copies"]["turned by 90 degrees"]
    copies = [found for kind, found in values["copies"].items() if not kind.startswith("turned")]
    swapped, leaks = values["swapped_labels"], values["leaks"]
    missed = [
        f"{found['planted'] - found['found']} {kind}"
        for kind, found in values["copies"].items()
        if 0 < found["planted"] - found["found"] < found["planted"]
    ]
    rows = [
        [f"copies in {len(copies)} kinds of change", *_sums(copies), f"missed: {'; '.join(missed)}"],
        ["copies turned by 90°", *_sums([turned]), "not looked for"],
        ["copies across splits", *_sums([leaks]), ""],
        ["swapped labels", *_sums([swapped]), f"{swapped['with_the_true_class']} with the true class"],
        *(
            [name, *_sums(list(values[key].values())), ""]
            for name, key in (
                ("unreadable files", "unreadable"),
                ("flawed images", "flaws"),
                ("strange images", "outliers"),
            )
        ),
    ]
    return table(["planted", "number", "found", ""], rows)


def _sums(found: list[dict[str, int]]) -> list[str]:
    return [str(sum(one[key] for one in found)) for key in ("planted", "found")]


def audit_speed() -> str:
    """All pairs, and the whole command."""
    pairs, command = load("audit_pairs"), load("audit_time")
    rows = [
        [
            f"all pairs of {pairs['images']:,} images, {name}",
            f"{pairs[key]['seconds']:.0f}",
            f"{pairs[key]['found']} of {pairs['planted']}",
            f"{pairs[key]['megabytes_more']:,.0f}",
        ]
        for name, key in (("exact", "exact"), ("approximate (usearch)", "index"))
    ]
    rows.append(
        [f"`audit` of {command['images']:,} photos, looks new", ranged(command["seconds_without_looks"]), "", ""]
    )
    rows.append([f"`audit` of {command['images']:,} photos, warm", ranged(command["seconds_warm"]), "", ""])
    return table(["", "seconds", "planted copies found", "MB more"], rows)


def forecasts() -> str:
    """Errors of the learning curves' forecasts."""
    rows = []
    for name, key in (("clothing", "trust"), ("CIFAR-10", "trust_cifar10"), ("MNIST", "trust_mnist")):
        values = load(key)
        whole, one = values["forecast_of_the_whole_from_half"], values["forecast_of_one_class_from_half_of_it"]
        rows.append(
            [
                f"{name}, {values['training_images']:,}",
                *(
                    f"{part['mean_absolute_error_points']:.1f} ({part['no_forecast_mean_absolute_error_points']:.1f})"
                    for part in (whole, one)
                ),
            ]
        )
    return table(["training images", "all classes, from half", "one class, from half of it"], rows)


def report() -> str:
    """What the report adds."""
    values = load("report")
    rows = [
        ["`retrain`, warm", ranged(values["retrain_seconds"], 2)],
        ["`retrain --report`, warm", ranged(values["retrain_with_report_seconds"], 2)],
        ["the report adds", ranged(values["added_seconds"], 2)],
        ["`report` alone, warm", ranged(values["report_alone_seconds"], 2)],
        ["`report` alone, the first time", ranged(values["report_alone_cold_seconds"], 2)],
        ["the page", f"{values['page_megabytes']:.1f} MB"],
    ]
    return table(["clothing photos", "seconds"], rows)


def cold_start() -> str:
    """One prediction, process start to exit."""
    values = load("cold_start")
    rows = [["`quickstudy predict MODEL IMAGE`", ranged(values["seconds"], 2)]]
    rows += [[f"until: {stage}", ranged(seconds, 2)] for stage, seconds in values["seconds_until"].items()]
    return table(["", "seconds"], rows)


def exports() -> str:
    """Size, speed and accuracy of other forms of a model."""
    values = load("exports")
    speeds, forms = values["images_per_second_one_thread"], values["forms"]
    first = next(iter(forms.values()))
    rows = [
        [
            "as trained",
            f"{first['bytes_before'] / 1e6:.1f} MB",
            ranged(speeds["float32"], 0),
            f"{100 * first['agreement']['right_before'] / first['agreement']['labelled']:.1f} %",
            "",
        ]
    ]
    for kind, form in forms.items():
        agreement = form["agreement"]
        rows.append(
            [
                f"`--{kind}`",
                f"{form['bytes_after'] / 1e6:.1f} MB",
                ranged(speeds[kind], 0),
                f"{100 * agreement['right_after'] / agreement['labelled']:.1f} %",
                f"{100 * agreement['same'] / agreement['n']:.1f} %",
            ]
        )
    return table(["", "size", "images/s, one thread", "accuracy", "same class"], rows)


def strangeness() -> str:
    """Scores that tell images of none of the classes, near and far, each kind of garment left out in turn."""
    means = load("strangeness")["means"]
    parts = ("near", "cifar10", "mnist", "noise", "blank")
    rows = [
        [
            f"**{name}**" if name == "strangeness" else name,
            *(f"{figures[f'auroc {part}']:.3f}" for part in parts),
            *(f"{100 * figures[f'fpr {part}']:.0f} %" for part in ("near", "cifar10")),
        ]
        for name, figures in means.items()
        if name != "refused"
    ]
    refused = means["refused"]
    shares = [[f"{100 * refused[part]:.1f} %" for part in ("trained on", "own", *parts)]]
    return (
        table(["AUROC", "a left-out kind", *parts[1:], "FPR at 95 %: left-out kind", "cifar10"], rows)
        + "\n"
        + table(["refused at 2 %: trained on", "own, test", "a left-out kind", *parts[1:]], shares)
    )


def strangeness_int8() -> str:
    """What a model and its export in 8 bits take for none of these."""
    found = load("strangeness_int8")
    rows = [
        [
            name,
            str(figures["images"]),
            f"{100 * figures['refused']:.1f} %",
            f"{100 * figures['refused in 8 bits']:.1f} %",
            f"{figures['mean difference']:.3f}",
        ]
        for name, figures in found.items()
        if isinstance(figures, dict) and "refused in 8 bits" in figures
    ]
    return table(["images", "n", "refused", "in 8 bits", "mean difference of strangeness"], rows)


def several() -> str:
    """Figures of collages with several kinds of clothing in each, and of the kinds alone."""
    found = load("several_quality")
    alone = {row["name"]: row for row in found["one_class_a_part_by_class"]}

    def shown(figure: dict[str, Any]) -> str:
        low, high = figure["interval_95"]
        return f"{100 * figure['value']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"

    names = {"average_precision": "mean average precision", "f1_micro": "F1, micro", "f1_macro": "F1, macro"}
    rows = [[called, shown(found[name])] for name, called in names.items()]
    rows.append(["all labels right", shown(found["exact_match"])])
    accuracy = found["one_class_a_part"]
    low, high = accuracy["interval_95"]
    one = f"{100 * accuracy['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    rows.append(["one class an image, the same photos each on its own: accuracy", one])
    kinds = [
        [
            name,
            shown(figures["average_precision"]),
            shown(figures["precision"]),
            shown(figures["recall"]),
            f"{100 * alone[name]['recall']:.1f} %",
        ]
        for name, figures in found["labels"].items()
    ]
    return (
        table([f"{found['test']:,} collages to test on, {found['train']:,} to learn from", "(95 % interval)"], rows)
        + "\n"
        + table(["kind", "average precision", "precision", "recall", "recall, photo on its own"], kinds)
    )


def drift() -> str:
    """False alarms, and the photos that it takes until an alarm."""
    found = load("drift")
    rows = [
        [
            one["shift"],
            *(f"{one['delays'][before]['median']:.0f} ({one['delays'][before]['most']})" for before in ("0", "10000")),
        ]
        for one in found["shifts"]
    ]
    return table(["shift", "photos until the alarm, from the start: median (most)", "after 10,000 ordinary ones"], rows)


def sets() -> str:
    """How often prediction sets hold the right class, over draws."""
    values = load("sets")
    rows = [
        [
            name,
            f"{100 * figures['covered']:.2f} % ±{100 * figures['standard_error']:.2f}",
            f"{100 * figures['least_covered_class']:.1f} %",
            f"{figures['size']:.2f}",
        ]
        for name, figures in values["means"].items()
    ]
    return table(
        ["asked for", f"right class in the set, {values['draws']} draws", "worst class", "classes in a set"], rows
    )


TRUST_TABLES: dict[str, Callable[[], str]] = {
    "audit_labels": audit_labels,
    "audit_few": audit_few,
    "audit_planted": audit_planted,
    "audit_speed": audit_speed,
    "forecasts": forecasts,
    "report": report,
    "cold_start": cold_start,
    "exports": exports,
    "strangeness": strangeness,
    "strangeness_int8": strangeness_int8,
    "several": several,
    "drift": drift,
    "sets": sets,
}
