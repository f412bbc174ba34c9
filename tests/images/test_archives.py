"""Image sets that come packed: unpacked once, whole or not at all, and never anywhere else."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from quickstudy.errors import ImageSetError
from quickstudy.images.archives import set_name, unpacked
from quickstudy.images.imageset import load_image_set


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
@pytest.mark.parametrize("inside", [True, False])
def test_an_archive_is_the_folder_that_it_holds(kind: str, inside: bool, photo_source: Path, tmp_path: Path) -> None:
    top = photo_source.parent if inside else photo_source
    shutil.copytree(photo_source, tmp_path / "source" / "photos")
    packed = shutil.make_archive(str(tmp_path / "set"), kind, tmp_path / "source" / ("" if inside else "photos"))
    assert top.is_dir()
    found, plain = load_image_set(packed), load_image_set(photo_source)
    assert found.source == tmp_path / "set"
    assert found.classes == plain.classes
    assert [file.path.relative_to(found.source) for file in found.files] == [
        file.path.relative_to(photo_source) for file in plain.files
    ]
    assert found.files[5].path.read_bytes() == plain.files[5].path.read_bytes()
    assert not found.passed_over
    assert set_name(Path(packed)) == "set"
    before = {path: path.stat().st_ino for path in found.source.rglob("*")}
    load_image_set(packed)  # again: what is there is taken
    assert {path: path.stat().st_ino for path in found.source.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp-")] == []


def test_photos_without_a_class_and_what_macs_leave(photo: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pile.zip", "w") as packed:
        packed.writestr("pile/a b.jpg", photo)
        packed.writestr("__MACOSX/pile/._a b.jpg", b"resources")
        packed.writestr("pile/deep\\c.jpg", photo)  # as some programs on Windows write it
    found = load_image_set(tmp_path / "pile.zip", unlabelled=True)
    assert [str(f.path.relative_to(tmp_path)) for f in (*found.unlabelled, *found.files)] == [
        "pile/a b.jpg",
        "pile/deep/c.jpg",
    ]


@pytest.fixture
def photo(photo_source: Path) -> bytes:
    return (photo_source / "discs" / "00.jpg").read_bytes()


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return path


def test_what_would_lie_elsewhere_is_refused(photo: bytes, tmp_path: Path) -> None:
    for number, name in enumerate(("../a.jpg", "/a.jpg", "x/../../a.jpg", "..\\a.jpg")):
        bad = zipped(tmp_path / f"bad{number}.zip", **{"good.jpg": photo, name: photo})
        with pytest.raises(ImageSetError, match=r"which would lie elsewhere; it was not unpacked"):
            unpacked(bad)
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as packed:
        packed.writestr(link, "/etc/passwd")
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        member = tarfile.TarInfo("link.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    for suffix in ("zip", "tar"):
        with pytest.raises(ImageSetError, match=r"holds 'link\.jpg', neither file nor folder; refused"):
            unpacked(tmp_path / f"link.{suffix}")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".tar", *[".zip"] * 5]


def test_what_is_damaged_or_changed_is_named(photo: bytes, tmp_path: Path) -> None:
    whole = zipped(tmp_path / "a.zip", **{"cat/1.jpg": photo, "dog/2.jpg": photo})
    (tmp_path / "cut.zip").write_bytes(whole.read_bytes()[:-50])
    (tmp_path / "text.tar.gz").write_text("no archive")
    flipped = bytearray(whole.read_bytes())
    flipped[len(photo) // 2] ^= 1
    (tmp_path / "flipped.zip").write_bytes(flipped)
    zipped(tmp_path / "none.zip")
    for name, words in {
        "cut.zip": "cannot be unpacked",
        "text.tar.gz": "cannot be unpacked",
        "flipped.zip": "cannot be unpacked: Bad CRC-32",
        "none.zip": "is empty",
    }.items():
        with pytest.raises(ImageSetError, match=rf"'.*{name}' {words}"):
            unpacked(tmp_path / name)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert sorted(path.name for path in unpacked(whole).iterdir()) == ["cat", "dog"]
    zipped(whole, **{"cat/1.jpg": photo, "dog/2.jpg": photo, "owl/3.jpg": photo})
    with pytest.raises(ImageSetError, match=r"a\.zip' has changed since it was unpacked into '.*a', which is there"):
        unpacked(whole)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ImageSetError, match=r"mine\.zip' is to be unpacked into '.*mine', which is there already"):
        unpacked(zipped(tmp_path / "mine.zip", **{"1.jpg": photo}))
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for _ in range(2):
            member = tarfile.TarInfo("1.jpg")
            member.size = len(photo)
            tar.addfile(member, io.BytesIO(photo))
    with pytest.raises(ImageSetError, match=r"twice\.tar' holds '1\.jpg' twice"):
        unpacked(tmp_path / "twice.tar")
