"""The application says what each address answers.

POST /predict, /models/{name}/predict   images in, probabilities out
GET /model, /models, /models/{name}     what is served
GET /healthz, /readyz, /metrics         for those who look after it
GET /, /docs, /openapi.json             for people and their programs

It stands on Starlette, with nothing of its own below it: HTTP costs about 0.1 ms of an image's six to eight.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from quickstudy.errors import ModelError, OptionError, UnusableImageError
from quickstudy.models.model import Model
from quickstudy.models.neighbours import Neighbour
from quickstudy.models.web import PAGE, SHARED
from quickstudy.serving.documentation import MOST_NEIGHBOURS, PREDICT_QUERY, documentation_page, openapi
from quickstudy.serving.limits import (
    Bodies,
    Guard,
    RefusedError,
    ServerSettings,
    Upload,
    as_image_file,
    is_multipart,
    parse_form,
)
from quickstudy.serving.metrics import CONTENT_TYPE, Metrics
from quickstudy.serving.registry import OverloadedError, Pool, Registry, Served, Version
from quickstudy.wording import count

CLASSIFIER = Path(__file__).parent / "page" / "classifier.js"
"""What the page, the same as that of a static site, asks here: the API."""
PAGE_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
"""Media types of the files that pages are made of, by suffix."""
_PARAMETERS = tuple(one["name"] for one in PREDICT_QUERY)
_RETRY_SECONDS = 1
_LONGEST_SHOWN = 40  # characters of a name that a caller gave
# With curl, both -d and --data-binary send this type; only the first damages the file.
_HINTS = {
    "application/x-www-form-urlencoded": "; with curl, send it by --data-binary @photo.jpg: -d drops its line ends"
}


def make_app(models: Mapping[str, Path], settings: ServerSettings) -> ASGIApp:
    """Make an ASGI application that serves these models.

    Raises:
        ModelError: a model is missing, damaged or fails its golden checks.
    """
    service = _Service(models, settings)
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/models/{name}/predict", service.predict, methods=["POST"]),
        Route("/model", service.describe),
        Route("/models", service.describe_all),
        Route("/models/{name}", service.describe),
        Route("/healthz", service.healthz),
        Route("/readyz", service.readyz),
        Route("/metrics", service.metrics_text),
        Route("/openapi.json", _constant(json.dumps(openapi(settings), indent=1), "application/json")),
        Route("/docs", _constant(documentation_page(settings), "text/html")),
        Route("/", answer_with(PAGE.joinpath("index.html"))),
        *(Route(f"/{name}", answer_with(PAGE.joinpath(name))) for name in ("page.css", "page.js", *SHARED)),
        Route("/classifier.js", answer_with(CLASSIFIER)),
    ]
    handlers = {**HANDLERS, OverloadedError: _on_overloaded}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=service.lifespan)
    app.router.redirect_slashes = False
    return Guard(app, settings, service.metrics)


class _Service:
    """Holds what the endpoints share, and answers them."""

    def __init__(self, models: Mapping[str, Path], settings: ServerSettings) -> None:
        self._settings = settings
        self.metrics = Metrics()
        self._registry = Registry(models, self.metrics)
        self._pool = Pool(threads=settings.threads, queue=settings.queue)
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="form")
        self._bodies = Bodies(
            most_bytes=settings.most_bytes,
            most_held_bytes=settings.most_held_bytes,
            seconds=settings.body_seconds,
        )
        self.metrics.watch(pending=lambda: self._pool.pending, held=lambda: self._bodies.held)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Watch the model files for as long as the server runs; at the end let the threads finish."""
        watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watcher.cancel()
            self._pool.close()
            self._parser.shutdown()

    async def predict(self, request: Request) -> Response:
        """Answer POST /predict and POST /models/{name}/predict."""
        served = self._served(request)
        _require_known(request, _PARAMETERS)
        version = served.version
        top = _number(request, "top", least=1) or len(version.model.classes)
        neighbours = min(_number(request, "neighbours", least=0) or 0, MOST_NEIGHBOURS)
        sets = _sets(request, version.model)
        if self._pool.is_full:
            raise OverloadedError
        with self._bodies.hold() as held:
            body = await self._bodies.read(request, held)
            started = time.perf_counter()
            try:
                async with asyncio.timeout(self._settings.answer_seconds):
                    uploads = await self._uploads(body, request.headers.get("content-type", ""))
                    if len(uploads) > self._settings.queue:
                        raise RefusedError(
                            413, f"more than {count(self._settings.queue, 'image')}; send several requests"
                        )
                    jobs = [partial(self._answer, version, upload, top, neighbours, sets) for upload in uploads]
                    answers = await self._pool.run(jobs)
            except TimeoutError:
                raise OverloadedError from None
        self.metrics.seconds.labels(served.name).observe(time.perf_counter() - started)
        unusable = sum("error" in answer for answer in answers)
        if unusable:
            self.metrics.images.labels(served.name, "unusable").inc(unusable)
        self.metrics.images.labels(served.name, "classified").inc(len(answers) - unusable)
        result: dict[str, Any] = {"model": served.name, "predictions": answers}
        if unusable == len(answers):
            result = {"error": answers[0]["error"] if len(answers) == 1 else "no image can be used", **result}
        return json_answer(result, 422 if unusable == len(answers) else 200)

    async def describe(self, request: Request) -> Response:
        """Answer GET /model and GET /models/{name}."""
        _require_known(request)
        return json_answer(self._served(request).describe())

    async def describe_all(self, request: Request) -> Response:
        """Answer GET /models: all models, described."""
        _require_known(request)
        return json_answer({"models": [served.describe() for served in self._registry.models.values()]})

    async def healthz(self, _: Request) -> Response:
        """Answer GET /healthz: the process lives."""
        return json_answer({"alive": True})

    async def readyz(self, _: Request) -> Response:
        """Answer GET /readyz: whether there is room, and whether all models in use are the files that lie there now."""
        current = all(served.problem is None for served in self._registry.models.values())
        ready = not self._pool.is_full
        return json_answer({"ready": ready, "models_current": current}, 200 if ready else 503)

    async def metrics_text(self, _: Request) -> Response:
        """Answer GET /metrics in Prometheus's text format."""
        return Response(self.metrics.render(), media_type=CONTENT_TYPE)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.reload_seconds)
            await asyncio.to_thread(self._registry.refresh)

    def _served(self, request: Request) -> Served:
        name = request.path_params.get("name")
        if name is None:
            return self._registry.default
        try:
            return self._registry.models[name]
        except KeyError:
            raise RefusedError(404, "no such model; GET /models lists them") from None

    async def _uploads(self, body: bytes, content_type: str) -> list[Upload]:
        if not body:
            raise RefusedError(400, "an empty body; send an image's bytes, or multipart/form-data with images")
        if is_multipart(content_type):
            most = self._settings.most_files
            parse = partial(parse_form, body, content_type, most_files=most, parameters=_PARAMETERS)
            return await asyncio.get_running_loop().run_in_executor(self._parser, parse)
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type == "application/json":
            raise RefusedError(415, "JSON; send an image's bytes, or multipart/form-data. Addresses are not fetched")
        return [Upload(data=as_image_file(body), hint=_HINTS.get(media_type, ""))]

    def _answer(
        self, version: Version, upload: Upload, top: int, neighbours: int, sets: _Sets | None
    ) -> dict[str, Any]:
        """Work out, in a thread, what there is to say about one image."""
        answer: dict[str, Any] = {} if upload.file is None else {"file": upload.file}
        model = version.model
        try:
            found = model.examine(upload.data, most_pixels=self._settings.most_pixels)
        except UnusableImageError as error:
            return answer | {"error": f"{error}{upload.hint}"}
        if found.probabilities is None:
            return answer | {"error": f"{found.reason}{upload.hint}"}
        classes = [{"label": n, "probability": round(share, 6)} for n, share in model.rank(found.probabilities, top)]
        answer |= {**classes[0], "classes": classes}
        if model.thresholds:
            answer["labels"] = list(model.labels(found.probabilities))
        if found.strangeness is not None:
            answer["strangeness"] = round(found.strangeness, 6)
            answer["none_of_these"] = model.is_none_of_these(found.strangeness)
            if version.watch:
                version.watch.see(found.strangeness, time.time())
        if sets:
            answer["set"] = list(sets(found.probabilities[None])[0])
        if neighbours:
            kept, seen = version.neighbours, found.features
            nearest = kept.nearest(seen, neighbours) if kept is not None and seen is not None else []
            answer["neighbours"] = [_shown(neighbour) for neighbour in nearest]
        return answer


_Sets = Callable[[NDArray[np.float32]], list[tuple[str, ...]]]


def _sets(request: Request, model: Model) -> _Sets | None:
    """Read which sets are asked for, and check that the model can give them; None where none are."""
    text = request.query_params.get("sets")
    by_class = _number(request, "by_class", least=0, most=1)
    if text is None:
        if by_class is not None:
            raise RefusedError(400, "'by_class' goes with 'sets', such as sets=95")
        return None
    try:
        level = float(text) / 100
        model.sets(model.predict_proba([]), level)
    except ValueError:
        raise RefusedError(400, "'sets' must be a number of percent, such as 95") from None
    except (ModelError, OptionError) as error:
        raise RefusedError(400, str(error)) from None
    return partial(model.sets, level=level, by_class=bool(by_class))


def _shown(neighbour: Neighbour) -> dict[str, Any]:
    return {
        "label": neighbour.label,
        "similarity": round(neighbour.similarity, 4),
        "thumbnail": "data:image/jpeg;base64," + base64.b64encode(neighbour.thumbnail).decode(),
    }


def _require_known(request: Request, known: Sequence[str] = ()) -> None:
    """Refuse parameters that there are none of, or one that comes twice: they would do nothing, in silence."""
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        shown = f"'{name[:_LONGEST_SHOWN]}'"
        if name not in known:
            expected = f"known are {', '.join(known)}" if known else "none is known here"
            raise RefusedError(400, f"there is no parameter {shown}; {expected}")
        if given.count(name) > 1:
            raise RefusedError(400, f"the parameter {shown} is given {given.count(name)} times; give it once")


def _number(request: Request, name: str, *, least: int, most: int | None = None) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    whole = text.isascii() and text.isdigit() and len(text) < 10
    if not (whole and least <= int(text) and (most is None or int(text) <= most)):
        expected = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise RefusedError(400, f"'{name}' must be a whole number {expected}")
    return int(text)


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a value as JSON in UTF-8, without blanks; what is no text has `?` for each character."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(body, status, headers, media_type="application/json")


def answer_with(file: Traversable) -> Callable[[Request], Awaitable[Response]]:
    """Make what answers each request with a file of ours: a page, a script or a style."""
    return _constant(file.read_text("utf-8"), PAGE_TYPES[Path(file.name).suffix])


def _constant(text: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    response = Response(text, media_type=media_type)

    async def answer(_: Request) -> Response:
        return response

    return answer


async def _on_http_exception(_: Request, error: HTTPException) -> Response:
    return json_answer({"error": error.detail}, error.status_code, error.headers)


async def _on_refused(_: Request, error: RefusedError) -> Response:
    return json_answer({"error": error.reason}, error.status)


async def _on_overloaded(_: Request, __: OverloadedError) -> Response:
    return json_answer(
        {"error": "the server is too busy at the moment; ask again later"}, 503, {"Retry-After": str(_RETRY_SECONDS)}
    )


async def _on_unexpected(_: Request, __: Exception) -> Response:
    return json_answer({"error": "the server failed while it answered; its log says why"}, 500)


async def _on_disconnect(_: Request, __: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody is there to read it


HANDLERS: Mapping[Any, Any] = {
    Exception: _on_unexpected,
    HTTPException: _on_http_exception,
    RefusedError: _on_refused,
    ClientDisconnect: _on_disconnect,
}
"""What answers where a request cannot be answered, by the error, in every server of ours."""
