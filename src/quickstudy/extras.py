"""Optional parts of the installation are asked for by name, where something needs one."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from quickstudy.errors import MissingExtraError
from quickstudy.wording import pasted


def require(module: str, *, extra: str, what: str = "This") -> None:
    """Say what to install where a module is missing that `what` needs.

    Raises:
        MissingExtraError: it is missing.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(
            f"{what} needs {module}, which is not installed; install it with: {installation_of(extra)}"
        )


def require_server() -> None:
    """Check that all is installed that `serve` and `label` run on.

    Raises:
        MissingExtraError: a part is missing; the message gives the command to install it.
    """
    for module in ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client"):
        require(module, extra="serve")


def installation_of(extra: str) -> str:
    """Give the command that adds an extra to this very installation, to be pasted.

    Installed from a folder, the folder is what has the extra: no index needs to know quickstudy.
    """
    return _pip_install(*_source(f"[{extra}]"))


def _source(extra: str) -> list[str]:
    """Name what is installed here as pip is to be told, from what pip has noted of where it came from (PEP 610)."""
    # Imported here, since every command imports this module: together they are a fifth of what --help takes.
    import importlib.metadata
    from urllib.request import url2pathname

    try:
        noted = importlib.metadata.distribution("quickstudy").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        noted = None
    origin = json.loads(noted or "{}")
    url = origin.get("url", "")
    if vcs := origin.get("vcs_info"):
        return [f"quickstudy{extra} @ {vcs['vcs']}+{url}"]
    folder = Path(url2pathname(urlsplit(url).path))
    if "dir_info" not in origin or not (folder / "pyproject.toml").is_file():
        return [f"quickstudy{extra}"]
    constraints = folder / "constraints.txt"
    tested = ["--constraint", str(constraints)] if constraints.is_file() else []
    return [*tested, *(["--editable"] if origin["dir_info"].get("editable") else []), f"{folder}{extra}"]


def _pip_install(*words: str) -> str:
    """Write a command that installs beside what runs now, whether or not its environment is activated."""
    activated = os.environ.get("VIRTUAL_ENV")
    if activated and Path(activated).resolve() == Path(sys.prefix).resolve():
        return pasted("install", *words, program="pip")
    return pasted("-m", "pip", "install", *words, program=sys.executable)
