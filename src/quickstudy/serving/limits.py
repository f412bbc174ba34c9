"""The server's limits stand here: whom it answers, and how much it lets anybody ask of it (`ServerSettings`).

Before any request is read, it is checked whether it is answered at all (`Guard`):

- The Host header must be one of the server's names: otherwise a web site could let its own name point to 127.0.0.1 and
  have a visitor's browser talk to this server (DNS rebinding).
- Pages of other sites cannot use the server: no CORS headers are ever sent, and a foreign Origin is refused.
- Where there is a token, everything but the page's shell, the documentation and the health checks takes it.

Bodies stay in memory, counted together (`Bodies`); Starlette parses forms (`parse_form`), never to the disk. Nothing
else is written there either, and addresses are never fetched: images come as bytes or not at all.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import json
import re
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request, cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quickstudy.errors import OptionError
from quickstudy.models.web import SHARED
from quickstudy.process import usable_cores
from quickstudy.serving.metrics import Metrics
from quickstudy.serving.registry import OverloadedError

# Paths that are answered without a token: nothing here tells anything about models or images.
OPEN_PATHS = frozenset(
    {"/", "/page.css", "/page.js", "/classifier.js", "/docs", "/openapi.json", "/healthz", "/readyz"}
    | {f"/{name}" for name in SHARED}
)
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
    """Wraps an application, and refuses what must not reach it."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        metrics: Metrics,
        *,
        open_paths: frozenset[str] = OPEN_PATHS,
        cookie: str | None = None,
    ) -> None:
        """Wrap an application.

        Args:
            app: what answers.
            settings: names and token.
            metrics: where requests are counted.
            open_paths: paths that are answered without a token.
            cookie: name of a cookie that may hold the token instead of a header, since pages cannot send headers for
                their pictures; none may if left out.
        """
        self._app = app
        self._open_paths = open_paths
        self._token, self._cookie = settings.token or "", cookie
        self._names = settings.names
        self._allowed = {name.lower() for name in settings.allowed_hosts}
        self._authorization = f"Bearer {settings.token}".encode() if settings.token else None
        self._root = settings.root_path
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (or the server's start and end)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = self._below_root(scope)
        path = scope["path"] if scope["path"] == self._root else _template_of(scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(header for header in _HEADERS if header[0] not in own)]
                self._metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        if self._root and path == self._root:  # relative addresses need the slash at the end
            place = [(b"location", f"{self._root}/".encode()), (b"content-length", b"0")]
            await send_with_headers({"type": "http.response.start", "status": 308, "headers": place})
            await send({"type": "http.response.body", "body": b""})
            return
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

    def _below_root(self, scope: Scope) -> Scope:
        """Take the prefix off an address that a proxy has passed on with it."""
        path = scope["path"]
        if not self._root or not path.startswith(f"{self._root}/"):
            return scope
        return {**scope, "path": path.removeprefix(self._root)}

    def _refusal(self, headers: Headers, path: str) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._names is not None and _name_of(host) not in self._names:
            return (
                421,
                "this server does not answer under that host name; to allow it, start it with --allow-host NAME",
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, host):
            return 403, "pages of other sites cannot use this server"
        if self._authorization is not None and path not in self._open_paths:
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._authorization) and not self._has_cookie(headers):
                return 401, "this needs the header 'Authorization: Bearer TOKEN' with the server's token"
        return None

    def _has_cookie(self, headers: Headers) -> bool:
        if self._cookie is None:
            return False
        given = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            netloc = urlsplit(origin).netloc
        except ValueError:
            return False
        return netloc.lower() == host.lower() or _name_of(netloc) in self._allowed


def _name_of(host: str) -> str:
    """Take the port off a Host header; the name comes in lower case."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _template_of(path: str) -> str:
    """Name a path as it is counted: one of a handful, whatever is asked for."""
    if path in _KNOWN_PATHS:
        return path
    parts = path.split("/")
    if len(parts) == 4 and parts[1] == "models" and parts[3] == "predict":
        return "/models/{name}/predict"
    if len(parts) == 3 and parts[1] == "models":
        return "/models/{name}"
    return "other"


MULTIPART = "multipart/form-data"
_PIECE_BYTES = 64 << 10


class RefusedError(Exception):
    """A request that is not answered, with the HTTP status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One image as it was sent."""

    data: bytes
    """Bytes of the image file."""
    file: str | None = None
    """Name that the sender gave the image, to tell the answers apart; None where the body is the image."""
    hint: str = ""
    """What to add where the image cannot be used, since the way that it was sent may be why."""


_DATA_ADDRESS = re.compile(rb"\s*data:[\w.+/-]+;base64,")
_BASE64 = re.compile(rb"[A-Za-z0-9+/\s]+={0,2}\s*")


def as_image_file(body: bytes) -> bytes:
    """Give the file that a body is, or has in base64 or as a data address; no image file looks like either."""
    address = _DATA_ADDRESS.match(body)
    text = body[address.end() :] if address else body
    if not _BASE64.fullmatch(text):
        return body
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except ValueError:
        return body


class Bodies:
    """Reads bodies, and counts the bytes of all that are in memory."""

    def __init__(self, *, most_bytes: int, most_held_bytes: int, seconds: float) -> None:
        self._most_bytes = most_bytes
        self._most_held_bytes = max(most_held_bytes, most_bytes)
        self._seconds = seconds
        self.held = 0

    @contextmanager
    def hold(self) -> Iterator[HeldBytes]:
        """Make a count in which a request's body is counted until the request is done."""
        held = HeldBytes()
        try:
            yield held
        finally:
            self.held -= held.size

    async def read(self, request: Request, held: HeldBytes) -> bytes:
        """Read a request's body.

        Raises:
            RefusedError: the body is too large (413) or too slow (408).
            OverloadedError: all bodies together are too large for now.
            ClientDisconnect: the sender has gone.
        """
        if (
            int(request.headers.get("content-length", 0)) > self._most_bytes
        ):  # the HTTP parser lets only numbers through
            raise self._too_large()
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(self._seconds):
                async for piece in request.stream():
                    if self.held + len(piece) > self._most_held_bytes:
                        raise OverloadedError
                    self.held += len(piece)
                    held.size += len(piece)
                    if held.size > self._most_bytes:
                        raise self._too_large()
                    pieces.append(piece)
        except TimeoutError:
            raise RefusedError(408, f"the body took longer than {self._seconds:g} s to arrive") from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body is larger than {self._most_bytes:,} bytes")


@dataclass
class HeldBytes:
    """Counts the bytes that one request holds."""

    size: int = 0
    """Number of bytes, at least 0."""


def is_multipart(content_type: str) -> bool:
    """Tell whether a body of this type is a form."""
    return content_type.partition(";")[0].strip().lower() == MULTIPART


def parse_form(body: bytes, content_type: str, *, most_files: int, parameters: Collection[str] = ()) -> list[Upload]:
    """Read the files of a `multipart/form-data` body, in their order, whatever their fields; others are ignored.

    Those with the name of one of the `parameters`, which belong into the address, are refused.

    This is for a thread of its own: what keeps looking like the boundary takes 0.1 s a MB to parse, and six callers who
    sent 30 MB of it had `/healthz` answer in 430 ms where `Request.form` parsed, in 7 ms so (two cores).

    Raises:
        RefusedError: the body is malformed (400), holds no file (400), a parameter (400) or too many parts (413).
    """

    async def pieces() -> AsyncGenerator[bytes, None]:  # for the parser notes each find of a piece
        for start in range(0, len(body), _PIECE_BYTES):
            yield body[start : start + _PIECE_BYTES]

    return asyncio.run(_Form(Headers({"content-type": content_type}), pieces(), most_files).uploads(parameters))


class _Form(MultiPartParser):
    """Starlette's parser of forms, with what `Request.form` has no switches for.

    Files are spooled in memory alone, for images of callers are written nowhere. All parts are counted, and too many
    are a 413. A form that was cut off is refused, where Starlette's hands over the files that came whole.
    """

    spool_max_size = 0  # never to the disk

    def __init__(self, headers: Headers, pieces: AsyncGenerator[bytes, None], most_parts: int) -> None:
        super().__init__(headers, pieces)
        self._most_parts = most_parts
        self._begun = 0
        self._ended = False

    def on_part_begin(self) -> None:
        self._begun += 1
        if self._begun > self._most_parts:
            raise RefusedError(413, f"more than {self._most_parts} parts in one request; send several requests")
        super().on_part_begin()

    def on_end(self) -> None:
        self._ended = True

    async def uploads(self, parameters: Collection[str]) -> list[Upload]:
        try:
            form = await self.parse()
        except MultiPartException as error:
            raise RefusedError(400, f"malformed multipart/form-data ({error.__cause__ or error.message})") from None
        if not self._ended:
            raise RefusedError(400, "malformed multipart/form-data (it ends before its last boundary)")
        for name, value in form.multi_items():
            if name in parameters and not isinstance(value, UploadFile):
                raise RefusedError(400, f"'{name}' is a field of the form; it goes into the address, as ?{name}=…")
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise RefusedError(400, "no file in the form; send images as files, as in: curl -F image=@photo.jpg")
        return [Upload(data=await file.read(), file=file.filename) for file in files]


SHORTEST_TOKEN = 16
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Holds all that can be chosen of a server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    token: str | None = None
    """Token that callers must show; None asks nobody, which takes `no_auth` on any address but this machine's."""
    no_auth: bool = False
    """Whether everybody who reaches the address is answered."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server may be asked besides its own, such as that of a reverse proxy."""
    root_path: str = ""
    """Prefix of the addresses, such as `/photos`, that a proxy passes on; empty where it has none, or takes it off."""
    threads: int = field(default_factory=usable_cores)
    """Number of images that are worked on at the same time, at least 1."""
    queue: int = 64
    """Number of images that may wait, at least 1; with more, requests are refused with 503."""
    most_bytes: int = 32_000_000
    """Number of bytes that a request's body may have, at least 1; with more, it is refused with 413."""
    most_files: int = 32
    """Number of parts that a request's form may have, at least 1; with more, it is refused with 413."""
    most_pixels: int = 64_000_000
    """Number of pixels that one image may have by its header, at least 1; with more, it cannot be used."""
    most_connections: int = 512
    """Number of connections at the same time, at least 1; more are turned away with 503."""
    most_held_bytes: int = 256 << 20
    """Number of bytes of all bodies in memory at the same time; with more, requests are refused with 503."""
    head_seconds: float = 10.0
    """Seconds from connecting, or the first byte of a further request, to the end of the request's headers."""
    body_seconds: float = 30.0
    """Seconds from the headers to the end of the body."""
    answer_seconds: float = 30.0
    """Seconds from the end of the body to the answer, waiting included."""
    idle_seconds: float = 15.0
    """Seconds that a connection is kept between two requests."""
    reload_seconds: float = 1.0
    """Seconds between two looks at the model files."""

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and self.token is None and not self.no_auth:
            raise OptionError(
                f"'{self.host}' can be reached from other machines; give --token (or QUICKSTUDY_TOKEN), "
                "or --no-auth to answer everybody"
            )
        if self.token is not None and (len(self.token) < SHORTEST_TOKEN or not _is_token(self.token)):
            raise OptionError(
                f"The token must have at least {SHORTEST_TOKEN} visible ASCII characters without spaces; "
                "make one with: openssl rand -hex 16"
            )
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path, re.ASCII):
            raise OptionError(
                f"--root-path is '{self.root_path}'; expected a prefix such as /photos, without a slash at its end"
            )
        if self.token is not None and self.no_auth:
            raise OptionError("--token (or QUICKSTUDY_TOKEN) and --no-auth contradict each other; leave one out")
        for name in ("threads", "queue", "most_bytes", "most_files", "most_pixels", "most_connections"):
            if getattr(self, name) < 1:
                raise OptionError(f"'{name}' must be at least 1; got {getattr(self, name)}")

    @property
    def names(self) -> frozenset[str] | None:
        """Host names under which the server may be asked; None where any will do.

        They stop DNS rebinding on this machine's own address: a web site that lets its name point to 127.0.0.1 to have
        the browser ask this server. On other addresses, names are not known unless given.
        """
        own = (*_LOOPBACK_NAMES, self.host) if is_loopback(self.host) else ()
        names = {name.lower() for name in (*own, *self.allowed_hosts)}
        return frozenset(names) if names else None


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_token(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
