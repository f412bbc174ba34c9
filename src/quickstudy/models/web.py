"""A static site around a model: one page that classifies photos in the browser, and learns classes of one's own.

All that the page needs is in its one file, so it opens by a double click, from a memory stick, too: browsers load no
modules, and fetch nothing, for pages that are files. Its policy allows no connection to anywhere, so that no photo can
leave the browser. ONNX Runtime for the web is published as an npm package; its files come through npm at export time,
once, or from a folder or archive, and must have the hashes below.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from quickstudy.errors import DownloadError, InstallationError, WriteError
from quickstudy.files import cache_folder, write_bytes_atomically
from quickstudy.models.loading import load_bytes, read_model_file
from quickstudy.models.teaching import TeachableModel, as_page_json, written
from quickstudy.progress import Progress, silent

RUNTIME = "onnxruntime-web@1.30.0"
"""Name and version of the npm package of ONNX Runtime for the web."""
_INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The hash of the package's archive, as lock files have it."""
RUNTIME_FILES: Mapping[str, str] = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""SHA-256 of the files that are used, in the package's `dist` folder."""
PAGE = resources.files("quickstudy.models").joinpath("site")
"""Folder of the page, which `quickstudy serve` has as well, around another `classifier.js`."""
SHARED = ("elements.js", "intake.js")
"""Modules that every page of quickstudy's takes photos with."""
_MODULES = (
    *("elements.js", "files.js", "jpeg.js", "pillow.js", "pixels.js", "decoding.js", "intake.js", "digest.js"),
    *("head.js", "classes.js", "teach.js", "ort.wasm.min.mjs", "classifier.js", "page.js"),
)
"""The modules of a site, each after those that it imports."""
_IS_OURS = b"<title>quickstudy</title>"
_MOST_ARCHIVE_BYTES = 200 << 20
_NPM_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Site:
    """What was written."""

    folder: Path
    """The folder of the site."""
    page: Path
    """The page, its only file."""
    bytes: int
    """Size of the page, in bytes."""
    golden_difference: float
    """Largest difference of a probability in the model's golden checks, run before it was copied."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {
            "site": str(self.folder),
            "page": str(self.page),
            "bytes": self.bytes,
            "golden_difference": self.golden_difference,
        }


def write_site(
    model: Path,
    folder: Path,
    *,
    trainable: bool = False,
    start: Path | None = None,
    runtime: Path | None = None,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Site:
    """Write a folder with one page, `index.html`, that any browser can open and any static web server can serve.

    Args:
        model: the model; its golden checks are run first.
        folder: created if need be; the page of an earlier site there is replaced, all else stays.
        trainable: let the page learn classes of its user's own, on the features of the model's network.
        start: images with labels, some of each of whose classes the page knows from the start; none if left out.
        runtime: folder or `.tgz` archive of the npm package RUNTIME; left out, it comes from the cache or through npm.
        cache: see `quickstudy.files.cache_folder`.
        progress: is told how far things are.

    Raises:
        WriteError: the folder cannot be written, or has a page that is no such site's.
        ImageSetError: the images to start from cannot be used.
        ModelError: the model is not whole, or cannot be taught with.
        DownloadError: ONNX Runtime's files cannot be had, or are not the published ones.
        InstallationError: they are not at hand, and npm, which fetches them, is not installed.
    """
    page = folder / "index.html"
    if page.exists() and _IS_OURS not in page.read_bytes()[:4096]:
        raise WriteError(f"'{folder}' has an index.html of its own, which would be overwritten; name another folder")
    data = read_model_file(model)
    loaded = load_bytes(data, model)
    difference = loaded.verify()
    description = {"title": model.stem, "classes": loaded.classes, **loaded.input.to_dict()}
    if test := (loaded.metadata.get("training") or {}).get("test"):
        description["test"] = test
    if loaded.thresholds:
        description["thresholds"] = loaded.thresholds
    if refusal := loaded.refusal:
        description["strangeness"] = refusal.to_dict()
    texts: dict[str, str] = {}
    if trainable:
        teachable = TeachableModel.of(data, model, cache_folder(cache))
        description["teaching"] = teachable.for_page()
        if start is not None:
            classes = teachable.classes_of(start, cache_folder(cache), progress=progress)
            texts["classes.json"] = written(teachable.teaching, classes)
    texts["model.json"] = as_page_json(description)
    content = _page(texts, data, _runtime_files(runtime, cache_folder(cache)))
    try:
        write_bytes_atomically(page, content)
    except OSError as error:
        raise WriteError(f"Cannot write the site '{folder}': {error.strerror}. Name another folder") from None
    return Site(folder=folder, page=page, bytes=len(content), golden_difference=difference)


def _page(said: Mapping[str, str], model: bytes, runtime: dict[str, bytes]) -> bytes:
    """Put the page together: what the browser shows first, then all that it needs."""
    texts = {path.name: path.read_text("utf-8") for path in PAGE.iterdir() if path.name.endswith((".js", ".css"))}
    texts |= {name: content.decode() for name, content in runtime.items() if name.endswith(".mjs")}
    style, start = texts["page.css"], texts["start.js"]
    policy = (
        f"default-src 'none'; script-src '{hash_for_policy(start)}' blob: 'wasm-unsafe-eval'; "
        f"style-src '{hash_for_policy(style)}'; "
        "img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'"
    )
    carried = "\n".join(
        [
            *(f'<script type="text/plain" data-module="{name}">{_inert(texts[name])}</script>' for name in _MODULES),
            '<script type="text/plain" data-text="ort-wasm-simd-threaded.mjs">'
            f"{_inert(texts['ort-wasm-simd-threaded.mjs'])}</script>",
            *(f'<script type="text/plain" data-text="{name}">{_inert(text)}</script>' for name, text in said.items()),
            _packed("ort-wasm-simd-threaded.wasm", runtime["ort-wasm-simd-threaded.wasm"]),
            _packed("model.onnx", model),
            f'<script type="module">{start}</script>',
        ]
    )
    html = PAGE.joinpath("index.html").read_text("utf-8")
    for place, instead in (
        ("<title>", f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>'),
        ('<link rel="stylesheet" href="page.css">', f"<style>{style}</style>"),
        ('<script type="module" src="page.js"></script>\n', ""),
        ("</body>", f"{carried}\n</body>"),
    ):
        before, found, after = html.partition(place)
        if not found:
            raise ValueError(f"the page has no {place}")
        html = f"{before}{instead}{after}"
    return html.encode()


def hash_for_policy(text: str) -> str:
    """Name a script or style as content security policies do: by its SHA-256, in base64."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _inert(text: str) -> str:
    """Check that a text can stand in a script element as it is."""
    if re.search(r"</script|<!--", text, re.IGNORECASE):
        raise ValueError(f"a script of the page would end early: {text[:60]!r}")
    return text


@functools.lru_cache(maxsize=2)  # of the runtime, a second; whoever writes several sites has it packed once
def _packed(name: str, content: bytes) -> str:
    packed = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
    return f'<script type="text/plain" data-file="{name}">{packed}</script>'


def _runtime_files(runtime: Path | None, cache: Path) -> dict[str, bytes]:
    """Get the files of ONNX Runtime by name, and check them."""
    if runtime is not None and runtime.is_dir():
        folder = runtime / "dist" if (runtime / "dist").is_dir() else runtime
        try:
            files = {name: (folder / name).read_bytes() for name in RUNTIME_FILES}
        except OSError as error:
            raise DownloadError(f"'{runtime}' is not the package {RUNTIME}: {error}") from None
    else:
        files = _members(_archive_at(runtime) if runtime is not None else _fetched(cache))
    for name, digest in RUNTIME_FILES.items():
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise DownloadError(
                f"'{name}' is not that of {RUNTIME}: its hash differs; expected the package as published"
            )
    return files


def _archive_at(archive: Path) -> bytes:
    """Read the package's archive, and check that it is the published one."""
    try:
        if archive.stat().st_size > _MOST_ARCHIVE_BYTES:
            raise DownloadError(f"'{archive}' is larger than {_MOST_ARCHIVE_BYTES >> 20} MiB; {RUNTIME} is not")
        data = archive.read_bytes()
    except OSError as error:
        raise DownloadError(f"Cannot read '{archive}': {error.strerror}; expected the npm package {RUNTIME}") from None
    if not _is_published(data):
        raise DownloadError(f"'{archive}' is not the npm package {RUNTIME}: its hash differs")
    return data


def _is_published(archive: bytes) -> bool:
    return f"sha512-{base64.b64encode(hashlib.sha512(archive).digest()).decode()}" == _INTEGRITY


@functools.lru_cache(maxsize=1)  # as below
def _members(archive: bytes) -> dict[str, bytes]:
    """Take the files out in one pass over the archive, each where it comes, as going back unpacks all anew."""
    found = dict.fromkeys(RUNTIME_FILES, b"")
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r|gz") as package:
        for member in package:
            name = member.name.removeprefix("package/dist/")
            if name in found and (file := package.extractfile(member)):
                found[name] = file.read()
    return found


def _fetched(cache: Path) -> bytes:
    """Get the package's archive from the cache, where it is whole, or else through npm."""
    archive = cache / "web" / f"{RUNTIME.replace('@', '-')}.tgz"
    with contextlib.suppress(DownloadError):  # it is not there, or damaged
        return _archive_at(archive)
    npm = shutil.which("npm")
    if npm is None:
        raise InstallationError(
            f"A site needs {RUNTIME}, an npm package, and npm is not installed here. Install it, or fetch the package "
            "elsewhere (npm pack) and name it with --runtime"
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", folder, RUNTIME],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
                timeout=_NPM_SECONDS,
            )
            data = next(Path(folder).glob("*.tgz")).read_bytes()
        except (subprocess.SubprocessError, OSError, StopIteration) as error:
            said = (getattr(error, "stderr", None) or str(error) or "it gave no archive").strip().splitlines()[-1]
            raise DownloadError(
                f"npm cannot fetch {RUNTIME}: {said}. Fetch it elsewhere (npm pack) and name it with --runtime"
            ) from None
    if not _is_published(data):
        raise DownloadError(
            f"What npm gave as {RUNTIME} is another package: its hash differs. Fetch it elsewhere (npm pack) and name "
            "it with --runtime"
        )
    write_bytes_atomically(archive, data)
    return data
