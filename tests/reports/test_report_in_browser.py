"""The report in a real browser: Debian's Chromium, driven by Playwright; skipped where either is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from reported import CLASSES, Reported, make_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    return make_report(tmp_path_factory)


@pytest.fixture
def page(browser: Any, reported: Reported) -> Iterator[Any]:
    """The open report; at the end, it must have said nothing on the console and asked for nothing."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(reported.page.as_uri())
    yield page
    assert page.evaluate("window.hacked") is None
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [reported.page.as_uri()]
    context.close()


def shown(page: Any) -> int:
    return int(page.text_content("#filter-count").split(" of ")[0])


def test_the_page_opens_quietly_and_names_stay_text(page: Any) -> None:
    assert page.title() == "model.onnx: report"
    assert shown(page) == 128
    assert set(CLASSES.values()) <= {text.strip() for text in page.locator("#classes tbody th").all_text_contents()}
    assert page.locator("#matrix tbody tr").count() == 3


def test_filters_leave_what_they_say(page: Any) -> None:
    page.select_option("#class-filter", label=CLASSES["stripes"])
    assert shown(page) == 43
    page.select_option("#split-filter", label="test")
    in_test = shown(page)
    assert 0 < in_test < 43
    assert sum(int(cell) for cell in page.locator("#matrix button").all_text_contents()) == in_test
    page.select_option("#split-filter", label="all")
    page.select_option("#class-filter", label="all")
    page.check("#mistakes-filter")
    mistakes = shown(page)
    assert 0 < mistakes < 20  # the swapped picture at least
    assert sum(int(cell) for cell in page.locator("#matrix button").all_text_contents()) == mistakes
    assert page.locator("#matrix tbody tr:nth-child(1) td:nth-child(2) button").count() == 0
    page.uncheck("#mistakes-filter")
    assert shown(page) == 128


def test_a_cell_opens_by_keyboard_and_shows_its_images(page: Any) -> None:
    cell = page.locator("#matrix button").first
    cell.focus()
    page.keyboard.press("Enter")
    assert cell.get_attribute("aria-expanded") == "true"
    assert page.locator("#cell-images .thumb").count() == int(cell.text_content())
    first = page.locator("#cell-images .thumb").first
    assert first.evaluate("thumb => getComputedStyle(thumb).backgroundImage").startswith('url("data:image/webp')
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#detail").evaluate("dialog => dialog.open")
    assert page.text_content("#detail-name").endswith(".jpg")
    page.keyboard.press("Escape")
    assert not page.locator("#detail").evaluate("dialog => dialog.open")
    page.keyboard.press("Tab")
    cell.click()
    assert page.locator("#cell").is_hidden()


def test_pictures_are_really_there(page: Any) -> None:
    size = page.evaluate(
        """() => new Promise((resolve) => {
            const thumb = document.querySelector("#mistakes-images .thumb");
            const picture = new Image();
            picture.onload = () => resolve([picture.naturalWidth, picture.naturalHeight]);
            picture.onerror = () => resolve(null);
            picture.src = getComputedStyle(thumb).backgroundImage.slice(5, -2);
        })"""
    )
    assert size == [16 * 80, 8 * 80]


def test_tables_sort_both_ways(page: Any) -> None:
    heading = page.locator("#classes thead button").nth(1)
    counts = []
    for _ in range(2):
        heading.click()
        counts.append([int(text) for text in page.locator("#classes tbody tr td:nth-child(2)").all_text_contents()])
    assert counts[0] == sorted(counts[0], reverse=True)
    assert counts[1] == sorted(counts[1])
    assert page.locator("#classes th[aria-sort]").count() == 1


def test_the_map_answers_to_pointer_and_keys(page: Any) -> None:
    canvas = page.locator("#map-canvas")
    canvas.scroll_into_view_if_needed()
    canvas.focus()
    page.keyboard.press("ArrowRight")
    first = page.text_content("#map-note")
    assert "labelled" in first
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#map-note") != first
    assert page.locator("#map-hover").is_visible()
    page.keyboard.press("Enter")
    assert page.locator("#detail").evaluate("dialog => dialog.open")


def test_dark_light_and_paper(page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) == "rgb(20, 23, 26)"
    page.emulate_media(media="print", color_scheme="light")
    assert page.locator("#filters").is_hidden()
    assert page.locator("#summary").is_visible()


def test_a_phone_need_not_scroll_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 780})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#matrix button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_on_a_phone_numbers_stay_on_one_line_and_captions_whole(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    lines = """[...document.querySelectorAll("#classes td")].map((cell) => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        return range.getClientRects().length;
    })"""
    assert set(page.evaluate(lines)) == {1}
    cut = """[...document.querySelectorAll(".caption")]
        .filter((one) => one.scrollHeight > one.clientHeight + 1).map((one) => one.textContent)"""
    assert page.evaluate("document.querySelectorAll('.caption').length") > 0
    assert page.evaluate(cut) == []


def test_without_javascript_the_figures_are_there(browser: Any, reported: Reported) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(reported.page.as_uri())
    assert page.locator("#classes tbody tr").count() == 3
    assert page.locator(".scores li").count() >= 2
    assert page.locator("svg.chart").count() >= 2
    context.close()
