"""Libraries that take seconds to import, imported by the first test that needs them.

Each test process collects all tests, and runs those of some files only.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest


class _Lazily:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_", "pytest")):  # pytest's question, while it collects
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)


def lazily(name: str) -> Any:
    """Stands for a module that is imported when something in it is asked for; without it, the tests are skipped."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)
    return _Lazily(name)
