"""Gives the backbone of a name, from wherever it comes.

It is in the cache; or quickstudy makes it from published weights when it is first asked for; or it is fetched from the
hub; or it is two or three others side by side. Further ones are added by `backbone add`.
"""

from __future__ import annotations

from pathlib import Path

from quickstudy.backbones.backbone import (
    JOINED,
    Backbone,
    add_backbone,
    backbone_names,
    backbones_in,
    find_backbone,
    imagenet_classes,
    on_hub,
)
from quickstudy.backbones.cuts import FEATURES
from quickstudy.backbones.published import PUBLISHED, build_published
from quickstudy.errors import BackboneError
from quickstudy.images.decoding import InputSpec

_MOST_JOINED = 3


def load_backbone(name: str, cache: Path) -> Backbone:
    """Find a backbone in the cache folder, build it from its weights package, or fetch it from the hub.

    Raises:
        BackboneError: the name is unknown, or the network cannot be imported.
        InstallationError: its weights package is missing or damaged, or an extra is missing.
        DownloadError: the network is on the hub, which cannot be reached.
        WriteError: the cache folder cannot be written.
        UnsafeFileError: the weights are not what they should be.
    """
    if JOINED in name:
        return _join(name, cache)
    if on_hub(name):
        from quickstudy.backbones.sources.adding import from_hub

        return from_hub(name, cache)[0]
    if (found := find_backbone(name, cache)) is not None:
        return found
    if name not in PUBLISHED:
        if (backbones_in(cache) / f"{name}.json").exists():
            raise BackboneError(f"The backbone '{name}' in '{backbones_in(cache)}' is damaged; add it again")
        names = ", ".join(backbone_names(cache))
        raise BackboneError(f"Unknown backbone '{name}'; there are: {names}. Add others with: quickstudy backbone add")
    published = PUBLISHED[name]
    return add_backbone(
        name,
        build_published(name),
        cache,
        input_spec=InputSpec(size=published.pixels),
        cuts=published.cuts,
        classes=imagenet_classes(),
        origin=published.package,
        top1=published.top1,
    )


def _join(name: str, cache: Path) -> Backbone:
    """Give the backbone that others make side by side, each given by its name; it is made anew when one has changed."""
    names = name.split(JOINED)
    if not 2 <= len(names) <= _MOST_JOINED or len(set(names)) < len(names):
        raise BackboneError(
            f"'{name}' names {len(names)} backbones; expected 2 or 3 different ones, such as {JOINED.join(PUBLISHED)}"
        )
    parts = [load_backbone(one, cache) for one in names]
    name = JOINED.join(part.name for part in parts)
    origin = ", ".join(f"{part.name} {part.fingerprint[:12]}" for part in parts)
    if (found := find_backbone(name, cache)) is not None and found.origin == origin:
        return found
    import onnx

    from quickstudy.backbones.graphs.levels import join_graphs

    for part in parts:
        if not part.levels:
            raise BackboneError(f"'{part.name}' has no feature maps, so it cannot be put beside others; leave it out")
    graph, spec, levels = join_graphs(
        [(part.name, onnx.load(part.path, load_external_data=False), part.input, part.levels) for part in parts]
    )
    return add_backbone(
        name,
        graph,
        cache,
        input_spec=spec,
        cuts=(FEATURES,),
        classes=(),
        origin=origin,
        levels=levels,
    )
