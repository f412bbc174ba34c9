"""`quickstudy cache fill` and `pull`: bottlenecks ahead of any training, from a cluster, and from shared stores."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickstudy.cli.options import Cache, Json, Quiet, offering
from quickstudy.extras import require
from quickstudy.retraining.config import RetrainConfig

if TYPE_CHECKING:
    from quickstudy.images.imageset import Skipped


@dataclass(frozen=True, kw_only=True)
class _Filled:
    """What a filling did."""

    images: int
    forward_passes: int
    from_store: int
    skipped: tuple[Skipped, ...]
    store: str
    seconds: float
    workers: int | None = None
    nodes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        skipped = [{"path": str(item.path), "reason": item.reason} for item in self.skipped]
        return {**asdict(self), "skipped": skipped}


@offering(RetrainConfig(), "backbone", "cut", "views", "flip", "crop", "scale", "brightness", "dtype", "engine")
def fill(
    images: Annotated[
        Path,
        typer.Argument(
            help="Class folders or a manifest, as retrain takes them. With --ray, all nodes see them by this path."
        ),
    ],
    *,
    given: dict[str, Any],
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|ADDRESS",
            help="Compute on this Ray cluster, such as 10.0.0.1:6379; auto: the running one, or else this machine.",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="With --ray: a folder that all nodes share, or a URI such as s3://bucket/path "
            "[default: bottlenecks/ in the folder of --cache]."
        ),
    ] = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compute and keep the bottlenecks of all images of a set, here or on a Ray cluster; nothing is trained."""
    if store is not None and ray is None:
        raise typer.BadParameter("--store is for clusters; add --ray auto, or name a folder with --cache instead")
    config = RetrainConfig.told(given)
    if ray is not None:
        require("ray", extra="ray")
        if config.engine != "onnxruntime":
            raise typer.BadParameter(
                "a cluster's workers run ONNX Runtime on their processors; leave out --engine, or --ray"
            )
    filled = _fill(images, config, address=ray, place=store, cache=cache, quiet=quiet)
    if as_json:
        json.dump(filled.to_dict(), sys.stdout, indent=1)
        print()
    else:
        _print_filled(filled, images)


def _fill(
    images: Path, config: RetrainConfig, *, address: str | None, place: str | None, cache: Path | None, quiet: bool
) -> _Filled:
    """Fill a store on the cluster at this address; here, where there is none.

    Here a census comes first, as in every job. On a cluster the workers hash: nothing reads all images on one machine.
    """
    started = time.perf_counter()
    from quickstudy.backbones.backbone import load_backbone
    from quickstudy.backbones.runtime import engine_for
    from quickstudy.bottlenecks.distributed import extract_on_cluster
    from quickstudy.bottlenecks.extraction import extract_census
    from quickstudy.bottlenecks.shared import open_shared_store
    from quickstudy.bottlenecks.store import Store
    from quickstudy.cli.display import progress_for
    from quickstudy.cluster import connected
    from quickstudy.files import cache_folder
    from quickstudy.images.census import take_census
    from quickstudy.images.imageset import Skipped, load_image_set

    folder = cache_folder(cache)
    progress = progress_for(quiet=quiet)
    if address is None:
        net = load_backbone(config.backbone, folder).at(config.cut)
        local = Store(folder / "bottlenecks")
        census = take_census(images, local.index_path, progress=progress)
        done = extract_census(
            census,
            net,
            local,
            views=config.distorted,
            distortions=config.distortions,
            dtype=config.dtype,
            engine=engine_for(config.engine),
            progress=progress,
        )
        census = census.without(done.unusable)
        return _Filled(
            images=len(census.listed.files),
            forward_passes=done.computed,
            from_store=done.cached,
            skipped=census.skipped,
            store=str(local.folder),
            seconds=time.perf_counter() - started,
        )
    place = place or str(folder / "bottlenecks")
    shown = open_shared_store(place).place
    with connected(address):
        found = load_image_set(images)
        net = load_backbone(config.backbone, folder).at(config.cut)
        paths = [file.path for file in found.files]
        spread = extract_on_cluster(
            paths,
            net,
            place,
            views=config.distorted,
            distortions=config.distortions,
            dtype=config.dtype,
            progress=progress,
        )
    unusable = (Skipped(path=paths[number], reason=reason) for number, reason in sorted(spread.reasons.items()))
    return _Filled(
        images=len(paths),
        forward_passes=spread.computed,
        from_store=spread.cached,
        skipped=(*found.skipped, *unusable),
        store=shown,
        seconds=time.perf_counter() - started,
        workers=spread.workers,
        nodes=spread.nodes,
    )


def _print_filled(filled: _Filled, images: Path) -> None:
    from quickstudy.cli.display import count, print_skipped

    print(f"{images}: {count(filled.images, 'image')}")
    passes = count(filled.forward_passes, "forward pass", "forward passes")
    print(f"{passes}, {count(filled.from_store, 'bottleneck')} from the store")
    print_skipped(filled.skipped)
    by = f", {count(filled.workers, 'worker')} on {count(filled.nodes or 1, 'node')}" if filled.workers else ""
    print(f"Store: {filled.store}; {filled.seconds:.2f} s{by}")
    if "://" in filled.store:
        print(f"Next:  quickstudy cache pull {shlex.quote(filled.store)}")


def pull(
    source: Annotated[str, typer.Argument(metavar="STORE", help="A store that cache fill --store has filled.")],
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Copy to the local store the bottlenecks that it lacks, from object storage or another folder."""
    from quickstudy.bottlenecks.shared import open_shared_store
    from quickstudy.bottlenecks.store import Store
    from quickstudy.cli.display import count
    from quickstudy.files import cache_folder
    from quickstudy.progress import Bar, silent

    store = Store(cache_folder(cache) / "bottlenecks")
    progress = silent if quiet or not sys.stderr.isatty() else Bar(unit="shards")
    pulled = open_shared_store(source).pull(store, progress=progress)
    if as_json:
        json.dump({**asdict(pulled), "store": str(store.folder)}, sys.stdout, indent=1)
        print()
    else:
        shards = count(pulled.shards, "shard")
        print(f"{shards} copied, {pulled.size_bytes / 1e6:.1f} MB; {count(pulled.bottlenecks, 'bottleneck')} new")
        for name in pulled.damaged:
            print(f"  damaged, left out: {name}")
        print(f"Store: {store.folder}")
    if pulled.damaged:
        raise typer.Exit(1)
