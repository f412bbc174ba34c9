"""Fetches networks from the hub of Hugging Face, by `huggingface_hub`, as its users know it.

Its cache, token (`hf auth login`, `HF_TOKEN`), mirror (`HF_ENDPOINT`), offline mode (`HF_HUB_OFFLINE`) and progress
bars are its own. A name such as `hf:onnx-community/dinov2-small-ONNX` stands for the newest commit, which is looked up
once and kept with the backbone. Only ONNX files, weights that they name beside themselves, safetensors and a few JSON
files are fetched or opened, whatever else a repository holds: nothing that would have to be unpickled. Files are
compared with the hash that the hub lists for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from quickstudy.backbones.backbone import HUB
from quickstudy.backbones.graphs.untrusted import MOST_GRAPH_BYTES, outside_files, parse_onnx
from quickstudy.errors import BackboneError, DownloadError, UnsafeFileError, first_line
from quickstudy.extras import require
from quickstudy.files import sha256_of_file
from quickstudy.wording import quoted

_PLACE = re.compile(r"hf(-hub)?:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^:@\s]+))?(:(?P<path>[^:\s]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONFIGS = ("config.json", "preprocessor_config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
WEIGHTS = "model.safetensors"
"""The file that holds a network's weights alone, by the names that transformers or timm have for them."""
_MOST_JSON_BYTES = 10 << 20
_ELSEWHERE = "take another revision, hf:OWNER/REPO@REVISION, or add its .onnx file by itself"
# An import holds the graph as it came, as it becomes, in messages and in sessions: measured, the 88 MB of a ViT-S/14
# take 1.0 GB.
_COPIES = 10
# Files that a repository of several is likely to mean, best first; towers for images before whole two-tower networks.
_USUAL = ("onnx/vision_model.onnx", "vision_model.onnx", "onnx/model.onnx", "model.onnx")


class NoSuchFileError(BackboneError):
    """A repository has not got the file that was asked for."""


@dataclass(frozen=True, kw_only=True)
class HubPlace:
    """The place of a network on the hub."""

    repository: str
    """Name of the repository, OWNER/NAME."""
    revision: str | None = None
    """A commit, branch or tag; None for the newest commit of the main branch."""
    path: str | None = None
    """The ONNX file in the repository, or `WEIGHTS`; None where it is to be chosen."""


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """A file of a repository, as the hub lists it."""

    size: int | None
    """Number of bytes; None where it is not known, as offline."""
    digest: str
    """SHA-256 of a large file (64 digits) or git's hash of another (40); empty where it is not known."""


@dataclass(frozen=True, kw_only=True)
class _Repository:
    """A repository at one commit."""

    place: HubPlace
    """What was asked for."""
    commit: str
    """The commit, 40 hexadecimal digits."""
    files: Mapping[str, _Listed]
    """Its files by name, or those that the cache has."""
    licence: str
    """Its licence, as its authors state it; empty where they do not, or offline."""
    cached: bool
    """Whether all this is from the hub's cache on this machine, since the hub cannot be reached."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A network from the hub, on this machine."""

    file: Path
    """The ONNX file, with its weights beside it, or the file `WEIGHTS`."""
    origin: str
    """Place of the file, with the commit."""
    licence: str
    """Licence of the repository, as its authors state it; empty where they do not, or offline."""
    choice: str
    """The file that was chosen, and the others, for people; empty where there was no choice."""
    config: Mapping[str, Any]
    """What `config.json` holds; empty where there is none."""
    preprocessor: Mapping[str, Any]
    """What `preprocessor_config.json` holds; empty where there is none."""
    tokenizer: Path | None = None
    """The file `tokenizer.json`; None where there is none, or it was not asked for."""
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    """What `tokenizer_config.json` holds; empty where there is none, or it was not asked for."""


def parse_place(text: str) -> HubPlace:
    """Read a place on the hub: `hf:OWNER/REPO[@REVISION][:path/in/repo.onnx]`.

    Raises:
        BackboneError: it is none.
    """
    found = _PLACE.fullmatch(text)
    if found is None or ".." in text:
        raise BackboneError(
            f"'{text}' is no place on the hub; expected hf:OWNER/REPO[@REVISION][:path/in/repo.onnx], such as "
            "hf:onnx-community/dinov2-small-ONNX"
        )
    return HubPlace(repository=found["repository"], revision=found["revision"], path=found["path"])


@contextlib.contextmanager
def fetched(place: HubPlace, *, tokenizer: bool = False) -> Iterator[Fetched]:
    """Fetch a network, or take it from the hub's cache where the hub cannot be reached.

    Weights beside the graph are there as long as the context is open.

    Args:
        place: where it is.
        tokenizer: fetch what turns text into numbers, too.

    Raises:
        MissingExtraError: `huggingface_hub` is not installed.
        BackboneError: there is no such repository, revision or file, or it is closed or too large.
        DownloadError: the hub cannot be reached and its cache has not got it, or what came is not what was listed.
        UnsafeFileError: the graph asks for files outside its folder.
    """
    require("huggingface_hub", extra="hub", what=f"'{HUB}{place.repository}'")
    repository = _look_up(place, tokenizer)
    chosen = _choose(place, repository.files)
    _check_size(repository, [chosen])
    wanted = (*_CONFIGS, *_TOKENIZER[1:]) if tokenizer else _CONFIGS
    configs = [_read_json(_get(repository, name)) if name in repository.files else {} for name in wanted]
    reads_text = tokenizer and _TOKENIZER[0] in repository.files
    file = _get(repository, chosen)
    beside = _weights_beside(repository, file, chosen) if chosen.endswith(".onnx") else {}
    _check_size(repository, [chosen, *beside.values()])
    others = sorted(name for name in repository.files if name.endswith(".onnx") and name != chosen)
    told = f"'{chosen}'; others: {quoted(others)}" if others else ""
    with tempfile.TemporaryDirectory() if beside else contextlib.nullcontext() as folder:
        if folder is not None:
            file = _put_together(repository, Path(folder), {file.name: chosen, **beside}) / file.name
        yield Fetched(
            file=file,
            origin=f"{HUB}{place.repository}@{repository.commit}:{chosen}",
            licence=repository.licence,
            choice=told,
            config=configs[0],
            preprocessor=configs[1],
            tokenizer=_get(repository, _TOKENIZER[0]) if reads_text else None,
            tokenizer_config=configs[-1] if tokenizer else {},
        )


def _put_together(repository: _Repository, folder: Path, files: Mapping[str, str]) -> Path:
    """Put files of a repository, given by the names that they are to have, into a folder, and return it.

    Files of the hub's cache are links to blobs elsewhere, which graphs may not follow out of their folder.
    """
    for location, name in files.items():
        source, target = _get(repository, name).resolve(), folder / location
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # on another disk
            shutil.copyfile(source, target)
    return folder


def kept_config(place: HubPlace) -> Mapping[str, Any]:
    """Read, without asking the hub, what `config.json` of a repository holds; empty where its cache has not got it."""
    try:
        found = _find_cached(place)
        return _read_json(_get(found, _CONFIGS[0])) if found and _CONFIGS[0] in found.files else {}
    except (ImportError, BackboneError, DownloadError):
        return {}


def _look_up(place: HubPlace, reads_text: bool) -> _Repository:
    """Ask the hub for the commit, the files and the licence; where it cannot be reached, ask its cache."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(place.repository, revision=place.revision, files_metadata=True)
    except errors.HfHubHTTPError as error:
        raise _refusal(place, error) from None
    except errors.HFValidationError as error:
        raise BackboneError(f"'{place.repository}' is no name of a repository: {first_line(error)}") from None
    except Exception as error:  # offline mode, and whatever the transport raises
        found = _find_cached(place)
        if found is None:
            raise _not_at_hand(place, f"it ({first_line(error)})", reads_text) from None
        wanted = (place.path, _TOKENIZER[0] if reads_text else None)
        if lacking := [name for name in wanted if name and name not in found.files]:
            raise _not_at_hand(place, f"'{lacking[0]}' of it ({first_line(error)})", reads_text) from None
        return found
    files = {
        one.rfilename: _Listed(size=one.size, digest=(one.lfs.sha256 if one.lfs else one.blob_id) or "")
        for one in info.siblings or ()
    }
    licence = getattr(info.card_data, "license", None) if info.card_data else None
    return _Repository(
        place=place,
        commit=str(info.sha),
        files=files,
        licence=licence if isinstance(licence, str) else "",
        cached=False,
    )


def _not_at_hand(place: HubPlace, what: str, reads_text: bool) -> DownloadError:
    """Say that the hub cannot be reached and its cache lacks what is needed, and the way out."""
    way = (
        "fetch the backbone elsewhere: quickstudy backbone add there, backbone pack NAME -o FILE, and backbone add "
        "FILE here"
    )
    if reads_text:
        folder = _cache_folder(place)
        way = (
            f"compare names elsewhere, and copy the folder '{folder.name}' of the hub's cache from there to "
            f"'{folder.parent}'. A packed backbone is without its tower for text"
        )
    return DownloadError(
        f"The hub cannot be reached for '{place.repository}', and its cache on this machine has not got {what}. Try "
        f"again with a network, name a mirror with HF_ENDPOINT, or {way}"
    )


def _find_cached(place: HubPlace) -> _Repository | None:
    """List what the hub's cache has of a repository, under the commit that its revision was last; None if nothing.

    The layout, `refs` and `snapshots` in a folder for each repository, is the one that its documentation gives.
    """
    from huggingface_hub import constants

    folder = _cache_folder(place)
    revision = place.revision or constants.DEFAULT_REVISION
    try:
        commit = revision if _COMMIT.fullmatch(revision) else (folder / "refs" / revision).read_text().strip()
    except OSError:
        return None
    snapshot, files = folder / "snapshots" / commit, {}
    for path in sorted(snapshot.rglob("*")):
        if path.is_file():
            blob = path.resolve()
            digest = blob.name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name) else ""
            files[path.relative_to(snapshot).as_posix()] = _Listed(size=blob.stat().st_size, digest=digest)
    return _Repository(place=place, commit=commit, files=files, licence="", cached=True) if files else None


def _cache_folder(place: HubPlace) -> Path:
    """Name the folder of a repository in the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{place.repository.replace('/', '--')}"


def _choose(place: HubPlace, files: Mapping[str, _Listed]) -> str:
    """Choose the ONNX file of a repository or, where it has none, its weights."""
    graphs = sorted((name for name in files if name.endswith(".onnx")), key=lambda name: (name.count("/"), name))
    if place.path is not None:
        if place.path not in files or not place.path.endswith((".onnx", WEIGHTS)):
            raise NoSuchFileError(
                f"'{place.repository}' has no ONNX file '{place.path}'; it has: {quoted(graphs) or 'none'}"
            )
        return place.path
    if not graphs and WEIGHTS in files and _CONFIGS[0] in files:
        return WEIGHTS
    if not graphs:
        weights = [name for name in files if name.endswith((".safetensors", ".bin", ".msgpack", ".h5"))]
        lacks = f"no ONNX file and no {WEIGHTS}" + (f" (only {weights[0]}, which is not read)" if weights else "")
        if WEIGHTS in files:
            lacks = f"no ONNX file, and no {_CONFIGS[0]} that says what its {WEIGHTS} is of"
        raise BackboneError(
            f"'{place.repository}' has {lacks}. Look on the hub for "
            f"an ONNX export of it, often onnx-community/{place.repository.partition('/')[2]}-ONNX; or make one: "
            f"optimum-cli export onnx --model {place.repository} exported/, then: quickstudy backbone add "
            "exported/model.onnx"
        )
    return next((name for name in _USUAL if name in graphs), graphs[0])


def _weights_beside(repository: _Repository, graph: Path, chosen: str) -> dict[str, str]:
    """Find the files that a graph keeps weights in: where it expects them, and their names in the repository."""
    if graph.stat().st_size > MOST_GRAPH_BYTES:
        raise UnsafeFileError(f"'{chosen}' is larger than {MOST_GRAPH_BYTES >> 30} GiB; it was not read")
    found = {}
    for location in outside_files(parse_onnx(graph.read_bytes(), Path(chosen))):
        name = (PurePosixPath(chosen).parent / location).as_posix()
        if PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts or "\\" in location:
            raise UnsafeFileError(
                f"'{chosen}' asks for weights in '{location}', outside its folder; they were not read"
            )
        if name not in repository.files:
            raise BackboneError(
                f"The weights of '{chosen}' are missing: '{repository.place.repository}' has no '{name}'; take another "
                "of its files, as hf:OWNER/REPO:path/in/repo.onnx"
            )
        found[location] = name
    return found


def _check_size(repository: _Repository, names: Sequence[str]) -> None:
    """Refuse, before it is fetched, what could not be imported."""
    size = sum(repository.files[name].size or 0 for name in names)
    smaller = (
        f"take a smaller file of '{repository.place.repository}', such as one in half precision, or another network"
    )
    if size > MOST_GRAPH_BYTES:
        raise BackboneError(
            f"'{names[0]}' has {size / 1e9:.1f} GB; at most {MOST_GRAPH_BYTES / 1e9:.1f} are read; {smaller}"
        )
    if (memory := _memory_bytes()) is not None and size * _COPIES > memory:
        raise BackboneError(
            f"'{names[0]}' has {size / 1e9:.1f} GB, and importing it takes some {_COPIES} times as much memory; this "
            f"machine has {memory / 1e9:.1f} GB; {smaller}"
        )


def _memory_bytes() -> int | None:
    """Measure the memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _get(repository: _Repository, name: str) -> Path:
    """Fetch one file, unless the cache has it, and compare it with what the hub lists."""
    from huggingface_hub import errors, hf_hub_download

    place, local = repository.place, repository.cached
    try:
        # By the revision, not by its commit, so that the cache knows it offline, too.
        path = Path(hf_hub_download(place.repository, name, revision=place.revision, local_files_only=local))
        if repository.commit not in path.parts:  # somebody has just pushed
            path = Path(hf_hub_download(place.repository, name, revision=repository.commit, local_files_only=local))
    except errors.HfHubHTTPError as error:
        raise _refusal(place, error) from None
    except Exception as error:  # the transport's, a full disk, sizes that differ
        raise DownloadError(
            f"Cannot fetch '{name}' of '{place.repository}': {first_line(error)}; try again, what has come so far is "
            "kept"
        ) from None
    _verify(place, name, path, repository.files[name])
    return path


def _verify(place: HubPlace, name: str, path: Path, listed: _Listed) -> None:
    if len(listed.digest) == hashlib.sha256().digest_size * 2:
        right = sha256_of_file(path) == listed.digest
    elif listed.digest:
        data = path.read_bytes()
        right = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == listed.digest
    else:
        right = listed.size in (None, path.stat().st_size)
    if not right:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise DownloadError(
            f"'{name}' of '{place.repository}' is not the file that the hub lists: its hash or size differs. It was "
            "removed from the hub's cache; try again"
        )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ValueError(f"larger than {_MOST_JSON_BYTES >> 20} MiB")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        told = f"'{path.name}' of the repository cannot be read: {first_line(error)}"
        raise BackboneError(f"{told}; {_ELSEWHERE}") from None
    if not isinstance(values, dict):
        told = f"'{path.name}' of the repository holds no object but {type(values).__name__}"
        raise BackboneError(f"{told}; {_ELSEWHERE}")
    return values


def _refusal(place: HubPlace, error: Exception) -> BackboneError | DownloadError:
    """Say in few words what the hub answered, and the way out."""
    from huggingface_hub import errors

    name = place.repository
    if isinstance(error, errors.GatedRepoError):
        return BackboneError(
            f"'{name}' is gated: accept its terms on its page on the hub, then let this machine know you: hf auth "
            "login, or HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return BackboneError(
            f"'{name}' has no revision '{place.revision}'; expected a commit, branch or tag of it, or none for the "
            "newest"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return BackboneError(
            f"The hub has no repository '{name}', or it is private; check the name, and for a private one: hf auth "
            "login, or HF_TOKEN"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return BackboneError(f"The hub does not accept this machine's token for '{name}'; renew it: hf auth login")
    if status == 429:
        return DownloadError(
            f"The hub has had too many requests from here (429); wait, or log in: hf auth login ({name})"
        )
    return DownloadError(f"The hub answers {status} for '{name}': {first_line(error)}; try again later")
