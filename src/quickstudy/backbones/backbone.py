"""Backbones: pretrained networks as ONNX graphs, verified by hash, with what is needed to feed and to cut them.

They lie in the cache folder: `<name>.onnx`, and `<name>.json` with its hash and what is known of it. How the
backbone of a name comes there, `loading` says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quickstudy.backbones.cuts import FEATURES, LEVELS, Cut, Level
from quickstudy.backbones.published import PUBLISHED
from quickstudy.errors import BackboneError, WriteError
from quickstudy.files import sha256_of_file, write_bytes_atomically, write_json_atomically
from quickstudy.images.decoding import InputSpec
from quickstudy.images.fits import Fit
from quickstudy.images.identity import StatIndex
from quickstudy.records import as_values, read_record

if TYPE_CHECKING:
    import onnx

JOINED = "+"
"""What stands between the names of backbones that are taken side by side."""
HUB = "hf:"
"""What stands before the name of a network on the hub of Hugging Face."""
_HUB_OF_TIMM = "hf-hub:"
# Raised when what is written here changes, so that what an older version wrote is made anew.
_BUILD = 5


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained network: an ONNX graph from `image` (uint8, N×size×size×3), fed and cut as said here."""

    name: str
    """Name by which it is asked for."""
    path: Path
    """The graph file."""
    fingerprint: str
    """SHA-256 of the graph file, weights included."""
    input: InputSpec
    """How an image becomes the graph's input."""
    cut: str = FEATURES
    """Name of the tensor at which freezing ends."""
    cut_shape: tuple[int, ...]
    """Shape of one image's activation at the cut."""
    classes: tuple[str, ...] = ()
    """Names of the classes whose `probabilities` the graph gives as it stands; none where it has no classifier."""
    cuts: tuple[Cut, ...] = ()
    """The places at which it can be cut, from the image on; the last is `features`, the pooled penultimate layer."""
    levels: tuple[Level, ...] = ()
    """The groups of features that the tensor `levels` holds, last features first; none where the graph has no maps."""
    origin: str = ""
    """Where the weights come from, for people."""
    licence: str = ""
    """Licence of the weights, as their source names it; empty where it does not."""
    top1: float | None = None
    """Published accuracy of these weights on ImageNet, in percent; None where it is not known."""

    def at(self, name: str) -> Backbone:
        """Return this backbone, cut elsewhere.

        Raises:
            BackboneError: it has no such cut.
        """
        if name == LEVELS and self.levels:
            return replace(self, cut=name, cut_shape=(sum(level.width for level in self.levels),))
        for cut in self.cuts:
            if cut.name == name:
                return replace(self, cut=name, cut_shape=cut.shape)
        if JOINED in self.name:
            raise BackboneError(
                f"'{self.name}' cannot be cut at '{name}': several backbones side by side cannot be cut; leave out the "
                "cut, or use one backbone"
            )
        raise BackboneError(
            f"'{self.name}' cannot be cut at '{name}'; its cuts are: {', '.join(cut.name for cut in self.cuts)}"
        )

    @property
    def kept(self) -> Backbone:
        """This backbone, cut where bottlenecks are kept: at `levels` instead of the features, with which they begin."""
        return self.at(LEVELS) if self.cut == FEATURES and self.levels else self

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of features in each group that belong together at the cut; see `Level`."""
        groups = self.levels if self.cut == LEVELS else [level for level in self.levels if level.last]
        return tuple(level.width for level in groups) or self.cut_shape

    def reading(self, bits: int, fit: Fit | None = None) -> Backbone:
        """Return this backbone, for images that are fitted so, and of whose levels beyond 8 bits so many bits count.

        Where no fit is given, it stays as it is, at first as the network was trained: `squash` or mostly `crop`. Where
        the network is for the middle of an image only, that is for the fit `crop`; the others show all of it.
        """
        fit = fit or self.input.fit
        crop = self.input.crop if fit == "crop" else 1.0
        return replace(self, input=replace(self.input, bits=bits, fit=fit, crop=crop))


def add_backbone(
    name: str,
    graph: onnx.ModelProto,
    cache: Path,
    *,
    input_spec: InputSpec,
    cuts: Sequence[str],
    classes: Sequence[str],
    origin: str,
    top1: float | None = None,
    levels: Sequence[Level] | None = None,
    prefix_tokens: int = 0,
    licence: str = "",
) -> Backbone:
    """Keep a graph as a backbone, in place of any other of this name.

    Args:
        name: by which it will be asked for.
        graph: from `image` (uint8, N×size×size×3, RGB) to `probabilities`, or, without classes, to `features`.
        cache: the folder for everything that can be made again.
        input_spec: how an image becomes `image`.
        cuts: tensors at which it can be cut, from the image on; the last is `features`.
        classes: names in the order of the probabilities.
        origin: where the weights come from, for people.
        top1: published accuracy of the weights on ImageNet, in percent, where known.
        levels: the groups of features in the graph's tensor `levels`; left out, that tensor is added.
        prefix_tokens: number of a transformer's tokens that are no patches, and come first.
        licence: of the weights, as their source names it; empty where it does not.

    Raises:
        BackboneError: the graph lacks one of the cuts, or holds what no model may hold.
        WriteError: the cache folder cannot be written.
    """
    from quickstudy.backbones.graphs.cutting import describe_cuts
    from quickstudy.backbones.graphs.untrusted import check_graph, parse_onnx

    described = describe_cuts(graph, cuts)
    if levels is None:
        from quickstudy.backbones.graphs.levels import add_levels

        levels = add_levels(graph, described, prefix=prefix_tokens)
    path = backbones_in(cache) / f"{name}.onnx"
    data = graph.SerializeToString(deterministic=True)
    try:
        check_graph(parse_onnx(data, path), path)
    except BackboneError as error:
        raise BackboneError(f"'{name}' could not become part of a model: {error}") from None
    try:
        write_bytes_atomically(path, data)
        note = {
            "build": _BUILD,
            "sha256": sha256_of_file(path),
            "origin": origin,
            "licence": licence,
            "top1": top1,
            "input": input_spec.to_dict(),
            "cuts": [as_values(cut) for cut in described],
            "levels": [as_values(level) for level in levels],
            "classes": "imagenet" if tuple(classes) == imagenet_classes() else list(classes),
        }
        write_json_atomically(path.with_suffix(".json"), note)
    except OSError as error:
        raise WriteError(
            f"Cannot write the backbone to '{path.parent}': {error.strerror}. "
            "Name another folder with --cache or QUICKSTUDY_CACHE"
        ) from error
    return _from_note(name, path, note)


def on_hub(name: str) -> bool:
    """Say whether a name is one of a network on the hub, which timm writes with `hf-hub:` before it."""
    return name.startswith((HUB, _HUB_OF_TIMM))


def backbone_names(cache: Path) -> tuple[str, ...]:
    """List the backbones that can be asked for: those that quickstudy makes itself, then those that were added."""
    added = sorted(path.stem for path in backbones_in(cache).glob("*.onnx") if path.stem not in PUBLISHED)
    return (*PUBLISHED, *added)


def check_name(name: str) -> str:
    """Check that a backbone may be added under a name, and return the name.

    Raises:
        BackboneError: it is that of one which quickstudy makes itself, or would not do for a file.
    """
    if name in PUBLISHED:
        raise BackboneError(f"'{name}' is one of quickstudy's own backbones; choose another name with --name")
    if name == "auto":
        raise BackboneError("'auto' asks retrain to choose a backbone; choose another name with --name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise BackboneError(f"'{name}' cannot be a backbone's name; choose letters, digits, _ and - with --name")
    return name


def name_of(text: str) -> str:
    """Make a name for a backbone of any text: lower case, and `_` for all that is no letter or digit."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def imagenet_classes() -> tuple[str, ...]:
    """Read the names of the 1,000 classes of ImageNet (ILSVRC 2012) in their usual order."""
    text = resources.files("quickstudy.backbones").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def backbones_in(cache: Path) -> Path:
    """Give the folder of the backbones in the folder for everything that can be made again."""
    return cache / "backbones"


def find_backbone(name: str, cache: Path) -> Backbone | None:
    """Find what the cache has under this name; None where it is not whole, or not of this version."""
    path = backbones_in(cache) / f"{name}.onnx"
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if note["build"] != _BUILD or _sha256_of(path) != note["sha256"]:
            return None
        return _from_note(name, path, note)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _sha256_of(path: Path) -> str:
    """Hash the graph file, which the stat index spares while it is untouched: InceptionV3 has 90 MB to read."""
    index = StatIndex(path.with_name("files.sqlite"))
    try:
        return index.digest_of(path).hex()
    finally:
        index.close()


def _from_note(name: str, path: Path, note: Mapping[str, Any]) -> Backbone:
    cuts = tuple(read_record(Cut, values) for values in note["cuts"])
    classes = note["classes"]
    return Backbone(
        name=name,
        path=path,
        fingerprint=str(note["sha256"]),
        input=InputSpec.from_dict(note["input"]),
        cut=cuts[-1].name,
        cut_shape=cuts[-1].shape,
        classes=imagenet_classes() if classes == "imagenet" else tuple(str(one) for one in classes),
        cuts=cuts,
        levels=tuple(read_record(Level, values) for values in note["levels"]),
        origin=str(note["origin"]),
        licence=str(note.get("licence", "")),
        top1=None if note["top1"] is None else float(note["top1"]),
    )
