"""What scripts, pages and tests import from quickstudy is there; most benchmarks are run too seldom to tell."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "demo", "tests", "tools")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def imported(code: str) -> Iterator[tuple[str, str]]:
    """The modules of quickstudy that some code imports, with the names from them; without one, the module itself."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "quickstudy":
            yield from ((node.module or "", name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names if name.name.split(".")[0] == "quickstudy")


def lines_of(page: Path) -> str:
    """The import lines of a page's indented blocks."""
    found = re.findall(r"^ {4}((?:from quickstudy|import quickstudy)\S* ?.*)$", page.read_text(), re.MULTILINE)
    return "\n".join(found)


def is_there(module: str, name: str) -> bool:
    if not name or hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_is_there(path: Path) -> None:
    code = path.read_text(encoding="utf-8") if path.suffix == ".py" else lines_of(path)
    for module, name in imported(code):
        assert is_there(module, name), f"{module} has no {name}"


def test_a_name_that_is_not_there_is_seen() -> None:
    assert list(imported("from quickstudy.errors import Nothing\nimport os, quickstudy.files")) == [
        ("quickstudy.errors", "Nothing"),
        ("quickstudy.files", ""),
    ]
    assert is_there("quickstudy.errors", "OptionError")
    assert is_there("quickstudy.images", "census")
    assert not is_there("quickstudy.errors", "Nothing")
