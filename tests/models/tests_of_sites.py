"""Helpers that tests of exported web pages import."""

from __future__ import annotations

import json
import subprocess
from typing import Any


def open_page(browser: Any, address: str) -> tuple[Any, list[str]]:
    """The page once the model is loaded; whatever it complains about is in the list."""
    from playwright.sync_api import expect

    complaints: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            complaints.append(request.url) if not request.url.startswith((address, "blob:", "data:")) else None
        ),
    )
    page.goto(address)
    expect(page.get_by_role("status")).to_have_text("Ready.", timeout=120_000)
    return page, complaints


def run_node(node: str, script: str, *arguments: str) -> Any:
    done = subprocess.run(
        [node, "--input-type=module", "-e", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
