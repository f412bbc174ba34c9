"""Named data sets: where they are here, how they get here, and how they are read.

The data folder holds a folder a data set (`<data>/cifar10/cifar-10-batches-bin/…`, `<data>/mnist/*.gz`); what other
tools have laid down is found, too. A folder counts as a data set's when all that the data set needs is in it: as `get`
gives files their names only when they are whole and have the right hash, nothing needs to be hashed again. MNIST and
Fashion-MNIST have the same file names; their first test labels tell them apart, and where those are of neither, the
folder's name.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from quickstudy.errors import DownloadError, ImageSetError, InstallationError
from quickstudy.files import as_path, sha256_of_file, write_atomically
from quickstudy.images import readers
from quickstudy.images.catalogue import NAMED, NamedDataSet, RemoteFile
from quickstudy.images.download import download, unpack
from quickstudy.images.pixels import PixelSet
from quickstudy.images.readers import IDX_STEMS, first_labels, idx_file
from quickstudy.progress import Progress, silent

__all__ = ["DATA_VARIABLE", "NAMED", "NamedDataSet", "data_folder", "find", "get", "layout_of", "load"]

DATA_VARIABLE = "QUICKSTUDY_DATA"
"""Name of the environment variable that names the data folder."""


def data_folder(chosen: Path | None = None) -> Path:
    """Return the folder for named data sets: `chosen`, else QUICKSTUDY_DATA, else one in the user's data folder."""
    if chosen is not None:
        return chosen
    if named := os.environ.get(DATA_VARIABLE):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_data_dir("quickstudy", appauthor=False)) / "data"


def find(name: str, folder: Path | None = None) -> Path | None:
    """Find a named data set in the data folder or another; None where it is not there, or not all of it.

    Raises:
        ImageSetError: there is no data set of that name.
    """
    data_set = _named(name)
    if not data_set.files:
        package = importlib.util.find_spec("sklearn")
        place = Path(package.origin).parent / "datasets/data/digits.csv.gz" if package and package.origin else None
        return place if place and place.is_file() else None
    return place_inside(data_set, data_folder(folder))


def load(name_or_folder: str | Path, *, folder: Path | None = None) -> Mapping[str, PixelSet]:
    """Read a data set's `train` and `test` into memory.

    Args:
        name_or_folder: a name in `NAMED`, looked for in the data folder, or a folder in which one lies.
        folder: the data folder; see `data_folder`.

    Raises:
        ImageSetError: it is not there, or its files are not what they should be.
    """
    if isinstance(name_or_folder, str) and name_or_folder in NAMED:
        name, base = name_or_folder, data_folder(folder)
        if (place := find(name, base)) is None:
            refuse_pickles(base)
            refuse_pickles(base / name)
            looked = ", ".join(f"'{at}'" for at in places(NAMED[name], base))
            raise ImageSetError(
                f"The data set '{name}' is not in '{base}'; get it with: quickstudy data get {name}\n"
                f"Looked for {needed(NAMED[name])} in {looked}"
            )
    else:
        base = Path(name_or_folder)
        if not base.is_dir():
            what = (
                "is a file, not the folder of a data set"
                if base.exists()
                else "is neither a folder nor the name of a data set"
            )
            raise ImageSetError(f"'{base}' {what}; named data sets are {', '.join(NAMED)}")
        found = layout_of(base)
        if found is None:
            raise ImageSetError(f"'{base}' holds no data set of a known layout; looked for\n{known_layouts()}")
        name, place = found, place_inside(NAMED[found], base) or base
    return _read(name, place)


def get(
    name: str, *, folder: Path | None = None, source: str | Path | None = None, progress: Progress = silent
) -> Path:
    """Make a named data set be there: download, check and unpack what is missing; nothing where it is all there.

    Args:
        name: a name in `NAMED`.
        folder: the data folder; see `data_folder`.
        source: a mirror's base address, a file's full address, or a local file or folder; the hash must be the same.
        progress: is told the bytes that have come.

    Returns:
        The folder that holds the files; `load` takes it, and that of `flowers` is an image set.

    Raises:
        ImageSetError: there is no data set of that name.
        DownloadError: a file cannot be had, or is not the one that was published.
        InstallationError: it comes with scikit-learn, whose installation lacks it.
    """
    data_set, base = _named(name), data_folder(folder)
    if (place := find(name, base)) is not None:
        return place
    if not data_set.files:
        raise InstallationError(
            f"The data set '{name}' comes with scikit-learn, whose installation lacks it; reinstall it"
        )
    own = base / name
    for file in data_set.files:
        path = _obtain(data_set, file, own, source, progress)
        if data_set.folder:
            if place_at(data_set, own) is None:  # unless another process has been faster
                unpack(path, own / data_set.folder, top=data_set.folder)
            if path == own / file.name:  # the archive has done its work; somebody else's copy stays
                path.unlink(missing_ok=True)
    if (place := place_at(data_set, own)) is None:
        raise DownloadError(f"'{own}' still lacks some of {needed(data_set)}; delete it and run this again")
    return place


def _obtain(data_set: NamedDataSet, file: RemoteFile, own: Path, source: str | Path | None, progress: Progress) -> Path:
    """Get a file and check it: as put there by hand, a local copy of an archive, or fetched or copied into `own`."""
    target = own / file.name
    if target.exists():
        _check(target, file, remedy="delete it to have it fetched again")
        return target
    addresses = file.urls
    if source is not None:
        chosen = _from_source(data_set, file, source)
        if isinstance(chosen, Path):
            _check(chosen, file, remedy="name another source")
            if not data_set.folder:
                _copy(chosen, target)
            return chosen if data_set.folder else target
        addresses = (chosen,)
    reasons = []
    for url in addresses:
        try:
            return download(url, target, sha256=file.sha256, size=file.size, progress=progress)
        except DownloadError as error:
            if isinstance(error.__cause__, OSError):  # of the disk, so another address would not help
                raise
            reasons.append(str(error))
    raise DownloadError(
        "\n".join(reasons) + f"\nWithout network: fetch {file.urls[0]} ({file.size:,} bytes) elsewhere and put it at "
        f"'{target}', or name a copy with --from; then run this again"
    )


def _from_source(data_set: NamedDataSet, file: RemoteFile, source: str | Path) -> str | Path:
    """Work out the local file or the address that a source stands for."""
    if isinstance(source, str) and "://" in source:
        if not source.lower().startswith("file:"):
            address, _, last = source.partition("?")[0].rpartition("/")
            if last in {other.name for other in data_set.files}:
                return f"{address}/{file.name}{source[len(address) + 1 + len(last) :]}"
            is_file = len(data_set.files) == 1 and last.endswith((".gz", ".tgz", ".tar", ".zip"))
            return source if is_file else f"{source.rstrip('/')}/{file.name}"
        source = urllib.request.url2pathname(source.partition("://")[2].removeprefix("localhost"))
    path = as_path(source)
    if path.is_file() and len(data_set.files) > 1:
        path = path.parent
    for candidate in (path, path / file.name, path / data_set.name / file.name):
        if candidate.is_file():
            return candidate
    if not path.exists():
        raise DownloadError(f"'{source}' is neither a file, nor a folder, nor an address (https://…)")
    if (there := place_inside(data_set, path)) is not None:
        raise DownloadError(
            f"'{there}' holds {data_set.name} in another form than '{file.name}', for which the hash is known; "
            f"use it as it is: {DATA_VARIABLE}={path}"
        )
    raise DownloadError(f"There is no '{file.name}' in the folder '{path}'")


def _check(path: Path, file: RemoteFile, *, remedy: str) -> None:
    try:
        size = path.stat().st_size
        found = sha256_of_file(path) if size == file.size else None
    except OSError as error:
        raise DownloadError(f"Cannot read '{path}': {error.strerror}") from error
    if found != file.sha256:
        what = f"SHA-256 {found} instead of {file.sha256}" if found else f"{size:,} bytes instead of {file.size:,}"
        raise DownloadError(f"'{path}' is not the published file: {what}; {remedy}")


def _copy(path: Path, target: Path) -> None:
    try:
        with path.open("rb") as original:
            write_atomically(target, lambda file: shutil.copyfileobj(original, file))
    except OSError as error:
        raise DownloadError(f"Cannot copy '{path}' to '{target}': {error.strerror}") from error


def _named(name: str) -> NamedDataSet:
    if name not in NAMED:
        raise ImageSetError(f"There is no data set named '{name}'; there are {', '.join(NAMED)}")
    return NAMED[name]


def _read(name: str, place: Path) -> Mapping[str, PixelSet]:
    if name == "flowers":
        raise ImageSetError(f"'flowers' are photos of many sizes in class folders; use them as an image set: '{place}'")
    if name == "cifar10":
        return readers.read_cifar10(place)
    if name == "cifar100":
        return readers.read_cifar100(place)
    if name == "svhn":
        return readers.read_svhn(place)
    if name == "digits":
        return readers.read_digits(place)
    return readers.read_mnist(place, readers.DIGIT_CLASSES if name == "mnist" else readers.FASHION_CLASSES)


# Where the files of data sets lie, as they are officially packed and as other tools lay them down
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
    """Name the data set whose official layout a folder has or holds; None for all else, such as class folders.

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
    """Yield where a data set's files may lie if `base` is a data folder, or the official folder itself."""
    inner = [Path(), *([Path(data_set.folder)] if data_set.folder else [])]
    return (base / outer / folder for outer in ("", data_set.name, *data_set.aliases) for folder in inner)


def place_at(data_set: NamedDataSet, path: Path) -> Path | None:
    """Return `path` or the official folder in it, whichever is the data set; None where neither is."""
    return next((p for p in (path, path / data_set.folder) if _is_complete(data_set, p)), None)


def place_inside(data_set: NamedDataSet, path: Path) -> Path | None:
    """Find the data set in `path`, taken as a data folder or as the official folder; None where it is not there."""
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
    """Say which data set in idx files lies here, by content or else by the folder's name; None where in doubt."""
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
    """Refuse CIFAR's archive of Python pickles, and say what to take instead.

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
    """Return the files by which a data set is recognised, for messages."""
    gz = " (plain or .gz)" if data_set.needs == IDX_STEMS else ""
    return ", ".join(data_set.needs) + gz


def known_layouts() -> str:
    """Return all layouts that are recognised, one a line, for messages."""
    return "\n".join(
        f"  {entry.name}: {needed(entry)}"
        + (f", there or in {entry.folder}/" if entry.folder else "")
        + (f", in a folder named {entry.name}" if entry.needs == IDX_STEMS else "")
        for entry in NAMED.values()
        if entry.files and entry.name != "flowers"
    )
