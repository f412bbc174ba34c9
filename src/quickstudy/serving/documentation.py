"""The API is described by an OpenAPI document, and by a page made from it that needs no scripts and no other server."""

from __future__ import annotations

import html
import json
from typing import Any

from quickstudy.serving.limits import ServerSettings
from quickstudy.version import VERSION


def openapi(settings: ServerSettings) -> dict[str, Any]:
    """Make the OpenAPI 3.1 document of a server with these settings."""
    secured: list[dict[str, list[str]]] = [{"token": []}] if settings.token else []
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "description": "A model."}
    paths: dict[str, Any] = {
        "/predict": {"post": _predict(settings, "Classify images with the first model", [])},
        "/models/{name}/predict": {"post": _predict(settings, "Classify images with a model by name", [name])},
        "/model": {"get": _get("Describe the first model", "Model")},
        "/models": {"get": _get("Describe all models", "Models")},
        "/models/{name}": {"get": _get("Describe a model by name", "Model", parameters=[name], missing=True)},
        "/healthz": {"get": _get("Tell whether the process is alive", "Health")},
        "/readyz": {
            "get": _get("Tell whether the server takes requests now (503: it does not)", "Readiness", busy=True)
        },
        "/metrics": {"get": _get("Prometheus metrics", None)},
    }
    for path, operations in paths.items():
        for operation in operations.values():
            if path in ("/healthz", "/readyz"):
                continue
            operation["security"] = secured
            if settings.token:
                operation["responses"]["401"] = _error("The token is missing or wrong")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "quickstudy",
            "version": VERSION,
            "description": "Image classifiers. Images come as bytes; addresses are never fetched, and nothing is kept.",
        },
        "servers": [{"url": settings.root_path or "/"}],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}} if settings.token else {},
        },
    }


def documentation_page(settings: ServerSettings) -> str:
    """Make a page for people of the OpenAPI document."""
    document = openapi(settings)
    sections = "\n".join(
        _section(method.upper(), path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    schemas = "\n".join(
        f'<section><h3 id="{name}">{name}</h3><pre>{html.escape(json.dumps(schema, indent=1))}</pre></section>'
        for name, schema in document["components"]["schemas"].items()
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>quickstudy: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="page.css">
<main>
<h1>API</h1>
<p>{html.escape(document["info"]["description"])}
<a href="openapi.json">The OpenAPI document</a> · <a href=".">The page to try it on</a></p>
{_token_note(settings)}
<pre>{html.escape(_examples(settings))}</pre>
{sections}
<h2>Answers</h2>
{schemas}
</main>
</html>
"""


def _predict(settings: ServerSettings, summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
    form = {"schema": {"type": "object", "additionalProperties": {"type": "array", "items": binary["schema"]}}}
    return {
        "summary": summary,
        "description": (
            "One image as the body itself, its bytes, base64 or a data address, whatever the Content-Type says, or one "
            "or many as files of a form under any "
            f"field names. At most {settings.most_bytes:,} bytes and {settings.most_files} images a request, "
            f"{settings.most_pixels / 1e6:g} megapixels an image. JPEG, PNG, WebP, BMP, GIF and TIFF. An image that "
            "cannot be used has an error and does not fail the others."
        ),
        "parameters": [
            *parameters,
            *PREDICT_QUERY,
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": binary,
                "image/*": binary,
                "multipart/form-data": form,
            },
        },
        "responses": {
            "200": _answer("At least one image was classified", "Predictions"),
            "400": _error("No body, a malformed form or parameter"),
            "404": _error("No such model"),
            "408": _error("The body took too long to arrive"),
            "413": _error("Too many bytes or images"),
            "415": _error("JSON"),
            "422": _answer("No image can be used; the reasons", "Predictions"),
            "500": _error("The server failed; its log says why"),
            "503": {
                **_error("The server is too busy at the moment; nothing was done"),
                "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
            },
        },
    }


def _get(
    summary: str,
    schema: str | None,
    *,
    parameters: list[dict[str, Any]] | None = None,
    missing: bool = False,
    busy: bool = False,
) -> dict[str, Any]:
    text = {"description": summary, "content": {"text/plain": {"schema": {"type": "string"}}}}
    responses = {"200": _answer(summary, schema) if schema else text}
    if missing:
        responses["404"] = _error("No such model")
    if busy and schema:
        responses["503"] = _answer("The queue is full", schema)
    return {"summary": summary, "parameters": parameters or [], "responses": responses}


def _query(name: str, description: str, least: int) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": least, "maximum": 999_999_999}
    return {"name": name, "in": "query", "description": description, "schema": schema}


MOST_NEIGHBOURS = 20
"""The most of the nearest training images that are shown, however many are asked for."""
PREDICT_QUERY: tuple[dict[str, Any], ...] = (
    _query("top", "How many classes to name, most probable first; all if left out.", 1),
    _query(
        "neighbours",
        f"How many of the nearest training images to show, at most {MOST_NEIGHBOURS}; if they were kept.",
        0,
    ),
    {
        "name": "sets",
        "in": "query",
        "description": "Name sets of classes: the right one is among them for so many percent of images.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 100},
    },
    _query("by_class", "With sets: 1 lets that hold for each class on its own.", 0),
)
"""The parameters that a prediction may have behind the `?`, as OpenAPI has them; there are no others."""


def _answer(description: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _error(description: str) -> dict[str, Any]:
    return _answer(description, "Error")


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


_TEXT: dict[str, Any] = {"type": "string"}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_CLASS = _object({"label": _TEXT, "probability": _SHARE})
_MAYBE_OBJECT = {"type": ["object", "null"]}
_SCHEMAS: dict[str, Any] = {
    "Predictions": _object(
        {
            "model": _TEXT,
            "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}},
        },
        {"error": {**_TEXT, "description": "Where no image can be used."}},
    ),
    "Prediction": _object(
        {},
        {
            "file": {**_TEXT, "description": "The name it was sent under; none where the body is the image."},
            "label": {**_TEXT, "description": "The most probable class."},
            "probability": _SHARE,
            "classes": {"type": "array", "items": _CLASS, "description": "Most probable first."},
            "strangeness": {
                **_SHARE,
                "description": "Share of the model's own images that are less strange, where the model tells.",
            },
            "none_of_these": {
                "type": "boolean",
                "description": "Whether it is too strange to be of any class; then the label is only the nearest.",
            },
            "labels": {
                "type": "array",
                "items": _TEXT,
                "description": "The labels that are given, most probable first, of a model of several labels an image.",
            },
            "set": {
                "type": "array",
                "items": _TEXT,
                "description": "The classes among which the right one is, most probable first; where it was asked for.",
            },
            "neighbours": {
                "type": "array",
                "description": "The nearest training images, nearest first; where they were asked for.",
                "items": _object({"label": _TEXT, "similarity": {"type": "number"}, "thumbnail": _TEXT}),
            },
            "error": {**_TEXT, "description": "Why the image cannot be used; then there is no label."},
        },
    ),
    "Model": _object(
        {
            "name": _TEXT,
            "classes": {"type": "array", "items": _TEXT},
            "input": {"type": "object"},
            "sha256": {**_TEXT, "description": "Of the model's file."},
            "loaded": {"type": "string", "format": "date-time"},
            "problem": {"type": ["string", "null"], "description": "Why the file that is there now is not in use."},
            "neighbours": {"type": "integer", "description": "Training images whose thumbnails were kept."},
            "strangeness": {
                **_MAYBE_OBJECT,
                "description": "Above which threshold an image is none of these, and the share of own ones refused.",
            },
            "thresholds": {
                **_MAYBE_OBJECT,
                "description": "The probability from which on each of several labels is given; 2 where it never is.",
            },
            "drift": {
                **_MAYBE_OBJECT,
                "description": "Since when the photos look different from those learned from, and how sure that is.",
            },
            "test": {**_MAYBE_OBJECT, "description": "Accuracy on the test images."},
            "backbone": _MAYBE_OBJECT,
            "versions": _MAYBE_OBJECT,
        }
    ),
    "Models": _object({"models": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}}),
    "Health": _object({"alive": {"type": "boolean"}}),
    "Readiness": _object(
        {
            "ready": {"type": "boolean"},
            "models_current": {
                "type": "boolean",
                "description": "Whether each model in use is the file there now.",
            },
        }
    ),
    "Error": _object({"error": {**_TEXT, "description": "What was wrong."}}),
}


def _section(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<li><code>{one['name']}</code> ({one['in']}): {html.escape(one['description'])}"
        for one in operation["parameters"]
    )
    responses = "".join(
        f"<li><code>{status}</code> {html.escape(response['description'])}{_schema_link(response)}"
        for status, response in operation["responses"].items()
    )
    return (
        f"<section><h2><code>{method} {html.escape(path)}</code></h2><p>{html.escape(operation['summary'])}. "
        f"{html.escape(operation.get('description', ''))}</p>"
        + (f"<ul>{parameters}</ul>" if parameters else "")
        + f"<ul>{responses}</ul></section>"
    )


def _schema_link(response: dict[str, Any]) -> str:
    reference = response["content"].get("application/json", {}).get("schema", {}).get("$ref", "")
    name = reference.rpartition("/")[2]
    return f': <a href="#{name}">{name}</a>' if name else ""


def _token_note(settings: ServerSettings) -> str:
    if not settings.token:
        return ""
    return "<p>All but the health checks take the header <code>Authorization: Bearer TOKEN</code>.</p>"


def _examples(settings: ServerSettings) -> str:
    host = settings.allowed_hosts[0] if settings.allowed_hosts else f"127.0.0.1:{settings.port}"
    host += settings.root_path
    token = " -H 'Authorization: Bearer TOKEN'" if settings.token else ""
    return "\n".join(
        (
            f"curl{token} --data-binary @photo.jpg http://{host}/predict",
            f"curl{token} -F image=@one.jpg -F image=@two.jpg 'http://{host}/predict?top=3'",
        )
    )
