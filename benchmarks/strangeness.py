"""What tells images of none of the classes: scores compared on the clothing photos, near and far.

    python benchmarks/strangeness.py --data FOLDER [--kinds skirt,hat]
    python benchmarks/strangeness.py --data FOLDER --int8

FOLDER has `clothing/` with split folders, `cifar10_jpeg.npz` and MNIST's files. Each kind of garment is left out in
turn; a head on Lite0's last features learns the other nine from the training images. Near is the kind that was left
out; far are 250 images of CIFAR-10, 150 of MNIST, 30 of noise and 20 of one colour. For each score: the area under the
curve (AUROC) against the test photos of the nine kinds, the share of strangers accepted where 95 % of those are (FPR at
95 % recall), and for the rule that is used what its threshold of 2 % refuses, of each. Figures are means over the kinds
left out.

The scores: the largest probability and the energy of the logits; k nearest neighbours (k = 10, cosine, centred
features; Sun et al., 2022, arXiv:2204.06507); the Mahalanobis distance to the nearest class with shrinkage (Lee et al.,
2018, arXiv:1807.03888), and its relative form; the residual outside the 128 main directions, and ViM, which is it and
the energy (arXiv:2203.10807); the spread. On all levels as well where it says so; the rule in use with the logits of a
head that sees all levels, too.

With --int8, a model of all ten kinds, as `retrain` makes it, is exported in 8 bits, calibrated on its training images,
and both are asked about the test photos and the strangers.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import quickstudy
from common import save
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract_census
from quickstudy.bottlenecks.store import Store
from quickstudy.files import cache_folder
from quickstudy.images.census import take_census
from quickstudy.images.readers import read_mnist
from quickstudy.learning.features import signed_sqrt
from quickstudy.learning.selection import fit_head
from quickstudy.learning.strangeness import fit_strangeness
from quickstudy.models.conversion import convert

_NEIGHBOURS, _MAIN = 10, 128
_WIDE = "strangeness, head on all levels"
_SHRINKAGE = 0.1
_REFUSE = 0.02
Array = NDArray[np.floating]
Score = Callable[[Array, Array], Array]


def write_strangers(data: Path, folder: Path) -> Path:
    """Write images of none of the kinds as class folders, one a source."""
    held = np.load(data / "cifar10_jpeg.npz")
    jpeg, offsets = held["jpeg"].tobytes(), held["offsets"]
    digits = read_mnist(data / "mnist")["train"]
    draws = np.random.default_rng(0)
    colours = [(0, 0, 0), (255, 255, 255), *(tuple(draws.integers(0, 256, 3).tolist()) for _ in range(18))]
    images = {
        "cifar10": [Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]])) for i in range(250)],
        "mnist": [Image.fromarray(digits.pixels[i].squeeze()) for i in range(150)],
        "noise": [Image.fromarray(draws.integers(0, 256, (288, 288, 3), dtype=np.uint8)) for _ in range(30)],
        "blank": [Image.new("RGB", (288, 288), colour) for colour in colours],
    }
    for name, pictures in images.items():
        (folder / name).mkdir(parents=True)
        for number, picture in enumerate(pictures):
            picture.save(folder / name / f"{number:03}.png")
    return folder


def auroc(own: Array, strange: Array) -> float:
    """Work out how often a stranger has a higher score than an own image; of equal ones, half count."""
    ranked = np.sort(own)
    below, upto = (np.searchsorted(ranked, strange, side) for side in ("left", "right"))
    return float((below + upto).mean() / 2 / len(own))


def accepted(own: Array, strange: Array) -> float:
    """Work out the share of strangers that are accepted where 95 % of the own images are."""
    return float((strange <= np.quantile(own, 0.95)).mean())


def energy(logits: Array) -> Array:
    """Work out the energy of logits (n×K)."""
    most = logits.max(axis=1)
    return -(most + np.log(np.exp(logits - most[:, None]).sum(axis=1)))


def scores_of(
    features: Array, levels: Array, labels: NDArray[np.intp], widths: tuple[int, ...], largest: float
) -> dict[str, Score]:
    """Fit all scores of features, which are the first of the levels, but for the rule in use."""
    scores: dict[str, Score] = {
        "largest probability": lambda _, z: -np.exp(z.max(axis=1) + energy(z)),
        "energy": lambda _, z: energy(z),
    }
    for name, seen in (("", features), (", all levels", levels)):
        scores |= {f"{score}{name}": fitted for score, fitted in _distances(seen, labels, widths, largest).items()}
    return scores


def _distances(seen: Array, labels: NDArray[np.intp], widths: tuple[int, ...], largest: float) -> dict[str, Score]:
    """Fit scores of distances; `largest` is the mean of the training images' largest logits, ViM's scale."""
    d = seen.shape[1]
    roots = signed_sqrt(seen)
    centre, scale = roots.mean(axis=0), np.ones(d, np.float32)
    for end, width in zip(np.cumsum(widths), widths, strict=True):
        if end <= d:
            scale[end - width : end] = (roots - centre)[:, end - width : end].std() or 1

    def prepared(x: Array) -> Array:
        return (signed_sqrt(x[:, :d]) - centre) / scale

    rows = prepared(seen)
    classes = labels.max() + 1
    means = np.stack([rows[labels == number].mean(axis=0) for number in range(classes)])
    own = rows - means[labels]

    covariance = own.T @ own / len(own)
    shrunk = ((1 - _SHRINKAGE) * covariance).astype(np.float32)
    shrunk[np.diag_indices(d)] += _SHRINKAGE * np.trace(covariance) / d
    within = np.linalg.inv(shrunk)
    variances = rows.var(axis=0)
    precise = 1 / (variances + 0.05 * variances.mean())
    draws = np.random.default_rng(0).standard_normal((len(rows), _MAIN)).astype(np.float32)
    basis = np.linalg.qr(rows.T @ (rows @ (rows.T @ draws)))[0]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def to_means(x: Array) -> Array:
        at = means @ within
        return ((x @ within) * x).sum(axis=1) + ((at * means).sum(axis=1) - 2 * x @ at.T).min(axis=1)

    def residual(x: Array) -> Array:
        return np.sqrt(np.maximum((x**2).sum(axis=1) - ((x @ basis) ** 2).sum(axis=1), 0))

    def nearest(x: Array) -> Array:
        cosines = x / np.linalg.norm(x, axis=1, keepdims=True) @ unit.T
        return -np.partition(cosines, -_NEIGHBOURS, axis=1)[:, -_NEIGHBOURS]

    typical = residual(rows).mean()
    found: dict[str, Score] = {
        "nearest neighbours": lambda x, _: nearest(prepared(x)),
        "Mahalanobis, shrunk": lambda x, _: to_means(prepared(x)),
        "residual": lambda x, _: residual(prepared(x)),
        "ViM": lambda x, z: residual(prepared(x)) * largest / typical + energy(z),
        "spread": lambda x, _: prepared(x) ** 2 @ precise,
    }
    if len(widths) > 1 and d == widths[0]:  # another inverse of all levels would double the time
        shares = np.bincount(labels) / len(labels)
        total = np.linalg.inv(shrunk + (means.T * shares.astype(np.float32)) @ means)
        found["relative Mahalanobis"] = lambda x, _: to_means(prepared(x)) - _quadratic(prepared(x), total)
    return found


def _quadratic(x: Array, matrix: Array) -> Array:
    return ((x @ matrix) * x).sum(axis=1)


def compare(
    parts: Mapping[str, Array],
    labels: NDArray[np.str_],
    splits: NDArray[np.str_],
    left: str,
    widths: tuple[int, ...],
    keys: list[bytes],
) -> dict[str, dict[str, float]]:
    """Leave one kind out, and measure all scores."""
    clothing, last = parts["clothing"], widths[0]
    train, test = (splits != "test") & (labels != left), (splits == "test") & (labels != left)
    names = sorted(set(labels) - {left})
    numbers = np.array([names.index(label) for label in labels[train]], np.intp)
    learned = clothing[train]
    head = fit_head(learned[:, :last], numbers, [keys[i] for i in np.flatnonzero(train)], classes=len(names))
    rule = fit_strangeness(learned[:, :last], numbers, head.held_out_logits, classes=len(names), held_out=head.held_out)
    if rule is None:
        raise SystemExit("too few images for strangeness")
    sets = {
        "own": clothing[test],
        "near": clothing[labels == left],
        **{k: v for k, v in parts.items() if k != "clothing"},
    }
    logits = {name: head.logits(seen[:, :last]) for name, seen in sets.items()}
    largest = float(head.held_out_logits.max(axis=1).mean())
    scores = scores_of(learned[:, :last], learned, numbers, widths, largest)
    scores["strangeness"] = lambda x, z: rule.score(x[:, :last], z)
    wide = fit_head(learned, numbers, [keys[i] for i in np.flatnonzero(train)], classes=len(names), widths=widths)
    wide_rule = fit_strangeness(
        learned[:, :last], numbers, wide.held_out_logits, classes=len(names), held_out=wide.held_out
    )
    if wide_rule is None:
        raise SystemExit("too few images for strangeness")
    scores[_WIDE] = lambda x, _: wide_rule.score(x[:, :last], wide.logits(x))
    found: dict[str, dict[str, float]] = {}
    for name, score in scores.items():
        given = {part: score(seen, logits[part]) for part, seen in sets.items()}
        found[name] = {
            **{f"auroc {part}": auroc(given["own"], given[part]) for part in sets if part != "own"},
            **{f"fpr {part}": accepted(given["own"], given[part]) for part in sets if part != "own"},
        }
    found["refused"] = {
        part: float((rule.of(seen[:, :last], logits[part]) > 1 - _REFUSE).mean()) for part, seen in sets.items()
    }
    found["refused"]["trained on"] = rule.refusal(_REFUSE).share
    return found


def compare_int8(data: Path) -> dict[str, Any]:
    """Ask a model and its export in 8 bits how strange the test photos and strangers are."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result = quickstudy.retrain(data / "clothing", folder / "m.onnx")
        learned = [result.census.contents[digest].path for digest in result.census.digests("train", "validation")]
        convert(folder / "m.onnx", folder / "int8.onnx", "int8", calibrate=learned)
        write_strangers(data, folder / "strangers")
        sets = {"own, test": [result.census.contents[digest].path for digest in result.census.digests("test")]}
        for kind in sorted((folder / "strangers").iterdir()):
            sets[kind.name] = sorted(kind.iterdir())
        models = [quickstudy.load(folder / name) for name in ("m.onnx", "int8.onnx")]
        refusal = models[0].refusal
        if refusal is None:
            raise SystemExit("too few images for strangeness")
        found: dict[str, Any] = {"threshold": refusal.threshold, "own": refusal.to_dict()}
        for name, paths in sets.items():
            before, after = (
                np.array([one.strangeness for one in model.predict_each(paths)], np.float64) for model in models
            )
            found[name] = {
                "images": len(paths),
                "refused": float((before > refusal.threshold).mean()),
                "refused in 8 bits": float((after > refusal.threshold).mean()),
                "mean": float(before.mean()),
                "mean in 8 bits": float(after.mean()),
                "mean difference": float(np.abs(after - before).mean()),
            }
    return found


def main() -> None:
    """Measure, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--int8", action="store_true", help="compare a model with its export in 8 bits")
    parser.add_argument("--kinds", default="", help="kinds to leave out, with commas between [default: each]")
    arguments = parser.parse_args()
    if arguments.int8:
        save("strangeness_int8", compare_int8(arguments.data))
        return
    folder = cache_folder(None)
    net, store = load_backbone("efficientnet_lite0", folder), Store(folder / "bottlenecks")
    parts: dict[str, Array] = {}
    with tempfile.TemporaryDirectory() as scratch:
        strangers = take_census(write_strangers(arguments.data, Path(scratch) / "strangers"), None)
        for census in (take_census(arguments.data / "clothing", store.index_path, to_learn=True), strangers):
            contents = list(census.contents.values())
            digests = [content.digest for content in contents if content.role]
            extraction = extract_census(census, net, store)
            seen = extraction.gather(digests, levels=True).astype(np.float32)
            if census is strangers:
                for name in ("cifar10", "mnist", "noise", "blank"):
                    parts[name] = seen[[census.labels[digest] == name for digest in digests]]
            else:
                parts["clothing"], keys = seen, digests
                labels = np.array([census.labels[digest] for digest in digests])
                splits = np.array([census.contents[digest].role for digest in digests])
    kinds = arguments.kinds.split(",") if arguments.kinds else sorted(set(labels.tolist()))
    by_kind = {}
    for left in kinds:
        began = time.perf_counter()
        by_kind[left] = compare(parts, labels, splits, left, net.kept.widths, keys)
        print(f"{left}: {time.perf_counter() - began:.0f} s", flush=True)
    names = next(iter(by_kind.values()))
    means = {
        name: {figure: float(np.mean([found[name][figure] for found in by_kind.values()])) for figure in figures}
        for name, figures in names.items()
    }
    save("strangeness", {"means": means, "by_kind": by_kind})


if __name__ == "__main__":
    main()
