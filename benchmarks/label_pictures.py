"""Makes the pictures of docs/label.md: a film of screenshots, and the page in light, dark and on a phone.

    python benchmarks/label_pictures.py --data DATA
    python benchmarks/label_pictures.py --data DATA --several                             # several labels a photo
    python benchmarks/label_pictures.py --data DATA --teach photos.onnx [--runtime TGZ]   # the page that learns

The clothing photos are labelled in a driven browser by an oracle, in a folder without labels.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from playwright.sync_api import Page, sync_playwright

from common import photos
from quickstudy.models.web import write_site

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
KEYS = "123456789abcdefghijkl"
FILM = (1100, 680)
PIECES = {"dress", "hat", "shoes", "skirt", "shorts", "t-shirt"}


class Film:
    """Gathers screenshots with the time that each is shown."""

    def __init__(self) -> None:
        self.frames: list[Image.Image] = []
        self.milliseconds: list[int] = []

    def shoot(self, page: Page, milliseconds: int) -> None:
        self.frames.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        self.milliseconds.append(milliseconds)

    def save(self, path: Path) -> None:
        first, *rest = self.frames
        first.save(path, save_all=True, append_images=rest, duration=self.milliseconds, loop=0, quality=70, method=4)
        print(f"{path}: {len(self.frames)} pictures, {path.stat().st_size / 1e6:.2f} MB")


def answer(page: Page, truth: dict[str, str], film: Film | None = None, milliseconds: int = 250) -> None:
    """Labels the photo that is shown, by the keyboard."""
    page.locator("#picture img").wait_for()
    name = page.locator("#name").inner_text()
    classes = page.locator("#one-classes .class bdi").all_inner_texts()
    wanted = truth[name]
    if wanted not in classes:
        page.keyboard.press("+")
        page.keyboard.type(wanted)
        if film:
            film.shoot(page, 600)
        page.keyboard.press("Enter")
    else:
        page.keyboard.press("Escape")
        page.keyboard.press(KEYS[classes.index(wanted)])
    page.wait_for_timeout(400)
    if film:
        film.shoot(page, milliseconds)


def lasso(page: Page, *, finish: bool = True) -> None:
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    ring = [(0.72, 0.08), (0.95, 0.12), (0.97, 0.4), (0.78, 0.5), (0.68, 0.3), (0.72, 0.1)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in ring]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    if finish:
        page.mouse.up()


def make(data: Path, folder: Path, labels: int) -> None:
    pile = folder / "photos"
    pile.mkdir()
    truth: dict[str, str] = {}
    for number, path in enumerate(photos(data / "clothing" / "train")):
        name = f"IMG_{(number * 7919) % 9973:04}.jpg"
        shutil.copy(path, pile / name)
        truth[name] = path.parent.name
    with labelling(folder) as (driver, address):
        shoot(driver, address, truth, labels)


@contextlib.contextmanager
def labelling(folder: Path, *options: str) -> Iterator[tuple[Any, str]]:
    """A browser, and the address of `quickstudy label photos`, run in a folder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "quickstudy", "label", "photos", *options, "--port", "0", "--no-open", "--quiet"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        address = ""
        while not address.startswith("http"):
            address = process.stdout.readline().strip()
        threading.Thread(target=process.stdout.read, daemon=True).start()
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            yield browser, address
            browser.close()
    finally:
        process.terminate()
        process.wait()


def several(data: Path, folder: Path, labels: int, count: int = 400) -> None:
    """Labels pictures of two pieces of clothing side by side, and shows one whose suggestion is corrected."""
    draws = random.Random(3)
    files = [path for path in photos(data / "clothing" / "train") if path.parent.name in PIECES]
    (folder / "photos").mkdir()
    truth: dict[str, set[str]] = {}
    for number in range(count):
        pair = draws.sample(files, 2)
        picture = Image.new("RGB", (1000, 700), (236, 233, 226))
        for place, path in enumerate(pair):
            with Image.open(path) as photo:
                piece = ImageOps.contain(ImageOps.exif_transpose(photo).convert("RGB"), (480, 660))
            picture.paste(piece, (20 + 490 * place, (700 - piece.height) // 2))
        picture.save(folder / "photos" / f"IMG_{number:04}.jpg", quality=88)
        truth[f"IMG_{number:04}.jpg"] = {path.parent.name for path in pair}
    with labelling(folder, "--several") as (browser, address):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(300_000)
        page.goto(address)
        for _ in range(labels):
            page.locator("#picture img").wait_for()
            switch(page, truth[page.locator("#name").inner_text()])
        while not page.locator("#reason:has-text('or not?')").count():
            page.keyboard.press("Space")
            page.wait_for_timeout(1000)
        page.wait_for_timeout(1500)
        still(page, "label_several")


def switch(page: Page, names: set[str]) -> None:
    """Switches labels until they are these, and says them, by the keyboard."""
    page.evaluate("document.activeElement.blur()")
    classes = page.locator("#one-classes .class bdi").all_inner_texts()
    on = set(page.locator("#one-classes .class[aria-pressed=true] bdi").all_inner_texts())
    for name in sorted(on ^ names):
        if name in classes:
            page.keyboard.press(KEYS[classes.index(name)])
        else:
            page.keyboard.press("+")
            page.keyboard.type(name)
            page.keyboard.press("Enter")
            page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Enter")
    page.wait_for_timeout(250)


def shoot(browser: Any, address: str, truth: dict[str, str], labels: int) -> None:
    film = Film()
    page = browser.new_page(viewport={"width": FILM[0], "height": FILM[1]})
    page.set_default_timeout(300_000)
    page.goto(address)
    page.locator("#picture img").wait_for()
    page.wait_for_timeout(3000)
    film.shoot(page, 1500)
    for _ in range(10):
        answer(page, truth, film, 350)
    for number in range(labels):
        answer(page, truth, film if number % 12 == 0 else None, 350)
    while "Looked at" in page.locator("#speed").inner_text():
        page.wait_for_timeout(500)
    for _ in range(6):
        answer(page, truth, film, 700)
    page.locator("nav a", has_text="Map").click()
    page.locator("#map-clear").wait_for(state="attached")
    while "Nothing" not in page.locator("#map-title").inner_text():
        page.wait_for_timeout(500)
    base = page.url.partition("#")[0]
    page.goto(f"{base}#grid")
    page.wait_for_timeout(2500)
    film.shoot(page, 1500)
    page.locator("#accept").click()
    page.wait_for_timeout(1500)
    film.shoot(page, 1200)
    page.keyboard.press("u")
    page.goto(f"{base}#map")
    page.wait_for_timeout(1500)
    film.shoot(page, 900)
    lasso(page, finish=False)
    film.shoot(page, 900)
    page.mouse.up()
    page.wait_for_timeout(1500)
    film.shoot(page, 1200)
    page.goto(f"{base}#one")
    page.wait_for_timeout(800)
    page.locator("#train").click()
    page.wait_for_timeout(500)
    film.shoot(page, 600)
    page.locator("#drop").wait_for()
    page.wait_for_timeout(500)
    film.shoot(page, 2500)
    film.save(PICTURES / "label.webp")
    page.close()
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        page.goto(address)
        page.locator("#picture img").wait_for()
        while not page.locator("#take").count():  # a photo drawn as a check has no suggestion
            page.keyboard.press("Space")
            page.wait_for_timeout(1500)
        page.wait_for_timeout(1500)
        still(page, f"label_{scheme}")
        if scheme == "light":
            page.goto(f"{base}#grid")
            page.wait_for_timeout(2500)
            still(page, "label_grid")
        else:
            page.goto(f"{base}#map")
            page.wait_for_timeout(2500)
            lasso(page)
            page.wait_for_timeout(1500)
            still(page, "label_map")
        page.close()
    page = browser.new_page(
        viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True
    )
    page.goto(address)
    page.locator("#picture img").wait_for()
    page.wait_for_timeout(2000)
    still(page, "label_phone")
    page.close()


def teach(model: Path, data: Path, folder: Path, runtime: Path | None) -> None:
    """Teaches the page of a model three classes of clothing photos, and tries another one."""
    page_file = write_site(model, folder, trainable=True, runtime=runtime).page
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(60_000)
        page.goto(page_file.as_uri())
        for name in ("hat", "shoes", "dress"):
            files = sorted((data / "clothing" / "test" / name).glob("*.jpg"))
            page.get_by_label("Name of a new class").fill(name)
            page.keyboard.press("Enter")
            card = page.locator("#taught .card").last
            card.get_by_label("Add photos").set_input_files(files[:11])
            card.locator(".picture").nth(10).wait_for()
        page.get_by_text("Learned 3 classes").wait_for()
        page.locator("#files").set_input_files(
            [sorted((data / "clothing" / "test" / name).glob("*.jpg"))[-1] for name in ("shoes", "hat")]
        )
        page.locator(".result").nth(1).wait_for()
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(500)
        still(page, "teach_light")
        browser.close()


def still(page: Page, name: str) -> None:
    """Keeps a screenshot."""
    path = PICTURES / f"{name}.webp"
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(path, quality=82, method=6)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=110)
    parser.add_argument("--several", action="store_true")
    parser.add_argument("--teach", type=Path, metavar="MODEL")
    parser.add_argument("--runtime", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if given.teach:
            teach(given.teach, given.data, Path(place), given.runtime)
        elif given.several:
            several(given.data, Path(place), given.labels)
        else:
            make(given.data, Path(place), given.labels)
