"""What is missing is named with the command that adds it to this very installation."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from quickstudy.errors import MissingExtraError
from quickstudy.extras import installation_of, require

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def installed_from(monkeypatch: pytest.MonkeyPatch, noted: dict[str, Any] | None) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if noted is None else json.dumps(noted)

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Distribution())
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)


def test_from_a_clone_the_clone_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    installed_from(monkeypatch, {"url": clone.as_uri(), "dir_info": {}})
    assert shlex.split(installation_of("serve")) == ["pip", "install", f"{clone}[serve]"]
    (clone / "constraints.txt").touch()
    installed_from(monkeypatch, {"url": clone.as_uri(), "dir_info": {"editable": True}})
    assert shlex.split(installation_of("serve")) == [
        *("pip", "install", "--constraint", str(clone / "constraints.txt"), "--editable", f"{clone}[serve]")
    ]


@pytest.mark.parametrize(
    ("noted", "named"),
    [
        (None, "quickstudy[serve]"),
        ({"url": "file:///no/longer/there", "dir_info": {}}, "quickstudy[serve]"),
        ({"url": "https://x.org/q.git", "vcs_info": {"vcs": "git"}}, "quickstudy[serve] @ git+https://x.org/q.git"),
    ],
)
def test_from_elsewhere(monkeypatch: pytest.MonkeyPatch, noted: dict[str, Any] | None, named: str) -> None:
    installed_from(monkeypatch, noted)
    assert shlex.split(installation_of("serve")) == ["pip", "install", named]


def test_where_the_environment_is_not_activated_its_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed_from(monkeypatch, None)
    monkeypatch.delenv("VIRTUAL_ENV")
    assert shlex.split(installation_of("serve"))[:4] == [sys.executable, "-m", "pip", "install"]


def test_the_message_has_the_command() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_module", extra="serve")
    assert str(caught.value).endswith(f"install it with: {installation_of('serve')}")


def test_all_is_all_that_users_can_ask_for_and_the_readme_says_what_for() -> None:
    taken = {name for line in EXTRAS["all"] for name in re.findall(r"[\w-]+", re.findall(r"\[(.+?)\]", line)[0])}
    assert taken == EXTRAS.keys() - {"all", "dev", "docs"}
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert taken | {"all"} <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_no_page_names_a_distribution_that_no_index_has() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")):
        assert "pip install 'quickstudy" not in page.read_text(), page
