"""Prometheus can know counts and times of a server, and nothing of what the images are or show."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from quickstudy.learning.drift import Drift

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Keeps the figures of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("quickstudy_requests", "Answered requests.", ["path", "status"], registry=registry)
        self.images = Counter(
            "quickstudy_images", "Images by what came of them.", ["model", "result"], registry=registry
        )
        self.seconds = Histogram(
            "quickstudy_predict_seconds",
            "From a request's body, whole, to its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.reloads = Counter("quickstudy_reloads", "Changed model files.", ["model", "result"], registry=registry)
        self._loaded = Gauge(
            "quickstudy_model_loaded_timestamp_seconds",
            "When the version in use was loaded.",
            ["model"],
            registry=registry,
        )
        self._problem = Gauge(
            "quickstudy_model_problem", "1 while the model's file is broken and an older version serves.", ["model"],
            registry=registry,
        )  # fmt: skip
        self._evidence = Gauge(
            "quickstudy_drift_evidence",
            "Evidence that images look different from those learned from; an alarm from 1,000,000 on.",
            ["model"],
            registry=registry,
        )
        self._since = Gauge(
            "quickstudy_drift_since_timestamp_seconds",
            "Since when images look different from those learned from; 0 while they do not.",
            ["model"],
            registry=registry,
        )
        self._pending = Gauge("quickstudy_pending_images", "Images waiting or being worked on.", registry=registry)
        self._held = Gauge("quickstudy_held_bytes", "Bodies in memory.", registry=registry)

    def watch(self, *, pending: Callable[[], float], held: Callable[[], float]) -> None:
        """Set where the gauges are looked up when somebody asks."""
        self._pending.set_function(pending)
        self._held.set_function(held)

    def model_loaded(self, name: str, when: float) -> None:
        """Note when a model's version was loaded."""
        self._loaded.labels(name).set(when)
        self._problem.labels(name).set(0)

    def model_problem(self, name: str, broken: bool) -> None:
        """Note whether a model's file is broken."""
        self._problem.labels(name).set(broken)

    def watch_drift(self, name: str, look: Callable[[], Drift | None]) -> None:
        """Set where a model's drift is looked up when somebody asks; a model that tells no strangeness has none."""
        if look() is None:
            return

        def evidence() -> float:
            return drift.evidence if (drift := look()) else 0.0

        def since() -> float:
            return (drift.since or 0.0) if (drift := look()) else 0.0

        self._evidence.labels(name).set_function(evidence)
        self._since.labels(name).set_function(since)

    def render(self) -> bytes:
        """Write all figures in Prometheus's text format."""
        return generate_latest(self._registry)
