"""`quickstudy cache`: what the store of bottlenecks holds, and its upkeep."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from quickstudy.cli import cache_fill
from quickstudy.cli.options import Cache, Json

if TYPE_CHECKING:
    from pathlib import Path

    from quickstudy.bottlenecks.store import SourceSummary, Store

app = typer.Typer(
    help="Fill, list, verify, compact and prune the store of bottlenecks.",
    epilog="Example: quickstudy cache list",
    no_args_is_help=True,
    rich_markup_mode=None,
)


app.command("fill", epilog="Example: quickstudy cache fill photos/")(cache_fill.fill)
app.command("pull", epilog="Example: quickstudy cache pull s3://bucket/bottlenecks")(cache_fill.pull)


def _store(cache: Path | None) -> Store:
    from quickstudy.bottlenecks.store import Store
    from quickstudy.files import cache_folder

    return Store(cache_folder(cache) / "bottlenecks")


@app.command("list", epilog="Example: quickstudy cache list --json")
def list_sources(cache: Cache = None, as_json: Json = False) -> None:
    """List the sources: what bottlenecks were computed by, how many there are, and their size."""
    store = _store(cache)
    summaries = store.summaries()
    if as_json:
        json.dump([asdict(summary) for summary in summaries], sys.stdout, indent=1)
        print()
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
        bool, typer.Option("--remove", help="Delete damaged shards; what they held is computed again when needed.")
    ] = False,
) -> None:
    """Check every shard against the hash that it is named by."""
    result = _store(cache).verify(remove=remove)
    print(f"{result.shards:,} shards with {result.bottlenecks:,} bottlenecks; {len(result.damaged)} damaged")
    for path in result.damaged:
        print(f"  {'removed' if remove else 'damaged'}: {path}")
    if result.damaged and not remove:
        print("Remove them with: quickstudy cache verify --remove")
        raise typer.Exit(1)


@app.command("compact", epilog="Example: quickstudy cache compact")
def compact(cache: Cache = None) -> None:
    """Merge small shards and sweep up what killed runs left; safe while other runs use the store."""
    print(f"{_store(cache).compact()} shards merged")


@app.command("prune", epilog="Example: quickstudy cache prune --older-than 90")
def prune(
    cache: Cache = None,
    source: Annotated[str | None, typer.Option(help="The source with this id, or its beginning.")] = None,
    older_than: Annotated[float | None, typer.Option(min=0, help="Sources not written to for so many days.")] = None,
) -> None:
    """Delete sources by id or age; their bottlenecks are computed again when needed."""
    if source is None and older_than is None:
        raise typer.BadParameter("say what to delete: --source ID or --older-than DAYS")
    removed = _store(cache).prune(identity=source, older_than_days=older_than)
    for summary in removed:
        print(f"deleted {_describe(summary)}")
    if not removed:
        print("Nothing to delete")


def _describe(summary: SourceSummary) -> str:
    from quickstudy.cli.display import count

    kept = f"{summary.dtype}, {summary.engine}"
    return (
        f"{summary.identity[:8]}  {summary.backbone} at '{summary.cut}', {kept}: "
        f"{summary.bottlenecks:,} bottlenecks, {summary.size_bytes / 1e6:.1f} MB in {count(summary.shards, 'shard')}"
    )
