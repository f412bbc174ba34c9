"""Where the files of named data sets lie, as they are officially packed and as other tools lay them down.

A folder counts as a data set's when all that the data set needs is in it. MNIST and Fashion-MNIST have the same file
names; their first test labels tell them apart, and where those are of neither, the folder's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from quickstudy.errors import ImageSetError
from quickstudy.images.catalogue import NAMED, NamedDataSet
from quickstudy.images.idx import IDX_STEMS, first_labels, idx_file

_FIRST_TEST_LABELS = {
    bytes((7, 2, 1, 0, 4, 1, 4, 9, 5, 9)): "mnist",
    bytes((9, 2, 1, 1, 6, 1, 4, 6, 5, 7)): "fashion_mnist",
}
_TEST_LABELS = 10_000
_IDX_FOLDERS = {
    "mnist": "mnist",
    "fashion_mnist": "fashion_mnist",
    "fashionmnist": "fashion_mnist",
    "fashion": "fashion_mnist",
}


def layout_of(path: Path) -> str | None:
    """The name of the data set whose official layout a folder has or holds; None for all else, such as class folders.

    Raises:
        ImageSetError: it holds several data sets, a part of one, or CIFAR as Python pickles.
    """
    layouts = [entry for entry in NAMED.values() if entry.files and entry.name != "flowers"]
    for inside in (place_at, place_inside):
        names = [data_set.name for data_set in layouts if inside(data_set, path)]
        if len(names) > 1:
            raise ImageSetError(f"'{path}' holds several data sets: {', '.join(names)}; name the folder of one")
        if names:
            return names[0]
    refuse_pickles(path)
    for data_set in layouts:
        for place in (path, path / data_set.folder):
            _refuse_part(data_set, place)
    return None


def places(data_set: NamedDataSet, base: Path) -> Iterator[Path]:
    """Where the data set's files may lie if `base` is a data folder, or the official folder itself."""
    inner = [Path(), *([Path(data_set.folder)] if data_set.folder else [])]
    return (base / outer / folder for outer in ("", data_set.name, *data_set.aliases) for folder in inner)


def place_at(data_set: NamedDataSet, path: Path) -> Path | None:
    """`path` or its official folder, whichever is the data set."""
    return next((p for p in (path, path / data_set.folder) if _is_complete(data_set, p)), None)


def place_inside(data_set: NamedDataSet, path: Path) -> Path | None:
    """Where in `path`, taken as a data folder or as the official folder, the data set is."""
    return next((place for place in places(data_set, path) if _is_complete(data_set, place)), None)


def _is_complete(data_set: NamedDataSet, place: Path) -> bool:
    if data_set.needs == IDX_STEMS:
        return not _missing(data_set, place) and _idx_name(place) == data_set.name
    return not _missing(data_set, place)


def _missing(data_set: NamedDataSet, place: Path) -> list[str]:
    if data_set.needs == IDX_STEMS:
        return [stem for stem in IDX_STEMS if idx_file(place, stem) is None]
    return [need for need in data_set.needs if not os.path.exists(place / need)]  # noqa: PTH110 (answers where pathlib raises)


def _refuse_part(data_set: NamedDataSet, place: Path) -> None:
    missing = _missing(data_set, place)
    if missing and len(missing) < len(data_set.needs):
        raise ImageSetError(
            f"'{place}' holds only a part of {data_set.title.partition(':')[0]}; it lacks {', '.join(missing)}"
        )
    if not missing:  # complete, and yet not taken for what it is
        raise ImageSetError(
            f"'{place}' holds idx files of neither MNIST nor Fashion-MNIST as published; name the folder 'mnist' or "
            "'fashion_mnist' after what it holds"
        )


def _idx_name(place: Path) -> str | None:
    """Which of the data sets in idx files lies here, by content, or else by the folder's name; None where in doubt."""
    path = idx_file(place, "t10k-labels-idx1-ubyte")
    try:
        count, labels = first_labels(path, 10) if path else (0, b"")
    except ImageSetError:
        count, labels = 0, b""  # reading the data set says what is wrong with the file
    if count == _TEST_LABELS and labels in _FIRST_TEST_LABELS:
        return _FIRST_TEST_LABELS[labels]
    place = place.resolve()
    name = place.parent.name if place.name == "raw" else place.name
    return _IDX_FOLDERS.get(name.lower().replace("-", "_"))


def refuse_pickles(base: Path) -> None:
    """Say what to do about CIFAR's other archive.

    Raises:
        ImageSetError: `base` holds it.
    """
    for name, folder, signs in (
        ("cifar10", "cifar-10-batches-py", ("data_batch_1",)),
        ("cifar100", "cifar-100-python", ("train", "test", "meta")),
    ):
        for place in (base, base / folder):
            if all(os.path.isfile(place / sign) for sign in signs):  # noqa: PTH113
                raise ImageSetError(
                    f"'{place}' holds {name} as Python pickles, which can run code and are not read; take the binary "
                    f"archive: quickstudy data get {name}, or {NAMED[name].files[0].urls[0]}"
                )


def needed(data_set: NamedDataSet) -> str:
    """The files by which a data set is recognised, for messages."""
    gz = " (plain or .gz)" if data_set.needs == IDX_STEMS else ""
    return ", ".join(data_set.needs) + gz


def known_layouts() -> str:
    """All layouts that are recognised, one a line, for messages."""
    return "\n".join(
        f"  {entry.name}: {needed(entry)}"
        + (f", there or in {entry.folder}/" if entry.folder else "")
        + (f", in a folder named {entry.name}" if entry.needs == IDX_STEMS else "")
        for entry in NAMED.values()
        if entry.files and entry.name != "flowers"
    )
