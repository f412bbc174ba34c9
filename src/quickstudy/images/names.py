"""Names of folders and files as people write them: class names, split names, and paths in lists.

Names are compared in one Unicode form (NFC), since macOS writes accents as letters of their own (NFD), and files are
opened by the bytes that their names have. Split names are compared without regard to case, hyphens, underscores and
blanks.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]

_SPLIT_WORDS: dict[Split, str] = {
    "train": "train training trainset trainingset traindata trainingdata trainimages trainingimages segtrain",
    "validation": "val valid validation valset validset validationset valdata validationdata valimages "
    "validationimages segval dev devset development eval evalset evaluation evaluationset",
    "test": "test testing testset testingset testdata testingdata testimages testingimages segtest "
    "holdout holdoutset heldout heldoutset",
}
SPLIT_FOLDERS: dict[str, Split] = {word: split for split, words in _SPLIT_WORDS.items() for word in words.split()}
"""The usual names of splits, in lower case and without `-`, `_` and blanks; `split_named` looks names up."""
UNLABELLED = frozenset({"unlabelled", "unlabeled"})
_TO_PREDICT = frozenset({"pred", "predict", "prediction", "predictions", "segpred", "topredict"})
_BETWEEN_WORDS = re.compile(r"[-_\s]+")


def label_of(name: str) -> str:
    """The class name that a folder's name or a manifest's cell stands for: in NFC, without blanks around it."""
    name = name.strip()
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def split_named(name: str) -> Split | None:
    """The split that a name such as `Training-Set` stands for; None where it is not a usual name of one."""
    return SPLIT_FOLDERS.get(_plain(name))


def is_unlabelled(name: str) -> bool:
    """Whether a folder of this name holds images without a label."""
    return _plain(name) in UNLABELLED


def is_to_predict(name: str) -> bool:
    """Whether a folder of this name, beside split folders, holds images to predict, which have no label."""
    return _plain(name) in _TO_PREDICT


def alike(labels: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The pairs of class names that differ only in upper and lower case, sorted."""
    spellings: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        spellings.setdefault(label_of(label.casefold()), []).append(label)
    return tuple(sorted(pair for names in spellings.values() for pair in combinations(names, 2)))


def place_of(folder: Path, name: str) -> Path:
    """Where a file is that a list names: as written, or else with `/` for a backslash or in the other Unicode form.

    Args:
        folder: what relative paths are relative to.
        name: the path as it is in the list.

    Returns:
        The first of these that there is; the path as written where there is none.
    """
    written = folder / name
    if ("\\" not in name and name.isascii()) or os.path.lexists(written):
        return written
    return next((place for other in _spellings(name) if os.path.lexists(place := folder / other)), written)


def _spellings(name: str) -> Iterator[str]:
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        yield spelling
        if not name.isascii():
            yield unicodedata.normalize("NFC", spelling)
            yield unicodedata.normalize("NFD", spelling)


def _plain(name: str) -> str:
    return _BETWEEN_WORDS.sub("", label_of(name)).casefold()
