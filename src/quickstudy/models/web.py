"""A static site around a model: a page that classifies photos in the browser, with everything that it needs beside it.

Nothing is fetched from elsewhere when the page is used. ONNX Runtime for the web is published as an npm package; its
files come through npm at export time, once, or from a folder or archive, and must have the hashes below.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from quickstudy.errors import ModelError, WriteError
from quickstudy.files import cache_folder, write_bytes_atomically
from quickstudy.images.decoding import OWN_RESIZE
from quickstudy.models.loading import load_bytes

RUNTIME = "onnxruntime-web@1.30.0"
"""Name and version of the npm package of ONNX Runtime for the web."""
_INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The hash of the package's archive, as lock files have it."""
_RUNTIME_FILES: Mapping[str, str] = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""SHA-256 of the files that are used, in the package's `dist` folder."""
PAGE = resources.files("quickstudy.models").joinpath("site")
"""Folder of the page, which `quickstudy serve` has as well; only its `classifier.js` is the site's own."""
_PAGE_FILES = ("index.html", "page.css", "page.js", "classifier.js", "decoding.js", "jpeg.js", "pixels.js")
_MOST_ARCHIVE_BYTES = 200 << 20
_NPM_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Site:
    """What was written."""

    folder: Path
    """The folder of the site."""
    files: tuple[str, ...]
    """Names of the files in it that were written."""
    bytes: int
    """Size of these files, in bytes."""
    golden_difference: float
    """Largest difference of a probability in the model's golden checks, run before it was copied."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {
            "site": str(self.folder),
            "files": list(self.files),
            "bytes": self.bytes,
            "golden_difference": self.golden_difference,
        }


def write_site(model: Path, folder: Path, *, runtime: Path | None = None, cache: Path | None = None) -> Site:
    """Write a folder that any static web server can serve.

    Args:
        model: the model; its golden checks are run first.
        folder: created if need be; of an earlier site there, files of the same names are replaced, others stay.
        runtime: folder or `.tgz` archive of the npm package RUNTIME; left out, it comes from the cache or through npm.
        cache: see `quickstudy.files.cache_folder`.

    Raises:
        WriteError: the folder cannot be written.
        ModelError: the model is not whole, ONNX Runtime's files are not at hand, or the folder
            has a page that is no such site's.
    """
    if (folder / "index.html").exists() and not (folder / "model.json").exists():
        raise ModelError(f"'{folder}' has an index.html of its own, which would be overwritten; name another folder")
    try:
        data = model.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read '{model}': {error.strerror}") from None
    loaded = load_bytes(data, model)
    if loaded.input.resize != OWN_RESIZE:
        raise ModelError(
            f"'{model}' sees photos resized by Pillow's arithmetic ({loaded.input.resize}), which the page has not; "
            "make its backbone with 'backbone add … --resize own' and retrain, or export it otherwise"
        )
    difference = loaded.verify()
    description = {"title": model.stem, "classes": loaded.classes, **loaded.input.to_dict()}
    if test := (loaded.metadata.get("training") or {}).get("test"):
        description["test"] = test
    if loaded.thresholds:
        description["thresholds"] = loaded.thresholds
    if refusal := loaded.refusal:
        description["strangeness"] = refusal.to_dict()
    files = {
        "model.json": json.dumps(description, ensure_ascii=False, indent=1).encode(),  # by which a site is recognised
        **{name: PAGE.joinpath(name).read_bytes() for name in _PAGE_FILES},
        **_runtime_files(runtime, cache_folder(cache)),
        "model.onnx": data,
    }
    try:
        for name, content in files.items():
            write_bytes_atomically(folder / name, content)
    except OSError as error:
        raise WriteError(f"Cannot write the site '{folder}': {error.strerror}. Name another folder") from None
    return Site(
        folder=folder,
        files=tuple(files),
        bytes=sum(len(content) for content in files.values()),
        golden_difference=difference,
    )


def _runtime_files(runtime: Path | None, cache: Path) -> dict[str, bytes]:
    """Get the files of ONNX Runtime by name, and check them."""
    if runtime is not None and runtime.is_dir():
        folder = runtime / "dist" if (runtime / "dist").is_dir() else runtime
        try:
            files = {name: (folder / name).read_bytes() for name in _RUNTIME_FILES}
        except OSError as error:
            raise ModelError(f"'{runtime}' is not the package {RUNTIME}: {error}") from None
    else:
        archive = runtime or _fetched(cache)
        files = _unpacked(archive)
    for name, digest in _RUNTIME_FILES.items():
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise ModelError(f"'{name}' is not that of {RUNTIME}: its hash differs; expected the package as published")
    return files


def _unpacked(archive: Path) -> dict[str, bytes]:
    try:
        if archive.stat().st_size > _MOST_ARCHIVE_BYTES:
            raise ModelError(f"'{archive}' is larger than {_MOST_ARCHIVE_BYTES >> 20} MiB; {RUNTIME} is not")
        data = archive.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read '{archive}': {error.strerror}; expected the npm package {RUNTIME}") from None
    if f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}" != _INTEGRITY:
        raise ModelError(f"'{archive}' is not the npm package {RUNTIME}: its hash differs")
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as package:
        return {name: _member(package, f"package/dist/{name}") for name in _RUNTIME_FILES}


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    return b"" if file is None else file.read()


def _fetched(cache: Path) -> Path:
    """Get the package's archive from the cache or through npm."""
    archive = cache / "web" / f"{RUNTIME.replace('@', '-')}.tgz"
    if archive.is_file():
        return archive
    npm = shutil.which("npm")
    if npm is None:
        raise ModelError(
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
            raise ModelError(
                f"npm cannot fetch {RUNTIME}: {said}. Fetch it elsewhere (npm pack) and name it with --runtime"
            ) from None
        write_bytes_atomically(archive, data)
    return archive
