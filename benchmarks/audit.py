"""The audit against known truth: corrupted labels, planted faults, and all pairs of many images.

    python benchmarks/audit.py labels FOLDER --cache CACHE [--peer PYTHON]
    python benchmarks/audit.py few FOLDER --cache CACHE
    python benchmarks/audit.py planted FOLDER --cache CACHE
    python benchmarks/audit.py blurred FOLDER --cache CACHE
    python benchmarks/audit.py pairs [--images 50000]
    python benchmarks/audit.py time FOLDER --cache CACHE

`labels` corrupts 5 % of the training labels at random, with seeds that chose nothing, and compares what is found with
cleanlab on the same probabilities; PYTHON is one that has cleanlab installed. `few` plants no, 1, 2 and 5 wrong
labels in small folders of some of the classes. `planted` makes a folder with copies, wrong labels, broken and bad
files, audits it with the command, and counts what of each kind was found.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from sklearn.metrics import average_precision_score

from common import fresh, peak_megabytes, photos, quickstudy, run_measured, save, spread
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.images.imageset import load_image_set
from quickstudy.learning.calibration import probabilities_of
from quickstudy.learning.selection import fit_head
from quickstudy.reports.audit import FIRST, choose_surprising, probability_wrong
from quickstudy.reports.neighbours import alike_pairs, centred_rows

_SEEDS = range(100, 110)  # seeds below 100 chose the method and its limit
_RATE = 0.05
_PEER = """
import sys, json, warnings
import numpy as np
warnings.filterwarnings("ignore")
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
values = np.load(sys.argv[1])
labels, probabilities = values["labels"], values["probabilities"]
found = {name: find_label_issues(labels, probabilities, filter_by=name).tolist()
         for name in ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "low_self_confidence")}
scores = {name: get_label_quality_scores(labels, probabilities, method=name).tolist()
          for name in ("self_confidence", "normalized_margin")}
json.dump({"found": found, "scores": scores}, open(sys.argv[2], "w"))
"""


def main() -> None:
    """Measure what was asked for and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["labels", "few", "planted", "blurred", "pairs", "time"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    if options.what == "labels":
        save("audit_labels", corrupt_labels(options.folder, options.cache, options.peer))
    elif options.what == "few":
        save("audit_few", plant_few(options.folder, options.cache))
    elif options.what == "planted":
        save("audit_planted", plant_faults(options.folder, options.cache))
    elif options.what == "blurred":
        save("audit_blurred", blur_copies(options.folder, options.cache))
    elif options.what == "pairs":
        save("audit_pairs", search_pairs(options.images))
    else:
        save("audit_time", time_command(options.folder, options.cache))


def corrupt_labels(folder: Path, cache: Path, peer: Path | None) -> dict[str, Any]:
    """Precision, recall and average precision of what is found, ours and the peer's, mean over the seeds."""
    files = [file for file in load_image_set(folder).files if file.split != "test"]
    extraction = extract(
        [file.path for file in files], load_backbone("efficientnet_lite0", cache), Store(cache / "bottlenecks")
    )
    keys = [digest for digest in extraction.digests if digest is not None]
    classes = sorted({file.label for file in files})
    truth = np.array([classes.index(file.label) for file in files])
    bottlenecks, rows = extraction.gather(keys), np.arange(len(files))
    figures: dict[str, list[tuple[float, float]]] = {}
    average: dict[str, list[float]] = {}
    for seed in _SEEDS:
        draws = np.random.default_rng(seed)
        chosen = draws.choice(len(files), round(_RATE * len(files)), replace=False)
        labels = truth.copy()
        labels[chosen] = (truth[chosen] + draws.integers(1, len(classes), len(chosen))) % len(classes)
        wrong = labels != truth
        head = fit_head(bottlenecks, labels, keys, classes=len(classes))
        logits = np.empty((len(files), len(classes)), np.float32)
        logits[head.held_out] = head.held_out_logits
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        named = choose_surprising(probabilities, labels, probability_wrong(probabilities, labels))
        everything = choose_surprising(probabilities, labels, np.ones(len(files)))
        found = {"quickstudy": np.isin(rows, named)}
        ranked = {"quickstudy": -np.argsort(everything)}
        if peer:
            theirs = _ask_peer(peer, labels, probabilities)
            found |= {f"cleanlab, {name}": np.array(mask) for name, mask in theirs["found"].items()}
            ranked |= {f"cleanlab, {name}": -np.array(values) for name, values in theirs["scores"].items()}
        for name, mask in found.items():
            hits = int((mask & wrong).sum())
            figures.setdefault(name, []).append((hits / max(1, int(mask.sum())), hits / int(wrong.sum())))
        for name, values in ranked.items():
            average.setdefault(name, []).append(float(average_precision_score(wrong, values)))
        print(seed, figures["quickstudy"][-1], flush=True)
    return {
        "images": len(files),
        "corrupted": round(_RATE * len(files)),
        "seeds": list(_SEEDS),
        "found": {
            name: {
                "precision": spread([precision for precision, _ in values]),
                "recall": spread([recall for _, recall in values]),
                "mean_precision": float(np.mean([precision for precision, _ in values])),
                "mean_recall": float(np.mean([recall for _, recall in values])),
            }
            for name, values in figures.items()
        },
        "mean_average_precision": {name: float(np.mean(values)) for name, values in average.items()},
    }


_FEW_DRAWS = range(2000, 2050)  # seeds 1000 to 1199 chose the order and the limits
_FEW_PLANTED = (0, 1, 2, 5)


def plant_few(folder: Path, cache: Path) -> dict[str, Any]:
    """Count by number of planted labels, and of classes, how often they are among the first named; and false ones."""
    files = load_image_set(folder).files
    extraction = extract(
        [file.path for file in files], load_backbone("efficientnet_lite0", cache), Store(cache / "bottlenecks")
    )
    keys = [digest for digest in extraction.digests if digest is not None]
    bottlenecks, labels = extraction.gather(keys), np.array([file.label for file in files])
    found: dict[str, list[dict[str, int]]] = {}
    for planted in _FEW_PLANTED:
        for seed in _FEW_DRAWS:
            rows, truth, given = _few(labels, keys, seed, planted)
            classes = int(truth.max()) + 1
            head = fit_head(bottlenecks[rows], given, [keys[row] for row in rows], classes=classes)
            logits = head.logits(bottlenecks[rows])
            logits[head.held_out] = head.held_out_logits
            probabilities = probabilities_of(logits)
            named = choose_surprising(probabilities, given, probability_wrong(probabilities, given))
            wrong = given != truth
            draw = {
                "classes": classes,
                "first": int(wrong[named[:FIRST]].sum()),
                "named": int(wrong[named].sum()),
                "others": int((~wrong[named]).sum()),
            }
            found.setdefault(str(planted), []).append(draw)
        print(planted, np.mean([draw["first"] > 0 for draw in found[str(planted)]]), flush=True)
    return {
        "draws": len(_FEW_DRAWS),
        "seeds_from": _FEW_DRAWS[0],
        "planted": {
            planted: {
                "one_among_first": float(np.mean([draw["first"] > 0 for draw in draws])),
                "mean_among_first": float(np.mean([draw["first"] for draw in draws])),
                "mean_named": float(np.mean([draw["named"] for draw in draws])),
                "mean_others_named": float(np.mean([draw["others"] for draw in draws])),
            }
            for planted, draws in found.items()
        },
    }


def _few(labels: np.ndarray, keys: list[bytes], seed: int, planted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw 40 to 250 photos of 2 to 10 classes, at least 10 of each; gives rows, class numbers and those planted."""
    draws = np.random.default_rng(seed)
    count, names = int(draws.integers(40, 251)), np.unique(labels)
    classes = int(draws.integers(2, min(len(names), count // 10) + 1))
    chosen = [
        draws.choice(np.flatnonzero(labels == name), count // classes + (number < count % classes), replace=False)
        for number, name in enumerate(draws.choice(names, classes, replace=False))
    ]
    rows = np.concatenate(chosen)
    truth = np.repeat(np.arange(classes), [len(part) for part in chosen])
    given = truth.copy()
    for row in draws.choice(len(rows), planted, replace=False):
        given[row] = (truth[row] + draws.integers(1, classes)) % classes
    order = np.argsort([keys[row] for row in rows])
    return rows[order], truth[order], given[order]


def _ask_peer(peer: Path, labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        given, answer = Path(temporary) / "given.npz", Path(temporary) / "answer.json"
        np.savez(given, labels=labels, probabilities=probabilities.astype(np.float64))
        subprocess.run([str(peer), "-c", _PEER, str(given), str(answer)], check=True)
        result: dict[str, Any] = json.loads(answer.read_text())
        return result


def _encoded(image: Image.Image, quality: int = 85) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _cropped(image: Image.Image, draws: random.Random, margin: float) -> Image.Image:
    left, top, right, bottom = (draws.uniform(0, margin) for _ in range(4))
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


UNRECOGNISED = "turned by 90 degrees"
Change = Callable[[Image.Image, random.Random], bytes]
COPIES: dict[str, Change] = {
    "encoded anew, quality 30": lambda image, _: _encoded(image, 30),
    "half the size": lambda image, _: _encoded(image.resize((image.width // 2, image.height // 2))),
    "one and a half times the size": lambda image, _: _encoded(
        image.resize((image.width * 3 // 2, image.height * 3 // 2))
    ),
    "squashed to a square": lambda image, _: _encoded(image.resize((400, 400))),
    "mirrored": lambda image, _: _encoded(ImageOps.mirror(image)),
    "cropped by up to 5 % a side": lambda image, draws: _encoded(_cropped(image, draws, 0.05)),
    "cropped by up to 10 % a side": lambda image, draws: _encoded(_cropped(image, draws, 0.1)),
    "brightened by a quarter": lambda image, _: _encoded(ImageEnhance.Brightness(image).enhance(1.25)),
    "darkened by a quarter": lambda image, _: _encoded(ImageEnhance.Brightness(image).enhance(0.75)),
    "grey": lambda image, _: _encoded(ImageOps.grayscale(image).convert("RGB")),
    "mirrored, cropped, smaller, brighter": lambda image, draws: _encoded(
        ImageEnhance.Brightness(_cropped(ImageOps.mirror(image), draws, 0.06).resize((300, 360))).enhance(1.12), 60
    ),
    UNRECOGNISED: lambda image, _: _encoded(image.transpose(Image.Transpose.ROTATE_90)),
}
_OF_EACH_COPY = 20
_SWAPPED = 50
_OF_EACH_FAULT = 5


def plant_faults(folder: Path, cache: Path) -> dict[str, Any]:
    """Plant faults of all kinds in a copy of the folder, audit it with the command, and count what was found."""
    draws = random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "photos"
        shutil.copytree(folder, root, ignore=shutil.ignore_patterns("README*", "LICENSE*"))
        originals = photos(root)
        draws.shuffle(originals)
        planted = _plant(root, originals, draws)
        shown = run_measured(quickstudy("audit", str(root), "--cache", str(cache), "--limit", "3"))
        done = run_measured(quickstudy("audit", str(root), "--cache", str(cache), "--json"))
        found = json.loads(done["output"])
        print(shown["output"])
        clean = json.loads(run_measured(quickstudy("audit", str(folder), "--cache", str(cache), "--json"))["output"])
    groups = [set(group["images"]) for group in found["duplicates"]]
    leaking = [set(group["images"]) for group in found["duplicates"] if group["leaks"]]
    copies = {
        kind: {"planted": len(pairs), "found": sum(any({str(a), str(b)} <= g for g in groups) for a, b in pairs)}
        for kind, pairs in planted["copies"].items()
    }
    named = {str(path) for pairs in planted["copies"].values() for pair in pairs for path in pair}
    swapped = {str(path): truth for path, truth in planted["swapped"].items()}
    errors = {error["image"]: error for error in found["label_errors"]}
    hits = [error for path, error in errors.items() if path in swapped]
    skipped = {item["path"] for item in found["skipped"]}
    flawed = {(flaw["image"], flaw["kind"]) for flaw in found["quality"]}
    outliers = {outlier["image"] for outlier in found["outliers"]}
    return {
        "images": len(originals),
        "copies": copies,
        "groups_beside_those": sum(not group & named for group in groups),
        "groups_in_the_clean_folder": len(clean["duplicates"]),
        "leaks": {
            "planted": len(planted["leaks"]),
            "found": sum(any({str(a), str(b)} <= group for group in leaking) for a, b in planted["leaks"]),
        },
        "swapped_labels": {
            "planted": len(swapped),
            "found": len(hits),
            "with_the_true_class": sum(error["suggested"] == swapped[error["image"]] for error in hits),
            "named_besides": len(errors) - len(hits),
            "named_in_the_clean_folder": len(clean["label_errors"]),
        },
        "unreadable": {
            kind: {"planted": len(paths), "found": sum(str(path) in skipped for path in paths)}
            for kind, paths in planted["broken"].items()
        },
        "flaws": {
            kind: {"planted": len(paths), "found": sum((str(path), kind) in flawed for path in paths)}
            for kind, paths in planted["flaws"].items()
        },
        "flaws_in_the_clean_folder": len(clean["quality"]),
        "outliers": {
            kind: {"planted": len(paths), "found": sum(str(path) in outliers for path in paths)}
            for kind, paths in planted["strange"].items()
        },
        "outliers_in_the_clean_folder": len(clean["outliers"]),
    }


_BLURS = (1, 2, 3, 4, 6, 8)  # standard deviations in pixels, where the longer side has 400
_OF_EACH_BLUR = 20


def blur_copies(folder: Path, cache: Path) -> dict[str, Any]:
    """Find out from where on a blurred copy is not found to be one, among 400 photos."""
    draws = random.Random(7)
    with tempfile.TemporaryDirectory() as temporary:
        root, originals = Path(temporary) / "photos", photos(folder)
        pairs: dict[int, list[set[str]]] = {}
        draws.shuffle(originals)
        for number, original in enumerate(originals[:400]):
            target = root / original.parent.name / original.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(original, target)
            if number < len(_BLURS) * _OF_EACH_BLUR:
                blur = _BLURS[number // _OF_EACH_BLUR]
                with Image.open(original) as image:
                    strength = ImageFilter.GaussianBlur(blur * max(image.size) / 400)
                    copy = target.with_name(f"blurred-{number:03}.jpg")
                    copy.write_bytes(_encoded(image.convert("RGB").filter(strength)))
                pairs.setdefault(blur, []).append({str(target), str(copy)})
        found = json.loads(run_measured(quickstudy("audit", str(root), "--cache", str(cache), "--json"))["output"])
    groups = [set(group["images"]) for group in found["duplicates"]]
    flawed = {flaw["image"] for flaw in found["quality"] if flaw["kind"] == "blurred"}
    return {
        str(blur): {
            "planted": len(planted),
            "found": sum(any(pair <= group for group in groups) for pair in planted),
            "named_as_blurred": sum(any("blurred-" in name for name in pair & flawed) for pair in planted),
        }
        for blur, planted in pairs.items()
    }


def _plant(root: Path, originals: list[Path], draws: random.Random) -> dict[str, Any]:
    """Make the faults; which files they are, by kind."""
    classes = sorted({path.parent.name for path in originals})
    free = iter(originals)
    copies: dict[str, list[tuple[Path, Path]]] = {}
    leaks: list[tuple[Path, Path]] = []
    for which, (kind, change) in enumerate(({"byte for byte": None} | COPIES).items()):
        for number in range(_OF_EACH_COPY):
            original = next(free)
            split = draws.choice(["train", "test"])
            target = root / split / original.parent.name / f"copy-{which}-{number:02}.jpg"
            if original.parts[-3] != split and kind != UNRECOGNISED:
                leaks.append((original, target))
            if change is None:
                shutil.copy(original, target)
            else:
                with Image.open(original) as image:
                    target.write_bytes(change(image.convert("RGB"), draws))
            copies.setdefault(kind, []).append((original, target))
    swapped: dict[Path, str] = {}
    while len(swapped) < _SWAPPED:
        original = next(free)
        wrong = draws.choice([name for name in classes if name != original.parent.name])
        target = original.parent.parent / wrong / original.name
        shutil.move(original, target)
        swapped[target] = original.parent.name
    numbers = range(_OF_EACH_FAULT)

    def place(name: str, data: bytes) -> Path:
        path = root / "train" / draws.choice(classes) / name
        path.write_bytes(data)
        return path

    bodies = [next(free).read_bytes() for _ in numbers]
    broken = {
        "cut off": [place(f"cut-{k}.jpg", bodies[k][: len(bodies[k]) // 3]) for k in numbers],
        "empty": [place(f"empty-{k}.jpg", b"") for k in numbers],
        "a web page": [place(f"page-{k}.jpg", b"<html>not found</html>" + bytes([k])) for k in numbers],
        "random bytes": [place(f"random-{k}.jpg", draws.randbytes(5000)) for k in numbers],
    }

    def photo() -> Image.Image:
        with Image.open(next(free)) as image:
            return image.convert("RGB")

    def dim(image: Image.Image, level: int) -> bytes:
        return _encoded(Image.eval(image, lambda value: value * level // 255))

    flaws = {
        "tiny": [place(f"tiny-{k}.jpg", _encoded(photo().resize((32 + k, 40)))) for k in numbers],
        "narrow": [place(f"narrow-{k}.jpg", _encoded(photo().resize((900 + k, 120)))) for k in numbers],
        "dark": [place(f"dark-{k}.jpg", dim(photo(), 10 + 2 * k)) for k in numbers],
        "bright": [
            place(f"bright-{k}.jpg", _encoded(Image.eval(photo(), lambda value: min(255, 245 + value // 12))))
            for k in numbers
        ],
        "blank": [place(f"blank-{k}.jpg", _encoded(Image.new("RGB", (400, 400), (100 + k, 90, 120)))) for k in numbers],
        "blurred": [
            place(f"blurred-{k}.jpg", _encoded(photo().filter(ImageFilter.GaussianBlur(4 + k)))) for k in numbers
        ],
    }
    strange = {
        "noise": [
            place(f"noise-{k}.jpg", _encoded(Image.frombytes("RGB", (300, 300), draws.randbytes(270_000))))
            for k in numbers
        ],
        "a page of text": [place(f"text-{k}.jpg", _encoded(_page(draws))) for k in numbers],
        "a diagram": [place(f"diagram-{k}.jpg", _encoded(_diagram(draws))) for k in numbers],
    }
    return {
        "copies": copies,
        "leaks": leaks,
        "swapped": swapped,
        "broken": broken,
        "flaws": flaws,
        "strange": strange,
    }


def _page(draws: random.Random) -> Image.Image:
    image = Image.new("RGB", (400, 520), "white")
    pen = ImageDraw.Draw(image)
    for top in range(20, 500, 14):
        words = " ".join("".join(draws.choices("etaoinshrdlu", k=draws.randint(2, 9))) for _ in range(8))
        pen.text((20, top), words[:58], fill="black")
    return image


def _diagram(draws: random.Random) -> Image.Image:
    image = Image.new("RGB", (500, 400), "white")
    pen = ImageDraw.Draw(image)
    pen.line([(40, 20), (40, 360), (480, 360)], fill="black", width=2)
    for colour in ("red", "blue", "green"):
        points = [(40 + 44 * k, draws.randint(30, 350)) for k in range(11)]
        pen.line(points, fill=colour, width=3)
    return image


def search_pairs(images: int) -> dict[str, Any]:
    """Seconds and memory of the search for candidate pairs among random features with planted near copies."""
    draws = np.random.Generator(np.random.PCG64(0))
    features = draws.standard_normal((images, 1280), np.float32)
    copies = draws.choice(images, (images // 100, 2), replace=False)
    features[copies[:, 1]] = features[copies[:, 0]] + 0.5 * draws.standard_normal((len(copies), 1280), np.float32)
    before = peak_megabytes()
    result: dict[str, Any] = {"images": images, "planted": len(copies)}
    for name, exact in (("exact", True), ("index", False)):
        started = time.perf_counter()
        pairs = alike_pairs(centred_rows(features), alike=0.75, nearest=0.55, most=images, exact=exact)
        seconds = time.perf_counter() - started
        found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
        result[name] = {
            "seconds": seconds,
            "megabytes_more": peak_megabytes() - before,
            "found": sum((min(a, b), max(a, b)) in found for a, b in copies.tolist()),
        }
        print(name, result[name], flush=True)
    return result


def time_command(folder: Path, cache: Path) -> dict[str, Any]:
    """The whole command: bottlenecks in the store, looks computed for the first time, then kept."""
    command = quickstudy("audit", str(folder), "--cache", str(cache))
    run_measured(command)
    cold = []
    for _ in range(3):
        fresh(cache / "looks")
        cold.append(run_measured(command)["wall_seconds"])
    warm = [run_measured(command)["wall_seconds"] for _ in range(5)]
    return {"images": len(photos(folder)), "seconds_without_looks": spread(cold), "seconds_warm": spread(warm)}


if __name__ == "__main__":
    main()
