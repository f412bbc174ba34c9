"""The static site: what is written, and, in a real browser, the same probabilities as in Python."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from tests_of_sites import open_page, run_node

from quickstudy.backbones.backbone import Backbone
from quickstudy.errors import DownloadError, InstallationError, UnusableImageError, WriteError
from quickstudy.images.decoding import RESIZES, InputSpec, Resize, decode, to_input
from quickstudy.images.fits import FITS, Fit
from quickstudy.models import web
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.models.loading import load
from quickstudy.models.model import Model
from quickstudy.models.web import RUNTIME, write_site
from quickstudy.wording import as_percent, as_probability
from small_backbones import add_small_backbone
from small_models import CLASSES, write_small_model

ROOT = Path(__file__).parents[2]
SITE = ROOT / "src" / "quickstudy" / "models" / "site"


def classify(page: Any, model: Model, data: bytes) -> np.ndarray:
    """What the page says of a file's bytes, in the order of the classes."""
    answer = page.evaluate(
        "async (text) => window.quickstudy.classify(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]))",
        base64.b64encode(data).decode(),
    )
    assert [entry["name"] for entry in answer] == list(model.classes)
    return np.array([entry["probability"] for entry in answer])


def test_the_page_of_a_site(runtime: Path, tmp_path: Path) -> None:
    model = write_small_model(tmp_path / "patterns.onnx")
    site = write_site(model, tmp_path / "site", runtime=runtime)
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["index.html"]
    html = site.page.read_bytes()
    assert site.bytes == len(html)
    [packed] = re.findall(rb'data-file="model.onnx">([^<]*)<', html)
    assert gzip.decompress(base64.b64decode(packed)) == model.read_bytes()
    [described] = re.findall(rb'data-text="model.json">([^<]*)<', html)
    assert json.loads(described) == {
        "title": "patterns",
        "classes": list(CLASSES),
        "test": load(model).metadata["training"]["test"],
        **InputSpec(size=32).to_dict(),
    }
    # Nothing is loaded from anywhere, and nothing can be sent.
    assert not re.search(rb'<[^>]*\s(src|href)="(?!data:)', re.sub(rb"<script.*?</script>", b"", html, flags=re.S))
    [policy] = re.findall(rb'Content-Security-Policy" content="([^"]*)"', html)
    assert b"connect-src" not in policy
    assert policy.startswith(b"default-src 'none';")
    # Again, from the unpacked package.
    shutil.unpack_archive(runtime, tmp_path / "unpacked", format="gztar", filter="data")
    again = write_site(model, tmp_path / "again", runtime=tmp_path / "unpacked" / "package")
    assert again.page.read_bytes() == html
    # The page is the one that `quickstudy serve` has; only the model behind it is another.
    app = (ROOT / "src" / "quickstudy" / "serving" / "page").iterdir()
    assert [path.name for path in app] == ["classifier.js"]
    # Over itself it may be written, over another page it may not.
    write_site(model, tmp_path / "again", runtime=runtime)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "index.html").write_text("mine")
    with pytest.raises(WriteError, match=r"'.*home' has an index\.html of its own, which would be overwritten"):
        write_site(model, tmp_path / "home", runtime=runtime)
    assert (tmp_path / "home" / "index.html").read_text() == "mine"


def test_a_runtime_that_is_another_is_refused(tmp_path: Path) -> None:
    model = write_small_model(tmp_path / "small.onnx")
    (tmp_path / "other.tgz").write_bytes(b"something else")
    with pytest.raises(DownloadError, match=r"is not the npm package onnxruntime-web@.*: its hash differs"):
        write_site(model, tmp_path / "site", runtime=tmp_path / "other.tgz")
    with pytest.raises(DownloadError, match=r"Cannot read '.*none.tgz'"):
        write_site(model, tmp_path / "site", runtime=tmp_path / "none.tgz")
    folder = tmp_path / "dist"
    folder.mkdir()
    with pytest.raises(DownloadError, match="is not the package onnxruntime-web"):
        write_site(model, tmp_path / "site", runtime=folder)
    for name in web.RUNTIME_FILES:
        (folder / name).write_text("alert(1)")
    with pytest.raises(DownloadError, match=r"'ort\.wasm\.min\.mjs' is not that of onnxruntime-web@"):
        write_site(model, tmp_path / "site", runtime=folder)
    assert not (tmp_path / "site").exists()


def test_npm_is_asked_once(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its ordinary command; afterwards the cache has it."""
    model = write_small_model(tmp_path / "small.onnx")
    calls: list[list[str]] = []

    def run(command: list[str], *, cwd: str, **options: object) -> None:
        calls.append(command)
        shutil.copy(runtime, Path(cwd) / "package.tgz")

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        write_site(model, tmp_path / "site", cache=tmp_path / "cache")
    [command] = calls
    assert command[1] == "pack"
    assert command[-1] == RUNTIME
    assert "--ignore-scripts" in command
    [archive] = (tmp_path / "cache" / "web").iterdir()
    archive.write_bytes(b"damaged")
    write_site(model, tmp_path / "site", cache=tmp_path / "cache")
    assert (len(calls), archive.read_bytes()) == (2, runtime.read_bytes())


def test_what_npm_gives_is_kept_only_if_it_is_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, cwd: str, **options: object) -> None:
        (Path(cwd) / "package.tgz").write_bytes(b"something else")

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DownloadError, match=r"is another package: its hash differs.*--runtime"):
        write_site(write_small_model(tmp_path / "small.onnx"), tmp_path / "site", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.tgz"))


def test_without_npm_or_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_small_model(tmp_path / "small.onnx")

    def fail(command: list[str], **options: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="npm error code ENOTFOUND\nnpm error no network\n")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/npm")
    with pytest.raises(DownloadError, match=r"npm cannot fetch onnxruntime-web@.*: npm error no network.*--runtime"):
        write_site(model, tmp_path / "site", cache=tmp_path / "cache")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InstallationError, match=r"npm is not installed here.*--runtime"):
        write_site(model, tmp_path / "site", cache=tmp_path / "cache")


def test_the_pages_arithmetic_is_pythons(node: str, tmp_path: Path) -> None:
    """All fits, reduction and resize, to the bit, on noise of many shapes."""
    draws = np.random.Generator(np.random.PCG64(0))
    jobs = []
    shapes = [
        (32, 32, 32, 1.0), (33, 47, 32, 1.0), (63, 64, 32, 1.0), (64, 90, 32, 1.0), (131, 257, 32, 1.0),
        (300, 401, 64, 0.875), (517, 300, 37, 0.9), (5, 9, 32, 1.0), (1, 1, 8, 1.0), (1, 70, 8, 1.0),
        (2, 3, 50, 1.0), (29, 29, 16, 0.5), (1000, 700, 20, 1.0),
    ]  # fmt: skip
    specs = [(*sides, InputSpec(size=size, crop=crop)) for *sides, size, crop in shapes]
    specs += [(*sides, InputSpec(size=size, fit=fit)) for *sides, size, _ in shapes for fit in FITS]
    specs += [(*sides, InputSpec(size=size, crop=crop, resize=way)) for *sides, size, crop in shapes for way in RESIZES]
    specs += [
        (*sides, InputSpec(size=size, fit=fit, resize=way))
        for *sides, size, _ in shapes[::2]
        for fit in FITS
        for way in RESIZES[1:]
    ]
    for number, (width, height, spec) in enumerate(specs):
        pixels = draws.integers(0, 256, (height, width, 3), np.uint8)
        (tmp_path / f"{number}.raw").write_bytes(pixels.tobytes())
        expected = hashlib.sha256(to_input(pixels, spec).tobytes()).hexdigest()
        jobs.append(
            {
                "path": str(tmp_path / f"{number}.raw"),
                "width": width,
                "height": height,
                "spec": spec.to_dict(),
                "expected": expected,
            }
        )
    script = f"""
        import {{ toInput }} from {json.dumps((SITE / "pixels.js").as_uri())};
        import fs from "node:fs";
        import crypto from "node:crypto";
        const jobs = JSON.parse(process.argv[1]);
        const hashes = jobs.map(({{ path, width, height, spec }}) => crypto.createHash("sha256")
          .update(toInput({{ width, height, data: new Uint8Array(fs.readFileSync(path)) }}, spec)).digest("hex"));
        console.log(JSON.stringify(hashes));
    """
    assert run_node(node, script, json.dumps(jobs)) == [job["expected"] for job in jobs]


def test_the_pages_words_for_shares_and_probabilities_are_pythons(node: str) -> None:
    shares = [0, 1, 0.0004, 0.0006, 0.004, 0.996, 0.9994, 0.9996, 1 - 1e-9, 299 / 300, 1 / 300, 4999 / 5000, 0.914]
    shares += np.random.Generator(np.random.PCG64(0)).random(200).tolist()
    script = f"""
        import {{ percent, sure }} from {json.dumps((SITE / "elements.js").as_uri())};
        const shares = JSON.parse(process.argv[1]);
        const words = shares.flatMap((share) => [percent(share, 0), sure(share, 0), percent(share), sure(share)]);
        console.log(JSON.stringify(words.map((text) => text.replace("\\u00a0", " "))));
    """
    expected = [write(share, digits) for share in shares for digits in (0, 1) for write in (as_percent, as_probability)]
    assert run_node(node, script, json.dumps(shares)) == expected


def test_reduced_jpegs_are_those_of_libjpeg(node: str, test_data: Path, tmp_path: Path) -> None:
    """To the bit: samplings, progressive or not, restart markers, sides that do not divide, grey."""
    photos = sorted((test_data / "clothing" / "test").rglob("*.jpg"))[::9]
    jobs = []
    for number, (subsampling, progressive, cut, restart) in enumerate(
        (s, p, c, r) for s in ("4:4:4", "4:2:2", "4:2:0", "grey") for p in (False, True) for c in (0, 5) for r in (0, 3)
    ):
        picture = Image.open(photos[number])
        picture = picture.crop((0, 0, picture.width - cut, picture.height - cut - 2))
        options = {"quality": (30, 75, 95)[number % 3], "progressive": progressive, "restart_marker_blocks": restart}
        path = tmp_path / f"{number}.jpg"
        if subsampling == "grey":
            picture.convert("L").save(path, **options)
        else:
            picture.save(path, subsampling=subsampling, **options)
        for factor in (2, 4, 8):
            height, width = -(-picture.height // factor), -(-picture.width // factor)
            pixels = simplejpeg.decode_jpeg(path.read_bytes(), min_height=height, min_width=width)
            assert pixels.shape == (height, width, 3)
            expected = hashlib.sha256(pixels.tobytes()).hexdigest()
            jobs.append({"path": str(path), "factor": factor, "expected": expected})
    script = f"""
        import {{ decodeReduced }} from {json.dumps((SITE / "jpeg.js").as_uri())};
        import fs from "node:fs";
        import crypto from "node:crypto";
        const jobs = JSON.parse(process.argv[1]);
        const hashes = jobs.map(({{ path, factor }}) => crypto.createHash("sha256")
          .update(decodeReduced(new Uint8Array(fs.readFileSync(path)), factor).data).digest("hex"));
        console.log(JSON.stringify(hashes));
    """
    assert run_node(node, script, json.dumps(jobs)) == [job["expected"] for job in jobs]


def test_a_png_of_more_bits_than_browsers_give_is_refused_where_the_model_reads_them(node: str, tmp_path: Path) -> None:
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 16
    Image.fromarray(levels).save(tmp_path / "16.png")
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "8.png")
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "8.jpg")
    script = f"""
        import fs from "node:fs";
        import {{ bitsBeyond }} from {json.dumps((SITE / "decoding.js").as_uri())};
        const specs = [{{ size: 4 }}, {{ size: 4, bits: 12 }}];
        const files = process.argv.slice(1).map((path) => fs.readFileSync(path));
        console.log(JSON.stringify(specs.map((spec) => files.map((bytes) => bitsBeyond(bytes, spec)))));
    """
    said = run_node(node, script, *(str(tmp_path / name) for name in ("16.png", "8.png", "8.jpg")))
    assert said == [[False] * 3, [True, False, False]]


def test_jpegs_that_it_cannot_reduce_are_left_to_the_browser(node: str, tmp_path: Path) -> None:
    """Null, no exception and no endless loop, for what is unusual, damaged or cut short."""
    picture = Image.fromarray(np.random.Generator(np.random.PCG64(0)).integers(0, 256, (64, 48, 3), np.uint8))
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:300])
    (tmp_path / "noise.jpg").write_bytes(b"\xff\xd8" + np.random.Generator(np.random.PCG64(1)).bytes(5000))
    paths = [str(tmp_path / name) for name in ("cmyk.jpg", "cut.jpg", "noise.jpg")]
    script = f"""
        import {{ decodeReduced }} from {json.dumps((SITE / "jpeg.js").as_uri())};
        import fs from "node:fs";
        const read = (path) => decodeReduced(new Uint8Array(fs.readFileSync(path)), 2);
        console.log(JSON.stringify(process.argv.slice(1).map(read)));
    """
    assert run_node(node, script, *paths) == [None, None, None]


def mosaic(photos: list[Path], *, orientation: int) -> bytes:
    """Four photos as one, so large that Python decodes it at half the size or less, turned as a phone does."""
    pictures = [Image.open(path) for path in photos]
    width, height = min(p.width for p in pictures), min(p.height for p in pictures)
    large = Image.new("RGB", (2 * width + 3, 2 * height + 5))
    for number, picture in enumerate(pictures):
        large.paste(picture.crop((0, 0, width + 3, height + 5)), ((number % 2) * width, (number // 2) * height))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    large.save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("count", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_the_browser_gives_pythons_probabilities_on_photos(
    runtime: Path, browser: Any, serve: Any, test_data: Path, backbone: Backbone, tmp_path: Path, count: int
) -> None:
    """To 1e-3 as promised; it is 1e-6. With a head of random weights, which lets no difference pass."""
    draws = np.random.Generator(np.random.PCG64(0))
    names = ("a", "b", "c", "d")
    head = LinearHead(
        weights=draws.normal(0, 0.05, (backbone.cut_shape[0], len(names))).astype(np.float32),
        biases=np.zeros(len(names), np.float32),
    )
    write_model(tmp_path / "model.onnx", backbone, head, classes=names, training={})
    model = load(tmp_path / "model.onnx")
    write_site(tmp_path / "model.onnx", tmp_path / "site", runtime=runtime)
    photos = sorted((test_data / "clothing" / "test").rglob("*.jpg"))[::7][:50]
    assert len(photos) == 50
    files = [photo.read_bytes() for photo in photos[:count]]
    files += [mosaic(photos[4 * n : 4 * n + 4], orientation=n + 1) for n in range(8)]
    factors = {min(decode(data, model.input).shape[:2]) for data in files[count:]}
    assert max(factors) < 500, "these are decoded at half the size"
    page, complaints = open_page(browser, serve(tmp_path / "site"))
    worst = 0.0
    for number, data in enumerate(files):
        (tmp_path / "photo.jpg").write_bytes(data)
        difference = np.abs(classify(page, model, data) - model.predict_proba(tmp_path / "photo.jpg")[0]).max()
        assert difference < 1e-3, number
        worst = max(worst, float(difference))
    assert worst < 2e-5
    assert complaints == []


@pytest.mark.parametrize(
    ("fit", "resize"),
    [
        ("pad", "reduce-bilinear-1"),
        ("squash", "reduce-bilinear-1"),
        ("tiles3", "reduce-bilinear-1"),
        ("crop", "pillow-bicubic-1"),
        ("squash", "pillow-bilinear-1"),
    ],
)
def test_the_browser_follows_fit_and_filter(
    fit: Fit, resize: Resize, runtime: Path, browser: Any, serve: Any, photo_source: Path, tmp_path: Path
) -> None:
    """On JPEGs that both decode at full size and at a fraction of it, upright and lying, with random weights."""
    net = add_small_backbone(tmp_path / "cache").reading(16, fit)
    net = replace(net, input=replace(net.input, resize=resize))
    weights = np.random.Generator(np.random.PCG64(0)).normal(size=(net.cut_shape[0], 3)).astype(np.float32)
    head = LinearHead(weights=weights, biases=np.zeros(3, np.float32))
    write_model(tmp_path / "fitted.onnx", net, head, classes=("a", "b", "c"), training={})
    model = load(tmp_path / "fitted.onnx")
    write_site(tmp_path / "fitted.onnx", tmp_path / "site", runtime=runtime)
    page, complaints = open_page(browser, serve(tmp_path / "site"))
    photo = Image.open(photo_source / "discs" / "03.jpg")
    for width, height in ((320, 110), (110, 320), (60, 50), (300, 33)):
        path = tmp_path / f"{width}.jpg"
        photo.resize((width, height)).save(path, quality=90)
        difference = np.abs(classify(page, model, path.read_bytes()) - model.predict_proba(path)[0]).max()
        assert difference < 1e-5, (width, height)
    assert complaints == []


def test_other_formats_and_broken_files(runtime: Path, browser: Any, serve: Any, tmp_path: Path) -> None:
    model = load(write_small_model(tmp_path / "small.onnx"))
    write_site(tmp_path / "small.onnx", tmp_path / "site", runtime=runtime)
    page, _ = open_page(browser, serve(tmp_path / "site"))
    draws = np.random.Generator(np.random.PCG64(3))
    picture = Image.fromarray(draws.integers(0, 256, (50, 70, 4), np.uint8))
    cases = {
        "PNG": (picture.convert("RGB"), 1e-5),
        "BMP": (picture.convert("RGB"), 1e-5),
        "WEBP": (picture.convert("RGB"), 1e-5),
        "GIF": (picture.convert("RGB").quantize(64), 1e-5),
        "PNG with alpha": (picture, 2e-2),  # laid over white by another arithmetic: within a level
    }
    for name, (image, tolerance) in cases.items():
        path = tmp_path / f"{name}.{name[:4].strip().lower()}"
        image.save(path, name.split()[0], **({"lossless": True} if name == "WEBP" else {}))
        difference = np.abs(classify(page, model, path.read_bytes()) - model.predict_proba(path)[0]).max()
        assert difference < tolerance, name
    for data in (b"", b"no image", b"\xff\xd8\xff\xe1\x00\x10Exif\x00\x00II"):
        with pytest.raises(Exception, match="cannot read this as an image"):
            classify(page, model, data)


def test_the_page_in_use(runtime: Path, browser: Any, serve: Any, photo_source: Path, tmp_path: Path) -> None:
    """By role and label, as a screen reader finds things; on a phone's screen; in the dark."""
    from playwright.sync_api import expect

    model = load(write_small_model(tmp_path / "patterns.onnx"))
    write_site(tmp_path / "patterns.onnx", tmp_path / "site", runtime=runtime)
    page, complaints = open_page(browser, serve(tmp_path / "site"))
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.title() == "patterns – quickstudy"
    assert page.locator("#note").inner_text() == "Photos are classified in this browser. They are not sent anywhere."
    assert not page.get_by_role("link", name="API").is_visible()
    photo = photo_source / "discs" / "03.jpg"
    page.get_by_label("Choose photos").set_input_files(photo)
    [probabilities] = model.predict_proba(photo)
    order = probabilities.argsort()[::-1]
    best = f"{model.classes[order[0]]}, {as_probability(probabilities[order[0]])}"
    expect(page.get_by_role("status")).to_have_text(f"03.jpg: {best}")
    assert page.locator(".result h2").all_inner_texts() == [best.replace(" %", "\u00a0%")]
    items = page.locator(".classes li")
    expect(items).to_have_count(len(CLASSES))
    for place, number in enumerate(order):  # names are text, whatever they look like
        expect(items.nth(place)).to_contain_text(model.classes[number])
        expect(items.nth(place)).to_contain_text(as_probability(probabilities[number]))
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    light = page.evaluate("getComputedStyle(document.body).color")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") != light
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    page.get_by_label("Choose photos").set_input_files(tmp_path / "bad.jpg")
    expect(page.get_by_role("status")).to_have_text("bad.jpg: The browser cannot read this as an image.")
    expect(page.locator(".result.unusable h2")).to_have_text("The browser cannot read this as an image.")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") in ("files", "camera-start")
    assert complaints == []


def test_the_camera(runtime: Path, browser: Any, serve: Any, tmp_path: Path) -> None:
    """Chromium has a make-believe camera; what it shows is classified."""
    from playwright.sync_api import expect

    write_small_model(tmp_path / "small.onnx")
    write_site(tmp_path / "small.onnx", tmp_path / "site", runtime=runtime)
    page, complaints = open_page(browser, serve(tmp_path / "site"))
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Classify this picture").click(timeout=20_000)
    expect(page.get_by_role("status")).to_contain_text("camera: ", timeout=20_000)
    page.get_by_role("button", name="Camera off").click()
    expect(page.get_by_role("button", name="Use the camera")).to_be_focused()
    assert complaints == []


def test_the_page_judges_damage_as_python_does(node: str, tmp_path: Path) -> None:
    """Cut with an end marker behind, zeros inside, a scan missing: damaged. No end marker, padding, a video: not."""
    draws = np.random.Generator(np.random.PCG64(5))
    rough = Image.fromarray(draws.integers(0, 256, (40, 30, 3), np.uint8)).resize((300, 200))

    def encoded(**options: Any) -> bytes:
        file = io.BytesIO()
        rough.save(file, "JPEG", quality=90, **options)
        return file.getvalue()

    files: dict[str, bytes] = {}
    for kind, data in {
        "baseline": encoded(),
        "progressive": encoded(progressive=True),
        "restarts": encoded(restart_marker_blocks=3),
        "444": encoded(subsampling=0),
    }.items():
        third = len(data) // 3
        last = data.rindex(b"\xff\xda")
        files |= {
            f"{kind} whole": data,
            f"{kind} without its end": data[:-2],
            f"{kind} with a video behind": data + draws.bytes(5000),
            f"{kind} padded": data[:-2] + bytes(40) + data[-2:],
            f"{kind} cut": data[:third] + b"\xff\xd9",
            f"{kind} with zeros inside": data[:third] + bytes(1500) + data[third + 1500 :],
            f"{kind} without its last bytes": data[:-20],
        }
        if kind == "progressive":
            files["its last scan is missing"] = data[:last] + b"\xff\xd9"
    for number, data in enumerate(files.values()):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    script = f"""
        import {{ examine }} from {json.dumps((SITE / "jpeg.js").as_uri())};
        import fs from "node:fs";
        const said = process.argv.slice(1).map((path) => examine(new Uint8Array(fs.readFileSync(path))).damage);
        console.log(JSON.stringify(said));
    """
    said = run_node(node, script, *(str(tmp_path / f"{number}.jpg") for number in range(len(files))))
    for (name, data), damage in zip(files.items(), said, strict=True):
        try:
            decode(data, InputSpec(size=32))
            refused = False
        except UnusableImageError:
            refused = True
        assert refused == any(word in name for word in ("cut", "zeros", "last bytes", "last scan")), name
        assert bool(damage) == refused, (name, damage)


def test_the_page_takes_profile_orientation_and_end_from_the_segments(node: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "JPEG")
    data, exif = file.getvalue(), Image.Exif()
    exif[0x0112] = 6
    tags = exif.tobytes()

    def segment(marker: int, content: bytes) -> bytes:
        return b"\xff" + bytes([marker]) + (len(content) + 2).to_bytes(2, "big") + content

    wide = segment(0xE2, b"ICC_PROFILE\0\1\1" + b"Display P3 \xff\xda" + bytes(40))
    plain = segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\0s\0R\0G\0B IEC61966-2.1" + bytes(40))
    files = [data[:2] + wide + segment(0xE1, tags) + data[2:] + b"\xff\xd8video", data[:2] + plain + data[2:-2]]
    for number, content in enumerate(files):
        (tmp_path / f"{number}.jpg").write_bytes(content)
    script = f"""
        import {{ plainJpeg }} from {json.dumps((SITE / "decoding.js").as_uri())};
        import fs from "node:fs";
        const said = process.argv.slice(1).map((path) => {{
          const {{ parts, orientation, managed }} = plainJpeg(new Uint8Array(fs.readFileSync(path)));
          return {{ orientation, managed, bytes: parts.reduce((sum, part) => sum + part.length, 0) }};
        }});
        console.log(JSON.stringify(said));
    """
    assert run_node(node, script, str(tmp_path / "0.jpg"), str(tmp_path / "1.jpg")) == [
        {"orientation": 6, "managed": True, "bytes": len(data) + len(wide)},
        {"orientation": 1, "managed": False, "bytes": len(data)},
    ]
