"""Optional parts of the installation: asked for by name when a command needs one."""

from __future__ import annotations

import importlib.util

from quickstudy.errors import QuickstudyError


def require(module: str, *, extra: str) -> None:
    """Raise an error that says what to install where a module is missing."""
    if importlib.util.find_spec(module) is None:
        raise QuickstudyError(
            f"This needs {module}, which is not installed; install it with: pip install 'quickstudy[{extra}]'"
        )
