"""The page where a photo may have several labels, in a real browser: by the keyboard alone, in the grid, on the map."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_label_page import KEYS, expect, opened, saved, shown, sync_api
from tests_of_labelling import act, api, opened_at, wait_for

from collages import KINDS, make_collages
from servers import Running, Start

MISTAKES: list[tuple[str, list[str]]] = [("discs", []), ("discs", ["checks"])]


@pytest.fixture
def tags(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """48 collages in a folder, and which kinds are in each."""
    return make_collages(tmp_path / "collages", 48, side=80)


@pytest.fixture
def server(start: Start, tags: dict[str, tuple[str, ...]]) -> Running:
    return start("collages", "--several")


@pytest.fixture
def page(browser: sync_api.Browser, server: Running) -> Iterator[sync_api.Page]:
    yield from opened(browser, server)


def draft(page: sync_api.Page) -> set[str]:
    return set(page.locator("#one-classes .class[aria-pressed=true] bdi").all_inner_texts())


def answer(page: sync_api.Page, names: tuple[str, ...]) -> None:
    """Switches labels until they are these, by keys alone, and confirms."""
    before = shown(page)
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    classes = page.locator("#one-classes .class bdi").all_inner_texts()
    for name in draft(page) ^ set(names):
        if name in classes:
            page.keyboard.press(KEYS[classes.index(name)])
        else:
            page.keyboard.press("+")
            page.keyboard.type(name)
            page.keyboard.press("Enter")
            page.evaluate("document.activeElement.blur()")
    assert draft(page) == set(names)
    page.keyboard.press("Enter" if names else "n")
    expect(page.locator("#name")).not_to_have_text(before)


def test_from_a_pile_to_a_model_by_the_keyboard_alone(
    page: sync_api.Page, server: Running, tmp_path: Path, tags: dict[str, tuple[str, ...]]
) -> None:
    expect(page.locator("#one-classes input")).to_be_focused()
    assert "None of these" in page.locator("#take").inner_text()  # what Enter would say of a photo with nothing on
    told: dict[str, tuple[str, ...]] = {}
    for _ in range(30):
        name = shown(page)
        answer(page, tags[name])
        told[name] = tags[name]
    expect(page.locator("#said")).to_contain_text("Next: ")
    name = shown(page)
    page.keyboard.press("n")
    expect(page.locator("#name")).not_to_have_text(name)
    page.keyboard.press("u")
    expect(page.locator("#reason")).to_contain_text("none of these")
    assert (shown(page), draft(page)) == (name, set())
    page.keyboard.press("u")  # the one before, with the labels that it had
    last = [*told][-1]
    expect(page.locator("#name")).to_have_text(last)
    assert draft(page) == set(tags[last])
    page.keyboard.press("1")
    expect(page.locator("#said")).to_contain_text("Enter says")
    answer(page, tags[last])
    saved(page)
    expect(page.locator("#cross")).to_contain_text("by cross-validation")
    expect(page.locator("#by-class li").first).to_contain_text("%")
    assert page.locator("#forecast").is_hidden()
    while page.evaluate("document.activeElement.id") != "train":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#training")).to_contain_text("Learned from")
    with (tmp_path / "collages.labels.csv").open(newline="") as file:
        rows = {Path(row["path"]).name: row["labels"] for row in csv.DictReader(file)}
    assert rows == {name: "|".join(names) for name, names in told.items()}


def test_the_grid_and_the_map_by_the_keyboard(
    page: sync_api.Page, server: Running, tags: dict[str, tuple[str, ...]]
) -> None:
    with api(server.address) as client:
        wait_for(client, lambda s: s["extracted"])
        while (now := wait_for(client, lambda s: s["next"]))["answered"] < 30:
            act(client, now["next"][0], *tags[now["next"][0]["name"]], who="other")
        wait_for(client, lambda s: s["learned_from"] >= 28 and s["map"] and any(c["waiting"] for c in s["classes"]))
        page.goto(f"{server.address}/#map")
        expect(page.locator("#map-title")).to_have_text("Nothing is selected.")
        page.locator("#canvas").focus()
        page.keyboard.press("ArrowRight")
        for _ in range(12):
            page.keyboard.press("+")
        page.keyboard.press("Space")
        expect(page.locator("#map-title")).to_contain_text("selected")
        expect(page.locator("#map-take")).to_have_text("All are: None of these")
        selected = int(page.locator("#map-title").inner_text().split()[0])
        names = page.locator("#map-classes .class bdi").all_inner_texts()[:2]
        page.keyboard.press("1")
        page.keyboard.press("2")
        expect(page.locator("#map-take")).to_have_text(f"All are: {names[0]} + {names[1]}")
        page.keyboard.press("Enter")
        wait_for(client, lambda s: s["answered"] == 30 + selected)
        page.keyboard.press("u")
        wait_for(client, lambda s: s["answered"] == 30 and s["learned_from"] == 30)
        page.goto(f"{server.address}/#grid")
        tiles = page.locator("#tiles .tile")
        tiles.first.wait_for()
        listed = tiles.evaluate_all("tiles => tiles.map(tile => tile.dataset.id)")
        given = client.get("/api/photos", params={"view": "some", "ids": ",".join(listed)}).json()["photos"]
        tiles.first.focus()
        name = page.locator("#grid-classes .class bdi").first.inner_text()
        page.keyboard.press("1")
        expect(page.locator("#tiles .tile.changed")).to_have_count(1)
        if len(listed) > 1:  # what is selected and not changed is left out
            page.keyboard.press("ArrowRight")
            page.keyboard.press("Space")
        page.keyboard.press("Enter")
        wait_for(client, lambda s: s["answered"] == 30 + max(1, len(listed) - 1))
        after = client.get("/api/photos", params={"view": "some", "ids": ",".join(listed)}).json()["photos"]
        assert set(after[0]["labels"]) == set(given[0]["given"]) ^ {name}
        assert [photo["labels"] for photo in after[1:2]] == [None] * len(listed[1:2])
        assert all(sorted(old["given"]) == new["labels"] for old, new in zip(given[2:], after[2:], strict=True))


@pytest.mark.slow
def test_a_check_is_not_answered_by_haste_and_comes_back_as_one(
    page: sync_api.Page, server: Running, tags: dict[str, tuple[str, ...]]
) -> None:
    with api(server.address) as client:
        wait_for(client, lambda s: s["extracted"])
        for _ in range(20):
            expect(page.locator("#name")).not_to_be_empty()
            answer(page, tags[shown(page)])
        saved(page)
        wait_for(client, lambda s: s["learned_from"] >= 15)
        for number in range(20, 40):  # what is asked next follows from what has been learned
            expect(page.locator("#name")).not_to_be_empty()
            if page.locator("#reason.check").count():
                break
            answer(page, tags[shown(page)])
            saved(page)
            wait_for(client, lambda s, number=number: s["learned_from"] >= number - 4)
        expect(page.locator("#reason.check")).to_have_count(1)
        name = shown(page)
        expect(page.locator("#take")).to_have_count(0)
        page.keyboard.press("Enter")
        expect(page.locator("#said")).to_contain_text("N says")
        assert shown(page) == name
        page.keyboard.press("1")
        expect(page.locator("#take")).to_have_count(1)
        on = draft(page)
        page.keyboard.press("Enter")
        expect(page.locator("#name")).not_to_have_text(name)
        saved(page)
        page.keyboard.press("u")
        expect(page.locator("#name")).to_have_text(name)  # the next one may be a check, too
        expect(page.locator("#reason.check")).to_have_count(1)
        assert (shown(page), draft(page)) == (name, on)
        assert not page.locator("#suggestion .other").count()
        expect(page.locator("#suggestion")).to_contain_text("does not lead")
        expect(page.locator("#cross")).to_contain_text("F1 ")
        assert ("honest" in page.locator("#cross").inner_text()) == bool(client.get("/api/state").json()["control"])


def test_the_review_says_none_of_these_in_whole_words(
    page: sync_api.Page, server: Running, tags: dict[str, tuple[str, ...]]
) -> None:
    with api(server.address) as client:
        photo = wait_for(client, lambda s: s["next"])["next"][0]
        act(client, photo, "discs", who="other")
        act(client, photo, "checks", who="another")
    listed = {"photos": [{**photo, "labels": [name], "suggested": other} for name, other in MISTAKES], "total": 2}
    page.route("**/api/photos?*view=mistakes*", lambda route: route.fulfill(json=listed))
    page.goto(f"{server.address}/#review")
    buttons = page.locator("#mistakes button")
    expect(buttons).to_have_count(5)
    words = [" ".join(text.split()) for text in buttons.all_inner_texts()]
    assert words == ["None of these is in it", "No, discs", "It is checks", "No, discs", "None of these is in it"]
    expect(page.locator("#conflicts button").last).to_have_text("None of these is in it")
    page.locator("#conflicts button").last.click()
    expect(page.locator("#conflicts button")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(browser: sync_api.Browser, server: Running, scheme: str) -> None:
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    for page in opened(browser, server, **options):
        answer(page, ("checks", "discs"))
        page.locator("#one-classes .class").first.tap()
        assert draft(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.locator("#take").tap()
        expect(page.locator("#progress-words")).to_have_text("2 of 48")


def test_a_model_of_two_photos_is_told_to_be_of_unknown_accuracy(
    browser: sync_api.Browser, start: Start, tmp_path: Path
) -> None:
    made = make_collages(tmp_path / "few", 12, side=80)
    rows = [f"few/{next(path for path, have in made.items() if have == (name,))},{name}\n" for name in KINDS[:2]]
    (tmp_path / "two.csv").write_text("path,labels\n" + "".join(rows))
    page = browser.new_page()
    page.goto(opened_at(start("two.csv", "--output", "two.onnx")))
    page.locator("#train").click()
    expect(page.locator("#training")).to_contain_text("How good it is, is not known")
    expect(page.locator("#training .big")).to_have_text("–")
    page.close()
