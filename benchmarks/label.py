"""What labelling in the browser costs and brings: labels needed, milliseconds, and whether its honest figure is honest.

    python benchmarks/label.py labels --data DATA      # oracle against random order, margins, all labelled
    python benchmarks/label.py speed                             # refits, suggestions, choosing
    python benchmarks/label.py page --data DATA        # a driven browser: load, keypress to next photo
    python benchmarks/label.py minutes --keys 400 --data DATA   # a key a second, to a model and its test

An oracle answers with the true labels; the photos that are asked for come from the code that the page uses, one refit
after each ten answers, where the page refits after each. One in five is drawn at random as a check, as in the page. The
others are asked for in random order, and by modAL's or scikit-activeml's margin sampling, with a head of labels alone;
and in random order with the head of the page, which guesses photos that wait. All accuracies are those of the head on
photos that were held out of it all.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import quickstudy
from common import photos, repeat_photos, save, spread
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.files import cache_folder
from quickstudy.labelling.choosing import Pick, doubtful_rows, typical_rows, with_checks
from quickstudy.labelling.teacher import GUESSED, LiveHead, find_space, fit_live, judge_checks
from quickstudy.learning.scores import share_interval

EVERY = 10
MOST = 600
HELD_OUT = 0.25
GOALS = (0.7, 0.75, 0.8, 0.85, 0.9)
CHECKS = (20, 40, 60, 100)
_PICKS = 24


def bottlenecks_of(images: list[bytes | Path]) -> NDArray[np.floating]:
    """The features of images, from the store where they are there."""
    cache = cache_folder(None)
    net = load_backbone("efficientnet_lite0", cache)
    found = extract(images, net, Store(cache / "bottlenecks"))
    return found.gather([digest for digest in found.digests if digest is not None])


def clothing(data: Path) -> tuple[NDArray[np.floating], list[str]]:
    files = photos(data / "clothing")
    return bottlenecks_of(list(files)), [path.parent.name for path in files]


def cifar10(data: Path, count: int = 4000) -> tuple[NDArray[np.floating], list[str]]:
    with np.load(data / "cifar10_jpeg.npz", allow_pickle=False) as kept:
        jpeg, offsets, labels, names = kept["jpeg"].tobytes(), kept["offsets"], kept["labels"], kept["names"]
        chosen = np.sort(np.random.Generator(np.random.Philox(7)).permutation(len(labels))[:count])
        return (
            bottlenecks_of([jpeg[offsets[k] : offsets[k + 1]] for k in chosen]),
            [str(names[labels[k]]) for k in chosen],
        )


def mnist(data: Path, count: int = 4000) -> tuple[NDArray[np.floating], list[str]]:
    """Digits as photos: PNG files of 28 by 28 pixels."""
    import gzip

    from PIL import Image

    def read(name: str) -> NDArray[np.uint8]:
        path = next(p for p in (data / "mnist").iterdir() if p.name.startswith(name))
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return np.frombuffer(raw, np.uint8)

    pixels = read("train-images")[16:].reshape(-1, 28, 28)
    labels = read("train-labels")[8:]
    chosen = np.sort(np.random.Generator(np.random.Philox(7)).permutation(len(labels))[:count])
    images: list[bytes | Path] = []
    for k in chosen:
        target = io.BytesIO()
        Image.fromarray(pixels[k]).save(target, "PNG")
        images.append(target.getvalue())
    return bottlenecks_of(images), [str(labels[k]) for k in chosen]


SETS: dict[str, Callable[[Path], tuple[NDArray[np.floating], list[str]]]] = {
    "clothing": clothing,
    "cifar10": cifar10,
    "mnist": mnist,
}


class Simulation:
    """One pool, one order of photos, one oracle."""

    def __init__(self, features: NDArray[np.floating], labels: NDArray[np.str_], seed: int) -> None:
        order = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
        held_out, pool = np.split(order, [int(HELD_OUT * len(labels))])
        space = find_space(features[pool])
        assert space is not None
        self.space, self.rows = space, space.project(features[pool])
        self.truth = labels[pool]
        self.test_rows, self.test_truth = space.project(features[held_out]), labels[held_out]
        self.random = np.random.Generator(np.random.Philox([seed, 1]))

    def waiting(self, learned: list[int]) -> NDArray[np.floating]:
        """The photos without a label that the page would guess; the pool is in a random order."""
        free = np.ones(len(self.rows), np.bool_)
        free[learned] = False
        return self.rows[np.flatnonzero(free)[:GUESSED]]

    def fit(self, learned: list[int], before: LiveHead | None, *, guesses: bool = True) -> LiveHead | None:
        classes, numbers = np.unique(self.truth[learned], return_inverse=True)
        if len(classes) < 2:
            return None
        waiting = self.waiting(learned) if guesses else None
        return fit_live(self.rows[learned], numbers, tuple(classes.tolist()), self.space, before, waiting)

    def accuracy(self, head: LiveHead) -> float:
        best = head.probabilities(self.test_rows).argmax(axis=1)
        return float(np.mean(np.array(head.classes)[best] == self.test_truth))


def run_page(simulation: Simulation, most: int) -> dict[int, dict[str, Any]]:
    """What the page asks for: pool photos are in a random order, the first of which are the checks."""
    n = len(simulation.rows)
    candidates = list(range(min(200, int(0.2 * n))))
    answered = np.zeros(n, np.bool_)
    learned: list[int] = []
    control: list[int] = []
    head: LiveHead | None = None
    starting = typical_rows(simulation.rows)
    points = {}
    asked = {"unlike": 0, "doubtful": 0}
    while answered.sum() < min(most, n):
        free = ~answered
        waiting = [k for k in candidates if free[k]]
        rest = free.copy()
        rest[waiting] = False
        typical = [pick for pick in starting if rest[pick.row]]
        if head is None or (typical and len(learned) < len(starting)):
            chosen = typical or [Pick(row=int(k), reason="any") for k in np.flatnonzero(rest)[:_PICKS]]
        else:
            counts = np.array([np.sum(simulation.truth[learned] == name) for name in head.classes])
            chosen = doubtful_rows(
                simulation.rows,
                head.probabilities(simulation.rows),
                rest,
                np.array(learned),
                counts,
                head.classes,
                _PICKS,
                unlike=asked["unlike"],
                answered=sum(asked.values()),
            )
        picks = with_checks(chosen, waiting, asked=len(control), answered=int(answered.sum()), most=EVERY)
        for pick in picks:
            answered[pick.row] = True
            learned.append(pick.row)
            if pick.reason == "check":
                control.append(pick.row)
            if pick.reason in ("unlike", "between", "few"):
                asked["unlike" if pick.reason == "unlike" else "doubtful"] += 1
        head = simulation.fit(learned, head)
        if head is not None:
            point: dict[str, Any] = {"accuracy": simulation.accuracy(head), "control": len(control)}
            if any(len(control) - 2 <= checks <= len(control) for checks in CHECKS):
                names = {name: k for k, name in enumerate(head.classes)}
                labels = np.array([names[name] for name in simulation.truth[learned]], np.intp)
                where = np.array([learned.index(k) for k in control], np.intp)
                shares = judge_checks(
                    simulation.rows[learned], labels, where, head, waiting=simulation.waiting(learned)
                )
                point["right"] = int((shares.argmax(axis=1) == labels[where]).sum())
            points[int(answered.sum())] = point
    return points


Ask = Callable[[LiveHead | None, list[int]], list[int]]


def run_order(simulation: Simulation, most: int, ask: Ask, *, guesses: bool = False) -> dict[int, Any]:
    learned: list[int] = []
    head: LiveHead | None = None
    points = {}
    while len(learned) < min(most, len(simulation.rows)):
        learned += ask(head, learned)
        head = simulation.fit(learned, head, guesses=guesses)
        if head is not None:
            points[len(learned)] = {"accuracy": simulation.accuracy(head)}
    return points


def random_order(simulation: Simulation) -> Ask:
    order: Iterator[int] = iter(simulation.random.permutation(len(simulation.rows)).tolist())
    return lambda _head, _learned: [k for k, _ in zip(order, range(EVERY), strict=False)]


def margins(simulation: Simulation, library: str) -> Ask:
    """Margin sampling of a library, with the same head; the first photos are random, as it needs two classes."""
    order = simulation.random.permutation(len(simulation.rows)).tolist()

    def ask(head: LiveHead | None, learned: list[int]) -> list[int]:
        if head is None or len(learned) < 10:
            return [k for k in order if k not in set(learned)][:EVERY]
        free = np.setdiff1d(np.arange(len(simulation.rows)), learned)
        if library == "modAL":
            from modAL.uncertainty import margin_sampling

            class Classifier:
                def predict_proba(self, rows: NDArray[np.floating], **_: Any) -> NDArray[np.floating]:
                    return head.probabilities(rows)

            found = margin_sampling(Classifier(), simulation.rows[free], n_instances=EVERY)
            return free[np.asarray(found[0] if isinstance(found, tuple) else found)].tolist()
        from skactiveml.pool import uncertainty_scores

        scores = uncertainty_scores(head.probabilities(simulation.rows[free]), method="margin_sampling")
        return free[np.argsort(-scores)[:EVERY]].tolist()

    return ask


def reached(curves: list[dict[int, Any]], goal: float) -> int | None:
    """Labels from which on the mean accuracy over the seeds is at least this, by the running mean of three points."""
    sizes = sorted(set.intersection(*(set(curve) for curve in curves)))
    means = [statistics.fmean(curve[size]["accuracy"] for curve in curves) for size in sizes]
    for place in range(len(sizes)):
        if statistics.fmean(means[max(0, place - 1) : place + 2]) >= goal:
            return sizes[place]
    return None


def measure_labels(data: Path, seeds: int, sets: list[str], library: str) -> None:
    results: dict[str, Any] = {}
    for name in sets:
        features, labels = SETS[name](data)
        labels = np.array(labels)
        curves: dict[str, list[dict[int, Any]]] = {"label": [], "random": [], "random, guessing": [], "margin": []}
        everything: list[float] = []
        covered: dict[int, list[bool]] = {checks: [] for checks in CHECKS}
        for seed in range(seeds):
            curves["label"].append(run_page(Simulation(features, labels, seed), MOST))
            simulation = Simulation(features, labels, seed)
            curves["random"].append(run_order(simulation, MOST, random_order(simulation)))
            simulation = Simulation(features, labels, seed)
            order = random_order(simulation)
            curves["random, guessing"].append(run_order(simulation, MOST, order, guesses=True))
            simulation = Simulation(features, labels, seed)
            curves["margin"].append(run_order(simulation, MOST, margins(simulation, library)))
            whole = simulation.fit(list(range(len(simulation.rows))), None)
            assert whole is not None
            everything.append(simulation.accuracy(whole))
            for checks in covered:
                point = next((p for _, p in sorted(curves["label"][-1].items()) if p["control"] >= checks), None)
                if point is not None:
                    low, high = share_interval(point["right"], point["control"])
                    covered[checks].append(low <= point["accuracy"] <= high)
            print(name, seed, {k: round(v[-1][max(v[-1])]["accuracy"], 3) for k, v in curves.items()}, flush=True)
        at = (50, 100, 200, 300, 400, 500, 600)
        results[name] = {
            "photos": len(labels),
            "all_labelled": {"labels": int((1 - HELD_OUT) * len(labels)), "accuracy": statistics.fmean(everything)},
            "labels_to_reach": {
                f"{goal:.2f}": {way: reached(found, goal) for way, found in curves.items()} for goal in GOALS
            },
            "accuracy_at": {
                way: {
                    str(n): round(statistics.fmean(curve[n]["accuracy"] for curve in found), 4)
                    for n in at
                    if all(n in curve for curve in found)
                }
                for way, found in curves.items()
            },
            "control_covers_truth": {
                str(checks): {"times": sum(hits), "of": len(hits)} for checks, hits in covered.items() if hits
            },
        }
    save(
        "label_labels",
        {
            "seeds": seeds,
            "refit_every": EVERY,
            "most": MOST,
            "margin_library": library,
            "held_out": HELD_OUT,
            "sets": results,
        },
    )


def measure_speed(repeats: int) -> None:
    """Refits from the head before one more label; suggestions and choosing for many photos. Features are drawn."""
    random = np.random.Generator(np.random.Philox(3))
    centres = random.standard_normal((10, 1280)).astype(np.float32)
    truth = random.integers(0, 10, 20_000)
    features = np.abs(centres[truth] * 0.6 + random.standard_normal((20_000, 1280))).astype(np.float16)
    space = find_space(features)
    assert space is not None
    rows = space.project(features)
    values: dict[str, Any] = {}
    classes = tuple("abcdefghij")
    for n in (500, 5000):
        waiting = rows[-GUESSED:]
        head = fit_live(rows[: n - repeats], truth[: n - repeats], classes, space, waiting=waiting)
        cold, warm = [], []
        for k in range(repeats):
            size = n - repeats + k + 1
            started = time.perf_counter()
            fit_live(rows[:size], truth[:size], classes, space, waiting=waiting)
            cold.append(1000 * (time.perf_counter() - started))
            started = time.perf_counter()
            head = fit_live(rows[:size], truth[:size], classes, space, head, waiting)
            warm.append(1000 * (time.perf_counter() - started))
        suggest, choose = [], []
        counts = np.bincount(truth[:n], minlength=10)
        free = np.ones(len(rows), np.bool_)
        free[:n] = False
        for _ in range(repeats):
            started = time.perf_counter()
            shares = head.probabilities(rows)
            suggest.append(1000 * (time.perf_counter() - started))
            started = time.perf_counter()
            doubtful_rows(rows, shares, free, np.arange(n), counts, classes, _PICKS)
            choose.append(1000 * (time.perf_counter() - started))
        values[str(n)] = {
            "refit_ms": spread(warm),
            "cold_ms": spread(cold),
            "suggestions_20000_ms": spread(suggest),
            "choosing_20000_ms": spread(choose),
        }
    save("label_speed", {"features": 1280, "classes": 10, "repeats": repeats, "labels": values})


@contextlib.contextmanager
def labelling(folder: Path) -> Iterator[tuple[str, int]]:
    """The address and the process of `quickstudy label photos`, run in a folder."""
    command = [sys.executable, "-m", "quickstudy", "label", "photos", "--port", "0", "--no-open", "--quiet"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = ""
        while not line.startswith("http"):
            line = process.stdout.readline()
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield line.strip(), process.pid
    finally:
        process.terminate()
        process.wait()


def pile(source: Path, target: Path) -> None:
    """Put the photos of class folders into one folder, each with its class at the beginning of its name."""
    target.mkdir()
    for number, path in enumerate(photos(source)):
        shutil.copy(path, target / f"{path.parent.name}-{number:06}.jpg")


def press(page: Any) -> None:
    """Label the photo that is shown, as an oracle would by the keyboard."""
    page.locator("#picture img").wait_for()
    truth = re.sub(r"-\d+\.jpg$", "", page.locator("#name").inner_text().split("/")[-1])
    names = page.locator("#one-classes .class bdi").all_inner_texts()
    page.evaluate("document.activeElement.blur()")
    if truth in names:
        page.keyboard.press("123456789abcdef"[names.index(truth)])
    else:
        page.keyboard.press("+")
        page.keyboard.type(truth)
        page.keyboard.press("Enter")


_WATCH = """() => {
    window.times = [];
    let begun = 0;
    addEventListener("keydown", () => { begun = performance.now(); }, true);
    new MutationObserver(() => {
        if (!begun || !document.querySelector("#picture img")) return;
        const from = begun;
        begun = 0;
        const shown = () => times.push(performance.now() - from);
        requestAnimationFrame(() => requestAnimationFrame(shown));
    }).observe(document.getElementById("picture"), { childList: true });
}"""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()


def measure_page(data: Path, count: int, keys: int) -> None:
    """A driven browser: load with many photos, and the time from a key to the next photo on the screen."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        repeat_photos(data / "clothing" / "train", place / "sorted", count)
        pile(place / "sorted", place / "photos")
        with labelling(place) as (address, process), chromium() as browser:
            page = browser.new_page()
            loads = []
            for _ in range(5):
                started = time.perf_counter()
                page.goto(address)
                page.locator("#picture img").wait_for()
                loads.append(time.perf_counter() - started)
            page.evaluate(_WATCH)
            for _ in range(keys):
                press(page)
                page.wait_for_timeout(1000)
            times = sorted(page.evaluate("times"))
            heap = page.evaluate("performance.memory ? performance.memory.usedJSHeapSize / 1e6 : null")
            elements = page.evaluate("document.querySelectorAll('*').length")
            status = Path(f"/proc/{process}/status").read_text()
            peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    save(
        "label_page",
        {
            "photos": count,
            "load_seconds": spread(loads),
            "keys": len(times),
            "key_to_next_photo_ms": {
                "median": statistics.median(times),
                "p95": times[int(0.95 * (len(times) - 1))],
                "max": times[-1],
            },
            "page_heap_megabytes": heap,
            "page_elements": elements,
            "server_peak_megabytes": peak,
        },
    )


def measure_minutes(data: Path, keys: int) -> None:
    """Measure a run at a key a second, from an unlabelled folder to a model, and what `evaluate` says of it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pile(data / "clothing" / "train", place / "photos")
        started = time.perf_counter()
        with labelling(place) as (address, _), chromium() as browser:
            page = browser.new_page()
            page.set_default_timeout(120_000)
            page.goto(address)
            for _ in range(keys):
                due = time.perf_counter() + 1
                press(page)
                page.wait_for_timeout(max(0.0, 1000 * (due - time.perf_counter())))
            honest = page.locator("#honest").inner_text()
            labelled = time.perf_counter() - started
            page.locator("#train").click()
            page.locator("#drop").wait_for()
            finished = time.perf_counter() - started
            told = page.locator("#training").inner_text()
        found = quickstudy.evaluate(place / "photos.onnx", data / "clothing" / "test")
    save(
        "label_minutes",
        {
            "photos": len(photos(data / "clothing" / "train")),
            "keys": keys,
            "seconds_labelling": labelled,
            "seconds_in_all": finished,
            "page_says": honest,
            "training_says": told,
            "held_back": found.score.to_dict(),
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("labels", "speed", "page", "minutes"))
    parser.add_argument("--data", type=Path, default=Path(), help="folder of the data sets; speed needs none")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sets", default="clothing,cifar10,mnist")
    parser.add_argument("--library", choices=("modAL", "scikit-activeml"), default="scikit-activeml")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=60)
    given = parser.parse_args()
    if given.what == "labels":
        measure_labels(given.data, given.seeds, given.sets.split(","), given.library)
    elif given.what == "speed":
        measure_speed(given.repeats)
    elif given.what == "page":
        measure_page(given.data, given.photos, given.keys)
    else:
        measure_minutes(given.data, given.keys)
