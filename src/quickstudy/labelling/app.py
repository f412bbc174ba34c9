"""The application behind the page: what each address answers, and to whom.

Only this machine reaches it, and only with the token: once in the address, as Jupyter does it, from then on in a cookie
that no other site can make the browser send. Origin and host are checked as the server of models checks them
(`quickstudy.serving.limits`). Browsers name photos by the first half of their content hash; no path that one sends is
ever opened, and what they get of a photo is decoded and encoded anew.

POST /api/act, /api/undo, /api/train   what people do
POST /api/try, /api/keep               a photo of theirs: what the model makes of it; that it is to be labelled
GET /api/state                         everything a page shows besides photos; waits until there is something new
GET /api/photos, /api/map              which photos, in the grid and on the map
GET /photo/{id}, /sheet                a photo, and thumbnails of many
GET /report                            the report on the trained model
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from quickstudy.errors import LabellingError, UnusableImageError, WriteError
from quickstudy.labelling.answers import describe, list_photos, map_of, photo_number
from quickstudy.labelling.background import Background
from quickstudy.labelling.photos import MOST_TILES, NAME_DIGITS
from quickstudy.labelling.session import MOST_PHOTOS, Session
from quickstudy.labelling.training import Trainer
from quickstudy.models.web import PAGE, SHARED
from quickstudy.serving.app import HANDLERS, PAGE_TYPES, answer_with, json_answer
from quickstudy.serving.limits import Bodies, Guard, RefusedError, ServerSettings
from quickstudy.serving.metrics import Metrics
from quickstudy.serving.registry import OverloadedError

_PAGE = Path(__file__).parent / "page"
_WAIT_SECONDS = 20.0
_LONGEST_WORD = 64
_MOST_ACTS = 1 << 53  # whole numbers that browsers hold
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
)


def make_label_app(session: Session, settings: ServerSettings) -> tuple[ASGIApp, Callable[[], None]]:
    """Make the ASGI application for a session, and what lets its answers wait no longer.

    `settings` must have a token.
    """
    service = _Service(session, settings)
    assets: dict[str, Traversable] = {f"/{path.name}": path for path in _PAGE.iterdir() if path.suffix in PAGE_TYPES}
    assets |= {f"/{name}": PAGE.joinpath(name) for name in SHARED}
    routes = [
        Route("/", service.page),
        *(Route(name, answer_with(path)) for name, path in assets.items() if name != "/index.html"),
        Route("/api/state", service.state),
        Route("/api/act", service.act, methods=["POST"]),
        Route("/api/undo", service.undo, methods=["POST"]),
        Route("/api/photos", service.photos),
        Route("/api/map", service.map),
        Route("/api/train", service.train, methods=["POST"]),
        Route("/api/try", service.try_out, methods=["POST"]),
        Route("/api/keep", service.keep, methods=["POST"]),
        Route("/photo/{id}", service.photo),
        Route("/sheet", service.sheet),
        Route("/report", service.report),
    ]
    handlers: dict[Any, Any] = {
        **HANDLERS,
        OverloadedError: lambda *_: json_answer({"error": "too much at once; send it again later"}, 503),
        LabellingError: lambda _, error: json_answer({"error": str(error)}, 400),
        UnusableImageError: lambda _, error: json_answer({"error": str(error)}, 422),
        WriteError: lambda _, error: json_answer({"error": str(error)}, 507),
    }
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=service.lifespan)
    app.router.redirect_slashes = False
    shell = frozenset({"/", *assets})
    return Guard(app, settings, Metrics(), open_paths=shell, cookie=service.cookie), service.end


class _Service:
    """Answers the addresses."""

    def __init__(self, session: Session, settings: ServerSettings) -> None:
        self._session, self._settings = session, settings
        self._trainer = Trainer(session)
        self._bodies = Bodies(
            most_bytes=settings.most_bytes, most_held_bytes=settings.most_held_bytes, seconds=settings.body_seconds
        )
        self._news = asyncio.Event()
        self._ending = False
        self.cookie = f"quickstudy-label-{settings.port}"

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Run the session's threads for as long as the server runs."""
        loop = asyncio.get_running_loop()

        def pulse() -> None:
            self._news.set()
            self._news = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(pulse)

        self._session.listener = tell
        background = Background(self._session)
        background.start()
        try:
            yield
        finally:
            await asyncio.to_thread(background.close)

    def end(self) -> None:
        """Let answers that wait for news wait no longer; may be called from any thread."""
        self._ending = True
        self._session.listener()

    async def page(self, request: Request) -> Response:
        """Answer GET /: the page; with the token in the address, a cookie in its place."""
        given = request.query_params.get("token")
        if given is None:
            return Response((_PAGE / "index.html").read_bytes(), media_type="text/html")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), (self._settings.token or "").encode()):
            raise RefusedError(401, "this is not the server's token; take the address that 'quickstudy label' printed")
        response = RedirectResponse("./", 303)
        response.set_cookie(self.cookie, given, httponly=True, samesite="strict")
        return response

    async def state(self, request: Request) -> Response:
        """Answer GET /api/state: at once where something is new since `since`, or else when it is, or after a while."""
        since, who, shown = _number(request, "since", default=-1), _word(request, "who"), _word(request, "shown")
        if since == self._session.version and not self._ending:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _WAIT_SECONDS)
        return json_answer(await self._locked(describe, self._session, self._trainer, who, shown))

    async def act(self, request: Request) -> Response:
        """Answer POST /api/act: what somebody says of photos; it is on the disk when this is answered."""
        values = await self._values(request)
        kind, ids, seen, names = (values.get(name, []) for name in ("kind", "photos", "seen", "names"))
        if kind not in ("label", "none", "skip", "clear", "class"):
            raise RefusedError(400, "'kind' must be label, none, skip, clear or class")
        if not _is_list(ids, str) or not _is_list(seen, int) or not all(0 <= one < _MOST_ACTS for one in seen):
            raise RefusedError(400, f"'photos' must be at most {MOST_PHOTOS:,} names of photos, 'seen' as many numbers")
        if not _is_list(names, str):
            raise RefusedError(400, "'names' must be a list of names of labels")
        photos = [self._session.photos.photos[photo_number(self._session, one)].id for one in ids]
        act = await asyncio.to_thread(
            partial(
                self._session.act,
                kind,
                photos,
                names=names,
                seen=seen,
                who=_text(values, "who"),
                key=_text(values, "key"),
                way=_text(values, "way"),
            )
        )
        return json_answer({"number": act.number if act else 0, "photos": len(act.photos) if act else 0})

    async def undo(self, request: Request) -> Response:
        """Answer POST /api/undo: take back what somebody did last."""
        values = await self._values(request)
        act = await asyncio.to_thread(partial(self._session.undo, who=_text(values, "who"), key=_text(values, "key")))
        if act is None:
            return json_answer({"number": 0})
        return json_answer(
            {
                "number": act.number,
                "kind": act.kind,
                "names": act.given,
                "own": act.who == values.get("who"),
                "count": len(act.photos),
                "photos": [photo[:NAME_DIGITS] for photo in act.photos[:1]],
            }
        )

    async def photos(self, request: Request) -> Response:
        """Answer GET /api/photos: some photos for the grid."""
        query = dict(request.query_params)
        return json_answer(await self._locked(list_photos, self._session, query))

    async def map(self, _: Request) -> Response:
        """Answer GET /api/map: all photos with their places."""
        return json_answer(await self._locked(map_of, self._session))

    async def train(self, request: Request) -> Response:
        """Answer POST /api/train: begin a training."""
        await self._values(request)
        return json_answer({"started": self._trainer.start()})

    async def try_out(self, request: Request) -> Response:
        """Answer POST /api/try: what the trained model makes of an image."""
        return json_answer(await asyncio.to_thread(self._trainer.examine, await self._body(request)))

    async def keep(self, request: Request) -> Response:
        """Answer POST /api/keep: take in an image, with its class or its labels."""
        who, names = _word(request, "who"), request.query_params.getlist("name")
        data = await self._body(request)

        def keep() -> dict[str, Any]:
            photo = self._session.add_photo(data)
            mark = self._session.labels.mark(photo)
            seen = [mark.number if mark else 0]
            self._session.act("label", [photo], names=names, seen=seen, who=who, way="try")
            return {"photo": photo[:NAME_DIGITS]}

        return json_answer(await asyncio.to_thread(keep))

    async def photo(self, request: Request) -> Response:
        """Answer GET /photo/{id}: a photo, decoded and encoded anew."""
        number = photo_number(self._session, request.path_params["id"])
        try:
            picture = await asyncio.to_thread(self._session.photos.picture, number)
        except UnusableImageError as error:
            self._session.set_unusable(number, str(error))
            raise
        return Response(picture, media_type="image/jpeg")

    async def sheet(self, request: Request) -> Response:
        """Answer GET /sheet: thumbnails of photos on one picture."""
        ids = request.query_params.get("photos", "").split(",")
        if not 0 < len(ids) <= MOST_TILES:
            raise RefusedError(400, f"'photos' must be 1 to {MOST_TILES} names of photos, with commas between them")
        numbers = [photo_number(self._session, one) for one in ids]
        return Response(await asyncio.to_thread(self._session.photos.sheet, numbers), media_type="image/webp")

    async def report(self, _: Request) -> Response:
        """Answer GET /report: the report on the last model."""
        path = self._trainer.report
        if path is None:
            raise RefusedError(404, "there is no report yet; train a model first")
        data = await asyncio.to_thread(path.read_bytes)
        return Response(data, media_type="text/html", headers={"content-security-policy": _REPORT_POLICY})

    async def _locked(self, answer: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """Work out an answer in a thread, while nothing changes."""

        def work() -> dict[str, Any]:
            with self._session.lock:
                return answer(*arguments)

        return await asyncio.to_thread(work)

    async def _body(self, request: Request) -> bytes:
        with self._bodies.hold() as held:
            return await self._bodies.read(request, held)

    async def _values(self, request: Request) -> dict[str, Any]:
        """Read a body of JSON; other types are refused, which forms of other sites could send."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "the body must be JSON, of the type application/json")
        try:
            values = json.loads(await self._body(request))
        except (ValueError, RecursionError):
            raise RefusedError(400, "the body is no JSON") from None
        if not isinstance(values, dict):
            raise RefusedError(400, "the body must be a JSON object")
        return values


def _is_list(value: Any, kind: type) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MOST_PHOTOS
        and all(isinstance(one, kind) and not isinstance(one, bool) for one in value)
    )


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name, "")
    if not isinstance(value, str) or len(value) > _LONGEST_WORD or not value.isascii() or not (value + "x").isalnum():
        raise RefusedError(400, f"'{name}' must be at most {_LONGEST_WORD} letters and digits")
    return value


def _word(request: Request, name: str) -> str:
    return _text(dict(request.query_params), name)


def _number(request: Request, name: str, *, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise RefusedError(400, f"'{name}' must be a whole number")
    return int(text)
