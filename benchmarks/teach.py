"""What teaching in the browser costs, and what it gives: the head's milliseconds and Python's probabilities.

    python benchmarks/teach.py page --model photos.onnx --data DATA [--runtime TGZ]   # in Chromium
    python benchmarks/teach.py strength --data DATA       # one strength for all, against cross-validation's choice
    python benchmarks/teach.py start --data DATA          # a new class beside some images of each known one

The page opens files of classes with the bottlenecks of clothing photos, and says itself how long it learned.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import sync_playwright

from common import photos, save, spread
from label import SETS
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.files import cache_folder
from quickstudy.learning.calibration import probabilities_of
from quickstudy.learning.selection import Head, fit_head
from quickstudy.models.teaching import STRENGTH, TaughtClass, TeachableModel, written
from quickstudy.models.web import write_site

SIZES = ((3, 20), (10, 20), (10, 50))
"""Numbers of classes, and of pictures of each, that the page is taught."""
REPEATS = 5
STRENGTHS = (0.1, STRENGTH, 0.01, 0.003, None)
TAUGHT = 20
KEPT = (10, 20, 50, None)
NEW = ("hat", "dress", "skirt", "shoes")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def fit(rows: NDArray[np.floating], names: NDArray[np.str_], l2: float | None) -> Head:
    """Python's head; the contents' hashes are those of the bottlenecks."""
    classes, labels = np.unique(names, return_inverse=True)
    keys = [hashlib.sha256(row.tobytes()).digest() for row in rows]
    return fit_head(rows, labels.astype(np.intp), keys, classes=len(classes), l2=l2)


def measure_page(model: Path, data: Path, runtime: Path | None) -> None:
    cache = cache_folder(None)
    teachable = TeachableModel.of(model.read_bytes(), model, cache)
    train = photos(data / "clothing" / "train")
    found = extract(list(train), teachable.net, Store(cache / "bottlenecks"))
    digests = [digest or b"" for digest in found.digests]
    labels = np.array([path.parent.name for path in train])
    asked = photos(data / "clothing" / "test")[::19]
    seen = extract(list(asked), teachable.net, Store(cache / "bottlenecks"))
    features = seen.gather([digest or b"" for digest in seen.digests])
    results = []
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        site = write_site(model, Path(place) / "site", trainable=True, runtime=runtime)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        for classes, each in SIZES:
            names = sorted(set(labels.tolist()))[:classes]
            chosen = {name: [digests[k] for k in np.flatnonzero(labels == name)[:each]] for name in names}
            taught = [
                TaughtClass(
                    name=name,
                    pictures=tuple((digest.hex()[:8], digest) for digest in mine),
                    bottlenecks=found.gather(mine).astype(np.float16),
                )
                for name, mine in chosen.items()
            ]
            file = Path(place) / "classes.json"
            file.write_text(written(teachable.teaching, taught))
            keys = [digest for mine in chosen.values() for digest in mine]
            head = fit_head(
                found.gather(keys),
                np.repeat(np.arange(classes), [len(mine) for mine in chosen.values()]),
                keys,
                classes=classes,
                widths=teachable.net.widths,
                l2=STRENGTH,
            )
            expected = probabilities_of(head.logits(features))
            milliseconds, worst = [], 0.0
            for _ in range(REPEATS):
                page = browser.new_page()
                page.goto(site.page.as_uri())
                page.get_by_label("Open saved classes").set_input_files(file)
                page.get_by_text("Learned").wait_for(timeout=300_000)
                said = page.locator("#learned").inner_text()
                milliseconds.append(float(re.findall(r"in ([\d,]+) ms", said)[0].replace(",", "")))
                if not worst:
                    for path, row in zip(asked, expected, strict=True):
                        text = base64.b64encode(path.read_bytes()).decode()
                        worst = max(worst, difference(page, text, dict(zip(names, row.tolist(), strict=True))))
                page.close()
            results.append(
                {
                    "classes": classes,
                    "pictures": len(keys),
                    "bytes": file.stat().st_size,
                    "milliseconds": spread(milliseconds),
                    "largest_difference": worst,
                }
            )
            print(results[-1], flush=True)
        browser.close()
    save("teach_page", {"page_bytes": site.bytes, "asked": len(asked), "repeats": REPEATS, "sizes": results})


def difference(page: Any, photo: str, expected: dict[str, float]) -> float:
    """The largest difference between the page's probabilities of a photo and Python's."""
    answer = page.evaluate(
        "(text) => quickstudy.classifyTaught(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]))", photo
    )
    return max(abs(entry["probability"] - expected[entry["label"]]) for entry in answer["classes"])


def measure_strength(data: Path, seeds: int) -> None:
    results: dict[str, Any] = {}
    for name, read in SETS.items():
        features, given = read(data)
        labels = np.array(given)
        for each in (5, 20, 50):
            accuracies: dict[str, list[float]] = {}
            for seed in range(seeds):
                rows = drawn(labels, each, seed)
                others = np.setdiff1d(np.arange(len(labels)), rows)
                for l2 in STRENGTHS:
                    head = fit(features[rows], labels[rows], l2)
                    right = np.unique(labels)[head.logits(features[others]).argmax(axis=1)] == labels[others]
                    accuracies.setdefault("chosen" if l2 is None else f"{l2:g}", []).append(float(right.mean()))
            results[f"{name}, {each} a class"] = {k: round(statistics.fmean(v), 4) for k, v in accuracies.items()}
            print(name, each, results[f"{name}, {each} a class"], flush=True)
    save("teach_strength", {"seeds": seeds, "accuracy": results})


def drawn(labels: NDArray[np.str_], each: int, seed: int) -> NDArray[np.intp]:
    random = np.random.Generator(np.random.Philox(seed))
    return np.concatenate([random.permutation(np.flatnonzero(labels == name))[:each] for name in np.unique(labels)])


def measure_start(data: Path, seeds: int) -> None:
    net = load_backbone("efficientnet_lite0", cache_folder(None))
    parts: dict[str, tuple[NDArray[np.floating], NDArray[np.str_]]] = {}
    for part in ("train", "test"):
        files = [path for path in photos(data / "clothing") if ("test" in path.parts) == (part == "test")]
        found = extract(list(files), net, Store(cache_folder(None) / "bottlenecks"))
        features = found.gather([digest or b"" for digest in found.digests])
        parts[part] = features, np.array([path.parent.name for path in files])
    (rows, labels), (asked, truth) = parts["train"], parts["test"]
    results = {}
    for kept in KEPT:
        overall, known, new = [], [], []
        for name in NEW:
            for seed in range(seeds):
                random = np.random.Generator(np.random.Philox(seed))
                chosen = np.concatenate(
                    [
                        random.permutation(np.flatnonzero(labels == one))[: TAUGHT if one == name else kept]
                        for one in np.unique(labels)
                    ]
                )
                head = fit(rows[chosen], labels[chosen], STRENGTH)
                right = np.unique(labels)[head.logits(asked).argmax(axis=1)] == truth
                overall.append(right.mean())
                known.append(right[truth != name].mean())
                new.append(right[truth == name].mean())
        results[str(kept or "all")] = {
            "accuracy": round(float(np.mean(overall)), 4),
            "known_classes": round(float(np.mean(known)), 4),
            "new_class": round(float(np.mean(new)), 4),
        }
        print(kept, results[str(kept or "all")], flush=True)
    save("teach_start", {"taught": TAUGHT, "new": NEW, "seeds": seeds, "n": len(truth), "kept": results})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("page", "strength", "start"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--runtime", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    told = parser.parse_args()
    if told.what == "page":
        measure_page(told.model, told.data, told.runtime)
    elif told.what == "strength":
        measure_strength(told.data, told.seeds)
    else:
        measure_start(told.data, told.seeds)
