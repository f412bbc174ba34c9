"""Who is answered at all: checks before any request is read, and headers on every answer.

- The Host header must be one of the server's names: otherwise a web site could let its own name point to 127.0.0.1 and
  have a visitor's browser talk to this server (DNS rebinding).
- Pages of other sites cannot use the server: no CORS headers are ever sent, and a foreign Origin is refused.
- Where there is a token, everything but the page's shell, the documentation and the health checks takes it.
"""

from __future__ import annotations

import hmac
import json
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quickstudy.serving.metrics import Metrics
from quickstudy.serving.settings import Settings

# Without a token: nothing here tells anything about models or images.
OPEN_PATHS = frozenset({"/", "/page.js", "/page.css", "/docs", "/openapi.json", "/healthz", "/readyz"})
_KNOWN_PATHS = OPEN_PATHS | {"/predict", "/model", "/models", "/metrics"}

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """Wraps an application; refuses what must not reach it."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._names = settings.names
        self._allowed = {name.lower() for name in settings.allowed_hosts}
        self._authorization = f"Bearer {settings.token}".encode() if settings.token else None
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (or the server's start and end)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = _template_of(scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
                self._metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"])
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        status, reason = refusal
        body = json.dumps({"error": reason}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, headers: Headers, path: str) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._names is not None and _name_of(host) not in self._names:
            return 421, "this server does not answer to that Host; start it with --allow-host NAME if it should"
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, host):
            return 403, "pages of other sites cannot use this server"
        if self._authorization is not None and path not in OPEN_PATHS:
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._authorization):
                return 401, "this takes the header 'Authorization: Bearer TOKEN' with the server's token"
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            netloc = urlsplit(origin).netloc
        except ValueError:
            return False
        return netloc.lower() == host.lower() or _name_of(netloc) in self._allowed


def _name_of(host: str) -> str:
    """A Host header without its port, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _template_of(path: str) -> str:
    """A path as it is counted: one of a handful, whatever is asked for."""
    if path in _KNOWN_PATHS:
        return path
    parts = path.split("/")
    if len(parts) == 4 and parts[1] == "models" and parts[3] == "predict":
        return "/models/{name}/predict"
    if len(parts) == 3 and parts[1] == "models":
        return "/models/{name}"
    return "other"
