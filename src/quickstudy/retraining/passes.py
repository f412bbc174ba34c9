"""Passes of images through networks, in one job: through the store, and counted."""

from __future__ import annotations

from collections.abc import Sequence

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.engine import Engine
from quickstudy.bottlenecks.extraction import Extraction, extract, extract_census, source_spec
from quickstudy.bottlenecks.store import Store
from quickstudy.images.census import Census
from quickstudy.progress import Progress
from quickstudy.retraining.config import RetrainConfig


class Passes:
    """Sends the images of a census through networks, at one cut after the other, and counts what that took."""

    def __init__(self, store: Store, config: RetrainConfig, engine: Engine, progress: Progress) -> None:
        self._store, self._config, self._engine, self._progress = store, config, engine, progress
        self.computed = 0
        """Number of forward passes; an image of several squares takes as many."""
        self.cached = 0
        """Number of bottlenecks that were in the store already."""

    def at(self, net: Backbone, census: Census) -> Extraction:
        """Make sure that the store has the bottlenecks of all images and their views at this cut."""
        extraction = extract_census(
            census,
            net,
            self._store,
            views=self._config.distorted,
            distortions=self._config.distortions,
            dtype=self._config.dtype,
            engine=self._engine,
            progress=self._progress,
        )
        return self._counted(extraction)

    def of(self, net: Backbone, census: Census, digests: Sequence[bytes]) -> Extraction:
        """Make sure that the store has the bottlenecks of some images, given by content hash, without views."""
        extraction = extract(
            [census.contents[digest].path for digest in digests],
            net,
            self._store,
            digests=digests,
            dtype=self._config.dtype,
            engine=self._engine,
            progress=self._progress,
        )
        return self._counted(extraction)

    def missing(self, net: Backbone, digests: Sequence[bytes]) -> int:
        """Count the forward passes that the bottlenecks of these images would take, without views."""
        source = self._store.source(source_spec(net, self._config.dtype, self._engine))
        return net.input.tiles * sum(digest not in source for digest in digests)

    def _counted(self, extraction: Extraction) -> Extraction:
        self.computed += extraction.computed * extraction.backbone.input.tiles
        self.cached += extraction.cached
        return extraction
