"""Teaching in the browser: what an exported page is told so that it can learn classes, and the files that it saves.

A page teaches on the last features of a pretrained network, by the same softmax regression as the main job's, with one
strength for all. Few pictures cannot tell strengths apart: with 5, 20 and 50 pictures a class of the clothing photos,
MNIST and CIFAR-10, accuracies from 0.003 to 0.1 differ by half a point at most, and 0.03 is within 0.3 of the strength
that cross-validation chooses (`benchmarks/teach.py strength`). What a page saves holds each picture's bottleneck, so
that classes of several people can be joined without their pictures.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.cuts import FEATURES, LEVELS
from quickstudy.backbones.graphs.untrusted import parse_onnx
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import BackboneError, ImageSetError, InstallationError, ModelError
from quickstudy.images.census import take_census
from quickstudy.images.decoding import InputSpec
from quickstudy.models.format import features_in
from quickstudy.models.properties import output_besides, properties_of, roles_in
from quickstudy.models.roles import Roles
from quickstudy.progress import Progress, silent
from quickstudy.records import as_values, read_record

STRENGTH = 0.03
"""Strength of the regularisation of taught heads, per unit of mean loss and of features scaled to mean square 1."""
EXAMPLES = 50
"""The most images of a class that a page starts from. With one of the clothing photos' classes taught by 20 pictures,
10, 20, 50 and all images of each of the nine others give 80, 84, 87 and 90 % on the test split, and 91, 86, 76 and 53 %
of the taught class: 50 lose little, and leave the new class its weight (`benchmarks/teach.py start`)."""
FILE_VERSION = 1
"""The version of the files that pages save."""
_MOST_BYTES = 256 << 20
_MOST_FEATURES = 1 << 16
_FIRST_LINE = re.compile(rb'\{"quickstudy":"classes","version":(\d+),"sha256":"([0-9a-f]{64})",\n')


@dataclass(frozen=True, kw_only=True)
class Network:
    """A pretrained network, as files of classes name it."""

    name: str
    """Name by which it is asked for."""
    fingerprint: str
    """SHA-256 of its graph, weights included."""


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How classes are taught: what two files must agree in to be joined."""

    backbone: Network
    """The network whose last features are seen."""
    input: dict[str, Any]
    """How an image becomes its input, as `InputSpec.to_dict` gives it."""
    widths: tuple[int, ...]
    """Number of features in each group that is scaled by a number of its own."""
    l2: float
    """Strength of the regularisation, per unit of mean loss and of features scaled to mean square 1."""


@dataclass(frozen=True, kw_only=True)
class TeachableModel:
    """A model whose network other classes can be learned on, with what its page needs for that."""

    teaching: Teaching
    """How it teaches."""
    net: Backbone
    """The network, cut at the features."""
    tensor: str
    """Name of the tensor in the model that begins with the features."""
    roles: Roles | None
    """The images that the model was made from; None where it does not say."""

    @staticmethod
    def of(data: bytes, path: Path, cache: Path) -> TeachableModel:
        """Find what can be taught on the network of a model.

        Args:
            data: the model file.
            path: its place, for messages.
            cache: folder of the backbones.

        Raises:
            ModelError: the network is none that other classes can be learned on, or not at hand.
        """
        graph = parse_onnx(data, path)
        metadata, tensor = properties_of(graph), features_in(graph)
        described = metadata.get("backbone") or {}
        if tensor is None or described.get("cut") not in (FEATURES, LEVELS):
            raise ModelError(
                f"'{path}' cannot be taught with: its network was trained itself, and its features are those of its "
                "own classes. Export a model with a linear head, as retrain makes it without --cut"
            )
        if (metadata.get("export") or {}).get("kind") == "int8":
            raise ModelError(
                f"'{path}' cannot be taught with: 8 bits round its features too coarsely; export the original"
            )
        spec = InputSpec.from_dict(metadata["input"])
        net = _network(described["name"], described["fingerprint"], f"The network of '{path}'", cache)
        net = net.at(FEATURES).reading(spec.bits, spec.fit)
        teaching = Teaching(
            backbone=Network(name=net.name, fingerprint=net.fingerprint),
            input=spec.to_dict(),
            widths=net.widths,
            l2=STRENGTH,
        )
        return TeachableModel(teaching=teaching, net=net, tensor=tensor, roles=roles_in(metadata))

    def for_page(self) -> dict[str, Any]:
        """Give what the page is told, as JSON values."""
        output = base64.b64encode(output_besides(self.tensor)).decode()
        return {**as_values(self.teaching), "tensor": self.tensor, "output": output}

    def classes_of(self, images: Path, cache: Path, *, progress: Progress = silent) -> tuple[TaughtClass, ...]:
        """Take some images of each class, so that the page can go on from these: the first by content hash.

        Images that the model was tested on, or that came for a test, are not taken.

        Args:
            images: the image set.
            cache: folder of the store.
            progress: is told how far things are.

        Raises:
            ImageSetError: there is none that may be taken.
        """
        store = Store(cache / "bottlenecks")
        census = take_census(images, store.index_path, progress=progress)
        chosen: dict[str, list[bytes]] = {}
        for digest in census.digests("train", "validation", *(() if census.given else ("test",))):
            tested = self.roles is not None and self.roles.relation(digest) == "tested_on"
            if not tested and len(mine := chosen.setdefault(census.labels[digest], [])) < EXAMPLES:
                mine.append(digest)
        digests = [digest for mine in chosen.values() for digest in mine]
        found = extract(
            [census.contents[digest].path for digest in digests], self.net, store, digests=digests, progress=progress
        )
        bad = {digests[place] for place in found.reasons}
        kept = {name: usable for name, mine in sorted(chosen.items()) if (usable := [d for d in mine if d not in bad])}
        if not kept:
            raise ImageSetError(f"No image under '{images}' can be taken to start from: all are tests, or unusable")
        return tuple(
            TaughtClass(
                name=name,
                pictures=tuple((census.contents[digest].path.name, digest) for digest in mine),
                bottlenecks=found.gather(mine).astype("<f2", copy=False),
            )
            for name, mine in kept.items()
        )


def _network(name: str, fingerprint: str, whose: str, cache: Path) -> Backbone:
    """Find a network of this name, and check that it is the one."""
    try:
        net = load_backbone(name, cache)
    except (BackboneError, InstallationError) as error:
        raise ModelError(f"{whose} is '{name}', which is needed here: {error}") from None
    if net.fingerprint != fingerprint:
        raise ModelError(
            f"{whose} is '{name}' with the fingerprint {fingerprint[:12]}…, but here '{name}' has "
            f"{net.fingerprint[:12]}…; add the same one with: quickstudy backbone add"
        )
    return net


# The files that pages save
@dataclass(frozen=True, kw_only=True)
class _SavedPicture:
    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _SavedClass:
    name: str
    pictures: tuple[_SavedPicture, ...]
    bottlenecks: str


@dataclass(frozen=True, kw_only=True)
class _Saved(Teaching):
    classes: tuple[_SavedClass, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TaughtClass:
    """A class as somebody taught it."""

    name: str
    """The name of the class."""
    pictures: tuple[tuple[str, bytes], ...]
    """What each picture (n) was called, and its content hash."""
    bottlenecks: NDArray[np.float16]
    """The pictures' last features, n×d."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TaughtFile:
    """What a page saved."""

    path: Path
    """The place of the file."""
    teaching: Teaching
    """How the classes were taught."""
    classes: tuple[TaughtClass, ...]
    """The classes, with a picture at least each."""

    def network(self, cache: Path) -> Backbone:
        """Find the network, cut at the features, as it was fed.

        Raises:
            ModelError: it is not at hand, or another one.
            ImageSetError: it is fed or cut in another way.
        """
        taught = self.teaching
        net = _network(taught.backbone.name, taught.backbone.fingerprint, f"The network of '{self.path}'", cache)
        spec = InputSpec.from_dict(taught.input)
        net = net.at(FEATURES).reading(spec.bits, spec.fit)
        if net.input != spec or net.widths != taught.widths:
            raise ImageSetError(
                f"'{self.path}' was taught on {sum(taught.widths)} features of images read as {spec.to_dict()}; "
                f"'{net.name}' gives {sum(net.widths)} of images read as {net.input.to_dict()}"
            )
        return net


def as_page_json(values: Any) -> str:
    """Write JSON values so that they can stand in a page: names may hold what would end their element."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def written(teaching: Teaching, classes: Sequence[TaughtClass]) -> str:
    """Write classes as the text of a file, as a page saves it."""
    saved = _Saved(
        **{field.name: getattr(teaching, field.name) for field in fields(Teaching)},
        classes=tuple(
            _SavedClass(
                name=one.name,
                pictures=tuple(_SavedPicture(name=name, sha256=digest.hex()) for name, digest in one.pictures),
                bottlenecks=base64.b64encode(one.bottlenecks.astype("<f2").tobytes()).decode(),
            )
            for one in classes
        ),
    )
    body = as_page_json(as_values(saved))[1:]
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{{"quickstudy":"classes","version":{FILE_VERSION},"sha256":"{digest}",\n{body}'


def read_taught(path: Path) -> TaughtFile:
    """Read a file of classes that a page saved.

    Raises:
        ImageSetError: there is no such file, or it is damaged, of another version or none of these; the message names
            the file and the value.
    """
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes; the limit is {_MOST_BYTES:,}")
        return _read(path, path.read_bytes())
    except OSError as error:
        raise ImageSetError(
            f"Cannot read '{path}': {error.strerror}; expected a file of classes that a page saved"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ImageSetError(f"'{path}' cannot be used: {error}. Save it again from the page") from None


def _read(path: Path, data: bytes) -> TaughtFile:
    import msgspec

    start = _FIRST_LINE.match(data)
    if start is None:
        raise ValueError("it is no file of classes that an exported page saved")
    if int(start[1]) != FILE_VERSION:
        raise ValueError(f"it is of version {int(start[1])}; this quickstudy reads version {FILE_VERSION}")
    if hashlib.sha256(memoryview(data)[start.end() :]).hexdigest() != start[2].decode():
        raise ValueError("it has changed since it was saved: its checksum does not fit")
    try:
        values = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"it is no JSON ({error})") from None
    saved = read_record(_Saved, values)
    width = sum(saved.widths)
    if not saved.widths or min(saved.widths) < 1 or width > _MOST_FEATURES:
        raise ValueError(f"its widths are {list(saved.widths)[:8]}; expected 1 to {_MOST_FEATURES:,} features")
    if not 0 < saved.l2 < np.inf:
        raise ValueError(f"its strength is {saved.l2:g}; expected a positive number")
    InputSpec.from_dict(saved.input)
    names = [one.name for one in saved.classes]
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise ValueError(f"its classes are {names[:8]}; expected names that differ")
    teaching = Teaching(backbone=saved.backbone, input=saved.input, widths=saved.widths, l2=saved.l2)
    return TaughtFile(path=path, teaching=teaching, classes=tuple(_class(one, width) for one in saved.classes))


def _class(saved: _SavedClass, width: int) -> TaughtClass:
    n, data = len(saved.pictures), base64.b64decode(saved.bottlenecks, validate=True)
    if not n or len(data) != 2 * n * width:
        raise ValueError(
            f"its class '{saved.name}' has {n} pictures and {len(data):,} bytes of bottlenecks; expected "
            f"{2 * width:,} a picture"
        )
    bottlenecks = np.frombuffer(data, "<f2").reshape(n, width)
    if not np.isfinite(bottlenecks).all():
        raise ValueError(f"its class '{saved.name}' has bottlenecks that are not finite")
    pictures = tuple((one.name, _digest(one.sha256)) for one in saved.pictures)
    return TaughtClass(name=saved.name, pictures=pictures, bottlenecks=bottlenecks)


def _digest(text: str) -> bytes:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"'{text[:80]}' is no content hash; expected 64 hexadecimal digits")
    return bytes.fromhex(text)
