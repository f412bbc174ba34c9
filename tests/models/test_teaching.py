"""Teaching on an exported page, in a real browser, from a file: the head is Python's, classes are saved and joined."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests_of_sites import run_node

import quickstudy
from pages import contrast
from quickstudy.backbones.backbone import Backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import ModelError
from quickstudy.images.fits import Fit
from quickstudy.learning.calibration import probabilities_of
from quickstudy.learning.selection import fit_head
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.models.conversion import convert
from quickstudy.models.loading import load
from quickstudy.models.roles import Roles
from quickstudy.models.teaching import STRENGTH, TeachableModel, read_taught
from quickstudy.models.web import write_site
from quickstudy.retraining.merging import merge
from small_backbones import add_small_backbone
from small_models import write_small_model

SITE = Path(__file__).parents[2] / "src" / "quickstudy" / "models" / "site"
NAMES = ("checks", "discs", "stripes")


@pytest.fixture(scope="module")
def teachable_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the small backbone."""
    cache = tmp_path_factory.mktemp("teachable") / "cache"
    add_small_backbone(cache)
    return cache


@pytest.fixture(scope="module")
def net(teachable_cache: Path) -> Backbone:
    return add_small_backbone(teachable_cache)


@pytest.fixture(scope="module")
def model(teachable_cache: Path, net: Backbone) -> Path:
    """A model on the small backbone, whose own head is drawn at random."""
    weights = np.random.Generator(np.random.PCG64(0)).normal(size=(net.cut_shape[0], 3)).astype(np.float32)
    head = LinearHead(weights=weights, biases=np.zeros(3, np.float32))
    path = teachable_cache.parent / "first.onnx"
    write_model(path, net, head, classes=("a", "b", "c"), training={}, roles=Roles.of((), (), ()))
    return path


@pytest.fixture(scope="module")
def site(model: Path, teachable_cache: Path, runtime: Path) -> Path:
    return write_site(model, model.with_name("site"), trainable=True, runtime=runtime, cache=teachable_cache).page


@pytest.fixture
def page(browser: Any, site: Path) -> Iterator[Any]:
    yield from opened(browser, site)


def opened(browser: Any, site: Path, **options: Any) -> Iterator[Any]:
    """The page, opened as a file, once it can be taught; whatever it asks anybody for, or complains of, is an error."""
    page = browser.new_context(**options).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: complaints.append(request.url) if not request.url.startswith(("blob:", "file:")) else None,
    )
    page.goto(site.as_uri())
    page.locator("#teach").wait_for()
    yield page
    page.context.close()
    assert complaints == []


def add_class(page: Any, name: str) -> Any:
    page.get_by_label("Name of a new class").fill(name)
    page.keyboard.press("Enter")
    return page.locator("#taught .card").last


def teach(page: Any, name: str, files: Sequence[Path]) -> Any:
    from playwright.sync_api import expect

    card = add_class(page, name)
    card.get_by_label("Add photos").set_input_files(files)
    expect(card.locator(".count")).to_have_text(f"{len(files)} pictures")
    return card


def wait_until_learned(page: Any, classes: int, pictures: int) -> str:
    from playwright.sync_api import expect

    expect(page.locator("#learned")).to_contain_text(f"Learned {classes} classes from {pictures} pictures in ")
    return str(page.locator("#learned").inner_text())


def said(page: Any, path: Path) -> dict[str, float]:
    """What the taught head says of a file."""
    answer = page.evaluate(
        "(text) => quickstudy.classifyTaught(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]))",
        base64.b64encode(path.read_bytes()).decode(),
    )
    return {entry["label"]: entry["probability"] for entry in answer["classes"]}


def saved(page: Any, path: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the classes").click()
    download.value.save_as(path)
    return path


def in_python(taught: dict[str, Sequence[Path]], net: Backbone, cache: Path, asked: Path) -> dict[str, float]:
    """What Python's head on these photos says of one that is asked for."""
    files = [(path, name) for name, paths in taught.items() for path in paths]
    classes = sorted(taught)
    found = extract([path for path, _ in files] + [asked], net, Store(cache / "bottlenecks"))
    keys = [digest for digest in found.digests if digest is not None]
    rows = found.gather(keys)
    labels = np.array([classes.index(name) for _, name in files], np.intp)
    head = fit_head(rows[:-1], labels, keys[:-1], classes=len(classes), widths=net.widths, l2=STRENGTH)
    return dict(zip(classes, probabilities_of(head.logits(rows[-1:]))[0].tolist(), strict=True))


def same(one: dict[str, float], other: dict[str, float], tolerance: float = 1e-3) -> bool:
    return one.keys() == other.keys() and all(abs(one[name] - other[name]) < tolerance for name in one)


def test_the_head_is_pythons(node: str, tmp_path: Path) -> None:
    """More features than pictures and fewer, groups of features, copies, the only picture of a class."""
    draws = np.random.Generator(np.random.PCG64(0))
    jobs = []
    for n, d, classes, widths in ((60, 200, 3, (150, 50)), (90, 40, 4, (40,)), (7, 30, 3, (30,))):
        labels = np.append(draws.integers(0, classes - 1, n - classes), np.arange(classes))
        rows = (draws.normal(size=(classes, d))[labels] + 2 * draws.normal(size=(n, d))).astype(np.float16)
        rows[1], labels[1] = rows[0], labels[0]
        keys = [hashlib.sha256(row.tobytes()).digest() for row in rows]
        head = fit_head(rows, labels, keys, classes=classes, widths=widths, l2=STRENGTH)
        asked = draws.normal(size=(20, d)).astype(np.float32)
        jobs.append(
            {
                "rows": rows.view(np.uint16).tolist(),
                "labels": labels.tolist(),
                "keys": [key.hex() for key in keys],
                "classes": classes,
                "settings": {"l2": STRENGTH, "widths": widths},
                "asked": asked.tolist(),
                "expected": probabilities_of(head.logits(asked)).tolist(),
                "held_out": [head.held_out_right, head.held_out_count],
                "temperature": head.temperature,
            }
        )
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    script = f"""
        import {{ fitHead, probabilitiesOf, rootsOf }} from {json.dumps((SITE / "head.js").as_uri())};
        import fs from "node:fs";
        const found = [];
        for (const job of JSON.parse(fs.readFileSync(process.argv[1]))) {{
          const rows = job.rows.map((row) => rootsOf(Uint16Array.from(row)));
          const head = await fitHead(rows, job.labels, job.keys, job.classes, job.settings);
          const said = job.asked.map((row) => probabilitiesOf(head, Float32Array.from(row)));
          found.push({{ said, heldOut: head.heldOut, temperature: head.temperature }});
        }}
        console.log(JSON.stringify(found));
    """
    for job, found in zip(jobs, run_node(node, script, str(tmp_path / "jobs.json")), strict=True):
        assert np.abs(np.array(found["said"]) - job["expected"]).max() < 5e-4
        assert [found["heldOut"]["right"], found["heldOut"]["n"]] == job["held_out"]
        assert found["temperature"] == pytest.approx(job["temperature"], rel=1e-3)
    assert any(job["temperature"] != 1 for job in jobs), "a head that is calibrated"


def test_digests_and_halves_are_the_usual_ones(node: str) -> None:
    draws = np.random.Generator(np.random.PCG64(1))
    texts = [draws.bytes(length) for length in (0, 1, 55, 56, 63, 64, 65, 1000)]
    values = np.concatenate([10.0 ** draws.uniform(-9, 6, 500) * draws.choice([-1, 1], 500), [0, 65504, 2.5e-8, 1e9]])
    values = np.append(values, np.arange(2048.0) * 2.0**-24 + 2.0**-25).astype(np.float32)
    script = f"""
        import {{ sha256 }} from {json.dumps((SITE / "digest.js").as_uri())};
        import {{ halvesOf }} from {json.dumps((SITE / "head.js").as_uri())};
        const [texts, values] = JSON.parse(process.argv[1]);
        const digests = texts.map((text) => sha256(Uint8Array.from(Buffer.from(text, "hex"))));
        console.log(JSON.stringify([digests, Array.from(halvesOf(Float32Array.from(values)))]));
    """
    digests, halves = run_node(node, script, json.dumps([[text.hex() for text in texts], values.tolist()]))
    assert digests == [hashlib.sha256(text).hexdigest() for text in texts]
    with np.errstate(over="ignore"):
        assert halves == values.astype(np.float16).view(np.uint16).tolist()


def test_taught_saved_opened_again_and_joined(
    page: Any, site: Path, browser: Any, net: Backbone, teachable_cache: Path, photo_source: Path, tmp_path: Path
) -> None:
    photos = {name: sorted((photo_source / name).iterdir()) for name in NAMES}
    asked = photos["discs"][11]
    assert not page.locator("#model-choice").is_visible()
    teach(page, "discs", photos["discs"][:8])
    teach(page, "stripes", photos["stripes"][:8])
    assert "16 right" in wait_until_learned(page, 2, 16)
    assert page.get_by_label("Model").input_value() == "Your classes"
    taught: dict[str, Sequence[Path]] = {name: photos[name][:8] for name in ("discs", "stripes")}
    assert same(said(page, asked), in_python(taught, net, teachable_cache, asked))
    first = saved(page, tmp_path / "first.json")
    for again in opened(browser, site):  # another day
        again.get_by_label("Open saved classes").set_input_files(first)
        wait_until_learned(again, 2, 16)
        assert same(said(again, asked), said(page, asked), 1e-6)
        teach(again, "checks", photos["checks"][:5])
        wait_until_learned(again, 3, 21)
        taught["checks"] = photos["checks"][:5]
        of_all = said(again, asked)
        assert same(of_all, in_python(taught, net, teachable_cache, asked))
        second = saved(again, tmp_path / "second.json")
    merged = merge([first, second], tmp_path / "joined.onnx", cache=teachable_cache)
    assert merged.counts == {"checks": 5, "discs": 8, "stripes": 8}
    assert (merged.copies, merged.contradictions) == (16, ())
    joined = quickstudy.load(tmp_path / "joined.onnx")
    assert joined.verify() < 1e-4
    assert same(dict(zip(joined.classes, joined.predict_proba(asked)[0].tolist(), strict=True)), of_all)
    roles = joined.roles
    assert roles is not None
    digests = {path: hashlib.sha256(path.read_bytes()).digest() for path in (asked, photos["discs"][0])}
    assert {path: roles.relation(digest) for path, digest in digests.items()} == {
        asked: "new",
        photos["discs"][0]: "trained_on",
    }


def test_the_camera_takes_twenty(page: Any, photo_source: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    teach(page, "discs", sorted((photo_source / "discs").iterdir())[:5])
    card = add_class(page, "me")
    button = card.get_by_role("button", name="Take 20 pictures")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    assert "alike" in wait_until_learned(page, 2, 25)
    expect(card.locator(".picture")).to_have_count(20)
    assert card.locator(".picture img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    page.get_by_role("button", name="Classify this picture").click()
    expect(page.locator(".result h2")).to_contain_text("me, ")
    button.click()  # again, and no longer
    card.get_by_role("button", name="Stop").click()
    expect(card.get_by_role("button", name="Take 20 pictures")).to_be_visible()
    expect(page.locator("#learned")).to_contain_text("Learned 2 classes")
    more = card.locator(".picture").count()
    assert 20 < more < 40
    for picture in card.locator(".picture").all()[20:][::-1]:
        picture.click()
    wait_until_learned(page, 2, 25)
    taught = read_taught(saved(page, tmp_path / "classes.json"))
    assert [(one.name, len({digest for _, digest in one.pictures})) for one in taught.classes] == [
        ("discs", 5),
        ("me", 20),
    ]
    page.get_by_role("button", name="Camera off").click()


def test_dropped_folders_and_what_is_refused(page: Any, photo_source: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    trouble, learned = page.get_by_role("alert").filter(visible=True), page.locator("#learned")
    photos = sorted((photo_source / "discs").iterdir())
    card = add_class(page, "  discs ")
    transfer = page.evaluate_handle(
        """texts => {
            const transfer = new DataTransfer();
            texts.forEach((text, number) => transfer.items.add(new File(
                [Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], `${number}.jpg`, { type: "image/jpeg" })));
            transfer.items.add(new File(["words"], "notes.txt", { type: "text/plain" }));
            return transfer;
        }""",
        [base64.b64encode(path.read_bytes()).decode() for path in photos[:3]],
    )
    card.dispatch_event("drop", {"dataTransfer": transfer})
    expect(card.locator(".count")).to_have_text("3 pictures")
    folder = tmp_path / "stripes"
    shutil.copytree(photo_source / "stripes", folder / "more")
    (folder / "bad.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("words")
    other = add_class(page, "lines")
    other.get_by_label("Add a folder").set_input_files(folder)
    expect(other.locator(".count")).to_have_text("12 pictures")
    wait_until_learned(page, 2, 15)
    expect(learned).to_contain_text("1 picture left out: bad.jpg: The browser cannot read this as an image")
    other.get_by_label("Add photos").set_input_files([photos[0], folder / "more" / "00.jpg"])
    expect(learned).to_contain_text("2 pictures left out: 00.jpg is in discs already")
    name = other.get_by_label("Name of the class")
    name.fill("discs")
    name.press("Tab")
    expect(trouble).to_have_text("There is a class 'discs' already.")
    expect(name).to_have_value("lines")
    name.fill("<b>stripes</b>")
    name.press("Tab")
    expect(page.locator("#about")).to_have_text("Tells 2 classes apart: <b>stripes</b>, discs.")
    expect(trouble).to_have_count(0)
    file = saved(page, tmp_path / "classes.json")
    text = file.read_text()
    for changed, words in (
        (text.replace('"version":1', '"version":7', 1), "it is of version 7; this page reads version 1"),
        (text.replace('"name":"discs"', '"name":"disks"', 1), "it has changed since it was saved"),
        ("{}", "it is no file of classes"),
        (resealed(text.replace('"name":"small","fingerprint":"', '"name":"small","fingerprint":"0')), "its network"),
    ):
        (tmp_path / "other.json").write_text(changed)
        page.get_by_label("Open saved classes").set_input_files(tmp_path / "other.json")
        expect(trouble).to_contain_text(f"other.json cannot be opened: {words}")
    other.get_by_role("button", name="Remove").click()
    expect(learned).to_have_text("Two classes with pictures are needed to learn.")
    assert not page.locator("#model-choice").is_visible()
    assert page.get_by_role("heading", level=1).inner_text() == "first"


def resealed(text: str) -> str:
    """A file of classes whose checksum fits again."""
    start, _, body = text.partition("\n")
    return f'{start[: start.index("sha256") + 9]}{hashlib.sha256(body.encode()).hexdigest()}",\n{body}'


def test_begins_with_classes_of_images(
    browser: Any, model: Path, runtime: Path, teachable_cache: Path, photo_source: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for name in NAMES[:2]:
        shutil.copytree(photo_source / name, images / "train" / name)
        (images / "test" / name).mkdir(parents=True)
        (images / "train" / name / "00.jpg").rename(images / "test" / name / "00.jpg")
    site = write_site(model, tmp_path / "site", trainable=True, start=images, runtime=runtime, cache=teachable_cache)
    for page in opened(browser, site.page):
        page.get_by_role("button", name="Begin with the 2 classes it came with").click()
        wait_until_learned(page, 2, 22)
        teach(page, "stripes", sorted((photo_source / "stripes").iterdir())[:9])
        wait_until_learned(page, 3, 31)
        taught = read_taught(saved(page, tmp_path / "classes.json"))
    digests = {digest for one in taught.classes for _, digest in one.pictures}
    tests = {hashlib.sha256(path.read_bytes()).digest() for path in (images / "test").rglob("*.jpg")}
    assert len(digests) == 31
    assert not digests & tests


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone_and_can_be_read(browser: Any, site: Path, photo_source: Path, scheme: str) -> None:
    options = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    for page in opened(browser, site, **options):
        teach(page, "discs with a long name", sorted((photo_source / "discs").iterdir())[:3])
        teach(page, "stripes", sorted((photo_source / "stripes").iterdir())[:3])
        wait_until_learned(page, 2, 6)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for button in page.locator("button:visible, .button:visible").all():
            box = button.bounding_box()
            assert box is not None
            assert box["height"] >= 44
        for selector in ("#teach .hint", ".count", ".burst", ".remove", "#learned", "#taught .name"):
            assert contrast(page, selector) >= 4.5, selector
        tree = page.locator("#teach").aria_snapshot()
        for words in ('heading "Teach it classes of your own"', 'button "Take 00.jpg out of stripes"', "status"):
            assert words in tree, tree


@pytest.mark.parametrize("fit", ["pad", "tiles3"])
def test_what_is_taught_is_what_the_model_sees(
    fit: Fit, net: Backbone, teachable_cache: Path, photo_source: Path, tmp_path: Path
) -> None:
    """The tensor that a page is told of begins with the bottleneck, whatever becomes of images that are not square."""
    for seen in (net, net.kept):
        fitted = seen.reading(16, fit)
        weights = np.zeros((fitted.cut_shape[0], 2), np.float32)
        head = LinearHead(weights=weights, biases=np.zeros(2, np.float32))
        path = tmp_path / "m.onnx"
        write_model(path, fitted, head, classes=("a", "b"), training={})
        teachable = TeachableModel.of(path.read_bytes(), path, teachable_cache)
        photo = photo_source / "discs" / "00.jpg"
        found = extract([photo], teachable.net, Store(teachable_cache / "bottlenecks"))
        bottleneck = found.gather([digest for digest in found.digests if digest])
        features = load(path, with_features=True).examine(photo.read_bytes()).features
        assert features is not None
        assert np.allclose(features[: sum(teachable.teaching.widths)], bottleneck[0], atol=2e-3)
        assert len(features) == fitted.cut_shape[0]


def test_models_that_cannot_be_taught_with(
    model: Path, net: Backbone, teachable_cache: Path, photo_source: Path, tmp_path: Path
) -> None:
    def teachable(path: Path) -> TeachableModel:
        return TeachableModel.of(path.read_bytes(), path, teachable_cache)

    assert teachable(model).teaching.widths == net.widths
    half = tmp_path / "half.onnx"
    convert(model, half, "fp16")
    assert teachable(half).teaching == teachable(model).teaching
    graph = onnx.load(model)
    graph.metadata_props.add(key="quickstudy.export", value='{"kind": "int8"}')
    with pytest.raises(ModelError, match=r"first\.onnx' cannot be taught with: 8 bits"):
        TeachableModel.of(graph.SerializeToString(), model, teachable_cache)
    with pytest.raises(ModelError, match="was trained itself"):
        teachable(write_small_model(tmp_path / "whole.onnx"))
    with pytest.raises(ModelError, match=r"The network of '.*first\.onnx' is 'small', which is needed here: Unknown"):
        TeachableModel.of(model.read_bytes(), model, tmp_path / "empty")
