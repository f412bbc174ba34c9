"""The audit finds out everything that the bottlenecks and the looks of a set of images tell of it.

Its findings come one after the other: labels for images without one and which to label next, labels that are probably
wrong, images unlike all others, images of which little can be seen, the classes. Duplicates have `duplicates.py`. Each
method's reasons stand at its function: `choose_next`, `find_label_errors`, `find_outliers`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quickstudy.bottlenecks.looks import Gallery, view_gallery
from quickstudy.images.depth import rounded
from quickstudy.images.manifests import ONE_EACH, Labelling
from quickstudy.learning.features import Floats, unit_rows
from quickstudy.process import IMPORTING
from quickstudy.progress import Progress, silent
from quickstudy.reports.duplicates import find_duplicates
from quickstudy.reports.evidence import Evidence, gather_evidence
from quickstudy.reports.findings import (
    AlikePair,
    Audit,
    ClassShare,
    DuplicateGroup,
    FlawKind,
    LabelError,
    Outlier,
    QualityFlaw,
    Suggestion,
)
from quickstudy.reports.neighbours import BLOCK, centred_rows


def audit(
    images: str | Path,
    *,
    backbone: str = "efficientnet_lite0",
    engine: str = "onnxruntime",
    labelling: Labelling = ONE_EACH,
    cache: str | Path | None = None,
    progress: Progress = silent,
) -> Audit:
    """Find out what is wrong with a set of images; nothing is changed.

    Args:
        images: a folder or manifest as for `retrain`; images without a label are welcome.
        backbone: name of the pretrained network.
        engine: what computes bottlenecks: `onnxruntime`, `onnxruntime-int8`, `openvino` or `cuda`.
        labelling: how labels are to be read: one an image, or several, and which name stands for none.
        cache: folder of the store and the backbones; see `quickstudy.files.cache_folder`.
        progress: is told how far things are.

    Raises:
        ImageSetError: there are no images.
        QuickstudyError: the store or the backbone cannot be used; see the message.
    """
    evidence = gather_evidence(
        images, backbone=backbone, engine=engine, labelling=labelling, cache=cache, progress=progress
    )
    return draw_findings(evidence, view_gallery(evidence.images, cache=cache, progress=progress))


def draw_findings(
    evidence: Evidence, gallery: Gallery, *, duplicates: tuple[DuplicateGroup, ...] | None = None
) -> Audit:
    """Draw what the evidence and the looks of its images tell; `duplicates` are looked for unless they are given."""
    return Audit(
        images=tuple(image.path for image in evidence.images),
        labelled=sum(image.label is not None for image in evidence.images),
        classes=count_classes(evidence),
        skipped=evidence.skipped,
        duplicates=find_duplicates(evidence, gallery) if duplicates is None else duplicates,
        label_errors=find_tag_errors(evidence) if evidence.several else find_label_errors(evidence),
        outliers=find_outliers(evidence),
        quality=find_flaws(gallery),
        alike=find_alike(evidence),
        suggestions=suggest_labels(evidence),
        next_to_label=choose_next(evidence),
    )


_ASKED_AT_ONCE = 20
"""Number of images that are named as the next to label."""
_CLUSTERED = 20_000  # images beyond which clusters are found on a part of them


def suggest_labels(evidence: Evidence) -> tuple[Suggestion, ...]:
    """Suggest the most probable label of each image without one; nothing where there is no classifier."""
    if not evidence.probabilities.shape[1]:
        return ()
    rows = [number for number, image in enumerate(evidence.images) if image.label is None]
    best = evidence.probabilities[rows].argmax(axis=1)
    return tuple(
        Suggestion(image=n, label=evidence.classes[k], probability=float(evidence.probabilities[n, k]))
        for n, k in zip(rows, best.tolist(), strict=True)
    )


def choose_next(evidence: Evidence, *, count: int = _ASKED_AT_ONCE) -> tuple[int, ...]:
    """Choose at most so many images without a label, in the order to label them; copies once, and none with a label.

    With a classifier, the next to label are those with large and different gradients: the gradient that an image's most
    probable label would give is its residual times its features, long where the classifier is in doubt; picking the one
    farthest from all picked so far keeps the batch diverse (the gradients of BADGE, Ash et al., 2020, arXiv:1906.03671,
    and the greedy choice of Sener and Savarese, 2018, arXiv:1708.00489). Without any labels, it is the most typical
    image of each of as many clusters (Hacohen et al., 2022, arXiv:2202.02794), the largest cluster first.
    """
    named = {image.digest for image in evidence.images if image.label is not None}
    rows = evidence.distinct(number for number, image in enumerate(evidence.images) if image.digest not in named)
    count = min(count, len(rows))
    if not count:
        return ()
    features = evidence.features[rows]
    if evidence.probabilities.shape[1]:
        chosen = farthest_gradients(features, evidence.probabilities[rows], count)
    else:
        chosen = [row for row, _ in typical(centred_rows(features), count)]
    return tuple(int(rows[k]) for k in chosen)


def farthest_gradients(features: Floats, probabilities: Floats, count: int) -> list[int]:
    """Pick rows greedily: the longest gradient, then always the one farthest from the nearest picked.

    The gradients, d×K numbers each, are never written out: their products are products of products.

    Args:
        features: n×d.
        probabilities: n×K.
        count: at most n.
    """
    residual = probabilities.astype(np.float64)
    residual[np.arange(len(residual)), residual.argmax(axis=1)] -= 1
    square = np.einsum("ij,ij->i", residual, residual) * np.einsum("ij,ij->i", features, features, dtype=np.float64)
    chosen = [int(square.argmax())]
    nearest = np.full(len(residual), np.inf)
    while len(chosen) < count:
        last = chosen[-1]
        products = (residual @ residual[last]) * (features @ features[last])
        nearest = np.minimum(nearest, square + square[last] - 2 * products)
        nearest[chosen] = -np.inf
        chosen.append(int(nearest.argmax()))
    return chosen


def typical(rows: Floats, count: int) -> list[tuple[int, int]]:
    """Find the row nearest to the centre of each of `count` clusters, the largest first, and how many rows are in it.

    Args:
        rows: n×d; of many, the first 20,000 are looked at.
        count: 1 to n.
    """
    with IMPORTING:
        from sklearn.cluster import KMeans

    part = rows[:_CLUSTERED]
    clusters = KMeans(count, n_init=1, random_state=0).fit(part)
    members: NDArray[np.intp] = clusters.labels_
    gap = np.linalg.norm(part - clusters.cluster_centers_[members].astype(np.float32), axis=1)
    sizes = np.bincount(members, minlength=count)
    order = [k for k in np.argsort(-sizes, kind="stable").tolist() if sizes[k]]
    return [(int(np.flatnonzero(members == k)[gap[members == k].argmin()]), int(sizes[k])) for k in order]


LEAST = 0.1
"""Probability of being wrong from which on a label is named, however many others are.

It is lower than 1/2, since looking at an image costs less than learning a wrong label.
"""
FIRST = 3
"""Number of labels that are named for being hardly believed, whatever their probability of being wrong."""
BELIEVED = 0.08
"""Probability of a label, by a classifier that has not seen the image, below which it is hardly believed.

In a folder of a hundred images one wrong label is too few for Bayes' rule: a shoe among hats, believed to be a hat by
4 %, was wrong with 8 %, and with less when classes were added. The limits are such that in clean folders of 40 to 250
clothing photos no more labels are named, 2.2, than by the rule alone from 0.05 on, 2.3 (200 draws, other than those of
`benchmarks/audit.py few`).
"""
_LEAST_RATE = 0.01  # of wrong labels: even well-kept benchmarks have more (Northcutt et al., 2021, arXiv:2103.14749)
_MOST_STEPS = 100
_USUALLY_TAKEN = 0.01  # of any class for any other, before any image was looked at


def find_label_errors(evidence: Evidence) -> tuple[LabelError, ...]:
    """Find the images whose label is wrong with a probability of at least `LEAST`, and the first hardly believed.

    They come in the order of `choose_surprising`.

    Confident learning (Northcutt et al., 2021, arXiv:1911.00068) estimates the same by counting against thresholds by
    class. On clothing photos with 5 % of the labels corrupted at random, what is found here has a
    precision of 0.92 and a recall of 0.83, and its usual cut 0.56 and 0.86 (`benchmarks/audit.py labels`).

    Fitting again without the suspects, three times, raised the average precision of the ranking from 0.942 to 0.947 on
    other seeds, for three times the work; mixing in the labels of the nearest neighbours changed nothing. Neither is
    done.
    """
    labels = evidence.labels
    rows = np.flatnonzero((labels >= 0) & evidence.unseen)
    if not evidence.probabilities.shape[1] or not len(rows):
        return ()
    probabilities, given = evidence.probabilities[rows], labels[rows]
    wrong, suggested = probability_wrong(probabilities, given), suggest_others(probabilities, given)
    named = choose_surprising(probabilities, given, wrong)
    return tuple(
        LabelError(
            image=int(rows[k]),
            given=evidence.classes[given[k]],
            suggested=evidence.classes[suggested[k]],
            probability_given=float(probabilities[k, given[k]]),
            probability_suggested=float(probabilities[k, suggested[k]]),
            score=float(wrong[k]),
        )
        for k in named
    )


def find_tag_errors(evidence: Evidence) -> tuple[LabelError, ...]:
    """Find which of several labels an image has, or has not, by mistake, the most probable mistakes first.

    Each label is a question of its own, yes or no, to which Bayes' rule is put as for a label of one class: see
    `probability_wrong`. What is named is one label of one image: a label too many (given `hat`, suggested `not hat`),
    or one too few.
    """
    rows = np.flatnonzero(evidence.unseen)
    if not evidence.probabilities.shape[1] or not len(rows):
        return ()
    found = []
    for number, name in enumerate(evidence.classes):
        share = evidence.probabilities[rows, number]
        both, given = np.stack([1 - share, share], axis=1), evidence.marks[rows, number]
        wrong = probability_wrong(both, given)
        words = (f"not {name}", name)
        found += [
            LabelError(
                image=int(rows[row]),
                given=words[given[row]],
                suggested=words[1 - given[row]],
                probability_given=float(both[row, given[row]]),
                probability_suggested=float(both[row, 1 - given[row]]),
                score=float(wrong[row]),
            )
            for row in np.flatnonzero(wrong >= LEAST)
        ]
    return tuple(sorted(found, key=lambda error: (-error.score, error.image, error.suggested)))


def suggest_others(probabilities: Floats, labels: NDArray[np.intp]) -> NDArray[np.intp]:
    """Find the most probable class (n) of each image besides its label."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -1
    suggested: NDArray[np.intp] = others.argmax(axis=1)
    return suggested


def choose_surprising(probabilities: Floats, labels: NDArray[np.intp], wrong: NDArray[np.float64]) -> list[int]:
    """Choose the rows whose label is to be looked at, most surprising first.

    How surprising it is that a label is not believed, is the odds of the class that is suggested instead, over how
    much all images of the label are taken for that class: a shirt taken for a T-shirt surprises nobody, a shoe taken
    for a hat does. It depends on the images of the label alone, so adding to other classes changes little.

    Args:
        probabilities: n×K, of classes, out of sample and calibrated.
        labels: n class numbers.
        wrong: probability of each label (n) to be wrong, from `probability_wrong`.
    """
    rows, suggested = np.arange(len(labels)), suggest_others(probabilities, labels)
    chances = np.maximum(probabilities.astype(np.float64), 1e-9)
    own = chances[rows, labels]
    sums = np.zeros((probabilities.shape[1], probabilities.shape[1]))
    np.add.at(sums, labels, chances)
    taken = sums[labels, suggested] / np.bincount(labels)[labels]
    surprise = np.log(chances[rows, suggested]) - np.log(own) - np.log(taken + _USUALLY_TAKEN)
    order = np.argsort(-surprise, kind="stable")
    named = wrong >= LEAST
    named[order[own[order] < BELIEVED][:FIRST]] = True
    return [int(row) for row in order if named[row]]


def probability_wrong(probabilities: Floats, labels: NDArray[np.intp]) -> NDArray[np.float64]:
    """Estimate how probable it is that each label is wrong.

    A label is right with 1 - e, and else any other of K - 1 as well; the classifier says how probable each class is. So
    Bayes' rule says how probable it is that a label is wrong, and the mean of that over all images is e, which is found
    by repeating the two (expectation maximisation; the likelihood is concave in e, so there is one optimum). As the
    classifier has learned from wrong labels, too, it believes them a little, and what comes out errs on the low side.

    Args:
        probabilities: n×K, of classes, out of sample and calibrated.
        labels: n class numbers.
    """
    classes = probabilities.shape[1]
    own = np.maximum(probabilities[np.arange(len(labels)), labels].astype(np.float64), 1e-12)
    rate, wrong = 0.05, np.zeros(len(labels))
    for _ in range(_MOST_STEPS):
        mistaken = rate / (classes - 1) * (1 - own)
        wrong = mistaken / (mistaken + (1 - rate) * own)
        previous, rate = rate, min(max(float(wrong.mean()), _LEAST_RATE), 0.5)
        if abs(rate - previous) < 1e-6:
            break
    return wrong


LIMIT = 3.5
"""Number of robust standard deviations above the median from which on an image is an outlier.

It is the usual cut for such scores (Iglewicz and Hoaglin, 1993).
"""
_NEIGHBOUR = 10
REFERENCES = 5000
"""The most images that outliers are compared with."""
_FEWEST = 30


def find_outliers(evidence: Evidence) -> tuple[Outlier, ...]:
    """Find the images at least `LIMIT` out, farthest first; none where there are too few images to tell what is usual.

    An outlier is an image whose tenth nearest neighbour is far away in bottleneck space. The distance of the k-th
    nearest (Ramaswamy et al., 2000) finds strange images even where there are a few of a kind, which the mean over the
    nearest does not. Distance is 1 - cosine of the signed square roots as they are: drawings, noise and plots among
    clothing photos all lay farther out than any of the 3,781 photos did (4.3 robust standard deviations and more,
    against 3.6 and less). Around the mean, or whitened by the classes' covariance, as Mahalanobis' distance does it,
    the two overlap.
    """
    rows = evidence.distinct(range(len(evidence.images)))
    if len(rows) < _FEWEST:
        return ()
    scores = standardise(distances(evidence.features[rows]))
    found = np.flatnonzero(scores >= LIMIT)
    found = found[np.lexsort((rows[found], -scores[found]))]
    return tuple(Outlier(image=int(rows[k]), score=float(scores[k])) for k in found)


def distances(features: Floats) -> Floats:
    """Measure each row's distance (n) from its tenth nearest other row, or from the farthest where there are fewer.

    Where there are many rows, the first ones stand for all; rows in the order of content hashes come at random.
    """
    unit = unit_rows(features)
    references = unit[:REFERENCES]
    place = min(_NEIGHBOUR, len(references) - 1) - 1
    result = np.empty(len(unit), np.float32)
    for start in range(0, len(unit), BLOCK):
        similarity = unit[start : start + BLOCK] @ references.T
        own = np.arange(start, min(start + len(similarity), len(references)))
        similarity[own - start, own] = -2
        result[start : start + BLOCK] = 1 + np.partition(-similarity, place, axis=1)[:, place]
    return result


def standardise(values: Floats) -> NDArray[np.float64]:
    """Measure distances from the median in robust standard deviations: 1.4826 times the median absolute deviation."""
    centred = values.astype(np.float64) - np.median(values)
    spread = 1.4826 * float(np.median(np.abs(centred)))
    scores: NDArray[np.float64] = centred / max(spread, 1e-6)
    return scores


LIMITS: Final[dict[FlawKind, float]] = {
    "tiny": 64,
    "thumbnail": 256,
    "narrow": 4,
    "screenshot": 0.1,
    "grey": 0.05,
    "shallow": 14,
    "dark": 0.06,
    "bright": 0.96,
    "blank": 0.02,
    "blurred": 0.12,
}
"""Limits of what is measured, by the flaw of an image that crosses them.

A shorter side below, in pixels, is `tiny`; a longer side of at most this, and of a quarter of the set's median, is a
`thumbnail` that was saved for the photo; a longer side over the shorter above, `narrow`; a mean brightness from 0 to
1 below, `dark`, or above, `bright`; a standard deviation of the grey levels on the same scale below, `blank`; a
sharpness as in `bottlenecks/looks.py` below, `blurred`; a share of the rows or columns that are medium grey throughout
above, `grey`: a photo that was damaged, and saved anew; a share of them in bars of one colour along both edges above, a
`screenshot` of a photo, or one with a frame around it. A 16-bit image is `shallow` that uses at most so many bits, and
two fewer than the set does, whose rule leaves it dark.
"""
_FEWER_BITS = 2
_AT_MOST = 0.5
_THUMBNAIL = 4  # times smaller than the set's median


def find_flaws(gallery: Gallery) -> tuple[QualityFlaw, ...]:
    """Find all flaws, by image; an image is dark, bright, blank or blurred, in this order, but not two of these.

    What more than half of all images have is the nature of the set, not a flaw: digits of 28 by 28 pixels are all tiny.
    """
    looked_at = gallery.width > 0
    shorter = np.minimum(gallery.width, gallery.height)
    longer = np.maximum(gallery.width, gallery.height)
    values: dict[FlawKind, NDArray[Any]] = {
        "tiny": shorter,
        "thumbnail": longer,
        "grey": gallery.grey,
        "screenshot": gallery.bars,
        "shallow": gallery.bits,
        "narrow": longer / np.maximum(shorter, 1),
        "dark": gallery.brightness,
        "bright": gallery.brightness,
        "blank": gallery.contrast,
        "blurred": gallery.sharpness,
    }
    above = ("narrow", "bright", "grey", "screenshot")
    usual = float(np.median(longer[looked_at])) / _THUMBNAIL if looked_at.any() else 0.0
    limits = {**LIMITS, "thumbnail": min(LIMITS["thumbnail"], usual)}
    limits["shallow"] = min(LIMITS["shallow"], rounded(gallery.bits.tolist()) - _FEWER_BITS)
    free = looked_at.copy()
    found: list[QualityFlaw] = []
    for kind, limit in limits.items():
        crossing = looked_at & (values[kind] > limit if kind in above else values[kind] < limit)
        if kind in ("thumbnail", "shallow"):
            crossing = looked_at & (values[kind] <= limit) & (values[kind] > 0)
        if kind == "thumbnail":
            crossing &= shorter >= LIMITS["tiny"]
        if kind == "grey":
            crossing &= gallery.contrast >= LIMITS["blank"]
        # However many are shallow, it is the rest that makes them so.
        if kind != "shallow" and crossing.sum() > _AT_MOST * max(int(looked_at.sum()), 2):
            continue
        if kind in ("dark", "bright", "blank", "blurred"):
            crossing &= free
            free &= ~crossing
        found += [
            QualityFlaw(image=int(n), kind=kind, value=float(values[kind][n]), limit=limit)
            for n in np.flatnonzero(crossing)
        ]
    return tuple(sorted(found, key=lambda flaw: flaw.image))


SCARCE_SHARE = 0.1
"""Share of the largest class's images below which a class is scarce."""
SCARCE_IMAGES = 10
"""Number of images below which a class is scarce, however many the others have."""
ALIKE_RATE = 0.03
"""Share of two classes' images that are taken for the other class from which on the two are alike."""
_FEWEST_CONFUSIONS = 2


def count_classes(evidence: Evidence) -> tuple[ClassShare, ...]:
    """Count the images of each class, copies once, by name."""
    distinct = {
        (name, image.digest)
        for image in evidence.images
        for name in (image.labels if image.labels is not None else (image.label,))
        if name is not None and (name in evidence.classes or not evidence.probabilities.shape[1])
    }
    counts = Counter(label for label, _ in distinct)
    enough = max(SCARCE_IMAGES, SCARCE_SHARE * max(counts.values(), default=0))
    return tuple(ClassShare(name=name, images=counts[name], scarce=counts[name] < enough) for name in sorted(counts))


def find_alike(evidence: Evidence) -> tuple[AlikePair, ...]:
    """Find pairs of classes of which either is often taken for the other out of sample, the most alike first."""
    labels, classes = evidence.labels, len(evidence.classes)
    rows = np.flatnonzero((labels >= 0) & evidence.unseen)
    if not evidence.probabilities.shape[1] or not len(rows):
        return ()
    taken_for = evidence.probabilities[rows].argmax(axis=1)
    confusion = np.bincount(labels[rows] * classes + taken_for, minlength=classes**2).reshape(classes, classes)
    sizes = confusion.sum(axis=1)
    pairs = [
        AlikePair(
            first=evidence.classes[a],
            second=evidence.classes[b],
            images=int(confusion[a, b] + confusion[b, a]),
            rate=float((confusion[a, b] + confusion[b, a]) / max(sizes[a] + sizes[b], 1)),
        )
        for a in range(classes)
        for b in range(a + 1, classes)
    ]
    found = [pair for pair in pairs if pair.images >= _FEWEST_CONFUSIONS and pair.rate >= ALIKE_RATE]
    return tuple(sorted(found, key=lambda pair: (-pair.rate, pair.first, pair.second)))
