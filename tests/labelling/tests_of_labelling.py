"""Helpers that tests of labelling import."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2 as httpx

from servers import Running

TOKEN = "correct-horse-battery-staple"


def opened_at(server: Running) -> str:
    """The address with the token."""
    return f"{server.address}/?token={TOKEN}"


def truth_of(name: str) -> str:
    return name.partition("-")[0]


def api(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)


def act(client: Any, photo: dict[str, Any], *names: str, kind: str = "label", **more: Any) -> Any:
    values = {"kind": kind, "photos": [photo["id"]], "seen": [photo["seen"]], "who": "me", "names": names, **more}
    return client.post("/api/act", json=values)


def state(client: Any, who: str = "me", **query: Any) -> dict[str, Any]:
    return client.get("/api/state", params={"who": who, **query}).json()


def wait_for(client: Any, condition: Callable[[dict[str, Any]], object], *, seconds: float = 120) -> dict[str, Any]:
    """The first state in which the condition holds; long before the limit, or something is broken."""
    until = time.monotonic() + seconds
    while not condition(found := state(client)):
        assert time.monotonic() < until, f"it never happened: {found}"
        time.sleep(0.05)
    return found
