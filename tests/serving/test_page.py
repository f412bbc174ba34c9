"""The page in a real browser: photos, the camera, the keyboard, a phone's screen, a token, no other server."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import quickstudy
from collages import make_collages, write_manifest
from pages import contrast
from quickstudy.wording import as_probability
from servers import Running, Start, servers
from small_backbones import add_small_backbone

sync_api = pytest.importorskip("playwright.sync_api")

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with servers("serve", tmp_path_factory.mktemp("page")) as start:
        yield start(trained / "photos.onnx", f"other={trained / 'two.onnx'}")


@pytest.fixture
def page(browser: sync_api.Browser, server: Running) -> Iterator[sync_api.Page]:
    yield from opened(browser, server)


def opened(browser: sync_api.Browser, server: Running, **options: object) -> Iterator[sync_api.Page]:
    """A page that has been loaded; whatever it asks another server for, or complains of, fails the test."""
    context = browser.new_context(**options)
    page = context.new_page()
    foreign: list[str] = []
    complaints: list[str] = []
    page.on(
        "request", lambda r: foreign.append(r.url) if not r.url.startswith((server.address, "blob:", "data:")) else None
    )
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.address)
    yield page
    context.close()
    assert foreign == []
    assert [line for line in complaints if "status of 4" not in line] == []  # refusals are answers, too


def shown(text: str) -> str:
    """Return a text as the page has it, where a number and its sign stay on one line."""
    return text.replace(" %", "\u00a0%")


def test_photos_are_classified_as_by_the_model(page: sync_api.Page, trained: Path, photo_source: Path) -> None:
    paths = [photo_source / name / "02.jpg" for name in ("checks", "discs", "stripes")]
    page.get_by_label("Choose photos").set_input_files(paths)
    page.locator(".result").nth(2).wait_for()
    expected = quickstudy.load(trained / "photos.onnx").predict_proba(paths).max(axis=1)
    headings = page.locator(".result h2").all_inner_texts()[::-1]  # the newest is on top
    assert headings == [
        shown(f"{path.parent.name}, {as_probability(share)}") for path, share in zip(paths, expected, strict=True)
    ]
    rows = page.locator(".result").first.locator(".classes li").all_inner_texts()
    assert len(rows) == 3
    assert sum(float(row.split()[-2]) for row in rows) == pytest.approx(100, abs=0.2)
    assert page.locator(".result .picture").first.evaluate("image => image.naturalWidth") == 320


def test_shows_the_nearest_training_images_where_they_were_kept(page: sync_api.Page, photo: Path) -> None:
    sync_api.expect(page.locator("#note")).to_contain_text("were kept; the nearest")
    page.get_by_label("Choose photos").set_input_files(photo)
    thumbnails = page.locator(".neighbours img")
    sync_api.expect(thumbnails).to_have_count(6)
    assert thumbnails.first.get_attribute("alt") == "training image of discs"
    assert thumbnails.first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 96


def test_says_that_none_were_kept_and_serves_several_models(page: sync_api.Page, photo: Path) -> None:
    page.get_by_label("Model").select_option("other")
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("other")
    sync_api.expect(page.locator("#note")).to_contain_text("were not kept")
    page.get_by_label("Choose photos").set_input_files(photo)
    page.locator(".result").wait_for()
    assert page.locator(".classes li").count() == 2
    assert not page.locator(".neighbours").is_visible()


def test_a_file_that_is_no_image_says_why(page: sync_api.Page, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(photo.read_bytes()[:4000])
    page.get_by_label("Choose photos").set_input_files([tmp_path / "bad.jpg", photo])
    page.locator(".result").nth(1).wait_for()
    assert page.locator(".result h2").all_inner_texts()[1].startswith("truncated (the scan ends after ")
    assert page.locator(".result.unusable").count() == 1


def test_dropped_and_pasted_photos(page: sync_api.Page, photo: Path) -> None:
    for event, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        transfer = page.evaluate_handle(
            """numbers => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(numbers)], "given.jpg", { type: "image/jpeg" }));
                return transfer;
            }""",
            list(photo.read_bytes()),
        )
        if event == "drop":
            page.dispatch_event("#drop", "drop", {field: transfer})
        else:
            page.evaluate(
                "data => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))", transfer
            )
    page.locator(".result").nth(1).wait_for()
    assert all(text.startswith("discs") for text in page.locator(".result h2").all_inner_texts())


def test_the_cameras_picture_is_what_is_classified(page: sync_api.Page, server: Running, trained: Path) -> None:
    page.get_by_role("button", name="Use the camera").click()
    video = page.locator("#video")
    video.wait_for()
    page.evaluate(
        """() => {
            const ask = window.fetch;
            window.fetch = (path, options) => { window.sent = options.body; return ask(path, options); };
        }"""
    )
    page.get_by_role("button", name="Classify this picture").click()
    page.locator(".result").wait_for()
    sent = bytes(page.evaluate("sent.arrayBuffer().then((buffer) => Array.from(new Uint8Array(buffer)))"))
    with Image.open(io.BytesIO(sent)) as picture:
        assert picture.size == (video.evaluate("v => v.videoWidth"), video.evaluate("v => v.videoHeight"))
        assert np.asarray(picture).std() > 10  # a picture, not a black frame
        [label] = quickstudy.load(trained / "photos.onnx").predict(picture)
    assert page.locator(".result h2").inner_text().startswith(label)
    page.get_by_role("button", name="Camera off").click()
    assert not video.is_visible()
    assert page.evaluate("document.getElementById('video').srcObject") is None


def test_works_from_the_keyboard(page: sync_api.Page, photo: Path) -> None:
    page.on("filechooser", lambda _: None)  # early: a chooser that opens before Playwright listens is lost
    reached = []
    page.get_by_label("Model").wait_for()
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert reached[:4] == ["model", "files", "camera-start", "documentation-link"]
    page.locator("#files").focus()
    outline = page.locator("label[for=files]").evaluate("label => getComputedStyle(label).outlineStyle")
    assert outline == "solid"  # one sees where one is
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(photo)
    page.locator(".result").wait_for()
    page.locator("#camera-start").focus()
    page.keyboard.press("Enter")
    page.locator("#video").wait_for()
    sync_api.expect(page.locator("#camera-shoot")).to_be_focused()


def test_a_screen_reader_is_told_what_happens(page: sync_api.Page, photo: Path) -> None:
    status = page.get_by_role("status")
    assert status.get_attribute("aria-live") == "polite"
    page.get_by_label("Choose photos").set_input_files(photo)
    sync_api.expect(status).to_contain_text("03.jpg: discs,")
    tree = page.locator("main").aria_snapshot()
    for words in ('heading "photos"', 'list "Results"', 'img "03.jpg"', 'heading "discs', 'button "Choose photos"'):
        assert words in tree, tree
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, select, img, video, a')].filter(
            (e) => e.getAttribute('aria-hidden') !== 'true' && !e.closest('[hidden]') && !(e.labels && e.labels.length)
                && !e.alt && !e.textContent && !e.ariaLabel).map((e) => e.outerHTML)"""
    )
    assert unnamed == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone_and_can_be_read(browser: sync_api.Browser, server: Running, photo: Path, scheme: str) -> None:
    options = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    for page in opened(browser, server, **options):
        page.get_by_label("Choose photos").set_input_files(photo)
        page.locator(".neighbours img").nth(5).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for button in page.locator("button:visible, .button:visible").all():
            box = button.bounding_box()
            assert box is not None
            assert box["height"] >= 44
        for selector in ("body", "#about", ".file", "#camera-start", "a", ".classes span"):
            assert contrast(page, selector) >= 4.5, selector


def test_asks_for_the_token(browser: sync_api.Browser, start: Start, trained: Path, photo: Path) -> None:
    for page in opened(browser, start(trained / "photos.onnx", "--token", TOKEN)):
        page.get_by_label("This server needs a token").fill("not this one")
        page.keyboard.press("Enter")
        sync_api.expect(page.get_by_role("status")).to_contain_text("needs a token")
        page.get_by_label("This server needs a token").fill(TOKEN)
        page.keyboard.press("Enter")
        sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("photos")
        page.get_by_label("Choose photos").set_input_files(photo)
        page.locator(".result").wait_for()


def test_names_are_shown_as_text_whatever_they_are(page: sync_api.Page, tmp_path: Path, photo: Path) -> None:
    odd = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    shutil.copy(photo, odd)
    page.get_by_label("Choose photos").set_input_files(odd)
    page.locator(".result").wait_for()
    assert page.locator(".file").inner_text() == odd.name


def test_the_documentation_can_be_read_without_scripts(browser: sync_api.Browser, server: Running) -> None:
    for page in opened(browser, server, java_script_enabled=False):
        page.goto(f"{server.address}/docs")
        assert page.get_by_role("heading", name="POST /predict", exact=True).is_visible()


def test_several_labels_are_all_named(browser: sync_api.Browser, start: Start, tmp_path: Path) -> None:
    write_manifest(tmp_path / "tags.csv", make_collages(tmp_path / "img", 80, side=32), folder="img/")
    add_small_backbone(tmp_path / "cache")
    quickstudy.retrain(
        tmp_path / "tags.csv", tmp_path / "m.onnx", cache=tmp_path / "cache", backbone="small", several=True
    )
    model = quickstudy.load(tmp_path / "m.onnx")
    paths = [tmp_path / "img" / f"{number:05}.jpg" for number in range(8)]
    for page in opened(browser, start(tmp_path / "m.onnx")):
        sync_api.expect(page.locator("#about")).to_contain_text(
            "Gives any of 3 labels: checks, discs, stripes. All labels"
        )
        page.get_by_label("Choose photos").set_input_files(paths)
        page.locator(".result").nth(7).wait_for()
        headings = page.locator(".result h2").all_inner_texts()[::-1]
        for labels, heading in zip(model.predict_labels(paths), headings, strict=True):
            assert heading == ", ".join(labels) or (not labels and heading.startswith("none of the labels"))
        marked = page.locator(".result").last.locator(".classes .given").count()
        assert marked == len(model.predict_labels(paths[0])[0])


def test_a_shift_is_told_in_words(browser: sync_api.Browser, start: Start, wary: Path, tmp_path: Path) -> None:
    for number in range(60):
        Image.new("RGB", (64, 64), (4 * number, 0, 255)).save(tmp_path / f"blue{number}.png")
    for page in opened(browser, start(wary)):
        assert not page.locator("#drift").is_visible()
        page.get_by_label("Choose photos").set_input_files([tmp_path / f"blue{number}.png" for number in range(60)])
        page.locator(".result").nth(59).wait_for()
        sync_api.expect(page.locator("#drift")).to_contain_text("the photos look different from those that the model")
