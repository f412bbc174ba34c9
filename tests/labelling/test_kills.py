"""Kills during labelling: whatever was acknowledged is there after the next start, however the server ended."""

from __future__ import annotations

import csv
import random
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pytest
from tests_of_labelling import act, api, state

from servers import Start

NAMES = ["hat", "shoe", "Mütze"]


def label_until_it_dies(
    client: httpx.Client, photos: list[str], told: dict[str, str], open_end: dict[str, str], count: list[int]
) -> None:
    """Labels photos, one after the other; what is acknowledged goes to `told`, what is not known to `open_end`."""
    draws = random.Random(count[0])
    while True:
        photo, name = draws.choice(photos), draws.choice(NAMES)
        open_end.clear()
        open_end[photo] = name
        try:
            answer = act(client, {"id": photo, "seen": 10**9}, name)
        except httpx.HTTPError:
            return
        assert answer.status_code == 200, answer.text
        told[photo] = name
        count[0] += 1


def check(client: httpx.Client, photos: list[str], told: dict[str, str], open_end: dict[str, str]) -> None:
    listed = client.get("/api/photos", params={"view": "some", "ids": ",".join(photos)}).json()["photos"]
    for photo in listed:
        possible = {told.get(photo["id"])} | ({open_end[photo["id"]]} if photo["id"] in open_end else set())
        [said] = photo["labels"] or [None]
        assert said in possible, (photo, possible)
        if said:
            told[photo["id"]] = said


def kill_again_and_again(start: Start, pile: Path, kills: int) -> int:
    """Labels and kills; gives the number of labels that were acknowledged."""
    draws = random.Random(kills)
    told: dict[str, str] = {}
    open_end: dict[str, str] = {}
    count = [0]
    for _ in range(kills):
        server = start("pile")
        with api(server.address) as client:
            photos = sorted({*(photo["id"] for photo in state(client)["next"]), *told, *open_end})
            check(client, photos, told, open_end)
            wanted = count[0] + draws.randint(1, 15)
            worker = threading.Thread(target=label_until_it_dies, args=(client, photos, told, open_end, count))
            worker.start()
            while count[0] < wanted:
                assert worker.is_alive()
                time.sleep(0.001)
            time.sleep(draws.uniform(0, 0.02))
            server.process.kill()
            server.process.wait()
            worker.join(60)
            assert not worker.is_alive()
    server = start("pile")
    with api(server.address) as client:
        check(client, sorted({*told, *open_end}), told, open_end)
        assert state(client)["labelled"] == len(told)
    server.process.terminate()
    assert server.process.wait(60) == 0
    with (pile.parent / "pile.labels.csv").open(newline="", encoding="utf-8") as file:
        assert sorted(row["label"] for row in csv.DictReader(file)) == sorted(told.values())
    assert len(list(pile.iterdir())) == 36
    return count[0]


@pytest.mark.heavy
def test_three_kills_lose_nothing_acknowledged(start: Start, pile: Path) -> None:
    assert kill_again_and_again(start, pile, 3) >= 3


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing_acknowledged(start: Start, pile: Path) -> None:
    acknowledged = kill_again_and_again(start, pile, 200)
    print(f"{acknowledged:,} labels acknowledged, 200 kills")
    assert acknowledged > 1000


def test_the_server_ends_at_once_when_it_is_told_to_while_pages_wait_for_news(start: Start, pile: Path) -> None:
    server = start("pile")
    with api(server.address) as client:
        version = state(client)["version"]
        waiting = threading.Thread(target=lambda: state(client, since=version))
        waiting.start()
        server.process.terminate()
        assert server.process.wait(30) == 0
        waiting.join(30)
        assert not waiting.is_alive()
    assert server.log.read_text() == ""


def test_classes_of_a_manifest_that_differ_in_capitals_are_told(start: Start, pile: Path) -> None:
    rows = [f"pile/{path.name},{name}\n" for path, name in zip(sorted(pile.iterdir()), ("hat", "Hat"), strict=False)]
    (pile.parent / "pile.labels.csv").write_text("path,label\n" + "".join(rows))
    warned = start("pile").process.stdout.readline()
    assert warned == "WARNING: the classes 'Hat' and 'hat' differ only in capitals; rename one if they are the same\n"


def test_a_second_server_on_the_same_labels_is_refused(start: Start, pile: Path) -> None:
    start("pile")
    with pytest.raises(AssertionError, match="--labels"):
        start("pile")
