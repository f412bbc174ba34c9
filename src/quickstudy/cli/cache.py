"""`quickstudy cache`: what the store of bottlenecks holds, its upkeep, and filling it ahead of any training.

`fill` computes bottlenecks here or on a cluster; `pull` fetches them from a shared store.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickstudy.cli.display import print_conflicts, print_copies, print_json, print_skipped, progress_for
from quickstudy.cli.options import Cache, Json, Quiet, Ray, SharedStorePlace, offering
from quickstudy.cli.usage import Commands
from quickstudy.extras import require
from quickstudy.retraining.config import AUTO, RetrainConfig
from quickstudy.wording import count, pasted

if TYPE_CHECKING:
    from pathlib import Path

    from quickstudy.bottlenecks.store import SourceSummary, Store
    from quickstudy.images.census import Content
    from quickstudy.images.imageset import Skipped


@dataclass(frozen=True, kw_only=True)
class _Filled:
    """Says what filling the store did."""

    images: int
    forward_passes: int
    from_store: int
    skipped: tuple[Skipped, ...]
    store: str
    seconds: float
    workers: int | None = None
    nodes: int | None = None
    copies: int = 0
    conflicts: tuple[Content, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        skipped = [item.to_dict() for item in self.skipped]
        conflicts = [[str(place.path) for place in content.places] for content in self.conflicts]
        return {**vars(self), "skipped": skipped, "conflicts": conflicts}


@offering(
    RetrainConfig(),
    "several",
    "separator",
    "none",
    "preset",
    "backbone",
    "fit",
    "cut",
    "views",
    "flip",
    "crop",
    "scale",
    "brightness",
    "dtype",
    "engine",
)
def fill(
    images: Annotated[
        Path,
        typer.Argument(
            help="Class folders or a manifest, as for retrain. With --ray, all nodes must see them under this path."
        ),
    ],
    *,
    given: dict[str, Any],
    ray: Ray = None,
    store: SharedStorePlace = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compute and keep the bottlenecks of all images of a set, here or on a Ray cluster; nothing is trained."""
    if store is not None and ray is None:
        raise typer.BadParameter("--store is for clusters; add --ray auto, or name a folder with --cache instead")
    config = RetrainConfig.told(given)
    if config.chooses_backbone or config.fit == AUTO:
        raise typer.BadParameter("nothing is trained here, so nothing can choose; name a backbone and a fit, not auto")
    if ray is not None and config.chooses_fit:
        raise typer.BadParameter("nobody looks at all images on a cluster; name --fit tiles2 or tiles3, not tiles")
    if ray is not None:
        require("ray", extra="ray")
        if config.engine != "onnxruntime":
            raise typer.BadParameter(
                "a cluster's workers run ONNX Runtime on their processors; leave out --engine, or --ray"
            )
    filled = _fill(images, config, address=ray, place=store, cache=cache, quiet=quiet)
    if as_json:
        print_json(filled.to_dict())
    else:
        _print_filled(filled, images)


def _fill(
    images: Path, config: RetrainConfig, *, address: str | None, place: str | None, cache: Path | None, quiet: bool
) -> _Filled:
    """Fill a store on the cluster at this address; without an address, on this machine.

    On this machine a census comes first, as in every job. On a cluster the workers hash: nothing reads all images on
    one machine.
    """
    started = time.perf_counter()
    from quickstudy.backbones.engines.named import engine_for
    from quickstudy.backbones.loading import load_backbone
    from quickstudy.bottlenecks.distributed import extract_on_cluster
    from quickstudy.bottlenecks.extraction import extract_census
    from quickstudy.bottlenecks.shared import open_shared_store
    from quickstudy.bottlenecks.store import Store
    from quickstudy.cluster import connected
    from quickstudy.files import cache_folder
    from quickstudy.images.census import take_census
    from quickstudy.images.decoding import USUAL_BITS
    from quickstudy.images.depth import significant_bits
    from quickstudy.images.imageset import Skipped, load_image_set
    from quickstudy.retraining.race import fit_by_shape

    folder = cache_folder(cache)
    progress = progress_for(quiet=quiet)
    if address is None:
        net = load_backbone(config.network, folder).at(config.cut)
        local = Store(folder / "bottlenecks")
        census = take_census(images, local.index_path, labelling=config.labelling, progress=progress)
        bits = significant_bits(census, local.index_path, told=config.bits)
        net = net.reading(bits, fit_by_shape(census, config)[0] if config.chooses_fit else config.named_fit)
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
            forward_passes=done.computed * net.input.tiles,
            from_store=done.cached,
            skipped=census.skipped,
            store=str(local.folder),
            seconds=time.perf_counter() - started,
            copies=census.copies,
            conflicts=census.conflicting,
        )
    place = place or str(folder / "bottlenecks")
    shown = open_shared_store(place).place
    with connected(address):
        found = load_image_set(images, labelling=config.labelling)
        net = load_backbone(config.network, folder).at(config.cut)
        net = net.reading(config.bits or USUAL_BITS, config.named_fit)
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
    # Only those are brought together by content that have it in common: nobody knows all contents on one machine.
    shared = replace(found, files=tuple(found.files[number] for number in spread.repeated), skipped=())
    census = take_census(shared, None, identities=list(spread.repeated.values()))
    unusable = (Skipped(path=paths[number], reason=reason) for number, reason in sorted(spread.reasons.items()))
    return _Filled(
        images=len(paths),
        forward_passes=spread.computed * net.input.tiles,
        from_store=spread.cached,
        skipped=(*found.skipped, *unusable),
        store=shown,
        seconds=time.perf_counter() - started,
        workers=spread.workers,
        nodes=spread.nodes,
        copies=census.copies,
        conflicts=census.conflicting,
    )


def _print_filled(filled: _Filled, images: Path) -> None:
    print(f"{images}: {count(filled.images, 'image')}")
    passes = count(filled.forward_passes, "forward pass", "forward passes")
    print(f"{passes}, {count(filled.from_store, 'bottleneck')} from the store")
    print_copies(filled.copies)
    print_conflicts(filled.conflicts)
    print_skipped(filled.skipped)
    by = f", {count(filled.workers, 'worker')} on {count(filled.nodes or 1, 'node')}" if filled.workers else ""
    print(f"Store: {filled.store}; {filled.seconds:.2f} s{by}")
    if "://" in filled.store:
        print(f"Next:  {pasted('cache', 'pull', filled.store)}")


def pull(
    source: Annotated[str, typer.Argument(metavar="STORE", help="A store that cache fill --store has filled.")],
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Copy to the local store the bottlenecks that it lacks, from object storage or another folder."""
    from quickstudy.bottlenecks.shared import open_shared_store
    from quickstudy.bottlenecks.store import Store
    from quickstudy.files import cache_folder
    from quickstudy.progress import Bar, silent

    store = Store(cache_folder(cache) / "bottlenecks")
    progress = silent if quiet or not sys.stderr.isatty() else Bar(unit="shards")
    pulled = open_shared_store(source).pull(store, progress=progress)
    if as_json:
        print_json({**asdict(pulled), "store": str(store.folder)})
    else:
        shards = count(pulled.shards, "shard")
        print(f"{shards} copied, {pulled.size_bytes / 1e6:.1f} MB; {count(pulled.bottlenecks, 'bottleneck')} new")
        for name in pulled.damaged:
            print(f"  damaged, left out: {name}")
        print(f"Store: {store.folder}")
    if pulled.damaged:
        raise typer.Exit(1)


app = typer.Typer(
    cls=Commands,
    help="Fill, list, verify, compact and prune the store of bottlenecks.",
    epilog="Example: quickstudy cache list",
    rich_markup_mode=None,
)


app.command("fill", epilog="Example: quickstudy cache fill photos/")(fill)
app.command("pull", epilog="Example: quickstudy cache pull s3://bucket/bottlenecks")(pull)


def _store(cache: Path | None) -> Store:
    from quickstudy.bottlenecks.store import Store
    from quickstudy.files import cache_folder

    return Store(cache_folder(cache) / "bottlenecks")


@app.command("list", epilog="Example: quickstudy cache list --json")
def list_sources(cache: Cache = None, as_json: Json = False) -> None:
    """List the sources of bottlenecks (backbone, cut, number format, engine), with their numbers and sizes."""
    store = _store(cache)
    summaries = store.summaries()
    if as_json:
        print_json([asdict(summary) for summary in summaries])
        return
    print(f"Store: {store.folder}")
    for summary in summaries:
        print(_describe(summary))
    if not summaries:
        print("It is empty; quickstudy retrain fills it")


@app.command("verify", epilog="Example: quickstudy cache verify --remove")
def verify(
    cache: Cache = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Delete damaged shards; their bottlenecks are computed again when needed.")
    ] = False,
) -> None:
    """Check that every shard (file of bottlenecks) is intact, by the hash in its name."""
    result = _store(cache).verify(remove=remove)
    print(
        f"{count(result.shards, 'shard')} with {count(result.bottlenecks, 'bottleneck')}; {len(result.damaged)} damaged"
    )
    for path in result.damaged:
        print(f"  {'removed' if remove else 'damaged'}: {path}")
    if result.damaged and not remove:
        print("Remove them with: quickstudy cache verify --remove")
        raise typer.Exit(1)


@app.command("compact", epilog="Example: quickstudy cache compact")
def compact(cache: Cache = None) -> None:
    """Merge small shards and delete what killed runs left behind; safe while other runs use the store."""
    print(f"{_store(cache).compact()} shards merged")


@app.command("prune", epilog="Example: quickstudy cache prune --older-than 90")
def prune(
    cache: Cache = None,
    source: Annotated[
        str | None, typer.Option(help="Delete the source with this id, or whose id begins like this.")
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Delete sources that nothing was written to for this many days.")
    ] = None,
) -> None:
    """Delete sources by id or age; their bottlenecks are computed again when they are needed."""
    if source is None and older_than is None:
        raise typer.BadParameter("say what to delete: --source ID or --older-than DAYS")
    removed = _store(cache).prune(identity=source, older_than_days=older_than)
    for summary in removed:
        print(f"deleted {_describe(summary)}")
    if not removed:
        print("Nothing to delete")


def _describe(summary: SourceSummary) -> str:
    size = f"{summary.size_bytes / 1e6:.1f} MB in {count(summary.shards, 'shard')}"
    if not summary.engine:  # records, of which no network is the source
        return f"{summary.identity[:8]}  {summary.backbone}: {count(summary.bottlenecks, 'image')}, {size}"
    kept = f"{summary.dtype}, {summary.engine}"
    return (
        f"{summary.identity[:8]}  {summary.backbone} at '{summary.cut}', {kept}: "
        f"{count(summary.bottlenecks, 'bottleneck')}, {size}"
    )
