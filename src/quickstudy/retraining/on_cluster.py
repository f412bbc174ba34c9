"""The main job on a Ray cluster: the workers compute bottlenecks, then sums over them, and one ridge head follows.

A head's softmax regression needs all bottlenecks on one machine; ridge regression needs sums over them only. Workers go
through the shared store three times: for the range of each feature, for the sums, and for how each image is predicted
by the head of all the others. Sums are exact (see `quickstudy.learning.ridge`), so the head is the same to the bit
however the store is cut into shards, and these between the workers. What calibrates the head is a sample of the images,
drawn by their content: it is fetched here.

Ray is imported inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.bottlenecks.distributed import extract_on_cluster
from quickstudy.bottlenecks.extraction import Extraction, source_spec
from quickstudy.bottlenecks.preparing import Timings
from quickstudy.bottlenecks.shards import SourceSpec
from quickstudy.bottlenecks.shared import SharedSource, open_shared_store
from quickstudy.errors import ClusterError, OptionError, QuickstudyError, first_line
from quickstudy.images.census import Census
from quickstudy.learning.answers import MOST_PROBABLE
from quickstudy.learning.features import Floats, Rounding, blas_threads, joined_ranges, range_of, signed_sqrt
from quickstudy.learning.links import Integers
from quickstudy.learning.ridge import RIDGE_STRENGTHS, RidgePoint, SolvedSums, Sums, best_of, squared_errors
from quickstudy.learning.selection import Head, fit_temperature
from quickstudy.progress import Progress
from quickstudy.retraining.config import AUTO, RetrainConfig
from quickstudy.retraining.linear import Linear

_T = TypeVar("_T")

_SAMPLE = 20_000  # images that calibrate the head
_PIECE_ROWS = 2048
_CHUNKS_A_WORKER = 4
# Ridge scores lie between -1 and 1. So many times as much, they are logits that a temperature between 1/4 and 16 suits.
_SHARPNESS = 8.0


def require_cluster_can(config: RetrainConfig) -> None:
    """Refuse what is not done on a cluster.

    Raises:
        OptionError: the configuration asks for it.
    """
    wanted = {
        "--cut, --unfreeze or --budget": config.tunes,
        "--several": config.several,
        "--views": config.distorted,
        f"--prior {config.prior}": config.prior != "none",
        f"--levels {config.levels}": config.levels in ("all", AUTO),
        "--backbone auto": config.chooses_backbone,
        f"--fit {config.fit}": config.chooses_fit,
        "--class-weight": config.class_weight is not None,
        f"--engine {config.engine}": config.engine != "onnxruntime",
        "--keep-thumbnails": config.keep_thumbnails,
    }
    if asked := [name for name, is_asked in wanted.items() if is_asked]:
        raise OptionError(
            f"{' and '.join(asked)} cannot be had with --ray: workers add up sums of the last features of plain images "
            f"for a ridge head. Leave out {'it' if len(asked) == 1 else 'them'}, or --ray"
        )


class ClusterPasses:
    """Sends the images of a census through networks on the workers of a Ray cluster, which must be connected."""

    def __init__(self, place: str, config: RetrainConfig, progress: Progress) -> None:
        self._place, self._config, self._progress = place, config, progress
        self.computed = 0
        """Number of forward passes; an image of several squares takes as many."""
        self.cached = 0
        """Number of bottlenecks that were in the store already."""

    def at(self, net: Backbone, census: Census) -> Extraction:
        """Make sure that the shared store has the bottlenecks of all images."""
        contents = [content for content in census.contents.values() if content.role is not None]
        found = extract_on_cluster(
            [content.path for content in contents], net, self._place, dtype=self._config.dtype, progress=self._progress
        )
        source = SharedSource(open_shared_store(self._place), source_spec(net, self._config.dtype))
        reasons = {
            number: found.reasons.get(number, "it has changed since it was listed")
            for number, content in enumerate(contents)
            if number in found.reasons or content.digest not in source
        }
        self.computed += found.computed * net.input.tiles
        self.cached += found.cached
        return Extraction(
            source=source,
            backbone=net,
            digests=tuple(content.digest for content in contents),
            reasons=reasons,
            computed=found.computed,
            cached=found.cached,
            views=0,
            distortions=self._config.distortions,
            timings=Timings(wall=found.seconds),
            unusable={contents[number].digest: reason for number, reason in reasons.items()},
        )


def learn_on_cluster(
    net: Backbone,
    extraction: Extraction,
    train: list[bytes],
    targets: Integers,
    config: RetrainConfig,
    *,
    place: str,
    progress: Progress,
) -> Linear:
    """Fit a ridge head to sums that the workers of a Ray cluster add up; Ray must be connected.

    Args:
        net: the network, cut at the features.
        extraction: what `ClusterPasses.at` gave.
        train: content hashes of the training images (n).
        targets: their class numbers, n.
        config: the strength, where it is not to be chosen by leaving one out.
        place: the shared store.
        progress: is told how far it has come.

    Raises:
        HeadError: there are too few images, or their bottlenecks cannot be learned from.
        StoreError: a worker cannot read the store.
        ClusterError: the cluster was lost.
    """
    classes = int(targets.max()) + 1
    width = net.cut_shape[0]
    work = _Work(place=place, spec=extraction.source.spec, width=width, classes=classes)
    chunks = _chunks(extraction.source, train, targets)
    progress.start("sums, three times over the store", 3 * len(chunks))
    try:
        least, largest = reduce(joined_ranges, _each(_range_of_chunk, work, chunks, progress, 0))
        rounding = Rounding.over(least, largest)
        sums = reduce(Sums.__add__, _each(_sums_of_chunk, work, chunks, progress, 1, rounding))
        solved = SolvedSums.of(sums, rounding, widths=net.widths)
        strengths = RIDGE_STRENGTHS if config.l2 is None else (config.l2,)
        judged = list(_each(_judge_chunk, work, chunks, progress, 2, solved, strengths))
    finally:
        progress.finish()
    errors, right = (np.sum(parts, axis=0) for parts in zip(*judged, strict=True))
    best = best_of(solved.ridge.path(strengths, errors, right))
    head = _calibrated(solved, best, extraction, train, targets)
    return Linear(head, net, extraction, train, targets, MOST_PROBABLE)


def _calibrated(
    solved: SolvedSums, best: RidgePoint, extraction: Extraction, train: list[bytes], targets: Integers
) -> Head:
    """Make the head at the best strength, calibrated on a sample of the images, each judged without itself."""
    by_content = sorted(range(len(train)), key=lambda row: train[row])
    sample = np.sort(np.array(by_content[:_SAMPLE], np.intp))
    labels = targets[sample]
    with blas_threads(worth=False):
        coordinates = solved.coordinates(signed_sqrt(extraction.gather([train[row] for row in sample])))
        [scores] = solved.ridge.left_out(coordinates, labels, (best.l2,))
    logits = (_SHARPNESS * scores).astype(np.float32)
    temperature = fit_temperature(logits, labels)
    weights, biases = (_SHARPNESS / temperature * values for values in solved.head(best.l2))
    return Head(
        kind="one",
        weights=weights.astype(np.float32),
        biases=biases.astype(np.float32),
        l2=best.l2,
        path=(),
        held_out=sample,
        held_out_classes=logits.argmax(axis=1),
        held_out_logits=logits / np.float32(temperature),
        held_out_right=best.right,
        held_out_count=solved.ridge.n,
        temperature=temperature,
        iterations=0,
        gap=0.0,
    )


# What runs on the workers.


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What every worker is told."""

    place: str
    """The shared store."""
    spec: SourceSpec
    """The source of the bottlenecks."""
    width: int
    """Number of values that are read of each bottleneck."""
    classes: int
    """Number of classes."""


_Chunk = list[tuple[str, NDArray[np.intp], NDArray[np.intp]]]
"""Some shards, by name, with the rows that count in each and their class numbers."""


def _chunks(source: Any, train: list[bytes], targets: Integers) -> list[_Chunk]:
    """Part the training images between pieces of work, a few for each worker, shard by shard."""
    import ray

    shards = [(name, rows, targets[places]) for name, rows, places in source.shards_of(train)]
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    size = max(1, -(-len(shards) // (workers * _CHUNKS_A_WORKER)))
    return [shards[first : first + size] for first in range(0, len(shards), size)]


def _each(
    function: Callable[..., _T], work: _Work, chunks: Sequence[_Chunk], progress: Progress, time: int, *shared: Any
) -> Iterator[_T]:
    """Call a function on each chunk, on the workers, and yield what comes, as it comes."""
    import ray

    task = ray.remote(function)
    known = [ray.put(value) for value in shared]
    waiting = [task.remote(work, chunk, *known) for chunk in chunks]
    try:
        while waiting:
            [done], waiting = ray.wait(waiting)
            found: _T = ray.get(done)
            yield found
            progress.update(done=(time + 1) * len(chunks) - len(waiting), note="")
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, QuickstudyError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"The cluster was lost ({first_line(error)}). "
            "The bottlenecks are kept, and the same command continues from there"
        ) from error


def _roots(work: _Work, chunk: _Chunk) -> Iterator[tuple[Floats, NDArray[np.intp]]]:
    """Read a chunk's roots (m×d), some rows at a time, with their class numbers (m)."""
    store = open_shared_store(work.place)
    for name, rows, labels in chunk:
        values = store.values_of(work.spec, name)
        for first in range(0, len(rows), _PIECE_ROWS):
            few = slice(first, first + _PIECE_ROWS)
            yield signed_sqrt(values[rows[few], : work.width]), labels[few]


def _range_of_chunk(work: _Work, chunk: _Chunk) -> tuple[Floats, Floats]:
    return reduce(joined_ranges, (range_of(roots) for roots, _ in _roots(work, chunk)))


def _sums_of_chunk(work: _Work, chunk: _Chunk, rounding: Rounding) -> Sums:
    return reduce(
        Sums.__add__, (Sums.of(rounding.steps(roots), labels, work.classes) for roots, labels in _roots(work, chunk))
    )


def _judge_chunk(
    work: _Work, chunk: _Chunk, solved: SolvedSums, strengths: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Judge a chunk's images by heads that had not seen them: sums of squared errors, and right ones, by strength."""
    errors, right = np.zeros(len(strengths)), np.zeros(len(strengths), np.intp)
    for roots, labels in _roots(work, chunk):
        for number, scores in enumerate(solved.ridge.left_out(solved.coordinates(roots), labels, strengths)):
            errors[number] += squared_errors(scores, labels)
            right[number] += (scores.argmax(axis=1) == labels).sum()
    return errors, right
