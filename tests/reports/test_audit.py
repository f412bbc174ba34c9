"""The whole audit on folders of photos, with faults that are known."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import quickstudy
from drawn_photos import draw_photo
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract_census
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import ImageSetError
from quickstudy.images.census import take_census
from quickstudy.learning.selection import fit_head
from quickstudy.reports.evidence import build_evidence, gather_evidence


@pytest.fixture
def cache(cache: Path, known_photos: Path) -> Path:
    return Path(shutil.copytree(known_photos, cache))


def named(found: quickstudy.Audit, photos: Path, numbers: tuple[int, ...]) -> set[str]:
    return {found.images[number].relative_to(photos).as_posix() for number in numbers}


def test_copies_are_found_through_encoding_size_mirror_and_light(photos, cache) -> None:
    with Image.open(photos / "discs" / "00.jpg") as image:
        original = image.convert("RGB")
    original.resize((200, 175)).save(photos / "discs" / "small.jpg", quality=60)
    ImageOps.mirror(original).save(photos / "discs" / "mirrored.png")
    ImageEnhance.Brightness(original).enhance(0.8).save(photos / "checks" / "dark.webp")
    shutil.copy(photos / "checks" / "05.jpg", photos / "checks" / "copy.jpg")
    found = quickstudy.audit(photos, cache=cache)
    groups = [(named(found, photos, group.members), group.exact, group.conflicts) for group in found.duplicates]
    # Stripes are stripes: shifted and stretched a little, two drawings of them are one.
    assert [group for group in groups if not all(name.startswith("stripes/") for name in group[0])] == [
        ({"discs/00.jpg", "discs/small.jpg", "discs/mirrored.png", "checks/dark.webp"}, False, True),
        ({"checks/05.jpg", "checks/copy.jpg"}, True, False),
    ]


def test_leaks_across_splits(photo_source, tmp_path, cache) -> None:
    photos = tmp_path / "photos"
    for name in ("checks", "discs"):
        for number in range(8):
            path = photos / ("test" if number > 5 else "train") / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo_source / name / f"{number:02}.jpg", path)
    with Image.open(photos / "train" / "discs" / "1.jpg") as image:
        image.convert("RGB").save(photos / "test" / "discs" / "again.jpg", quality=50)
    found = quickstudy.audit(photos, cache=cache)
    (leak,) = found.leaks
    assert named(found, photos, leak.members) == {"train/discs/1.jpg", "test/discs/again.jpg"}
    assert leak.splits == ("test", "train")


def test_a_photo_in_the_wrong_folder_is_named_with_its_class(photos, cache) -> None:
    shutil.move(photos / "discs" / "03.jpg", photos / "checks" / "wrong.jpg")
    found = quickstudy.audit(photos, cache=cache)
    assert named(found, photos, (found.label_errors[0].image,)) == {"checks/wrong.jpg"}
    assert (found.label_errors[0].given, found.label_errors[0].suggested) == ("checks", "discs")
    assert len(found.label_errors) == 1


def test_partly_labelled(photos, cache) -> None:
    (photos / "unlabelled").mkdir()
    draw_photo("discs", 40).save(photos / "unlabelled" / "x.jpg")
    draw_photo("stripes", 41).save(photos / "loose.jpg")
    (photos / "_set_aside" / "discs").mkdir(parents=True)
    draw_photo("discs", 42).save(photos / "_set_aside" / "discs" / "y.jpg")
    found = quickstudy.audit(photos, cache=cache)
    assert (len(found.images), found.labelled) == (38, 36)
    suggested = {found.images[s.image].name: s.label for s in found.suggestions}
    assert suggested == {"x.jpg": "discs", "loose.jpg": "stripes"}
    assert named(found, photos, found.next_to_label) == {"unlabelled/x.jpg", "loose.jpg"}
    assert [share.name for share in found.classes] == ["checks", "discs", "stripes"]


def test_without_any_label(photo_source, tmp_path, cache) -> None:
    for number, path in enumerate(sorted(photo_source.rglob("*.jpg"))):
        shutil.copy(path, tmp_path / f"{number}.jpg")
    found = quickstudy.audit(tmp_path, cache=cache)
    assert (len(found.images), found.labelled, found.classes, found.suggestions) == (36, 0, (), ())
    assert len(found.next_to_label) == 20
    assert found.label_errors == ()


def test_broken_files_are_named(photos, cache) -> None:
    (photos / "discs" / "broken.jpg").write_bytes((photos / "discs" / "00.jpg").read_bytes()[:3000])
    (photos / "discs" / "page.jpg").write_text("<html>")
    Image.new("RGB", (300, 300)).save(photos / "discs" / "black.png")
    found = quickstudy.audit(photos, cache=cache)
    assert {item.path.name: item.reason for item in found.skipped} == {
        "broken.jpg": "truncated (the scan ends after 17 % of the rows)",
        "page.jpg": "an HTML page, not an image",
    }
    assert [(found.images[flaw.image].name, flaw.kind) for flaw in found.quality] == [("black.png", "dark")]


def test_nothing_but_broken_files(tmp_path, cache) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"")
    with pytest.raises(ImageSetError, match=r"1\.jpg': empty file"):
        quickstudy.audit(tmp_path, cache=cache)


def test_an_empty_folder_is_an_error(tmp_path, cache) -> None:
    with pytest.raises(ImageSetError, match="No images under"):
        quickstudy.audit(tmp_path, cache=cache)


def test_no_image_is_judged_by_a_fit_that_has_seen_it(photos, cache) -> None:
    shutil.copy(photos / "discs" / "00.jpg", photos / "checks" / "conflict.jpg")
    evidence = gather_evidence(photos, cache=cache)
    assert evidence.unseen.all()
    assert evidence.probabilities.shape == (37, 3)
    np.testing.assert_allclose(evidence.probabilities.sum(axis=1), 1, atol=1e-5)


def test_evidence_from_a_head_has_its_held_out_probabilities(photos, cache, backbone) -> None:
    census = take_census(photos, None)
    extraction = extract_census(census, backbone, Store(cache / "bottlenecks"))
    digests = [digest for _, digest in sorted((str(c.path), c.digest) for c in census.contents.values())]
    classes = census.classes
    labels = np.array([classes.index(census.labels[digest]) for digest in digests])
    trained = np.flatnonzero(np.arange(36) % 6 != 0)
    keys = [digests[n] for n in trained]
    head = fit_head(extraction.gather(keys), labels[trained], keys, classes=3)
    evidence = build_evidence(census, extraction, backbone, head, keys, classes)
    rows = {int(trained[row]): position for position, row in enumerate(head.held_out)}
    assert set(rows) == set(trained.tolist())
    for n in range(36):
        logits = head.held_out_logits[rows[n]] if n in rows else head.logits(extraction.gather([digests[n]]))[0]
        wanted = np.exp(logits - logits.max())
        np.testing.assert_allclose(evidence.probabilities[n], wanted / wanted.sum(), atol=1e-5)
    assert load_backbone("efficientnet_lite0", cache).fingerprint == evidence.fingerprint
