"""`quickstudy cache fill` and `pull`: bottlenecks ahead of any training, from a cluster, and from shared stores."""

from __future__ import annotations

import json
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickstudy.cli.options import Cache, Engine, Json, Quiet
from quickstudy.cli.retrain import Dtype
from quickstudy.extras import require

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


def fill(
    images: Annotated[
        Path,
        typer.Argument(
            help="Class folders or a manifest, as retrain takes them. With --ray, all nodes see them by this path."
        ),
    ],
    backbone: Annotated[str, typer.Option(help="The pretrained network.")] = "efficientnet_lite0",
    cut: Annotated[str, typer.Option(help="Where freezing ends; backbone show lists the cuts.")] = "features",
    views: Annotated[
        int, typer.Option(min=0, help="Distorted views an image besides the plain one, as retrain distorts by default.")
    ] = 0,
    dtype: Annotated[Dtype, typer.Option(help="How bottlenecks are kept.")] = Dtype.FLOAT16,
    engine: Engine = "onnxruntime",
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
    if ray is not None:
        require("ray", extra="ray")
        if engine != "onnxruntime":
            raise typer.BadParameter(
                "a cluster's workers run ONNX Runtime on their processors; leave out --engine, or --ray"
            )
    filled = _fill(
        images,
        ray,
        backbone=backbone,
        cut=cut,
        views=views,
        dtype=dtype,
        engine=engine,
        store=store,
        cache=cache,
        quiet=quiet,
    )
    if as_json:
        json.dump(filled.to_dict(), sys.stdout, indent=1)
        print()
    else:
        _print_filled(filled, images)


def _fill(
    images: Path,
    address: str | None,
    *,
    backbone: str,
    cut: str,
    views: int,
    dtype: Dtype,
    engine: str,
    store: str | None,
    cache: Path | None,
    quiet: bool,
) -> _Filled:
    """Fill a store on the cluster at this address; here, where there is none."""
    started = time.perf_counter()
    from quickstudy.backbones.backbone import load_backbone
    from quickstudy.backbones.runtime import engine_for
    from quickstudy.bottlenecks.distributed import ClusterExtraction, extract_on_cluster
    from quickstudy.bottlenecks.extraction import Extraction, extract
    from quickstudy.bottlenecks.shared import open_shared_store
    from quickstudy.bottlenecks.store import Store
    from quickstudy.cli.display import progress_for
    from quickstudy.cluster import connected
    from quickstudy.files import cache_folder
    from quickstudy.images.imageset import load_image_set

    folder = cache_folder(cache)
    place = store or str(folder / "bottlenecks")
    shown = open_shared_store(place).place
    with connected(address) if address is not None else nullcontext():
        found = load_image_set(images)
        paths = [file.path for file in found.files]
        net, progress = load_backbone(backbone, folder).at(cut), progress_for(quiet=quiet)
        done: Extraction | ClusterExtraction
        if address is not None:
            done = extract_on_cluster(paths, net, place, views=views, dtype=dtype.value, progress=progress)
        else:
            done = extract(
                paths,
                net,
                Store(Path(place)),
                views=views,
                dtype=dtype.value,
                engine=engine_for(engine),
                progress=progress,
            )
    return _Filled(
        images=len(paths),
        forward_passes=done.computed,
        from_store=done.cached,
        skipped=_all_skipped(found.skipped, paths, done.reasons),
        store=shown,
        seconds=time.perf_counter() - started,
        workers=done.workers if isinstance(done, ClusterExtraction) else None,
        nodes=done.nodes if isinstance(done, ClusterExtraction) else None,
    )


def _all_skipped(listed: tuple[Skipped, ...], paths: list[Path], reasons: dict[int, str]) -> tuple[Skipped, ...]:
    from quickstudy.images.imageset import Skipped

    return (*listed, *(Skipped(path=paths[number], reason=reasons[number]) for number in sorted(reasons)))


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
