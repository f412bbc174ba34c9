"""Training from the page: the manifest becomes a model and its report, as `retrain --report` makes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quickstudy.errors import QuickstudyError, UnusableImageError
from quickstudy.labelling.knowledge import figure_of, share_of
from quickstudy.labelling.photos import MOST_LABELLED_PIXELS
from quickstudy.labelling.session import Session

if TYPE_CHECKING:
    from quickstudy.models.model import Model

_SHOWN_CLASSES = 8


class Trainer:
    """Trains when asked to, one model at a time, and tries out the last one."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.state: Literal["none", "running", "done", "failed"] = "none"
        self.said: dict[str, Any] = {}
        """What there is to say of it, as JSON values."""
        self.report: Path | None = None
        """The report on the last model; None before there is one."""
        self._model: Model | None = None
        self._lock = threading.Lock()

    def start(self) -> bool:
        """Begin a training; False where one is under way."""
        with self._lock:
            if self.state == "running":
                return False
            self.state, self.said = "running", {"step": "writing the labels"}
        threading.Thread(target=self._run, name="training", daemon=True).start()
        self._session.tell()
        return True

    def _run(self) -> None:
        from quickstudy.models.loading import load
        from quickstudy.reports.report import report
        from quickstudy.retraining.retrain import retrain

        session, started = self._session, time.perf_counter()
        try:
            manifest = session.write_manifest()
            steps = _Steps(self._tell)
            self._tell("training")
            result = retrain(
                manifest,
                session.model,
                cache=session.cache,
                progress=steps,
                backbone=session.backbone,
                engine=session.engine,
                several=session.several or None,
                separator=session.photos.separator if session.several else None,
            )
            self._tell("writing the report")
            written = report(session.model, manifest, cache=session.cache, progress=steps)
            self._model, self.report = load(session.model), written
            state: Literal["done", "failed"] = "done"
            said: dict[str, Any] = {
                "model": session.model.name,
                "report": written.name,
                "classes": list(result.classes),
                "test": figure_of(result.test),
                "cross_validation": share_of(result.cross_validation),
                "trained_on": len(result.census.digests("train")),
                "seconds": round(time.perf_counter() - started, 1),
            }
        except (QuickstudyError, OSError) as error:
            state, said = "failed", {"error": str(error)}
        except Exception as error:
            state, said = "failed", {"error": f"quickstudy has a defect: {type(error).__name__}: {error}"}
        self.state, self.said = state, said
        session.tell()

    def _tell(self, step: str) -> None:
        self.said = {"step": step}
        self._session.tell()

    def examine(self, data: bytes) -> dict[str, Any]:
        """Say what the last model makes of an image file's bytes, as JSON values.

        Raises:
            UnusableImageError: it is no image that can be used, or there is no model yet.
        """
        model = self._model
        if model is None:
            raise UnusableImageError("there is no model yet; train one first")
        found = model.examine(data, most_pixels=MOST_LABELLED_PIXELS)
        if found.probabilities is None:
            raise UnusableImageError(found.reason)
        classes = model.rank(found.probabilities, _SHOWN_CLASSES)
        given = model.answer.given(found.probabilities[None])[0].tolist()
        return {
            "classes": [[name, round(float(share), 4)] for name, share in classes],
            "given": [name for name, is_given in zip(model.classes, given, strict=True) if is_given],
            "strange": found.strangeness is not None and model.is_none_of_these(found.strangeness),
        }


class _Steps:
    """Tells the steps of a training as they begin, and a few times in each how far it has come."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._task, self._total, self._told = "", 0, 0.0

    def start(self, task: str, total: int) -> None:
        self._task, self._total = task, total
        self._tell(task)

    def update(self, *, done: int, note: str) -> None:
        del note
        if time.monotonic() - self._told > 0.5:
            self._told = time.monotonic()
            self._tell(f"{self._task}, {done:,} of {self._total:,}")

    def finish(self) -> None:
        pass
