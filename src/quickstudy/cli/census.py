"""`quickstudy census`: which images there are, by content, and what retrain would do with each file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickstudy.cli.display import print_census, print_json, print_skipped, print_way_to_a_test, progress_for
from quickstudy.cli.options import Cache, Json, NoneLabel, Quiet, Separator, Several, labelling_told, offering
from quickstudy.retraining.config import RetrainConfig
from quickstudy.wording import count, printable

if TYPE_CHECKING:
    from quickstudy.images.census import Census
    from quickstudy.images.imageset import ImageFile, Split

_COLUMNS = ("path", "label", "split", "content", "reason")
_ROLES: tuple[Split, ...] = ("train", "validation", "test")


@offering(RetrainConfig(), "test_share")
def command(
    images: Annotated[
        Path, typer.Argument(help="Class folders, split folders or a manifest, as for retrain.", show_default=False)
    ],
    *,
    given: dict[str, Any],
    roles_of: Annotated[Path | None, typer.Option(help="A model whose images keep their roles.")] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", help="Write a manifest of all files here: path, label, split, content, reason."),
    ] = None,
    several: Several = False,
    separator: Separator = None,
    none: NoneLabel = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what retrain would do with each file: its content, label and role, or why it is left out."""
    from quickstudy.errors import ImageSetError, WriteError
    from quickstudy.files import require_place_for
    from quickstudy.images.census import take_census
    from quickstudy.models.loading import roles_of_named
    from quickstudy.models.roles import require_drawn
    from quickstudy.retraining.evaluation import stat_index

    if csv_file:
        begins = ",".join(_COLUMNS).encode()
        require_place_for("census", csv_file, own=lambda start: start.startswith(begins), sources=[images, roles_of])
    labelling = labelling_told(several, separator, none, roles_of=roles_of, **given)
    roles = roles_of_named(roles_of) if roles_of else None
    census = take_census(
        images,
        stat_index(cache),
        to_learn=True,
        before=roles.role if roles else None,
        test_share=given.get("test_share"),
        labelling=labelling,
        progress=progress_for(quiet=quiet),
    )
    if roles_of:
        require_drawn(census)
    if csv_file:
        try:
            unnamed = _write_manifest(census, csv_file)
        except OSError as error:
            raise WriteError(f"Cannot write the census '{csv_file}': {error.strerror}") from error
    if as_json:
        print_json(_as_json(census))
        return
    counts = {role: census.counts(role) for role in _ROLES}
    total = ", ".join(f"{number:,} {role}" for role in _ROLES if (number := len(census.digests(role))))
    print(f"{images}: {count(len(census.contents), 'different image')}; {total or 'none of them can be used'}")
    print_census(census)
    names = sorted({name for found in set(census.names.values()) for name in found})
    width = max(5, *(len(name) for name in names)) if names else 5
    print(f"\n  {'label' if census.several else 'class':<{width}}  " + "  ".join(f"{role:>10}" for role in _ROLES))
    for name in names:
        print(f"  {name:<{width}}  " + "  ".join(f"{counts[role][name]:>10,}" for role in _ROLES))
    if any(without := [sum(not census.names[d] for d in census.digests(role)) for role in _ROLES]):
        print(f"  {'(none)':<{width}}  " + "  ".join(f"{number:>10,}" for number in without))
    if not census.digests("test"):
        print("\nThere are no test images: only cross-validation will tell the model's accuracy")
        print_way_to_a_test(census)
    print("\nNothing is decoded here; retrain and audit also leave out the images that prove damaged")
    print_skipped(census.skipped)
    try:
        census.require_enough()
    except ImageSetError as error:
        print(f"\nretrain would stop: {error}")
    if csv_file:
        print(f"\nManifest: {csv_file}")
        if unnamed:
            files = count(len(unnamed), "file, whose name is", "files, whose names are")
            print(f"          without {files} no valid text: {printable(unnamed[0])}")


def _rows(census: Census) -> list[tuple[Path, str, str, str, str]]:
    """List path, label, role, digest and reason of every file, by path."""
    rows = [
        (place.path, _cell(place, census), content.role or "", content.digest.hex(), content.reason)
        for content in census.contents.values()
        for place in content.places
    ]
    rows += [(item.path, "", "", "", item.reason) for item in census.unread]
    return sorted(rows, key=lambda row: str(row[0]))


def _cell(place: ImageFile, census: Census) -> str:
    """Write the labels of a file as a manifest has them: examples of none of the classes are called as they came."""
    if place.labels == () and not census.several:
        return census.listed.labelling.none or ""
    return "|".join(place.labels or ())


def _write_manifest(census: Census, target: Path) -> list[Path]:
    """Write a manifest that retrain reads, with a label where there is a role; gives the files that it cannot name."""
    from quickstudy.files import write_bytes_atomically
    from quickstudy.images.listing import names_from
    from quickstudy.images.manifests import Table, write_table

    rows = _rows(census)
    names = list(names_from(target.parent, (row[0] for row in rows)))
    named = [
        [name, label if role else "", role, digest, reason]
        for name, (_, label, role, digest, reason) in zip(names, rows, strict=True)
        if name is not None
    ]
    write_bytes_atomically(target, write_table(Table(header=list(_COLUMNS), rows=named)))
    return [row[0] for name, row in zip(names, rows, strict=True) if name is None]


def _as_json(census: Census) -> dict[str, Any]:
    return {
        "source": str(census.source),
        "fingerprint": census.fingerprint,
        "given_splits": census.given,
        "classes": list(census.classes),
        "counts": {role: dict(sorted(census.counts(role).items())) for role in _ROLES},
        "copies": census.copies,
        "leaks": census.leaks,
        "classes_without_images": list(census.empty_classes),
        "classes_of_one_image": list(census.single),
        "alike_classes": [list(pair) for pair in census.alike_classes],
        "test_images_of_other_classes": census.strangers,
        "files": [
            {
                "path": str(path),
                "label": label or None,
                "role": role or None,
                "sha256": digest or None,
                "reason": reason,
            }
            for path, label, role, digest, reason in _rows(census)
        ],
    }
