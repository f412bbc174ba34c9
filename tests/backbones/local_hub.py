"""An imitation of the hub's API on this machine: listings, redirects, ETags, ranges, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

LARGE = (".onnx", ".onnx_data")


@dataclass
class Repository:
    """What the imitation knows of one repository."""

    files: Mapping[str, bytes]
    licence: str | None = "apache-2.0"
    revisions: tuple[str, ...] = ("main",)
    status: int = 200
    """What requests for it are answered with."""
    code: str = ""
    """The header X-Error-Code beside it."""
    gated_files: bool = False
    """Whether everybody may see the listing, but not fetch files."""
    cut_once: bool = False
    """Whether the first answer with a large file ends in the middle."""
    served: Mapping[str, bytes] = field(default_factory=dict)
    """Files that come otherwise than they are listed."""
    announced: Mapping[str, int] = field(default_factory=dict)
    """Sizes that are announced otherwise than they are, by file."""

    @property
    def commit(self) -> str:
        listed = b"".join(name.encode() + data for name, data in sorted(self.files.items()))
        return hashlib.sha1(listed).hexdigest()


def digest_of(name: str, data: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class LocalHub:
    """A server of repositories by name (OWNER/REPO); used as a context."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and range of each request so far."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    def stand_in(self, patched: pytest.MonkeyPatch, cache: Path) -> None:
        """Be asked instead of the hub, with the folder for the cache of the hub's files."""
        constants = pytest.importorskip("huggingface_hub.constants", reason="the extra hub is not installed")
        patched.setattr(constants, "ENDPOINT", self.url)
        patched.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        patched.setattr(constants, "HF_HUB_CACHE", str(cache))

    def __enter__(self) -> LocalHub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path, request.headers.get("Range")))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[1:3] if parts[0] == "large" else parts[:2])
        found = self.repositories.get(name)
        if found is None:
            return self._send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if found.status != 200:
            return self._send(request, found.status, b"{}", {"X-Error-Code": found.code} if found.code else {})
        if api:
            return self._list(request, name, found, parts[5] if len(parts) > 5 else "main")
        if parts[0] == "large":
            return self._send_large(request, found, "/".join(parts[3:]))
        return self._resolve(request, name, found, parts[3], "/".join(parts[4:]))

    def _list(self, request: BaseHTTPRequestHandler, name: str, found: Repository, revision: str) -> None:
        if revision not in (*found.revisions, found.commit):
            return self._send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for file, data in found.files.items():
            entry = {"rfilename": file, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if file.endswith(LARGE):
                entry["lfs"] = {"sha256": digest_of(file, data), "size": len(data), "pointerSize": 130}
            else:
                entry["blobId"] = digest_of(file, data)
            siblings.append(entry)
        card = {"license": found.licence} if found.licence else {}
        listing = {"id": name, "modelId": name, "sha": found.commit, "siblings": siblings, "cardData": card}
        return self._send(request, 200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def _resolve(self, request: BaseHTTPRequestHandler, name: str, found: Repository, revision: str, file: str) -> None:
        headers = {"X-Repo-Commit": found.commit}
        if found.gated_files:
            return self._send(request, 403, b"", {**headers, "X-Error-Code": "GatedRepo"})
        if revision not in (*found.revisions, found.commit):
            return self._send(request, 404, b"", {**headers, "X-Error-Code": "RevisionNotFound"})
        if file not in found.files:
            return self._send(request, 404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        data, etag = found.files[file], f'"{digest_of(file, found.files[file])}"'
        if not file.endswith(LARGE):
            return self._send(request, 200, data, {**headers, "ETag": etag})
        headers |= {
            "X-Linked-Etag": etag,
            "X-Linked-Size": str(found.announced.get(file, len(data))),
            # Under another name: huggingface_hub takes what follows a redirect to the hub itself for the hub's answer.
            "Location": f"{self.url.replace('127.0.0.1', 'localhost')}/large/{name}/{file}",
        }
        return self._send(request, 302, b"", headers)

    def _send_large(self, request: BaseHTTPRequestHandler, found: Repository, file: str) -> None:
        data, status, headers = found.served.get(file, found.files[file]), 200, {}
        if asked := request.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        if found.cut_once and request.command == "GET":
            found.cut_once = False
            request.send_response(status)
            request.send_header("Content-Length", str(len(data)))
            request.end_headers()
            request.wfile.write(data[: len(data) // 2])
            request.wfile.flush()
            request.close_connection = True
            return None
        return self._send(request, status, data, headers)

    def _send(self, request: BaseHTTPRequestHandler, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)
