"""The model that a retraining writes over is kept until the next one, and compared with the new one.

What it said of its test images is remembered in the cache, so the comparison needs no forward pass: it is made on the
images that both may be judged by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickstudy.errors import ModelError, WriteError
from quickstudy.files import write_bytes_atomically
from quickstudy.images.imageset import as_label
from quickstudy.learning.answers import MOST_PROBABLE, Answer, labels_given
from quickstudy.learning.scores import Score
from quickstudy.models.loading import metadata_of_file
from quickstudy.models.properties import answer_in
from quickstudy.retraining.record import Unseen, load_record


@dataclass(frozen=True, kw_only=True)
class Previous:
    """Says what was in the model's place before."""

    kept: Path
    """Place where the previous model is kept."""
    classes: tuple[str, ...]
    """Its classes; empty where it was no model that can be read."""
    test: Score | None
    """Its score on its own test images; None where it had none."""
    common: tuple[Score, Score] | None
    """Scores of the previous and of the new model on the images that test both; None where it is not known."""
    report: Path | None
    """A report beside the model, which is of the previous one; None where there is none."""

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON values."""
        return {
            "kept": str(self.kept),
            "classes": list(self.classes),
            "test": self.test.to_dict() if self.test else None,
            "common": [score.to_dict() for score in self.common] if self.common else None,
            "report": str(self.report) if self.report else None,
        }


class Predecessor:
    """What stands in the model's place, taken note of before the new model is written."""

    def __init__(self, model: Path, cache: Path) -> None:
        self._model = model
        self._data: bytes | None = None
        self._said: dict[bytes, str] = {}
        self._classes: tuple[str, ...] = ()
        self._answer = MOST_PROBABLE
        self._test: Score | None = None
        if not model.is_file():
            return
        self._data = model.read_bytes()
        with contextlib.suppress(ModelError, KeyError, TypeError, AttributeError, ValueError):
            metadata = metadata_of_file(model)
            self._classes = tuple(metadata["classes"])
            self._answer = answer_in(metadata, len(self._classes))
            if test := metadata["training"]["test"]:
                self._test = Score(right=test["right"], n=test["n"])
        record = load_record(cache, model)
        if record and self._classes:
            self._said = _said(record.unseen, self._classes, self._answer)

    def keep_and_compare(
        self, tested: Sequence[Unseen], classes: tuple[str, ...], answer: Answer, truth: Mapping[bytes, str]
    ) -> Previous | None:
        """Keep it, now that the new model is there, and compare the two; None where there is nothing new.

        Args:
            tested: what the new model says of its test images.
            classes: classes of the new model.
            answer: what the new model's probabilities are answered by.
            truth: labels of each image as a text, by content hash.

        Raises:
            WriteError: it cannot be kept.
        """
        if self._data is None or self._data == self._model.read_bytes():
            return None
        kept, report = self._model.with_suffix(".previous.onnx"), self._model.with_suffix(".report.html")
        try:
            write_bytes_atomically(kept, self._data)
        except OSError as error:
            raise WriteError(f"Cannot keep the previous model as '{kept}': {error.strerror}") from error
        said = _said(tested, classes, answer)
        common = [digest for digest in said if digest in self._said]
        scores = [
            Score(right=sum(one[digest] == truth[digest] for digest in common), n=len(common))
            for one in (self._said, said)
        ]
        return Previous(
            kept=kept,
            classes=self._classes,
            test=self._test,
            common=(scores[0], scores[1]) if common else None,
            report=report if report.is_file() else None,
        )


def _said(unseen: Sequence[Unseen], classes: tuple[str, ...], answer: Answer) -> dict[bytes, str]:
    """Give what each test image was called, as a text, by content hash."""
    said: dict[bytes, str] = {}
    for part in unseen:
        if part.by == "test":
            names = labels_given(answer, part.logits, classes)
            said.update((digest, as_label(found) or "") for digest, found in zip(part.digests, names, strict=True))
    return said
