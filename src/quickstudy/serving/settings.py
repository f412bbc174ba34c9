"""How a server behaves: where it listens, whom it answers, and how much it lets anybody ask of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from quickstudy.cores import usable_cores
from quickstudy.errors import ServingError

SHORTEST_TOKEN = 16
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that can be chosen of a server."""

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 8000
    """The port to listen on; 0 takes a free one."""
    token: str | None = None
    """What callers must show; nobody is asked if left out, which takes `no_auth` on any address but this machine's."""
    no_auth: bool = False
    """Answer everybody who reaches the address."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server may be asked besides its own, such as that of a reverse proxy."""
    threads: int = field(default_factory=usable_cores)
    """Images that are worked on at the same time."""
    queue: int = 64
    """Images that may wait; with more, requests are refused with 503."""
    most_bytes: int = 32 << 20
    """Of a request's body."""
    most_files: int = 32
    """Images of one request."""
    most_pixels: int = 64_000_000
    """Of one image, by its header."""
    most_connections: int = 512
    """At the same time; more are turned away with 503."""
    most_held_bytes: int = 256 << 20
    """Of all bodies that are in memory at the same time; with more, requests are refused with 503."""
    head_seconds: float = 10.0
    """From connecting, or the first byte of a further request, to the end of the request's headers."""
    body_seconds: float = 30.0
    """From the headers to the end of the body."""
    answer_seconds: float = 30.0
    """From the end of the body to the answer, waiting included."""
    idle_seconds: float = 15.0
    """That a connection is kept between two requests."""
    reload_seconds: float = 1.0
    """Between two looks at the model files."""

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and self.token is None and not self.no_auth:
            raise ServingError(
                f"'{self.host}' can be reached from other machines; give --token (or QUICKSTUDY_TOKEN), "
                "or --no-auth to answer everybody"
            )
        if self.token is not None and (len(self.token) < SHORTEST_TOKEN or not _is_token(self.token)):
            raise ServingError(
                f"The token must have at least {SHORTEST_TOKEN} visible ASCII characters without spaces; "
                "make one with: openssl rand -hex 16"
            )
        if self.token is not None and self.no_auth:
            raise ServingError("A token and --no-auth exclude each other; leave one out")
        for name in ("threads", "queue", "most_bytes", "most_files", "most_pixels", "most_connections"):
            if getattr(self, name) < 1:
                raise ServingError(f"'{name}' must be at least 1; got {getattr(self, name)}")

    @property
    def names(self) -> frozenset[str] | None:
        """Host names under which the server may be asked; None where any will do.

        On this machine's own address that is what stops DNS rebinding: a web site that lets its name point to 127.0.0.1
        to have the browser ask this server. On other addresses, names are not known unless given.
        """
        own = (*_LOOPBACK_NAMES, self.host) if is_loopback(self.host) else ()
        names = {name.lower() for name in (*own, *self.allowed_hosts)}
        return frozenset(names) if names else None


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_token(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
