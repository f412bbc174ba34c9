"""Named data sets: got from mirrors and local copies, found wherever others keep them, never taken for one another."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quickstudy.errors import DownloadError, ImageSetError, QuickstudyError
from quickstudy.images import named, readers
from quickstudy.images.catalogue import NAMED, NamedDataSet, RemoteFile
from quickstudy.images.imageset import load_image_set
from quickstudy.images.readers import IDX_STEMS

STARTS = {"mnist": (7, 2, 1, 0, 4, 1, 4, 9, 5, 9), "fashion_mnist": (9, 2, 1, 1, 6, 1, 4, 6, 5, 7)}


def write_cifar10(folder: Path, *, count: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(readers.CIFAR10_FILES):
        pixels = np.full((count, 3073), number * 10, np.uint8)
        pixels[:, 0] = number
        (folder / name).write_bytes(pixels.tobytes())
    return folder


def write_idx(folder: Path, *, like: str | None = None, packed: bool = True) -> Path:
    """The four files; `like` a published data set, test labels begin as there and are as many."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(10_000 if like else 3, np.uint8)
    labels[: len(STARTS[like]) if like else 0] = STARTS[like] if like else ()
    for stem in IDX_STEMS:
        count = len(labels) if "t10k" in stem else 5
        if "images" in stem:
            data = np.array([2051, count, 2, 2], ">u4").tobytes() + bytes(count * 4)
        else:
            data = np.array([2049, count], ">u4").tobytes() + (labels.tobytes() if "t10k" in stem else bytes(count))
        (folder / f"{stem}.gz").write_bytes(gzip.compress(data)) if packed else (folder / stem).write_bytes(data)
    return folder


def write_svhn(folder: Path) -> Path:
    import scipy.io

    folder.mkdir(parents=True, exist_ok=True)
    for name in readers.SVHN_FILES:
        scipy.io.savemat(folder / name, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[10], [1]], np.uint8)})
    return folder


def tarred(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, folder.name)
    return buffer.getvalue()


def remote(url: str, data: bytes) -> RemoteFile:
    return RemoteFile(urls=(url,), size=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with small files under the official names and hashes; the published addresses lead nowhere."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.delenv(named.DATA_VARIABLE, raising=False)
    archive = tarred(write_cifar10(tmp_path / "making" / "cifar-10-batches-bin"))
    (folder / "cifar-10-binary.tar.gz").write_bytes(archive)
    for path in write_idx(tmp_path / "making" / "mnist", like="mnist").iterdir():
        shutil.copy(path, folder)
    for name in NAMED["flowers"].needs:
        (tmp_path / "making" / "flower_photos" / name).mkdir(parents=True)
        for number in range(2):
            image = Image.new("RGB", (9, 9), (number * 99, len(name) * 9, ord(name[0])))
            image.save(tmp_path / "making" / "flower_photos" / name / f"{number}.png")
    (tmp_path / "making" / "flower_photos" / "LICENSE.txt").write_text("free")
    (folder / "flower_photos.tgz").write_bytes(tarred(tmp_path / "making" / "flower_photos"))
    nowhere = (tmp_path / "nowhere").as_uri()
    known = dict(NAMED)
    for name in ("cifar10", "mnist", "flowers"):
        files = tuple(remote(f"{nowhere}/{file.name}", (folder / file.name).read_bytes()) for file in NAMED[name].files)
        known[name] = NamedDataSet(**{**vars(NAMED[name]), "files": files})
    monkeypatch.setattr(named, "NAMED", known)
    monkeypatch.setattr(named, "NAMED", known)
    shutil.rmtree(tmp_path / "making")
    yield folder


def refusal(read: object, *arguments: object, **more: object) -> str:
    with pytest.raises(QuickstudyError) as caught:
        read(*arguments, **more)  # type: ignore[operator]
    return str(caught.value)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_catalogue() -> None:
    assert set(NAMED) == {"cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "flowers", "digits"}
    for name, entry in NAMED.items():
        assert entry.name == name
        for file in entry.files:
            assert len(bytes.fromhex(file.sha256)) == 32
            assert all(url.startswith(("https://", "http://")) and url.endswith(f"/{file.name}") for url in file.urls)
    hashes = [file.sha256 for entry in NAMED.values() for file in entry.files]
    assert len(set(hashes)) == len(hashes)


def test_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(named.DATA_VARIABLE, str(tmp_path / "named"))
    assert named.data_folder(tmp_path) == tmp_path
    assert named.data_folder() == tmp_path / "named"
    monkeypatch.setenv(named.DATA_VARIABLE, "")
    assert named.data_folder().parts[-2:] == ("quickstudy", "data")


@pytest.mark.parametrize("form", ["folder", "file", "text", "address of the folder", "address of the file"])
def test_an_archive_from_a_local_copy(mirror: Path, tmp_path: Path, form: str) -> None:
    file = mirror / "cifar-10-binary.tar.gz"
    source: str | Path = {
        "folder": mirror,
        "file": file,
        "text": str(mirror),
        "address of the folder": mirror.as_uri(),
        "address of the file": file.as_uri(),
    }[form]
    data = tmp_path / "data"
    place = named.get("cifar10", folder=data, source=source)
    assert place == data / "cifar10" / "cifar-10-batches-bin" == named.find("cifar10", data)
    assert listing(data) == sorted(f"cifar10/cifar-10-batches-bin/{name}" for name in readers.CIFAR10_FILES)
    assert file.exists()
    assert len(named.load("cifar10", folder=data)["train"]) == 10
    assert named.load(place)["test"].labels.tolist() == [5, 5]


def test_single_files_from_a_local_copy(mirror: Path, tmp_path: Path) -> None:
    place = named.get("mnist", folder=tmp_path / "data", source=mirror / "train-images-idx3-ubyte.gz")
    assert place == tmp_path / "data" / "mnist"
    assert listing(place) == sorted(f"{stem}.gz" for stem in IDX_STEMS)
    assert len(named.load("mnist", folder=tmp_path / "data")["test"]) == 10_000


def test_the_second_time_nothing_is_done(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [named.get(name, folder=tmp_path / "data", source=mirror) for name in ("cifar10", "mnist", "flowers")]
    shutil.rmtree(mirror)
    monkeypatch.setattr(named, "sha256_of_file", lambda path: pytest.fail("hashed again"))
    assert [named.get(name, folder=tmp_path / "data") for name in ("cifar10", "mnist", "flowers")] == places


def test_the_flowers_are_an_image_set(mirror: Path, tmp_path: Path) -> None:
    place = named.get("flowers", folder=tmp_path / "data", source=mirror)
    assert place == tmp_path / "data" / "flowers" / "flower_photos"
    assert load_image_set(place).classes == NAMED["flowers"].needs
    assert "use them as an image set: " in refusal(named.load, "flowers", folder=tmp_path / "data")
    assert named.layout_of(place) is None


def test_the_digits_need_nothing(tmp_path: Path) -> None:
    place = named.get("digits", folder=tmp_path)
    assert place.is_file() and place == named.find("digits")
    assert len(named.load("digits")["train"]) + len(named.load("digits")["test"]) == 1797
    assert listing(tmp_path) == []


def test_without_network_it_says_what_to_put_where(mirror: Path, tmp_path: Path) -> None:
    told = refusal(named.get, "cifar10", folder=tmp_path / "data")
    target = tmp_path / "data" / "cifar10" / "cifar-10-binary.tar.gz"
    size = (mirror / "cifar-10-binary.tar.gz").stat().st_size
    assert f"({size:,} bytes) elsewhere and put it at '{target}'" in told
    shutil.copy(mirror / "cifar-10-binary.tar.gz", target)
    assert named.find("cifar10", tmp_path / "data") is None
    assert named.get("cifar10", folder=tmp_path / "data").is_dir()
    assert not target.exists()


def test_what_is_put_there_is_checked(mirror: Path, tmp_path: Path) -> None:
    target = tmp_path / "data" / "cifar10" / "cifar-10-binary.tar.gz"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"x")
    told = refusal(named.get, "cifar10", folder=tmp_path / "data")
    size = (mirror / target.name).stat().st_size
    assert told.startswith(f"'{target}' is not the published file: 1 bytes instead of {size:,}; delete it to have")
    target.write_bytes(bytes(size))
    told = refusal(named.get, "cifar10", folder=tmp_path / "data")
    assert "SHA-256" in told and hashlib.sha256(bytes(size)).hexdigest() in told
    (mirror / target.name).write_bytes(bytes(size))
    target.unlink()
    assert refusal(named.get, "cifar10", folder=tmp_path / "data", source=mirror).endswith("; name another source")
    assert (mirror / target.name).exists() and listing(tmp_path / "data") == []


def test_only_what_is_missing_is_fetched(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for stem in IDX_STEMS[:3]:
        shutil.move(mirror / f"{stem}.gz", folder)
    assert named.find("mnist", tmp_path / "data") is None
    assert named.get("mnist", folder=tmp_path / "data", source=mirror) == folder


@pytest.mark.parametrize(
    ("name", "source", "address"),
    [
        ("cifar10", "https://m.example/data", "https://m.example/data/cifar-10-binary.tar.gz"),
        ("cifar10", "https://m.example/data/", "https://m.example/data/cifar-10-binary.tar.gz"),
        ("cifar10", "https://m.example/cifar-10-binary.tar.gz", "https://m.example/cifar-10-binary.tar.gz"),
        ("cifar10", "https://m.example/c.tgz?x=1", "https://m.example/c.tgz?x=1"),
        ("cifar10", "https://m.example/cifar-10-binary.tar.gz?x=1", "https://m.example/cifar-10-binary.tar.gz?x=1"),
        ("cifar10", "https://m.example", "https://m.example/cifar-10-binary.tar.gz"),
    ],
)
def test_mirrors(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str, address: str
) -> None:
    asked = []

    def pretend(url: str, path: Path, **more: object) -> Path:
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(mirror / path.name, path.parent))

    monkeypatch.setattr(named, "download", pretend)
    named.get(name, folder=tmp_path / "data", source=source)
    assert asked == [address]


def test_a_mirror_of_several_files(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pretend(url: str, path: Path, **more: object) -> Path:
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(mirror / path.name, path.parent))

    monkeypatch.setattr(named, "download", pretend)
    named.get("mnist", folder=tmp_path / "data", source="http://m.example/x/t10k-images-idx3-ubyte.gz")
    assert asked == [f"http://m.example/x/{stem}.gz" for stem in IDX_STEMS]


def test_another_address_is_tried_when_the_first_fails(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    file = named.NAMED["cifar10"].files[0]
    (mirror / "other").mkdir()
    (mirror / "other" / file.name).write_bytes(b"Sorry")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=mirror)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        base = f"http://127.0.0.1:{running.server_address[1]}"
        urls = tuple(f"{base}/{place}{file.name}" for place in ("not/there/", "other/", ""))
        second = RemoteFile(urls=urls, size=file.size, sha256=file.sha256)
        known = {**named.NAMED, "cifar10": NamedDataSet(**{**vars(NAMED["cifar10"]), "files": (second,)})}
        monkeypatch.setattr(named, "NAMED", known)
        try:
            assert named.get("cifar10", folder=tmp_path / "data").is_dir()
        finally:
            running.shutdown()
            thread.join()


def test_sources_that_are_none(mirror: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert "is neither a file, nor a folder, nor an address" in refusal(
        named.get, "cifar10", folder=data, source="not there"
    )
    (tmp_path / "empty").mkdir()
    told = refusal(named.get, "cifar10", folder=data, source=tmp_path / "empty")
    assert told == f"There is no 'cifar-10-binary.tar.gz' in the folder '{tmp_path / 'empty'}'"
    unpacked = write_cifar10(tmp_path / "has it" / "cifar-10-batches-bin")
    told = refusal(named.get, "cifar10", folder=data, source=tmp_path / "has it")
    assert told.startswith(f"'{unpacked}' holds cifar10 in another form") and "QUICKSTUDY_DATA=" in told
    assert "Cannot download 'ftp://" in refusal(named.get, "cifar10", folder=data, source="ftp://m.example/")


def test_names_that_are_none(tmp_path: Path) -> None:
    for function in (named.find, named.get):
        assert refusal(function, "cifar").startswith("There is no data set named 'cifar'; there are cifar10, cifar100,")
    told = refusal(named.load, "cifar")
    assert told.startswith("'cifar' is neither a folder nor the name of a data set; named data sets are cifar10,")


@pytest.mark.parametrize("place", [".", "cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin"])
def test_cifar10_is_found_where_others_keep_it(tmp_path: Path, place: str) -> None:
    there = write_cifar10(tmp_path / place)
    found = named.find("cifar10", tmp_path)
    assert found is not None and found.samefile(there)
    assert named.layout_of(tmp_path) == "cifar10"
    assert len(named.load(tmp_path)["train"]) == 10
    assert len(named.load("cifar10", folder=tmp_path)["train"]) == 10
    assert named.find("cifar100", tmp_path) is None


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "fashion_mnist"),
        ("fashion_mnist", "fashion-mnist"),
        ("fashion_mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files_are_told_apart_by_their_folder(tmp_path: Path, name: str, place: str, packed: bool) -> None:
    there = write_idx(tmp_path / place, packed=packed)
    other = ({"mnist", "fashion_mnist"} - {name}).pop()
    assert named.find(name, tmp_path) is not None and named.find(other, tmp_path) is None
    assert named.layout_of(tmp_path) == named.layout_of(there) == name
    assert named.load(there)["train"].classes == named.load(name, folder=tmp_path)["train"].classes
    assert named.load(tmp_path)["test"].classes[0] == {"mnist": "0", "fashion_mnist": "T-shirt/top"}[name]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("place", [".", "mnist", "fashion_mnist"])
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_told_apart_by_their_content_first(tmp_path: Path, name: str, place: str, packed: bool) -> None:
    folder = write_idx(tmp_path / "x" / place, like=name, packed=packed)
    other = ({"mnist", "fashion_mnist"} - {name}).pop()
    assert named.layout_of(folder) == name
    assert named.find(other, tmp_path / "x") is None
    assert named.find(name, folder) == folder


def test_idx_files_of_nobody_knows_what_are_not_guessed(tmp_path: Path) -> None:
    write_idx(tmp_path / "letters")
    assert named.find("mnist", tmp_path / "letters") is None
    told = refusal(named.load, tmp_path / "letters")
    assert "idx files of neither MNIST nor Fashion-MNIST as published; name the folder 'mnist'" in told


def test_several_data_sets_in_one_folder(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    write_svhn(tmp_path / "svhn")
    write_idx(tmp_path / "mnist")
    assert len(named.load("svhn", folder=tmp_path)["train"]) == 2
    assert named.load("svhn", folder=tmp_path)["test"].labels.tolist() == [0, 1]
    # The official folder right there goes before what lies deeper.
    assert named.layout_of(tmp_path) == "cifar10"
    shutil.move(tmp_path / "cifar-10-batches-bin", tmp_path / "cifar10")
    assert refusal(named.load, tmp_path) == (
        f"'{tmp_path}' holds several data sets: cifar10, mnist, svhn; name the folder of one"
    )


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    monkeypatch.setenv(named.DATA_VARIABLE, str(tmp_path))
    assert len(named.load("cifar10")["test"]) == 2
    monkeypatch.setenv(named.DATA_VARIABLE, str(tmp_path / "cifar-10-batches-bin"))
    assert len(named.load("cifar10")["test"]) == 2
    assert named.get("cifar10") == tmp_path / "cifar-10-batches-bin"


def test_what_is_not_there(tmp_path: Path) -> None:
    told = refusal(named.load, "cifar10", folder=tmp_path)
    assert told.startswith(f"The data set 'cifar10' is not in '{tmp_path}'; get it with: quickstudy data get cifar10")
    assert "data_batch_1.bin" in told and f"'{tmp_path / 'cifar10' / 'cifar-10-batches-bin'}'" in told
    told = refusal(named.load, tmp_path)
    for name in ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn"):
        assert f"\n  {name}: " in told
    (tmp_path / "cats").mkdir()
    assert named.layout_of(tmp_path) is None
    assert named.layout_of(tmp_path / "missing") is None
    (tmp_path / "file").touch()
    assert "is a file, not the folder of a data set" in refusal(named.load, tmp_path / "file")
    assert named.layout_of(tmp_path / "file") is None


def test_a_part_of_a_data_set(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-bin")
    (folder / "data_batch_4.bin").unlink()
    assert named.find("cifar10", tmp_path) is None
    assert refusal(named.load, tmp_path) == f"'{folder}' holds only a part of CIFAR-10; it lacks data_batch_4.bin"


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch trapped",)


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        ("cifar10", "cifar-10-batches-py", ["data_batch_1", "test_batch", "batches.meta"]),
        ("cifar100", "cifar-100-python", ["train", "test", "meta"]),
    ],
)
def test_pickles_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str, files: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    for file in files:
        (tmp_path / folder / file).write_bytes(pickle.dumps(Trap()))
    for read in (
        lambda: named.load(tmp_path),
        lambda: named.load(tmp_path / folder),
        lambda: named.load(name, folder=tmp_path),
        lambda: named.layout_of(tmp_path / folder),
    ):
        told = refusal(read)
        assert f"'{tmp_path / folder}' holds {name} as Python pickles, which can run code and are not read" in told
        assert f"quickstudy data get {name}" in told
    assert not (tmp_path / "trapped").exists()


def test_mnist_as_published(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "mnist"
    if not source.is_dir():
        pytest.skip(f"no folder '{source}'")
    assert named.get("mnist", folder=tmp_path, source=source) == tmp_path / "mnist"
    assert named.layout_of(source) == "mnist"
    with pytest.raises(DownloadError, match="is not the published file: 9,912,422 bytes instead of 26,421,880"):
        named.get("fashion_mnist", folder=tmp_path, source=source)
    assert named.find("fashion_mnist", source) is None
    shutil.copytree(source, tmp_path / "fashion_mnist")
    assert named.find("fashion_mnist", tmp_path) is None


def test_cifar10_written_from_real_photos(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "cifar10_jpeg.npz"
    if not source.is_file():
        pytest.skip(f"no file '{source}'")
    with np.load(source, allow_pickle=False) as arrays:
        names = [str(name) for name in arrays["names"]]
        jpeg, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"]
        photos = [
            np.asarray(Image.open(io.BytesIO(jpeg[offsets[n] : offsets[n + 1]].tobytes())).convert("RGB"))
            for n in range(60)
        ]
    for number, file in enumerate(readers.CIFAR10_FILES):
        rows = range(number * 10, number * 10 + 10)
        records = [bytes([labels[n]]) + photos[n].transpose(2, 0, 1).tobytes() for n in rows]
        (tmp_path / file).write_bytes(b"".join(records))
    (tmp_path / "batches.meta.txt").write_text("\n".join(names))
    sets = named.load(tmp_path)
    assert np.array_equal(np.concatenate([sets["train"].pixels, sets["test"].pixels]), np.stack(photos))
    assert sets["train"].labels.tolist() == labels[:50].tolist()
    assert sets["train"].classes == tuple(names)


@given(st.data())
def test_no_folder_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("any")
    names = [*readers.CIFAR10_FILES, *readers.CIFAR100_FILES, *(f"{stem}.gz" for stem in IDX_STEMS), *IDX_STEMS]
    names += [*readers.SVHN_FILES, "batches.meta.txt", "mnist", "cifar-10-batches-bin", "data_batch_1"]
    place = data.draw(st.sampled_from([folder, folder / "mnist", folder / "fashion", folder / "cifar-10-batches-bin"]))
    place.mkdir(exist_ok=True)
    for name in data.draw(st.lists(st.sampled_from(names), unique=True)):
        if not (place / name).exists():
            (place / name).mkdir() if data.draw(st.booleans()) else (place / name).write_bytes(data.draw(st.binary()))
    for look in (named.load, named.layout_of):
        with contextlib.suppress(ImageSetError):
            look(folder)
