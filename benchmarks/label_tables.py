"""Tables of labelling in the browser."""

from __future__ import annotations

from collections.abc import Callable

from markdown import load, percent, ranged, table

_NAMES = {"clothing": "clothing photos", "cifar10": "CIFAR-10, its JPEGs", "mnist": "MNIST, as PNG files"}


def labels() -> str:
    """Labels needed, against other orders, and whether the checks' figure covers the truth."""
    found = load("label_labels")
    rows, covered = [], []
    most = found.get("most", 600)
    for name, values in found["sets"].items():
        for goal, ways in values["labels_to_reach"].items():
            if any(count is not None for count in ways.values()):
                cells = [str(ways[way] or f"> {most}") for way in ("label", "random", "random, guessing", "margin")]
                share = f"{100 * ways['label'] / ways['random']:.0f} %" if ways["label"] and ways["random"] else "–"
                rows.append([_NAMES[name], f"{100 * float(goal):.0f} %", *cells, share])
        everything = values["all_labelled"]
        rows.append(
            [_NAMES[name], f"{100 * everything['accuracy']:.1f} %", f"all {everything['labels']:,}", "", "", "", ""]
        )
        hits = values["control_covers_truth"].values()
        covered.append((sum(hit["times"] for hit in hits), sum(hit["of"] for hit in hits), _NAMES[name]))
    orders = ["`label`", "random order", "random order, `label`'s head", f"margins ({found['margin_library']})"]
    header = ["photos", "accuracy, held out", *orders]
    told = "; ".join(f"{times} of {of} ({name})" for times, of, name in covered)
    return table([*header, "of random's"], rows) + (
        f"\nMeans of {found['seeds']} seeds, one refit after each {found['refit_every']} labels. The checks' interval, "
        f"with 20, 40, 60 and 100 of them, covers the accuracy on the photos held out in {told}; it should in 95 %, "
        "and the held-out photos' own accuracy is off by chance, too.\n"
    )


def speed() -> str:
    """Milliseconds of the server, and of the page in a driven browser."""
    found, page = load("label_speed")["labels"], load("label_page")
    rows = [
        [
            f"{int(n):,}",
            ranged(values["refit_ms"]),
            ranged(values["cold_ms"]),
            ranged(values["suggestions_20000_ms"]),
            ranged(values["choosing_20000_ms"]),
        ]
        for n, values in found.items()
    ]
    key = page["key_to_next_photo_ms"]
    header = ["labels", "refit, ms", "from nothing, ms", "suggestions for 20,000 photos, ms", "choosing, ms"]
    return table(header, rows) + (
        "\nMedian, least and most, for 1,280 features and 10 classes. In Chromium, with "
        f"{page['photos']:,} photos whose bottlenecks were being computed meanwhile: the page shows its first photo "
        f"after {ranged(page['load_seconds'], 2)} s; from a key to the next photo on the screen it takes "
        f"{key['median']:.0f} ms, {key['p95']:.0f} ms at the 95th percentile of {page['keys']} keys. The page has "
        f"{page['page_elements']} elements, the server {page['server_peak_megabytes']:.0f} MB at its peak.\n"
    )


def minutes() -> str:
    """A whole run by a key a second."""
    found = load("label_minutes")
    return (
        f"A whole run in a driven browser, at a key a second: {found['photos']:,} clothing photos without labels, "
        f"{found['keys']} keys; {found['seconds_in_all'] / 60:.1f} minutes from the first photo to `photos.onnx` and "
        f"its report, training included. On {found['held_back']['n']} photos held back from it all, `evaluate` gives "
        f"{percent(found['held_back'])}.\n"
    )


def teach() -> str:
    """What teaching in the browser takes."""
    found = load("teach_page")
    rows = [
        [
            f"{one['pictures']} of {one['classes']} classes",
            ranged({k: v / 1000 for k, v in one["milliseconds"].items()}, 2),
            f"{one['bytes'] / 1e6:.1f} MB",
            _power(one["largest_difference"]),
        ]
        for one in found["sizes"]
    ]
    header = ["pictures", "learned in, s", "saved", "largest difference from Python's probabilities"]
    return table(header, rows) + (
        f"\nMedian, least and most of {found['repeats']}, in Chromium on two cores that had other work, too; the "
        f"difference on {found['asked']} other photos.\n"
    )


def _power(value: float) -> str:
    """Write a small number as a digit and a power of ten."""
    digit, exponent = f"{value:.0e}".split("e")
    return f"{digit}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def choices() -> str:
    """Other ways to choose, and how sure their figures are."""
    found = load("label_choices")
    rows = []
    for name, values in found["ways"].items():
        cells = []
        for goal in ("0.80", "0.85"):
            one = values[goal]
            cells.append(f"{one['labels'] or '> 600'} ({one['low']} to {one['high']})")
        rows.append(["`label`, as it is" if name == "label" else name.replace("label,", "`label`,"), *cells])
    return table(["chosen by", "labels to 80 %", "labels to 85 %"], rows) + (
        f"\nClothing photos, {found['seeds']} seeds; in brackets what 80 % of draws of these seeds give.\n"
    )


LABEL_TABLES: dict[str, Callable[[], str]] = {
    "label-labels": labels,
    "label-speed": speed,
    "label-minutes": minutes,
    "label-choices": choices,
    "teach": teach,
}
