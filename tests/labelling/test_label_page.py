"""The page in a real browser: by the keyboard alone, in the grid, on the map, in two windows, on a phone, restarted."""

from __future__ import annotations

import csv
import io
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests_of_labelling import act, api, opened_at, state, truth_of, wait_for

import quickstudy
from drawn_photos import draw_photo
from pages import contrast
from servers import Running, Start

sync_api = pytest.importorskip("playwright.sync_api")
KEYS = "123456789"


@pytest.fixture
def server(start: Start, pile: Path) -> Running:
    return start("pile")


@pytest.fixture
def page(browser: sync_api.Browser, server: Running) -> Iterator[sync_api.Page]:
    yield from opened(browser, server)


def opened(browser: sync_api.Browser, server: Running, **options: Any) -> Iterator[sync_api.Page]:
    """The page once it shows a photo; whatever it asks another server for, or complains of, fails the test."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(120_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    own = (server.address, "blob:", "data:")
    page.on("request", lambda r: complaints.append(r.url) if not r.url.startswith(own) else None)
    page.goto(opened_at(server))
    page.locator("#picture img").wait_for()
    yield page
    context.close()
    refusals = ("status of 4", "ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
    assert [line for line in complaints if not any(known in line for known in refusals)] == []


def shown(page: sync_api.Page) -> str:
    return page.locator("#name").inner_text()


def answer(page: sync_api.Page, name: str) -> None:
    """Gives the photo that is shown a class, with keys alone, and waits for the next."""
    before = shown(page)
    classes = page.locator("#one-classes .class bdi").all_inner_texts()
    if name in classes:
        page.keyboard.press("Escape")
        page.keyboard.press(KEYS[classes.index(name)])
    else:
        page.keyboard.press("+")
        page.keyboard.type(name)
        page.keyboard.press("Enter")
    page.wait_for_timeout(20)
    sync_api.expect(page.locator("#name")).not_to_have_text(before)


def expect(locator: sync_api.Locator) -> Any:
    return sync_api.expect(locator)


def saved(page: sync_api.Page) -> None:
    expect(page.locator("#progress-words")).not_to_contain_text("saving", timeout=60_000)


def label_all(server: Running, answers: dict[str, str], leave: int = 0) -> None:
    """Labels all photos but some by the API, as another window would; those of one picture are answered at once."""
    wanted = len(answers) - leave
    with api(server.address) as client:
        wait_for(client, lambda s: s["extracted"])
        while (now := wait_for(client, lambda s: s["next"] or s["answered"] >= wanted))["answered"] < wanted:
            act(client, now["next"][0], answers[now["next"][0]["name"]], who="other")


def test_from_a_pile_to_a_confirmed_model_by_the_keyboard_alone(
    page: sync_api.Page, server: Running, tmp_path: Path, answers: dict[str, str]
) -> None:
    expect(page.locator("#one-classes input")).to_be_focused()  # nothing is named yet, so one can type at once
    for _ in range(24):
        answer(page, answers[shown(page)])
    saved(page)
    expect(page.locator("#honest")).to_contain_text("drawn at random", timeout=60_000)
    accepted = 0
    for _ in range(12):
        name = shown(page)
        if not name:
            break
        if "random" in page.locator("#reason").inner_text():  # which is judged without a suggestion
            answer(page, answers[name])
            continue
        page.locator("#take").wait_for()
        if page.locator("#take bdi").inner_text() == answers[name]:
            page.keyboard.press("Enter")
            expect(page.locator("#name")).not_to_have_text(name)
            accepted += 1
        else:
            answer(page, answers[name])
    assert accepted
    while page.evaluate("document.activeElement.id") != "train":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#training")).to_contain_text("Learned from", timeout=120_000)
    told = page.locator("#training .big").inner_text()
    held_out = tmp_path / "held_out"
    for name in ("checks", "discs", "stripes"):
        (held_out / name).mkdir(parents=True)
        for number in range(40, 50):
            draw_photo(name, number).save(held_out / name / f"{number}.jpg")
    found = quickstudy.evaluate(tmp_path / "pile.onnx", held_out)
    assert found.score.n == 30
    assert found.score.accuracy > 0.85
    assert int(re.sub(r"\D", "", told)) > 85
    with (tmp_path / "pile.labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["label"] == truth_of(Path(row["path"]).name) for row in rows)
    assert {row["split"] for row in rows} == {"train", "test"}


def test_a_check_comes_back_as_a_check(page: sync_api.Page, server: Running, answers: dict[str, str]) -> None:
    label_all(server, answers, leave=20)
    with api(server.address) as client:
        wait_for(client, lambda s: s["learned_from"] >= 12)
    while not page.locator("#reason.check").count():
        answer(page, answers[shown(page)])
    name = shown(page)
    answer(page, answers[name])
    saved(page)
    page.keyboard.press("u")
    expect(page.locator("#name")).to_have_text(name)
    expect(page.locator("#reason.check")).to_have_count(1)
    expect(page.locator("#suggestion")).to_contain_text("does not lead")
    assert not page.locator("#take").count()
    page.keyboard.press("Enter")
    assert shown(page) == name


def test_skip_none_and_undo_across_a_restart(
    browser: sync_api.Browser, start: Start, pile: Path, tmp_path: Path
) -> None:
    first = start("pile")
    for page in opened(browser, first):
        names = []
        answer(page, "discs")
        for key in ("Space", "n"):
            names.append(shown(page))
            page.keyboard.press(key)
            expect(page.locator("#name")).not_to_have_text(names[-1])
        saved(page)
    first.process.kill()
    first.process.wait()
    for page in opened(browser, start("pile")):
        expect(page.locator("#progress-words")).to_have_text("3 of 36")
        for name, words in (*zip(names[::-1], ("none of these", "skip"), strict=True), (None, "discs")):
            page.keyboard.press("Escape")
            page.keyboard.press("u")
            expect(page.locator("#reason")).to_contain_text(words)
            if name:
                assert shown(page) == name
        expect(page.locator("#progress-words")).to_have_text("0 of 36")


def test_what_is_said_while_the_server_is_away_is_sent_when_it_is_back(
    browser: sync_api.Browser, start: Start, pile: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first = start("pile", port=port)
    for page in opened(browser, first):
        answer(page, "discs")
        expect(page.locator("#progress-words")).to_have_text("1 of 36")
        first.process.kill()
        first.process.wait()
        page.keyboard.press("Escape")
        page.keyboard.press("1")
        expect(page.locator("#trouble")).to_contain_text("does not answer")
        expect(page.locator("#progress-words")).to_contain_text("saving 1")
        start("pile", port=port)
        expect(page.locator("#progress-words")).to_have_text("2 of 36", timeout=120_000)
        expect(page.locator("#trouble")).to_be_hidden()


def test_two_windows_see_each_other_and_settle_a_contradiction(
    browser: sync_api.Browser, page: sync_api.Page, server: Running
) -> None:
    for other in opened(browser, server):
        answer(page, "discs")
        expect(other.locator("#one-classes .class bdi")).to_have_text(["discs"])
        assert shown(page) != shown(other)
        with api(server.address) as client:
            photo = state(client, who="third")["next"][0]
            act(client, photo, "discs", who="third")
            act(client, photo, "stripes", who="fourth")
        for window in (page, other):
            expect(window.locator("#to-review")).to_have_text("1")
        other.goto(f"{server.address}/#review")
        expect(other.locator("#conflicts")).to_contain_text("discs and stripes")
        other.locator("#conflicts button", has_text="stripes").click()
        for window in (page, other):
            expect(window.locator("#to-review")).to_be_hidden()


def test_the_grid_accepts_what_is_not_taken_out(page: sync_api.Page, server: Running, answers: dict[str, str]) -> None:
    label_all(server, answers, leave=14)
    page.keyboard.press("Escape")
    page.goto(f"{server.address}/#grid")
    tiles = page.locator("#tiles .tile")
    tiles.first.wait_for()
    name = page.locator(".group[aria-pressed=true] bdi").inner_text()
    count = tiles.count()
    page.locator("#tiles .tile .thumb").first.wait_for()
    expect(page.locator("#accept")).to_have_text(f"Accept these {count} as {name}")
    box = tiles.first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 30, box["y"] + 30)
    page.mouse.down()
    if count > 1:
        second = tiles.nth(1).bounding_box()
        assert second is not None
        page.mouse.move(second["x"] + 30, second["y"] + 30, steps=6)
    page.mouse.up()
    swept = page.locator("#tiles [aria-selected=true]").count()
    assert swept == min(count, 2)
    left = set(tiles.evaluate_all("tiles => tiles.filter(t => t.ariaSelected === 'true').map(t => t.dataset.id)"))
    if count > swept:
        page.locator("#accept").click()
        expect(tiles).to_have_count(swept)
        assert set(tiles.evaluate_all("tiles => tiles.map(t => t.dataset.id)")) == left
    with api(server.address) as client:
        found = client.get("/api/photos", params={"view": "labelled", "class": name, "count": 96}).json()["photos"]
    assert {truth_of(photo["name"]) for photo in found} == {name}


def test_the_grid_by_the_keyboard(page: sync_api.Page, server: Running, answers: dict[str, str]) -> None:
    label_all(server, answers, leave=14)
    page.goto(f"{server.address}/#grid")
    page.locator("#tiles .tile").first.wait_for()
    page.locator("#tiles .tile").first.focus()
    page.keyboard.press("Space")
    expect(page.locator("#tiles [aria-selected=true]")).to_have_count(1)
    page.keyboard.press("n")
    with api(server.address) as client:
        wait_for(client, lambda s: client.get("/api/photos?view=none").json()["total"] == 1)
    page.keyboard.press("u")
    with api(server.address) as client:
        wait_for(client, lambda s: client.get("/api/photos?view=none").json()["total"] == 0)


def test_a_lasso_on_the_map_labels_what_is_in_it(page: sync_api.Page, server: Running) -> None:
    answer(page, "discs")
    with api(server.address) as client:
        wait_for(client, lambda s: s["map"])
    page.goto(f"{server.address}/#map")
    canvas = page.locator("#canvas")
    expect(page.locator("#map-title")).to_have_text("Nothing is selected.")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    left, top, right, bottom = box["x"] + 9, box["y"] + 9, box["x"] + box["width"] - 9, box["y"] + box["height"] - 9
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 5)):
        page.mouse.move(x, y, steps=5)
    page.mouse.up()
    expect(page.locator("#map-title")).to_contain_text("28 photos without a label selected")  # and 7 checks wait
    expect(page.locator("#map-tiles .tile")).to_have_count(28)
    page.keyboard.press("1")
    expect(page.locator("#progress-words")).to_have_text("29 of 36")
    page.keyboard.press("u")
    expect(page.locator("#progress-words")).to_have_text("1 of 36")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    for _ in range(12):
        page.keyboard.press("+")
    page.keyboard.press("Space")
    expect(page.locator("#map-title")).to_contain_text("selected")


def test_trying_a_photo_and_labelling_what_is_wrong(
    page: sync_api.Page, server: Running, answers: dict[str, str], tmp_path: Path
) -> None:
    label_all(server, answers)
    page.locator("#train").click()
    page.locator("#drop").wait_for()
    target = io.BytesIO()
    draw_photo("stripes", 77).save(target, "JPEG")
    page.locator("#files").set_input_files({"name": "new.jpg", "mimeType": "image/jpeg", "buffer": target.getvalue()})
    expect(page.locator(".result h3").first).to_contain_text("stripes")
    page.locator(".result summary").first.click()
    page.locator(".result button", has_text="stripes").first.click()
    expect(page.locator(".result").first).to_contain_text("Labelled stripes")
    assert len(list((tmp_path / "pile.added").iterdir())) == 1
    page.locator("#camera-start").click()
    page.locator("#video").wait_for()
    page.locator("#camera-shoot").click()
    expect(page.locator(".result h3")).to_have_count(2)
    with page.expect_popup() as popup:
        page.get_by_role("link", name="The report").click()
    expect(popup.value.locator("h1").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone_and_can_be_read(
    browser: sync_api.Browser, server: Running, answers: dict[str, str], scheme: str
) -> None:
    label_all(server, answers, leave=8)
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    for page in opened(browser, server, **options):
        for view in ("one", "grid", "map", "review", "try"):
            page.goto(f"{server.address}/#{view}")
            page.locator(f"#{view}").wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, view
            for button in page.locator("button:visible, nav a:visible").all():
                box = button.bounding_box()
                assert box is None or box["height"] >= 36, button.inner_text()
        page.goto(f"{server.address}/#one")
        for selector in ("body", "#reason", "nav a", "#train", ".class", "#speed", "aside h2", "#by-class .n"):
            assert contrast(page, selector) >= 4.5, selector
        name = page.locator("#one-classes .class bdi").first.inner_text()
        before = page.locator("#progress-words").inner_text()
        page.locator("#one-classes .class", has_text=name).first.tap()
        expect(page.locator("#progress-words")).not_to_have_text(before)


def test_a_screen_reader_is_told_what_happens(page: sync_api.Page, answers: dict[str, str]) -> None:
    status = page.locator("#said")
    assert status.get_attribute("aria-live") == "polite"
    answer(page, answers[shown(page)])
    expect(status).to_contain_text("Next: ")
    tree = page.locator("body").aria_snapshot()
    for words in (
        'navigation "Ways to label"',
        'link "One"',
        "main",
        'complementary "What it knows"',
        "img",
        'heading "Classes"',
    ):
        assert words in tree, tree
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, select, img, video, a, canvas')].filter(
            (e) => e.getAttribute('aria-hidden') !== 'true' && !e.closest('[hidden]') && !(e.labels && e.labels.length)
                && !e.alt && !e.textContent.trim() && !e.ariaLabel).map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    outline = page.evaluate(
        "(document.getElementById('skip').focus(), getComputedStyle(document.getElementById('skip')).outlineStyle)"
    )
    assert outline == "solid"


def test_names_are_shown_as_text_whatever_they_are(page: sync_api.Page) -> None:
    answer(page, "<img src=x onerror=alert(1)>")
    expect(page.locator("#by-class bdi").first).to_have_text("<img src=x onerror=alert(1)>")


def test_without_the_token_nothing_is_shown(browser: sync_api.Browser, server: Running) -> None:
    page = browser.new_page()
    page.goto(server.address)
    expect(page.locator("#token-form")).to_be_visible()
    assert page.locator("#frame").is_hidden()
    page.get_by_label("Token").fill(opened_at(server).partition("token=")[2])
    page.keyboard.press("Enter")
    page.locator("#picture img").wait_for()
    assert "token" not in page.url
    page.close()
