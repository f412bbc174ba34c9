"""Optional parts of the installation are asked for by name, where something needs one."""

from __future__ import annotations

import importlib.util

from quickstudy.errors import MissingExtraError


def require(module: str, *, extra: str, what: str = "This") -> None:
    """Say what to install where a module is missing that `what` needs.

    Raises:
        MissingExtraError: it is missing.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(
            f"{what} needs {module}, which is not installed; install it with: pip install 'quickstudy[{extra}]'"
        )
