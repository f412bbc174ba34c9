"""`quickstudy audit`: what is wrong with a folder of images, a plan to mend it, and the mending."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quickstudy.cli.display import print_json, print_plan, print_skipped, progress_for
from quickstudy.cli.options import (
    BackboneName,
    Cache,
    EngineName,
    Json,
    NoneLabel,
    Quiet,
    Separator,
    Several,
    labelling_told,
)
from quickstudy.cli.usage import refuse_beside
from quickstudy.wording import as_percent, as_probability, count, pasted, printable

if TYPE_CHECKING:
    from quickstudy.reports.carrying_out import Done
    from quickstudy.reports.findings import Audit, DuplicateGroup


def command(
    context: typer.Context,
    images: Annotated[
        Path,
        typer.Argument(
            help="A folder or manifest as for retrain; images without a label may lie loose in it or in unlabelled/."
        ),
    ],
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="PLAN", help="Write a plan of what to do, as CSV to review.")
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option("--apply", metavar="PLAN", help="Carry out a plan: files are moved, dropped ones to _set_aside/."),
    ] = None,
    undo: Annotated[
        Path | None, typer.Option("--undo", metavar="FILE", help="Put back everything that --apply has moved.")
    ] = None,
    backbone: BackboneName = "efficientnet_lite0",
    engine: EngineName = "onnxruntime",
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many findings of each kind.")] = 10,
    several: Several = False,
    separator: Separator = None,
    none: NoneLabel = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find duplicates, leaks, wrong labels, outliers and bad images; nothing is changed without --apply."""
    if sum(option is not None for option in (fix, apply, undo)) > 1:
        raise typer.BadParameter("--fix, --apply and --undo are three steps; give one at a time")
    if apply or undo:
        way = "--apply" if apply else "--undo"
        idle = ("backbone", "engine", "limit", "several", "separator", "none", "cache")
        refuse_beside(context, f"would do nothing beside {way}, which only moves files; leave it out", *idle)
        from quickstudy.reports.carrying_out import apply_plan, undo_plan

        _print_done(apply_plan(images, apply) if apply else undo_plan(images, undo or Path()), images, as_json)
        return
    from quickstudy.bottlenecks.looks import view_gallery
    from quickstudy.reports.audit import draw_findings
    from quickstudy.reports.evidence import gather_evidence
    from quickstudy.reports.plan import make_plan, require_new, write_plan

    if fix and several:
        raise typer.BadParameter("--fix plans for images of one class each; with --several, mend the manifest by hand")
    if fix:
        require_new(fix)
    progress = progress_for(quiet=quiet)
    labelling = labelling_told(several, separator, none)
    evidence = gather_evidence(
        images, backbone=backbone, engine=engine, labelling=labelling, cache=cache, progress=progress
    )
    gallery = view_gallery(evidence.images, cache=cache, progress=progress)
    audit = draw_findings(evidence, gallery)
    steps = make_plan(evidence, gallery, audit) if fix else ()
    if fix:
        write_plan(fix, steps)
    if as_json:
        print_json(audit.to_dict())
        return
    _print_audit(audit, images, limit)
    if fix:
        print_plan(fix, steps, images)
    elif not several:
        print(f"\nNext: {pasted('audit', images, '--fix', 'plan.csv')}")


def _print_audit(audit: Audit, images: Path, limit: int) -> None:
    from quickstudy.reports.plan import path_in_plan

    base = images if images.is_dir() else images.parent

    def name(number: int) -> str:
        return printable(path_in_plan(audit.images[number], base))

    found_some = False

    def section(title: str, lines: list[str]) -> None:
        nonlocal found_some
        if lines:
            found_some = True
            print(f"\n{title}:")
            print("\n".join(f"  {line}" for line in lines[:limit]))
            if len(lines) > limit:
                print(f"  … and {len(lines) - limit:,} more; --limit shows more, --json all")

    def group(found: DuplicateGroup) -> str:
        marks = [mark for mark, holds in (("leaks", found.leaks), ("two labels", found.conflicts)) if holds]
        kind = "same file" if found.exact else "same picture"
        return f"{kind}{''.join(f', {mark}' for mark in marks)}: {' = '.join(name(n) for n in found.members)}"

    unlabelled = len(audit.images) - audit.labelled
    print(
        f"{images}: {count(len(audit.images), 'usable image')} of {count(len(audit.classes), 'class', 'classes')}"
        + (f", {unlabelled:,} without a label" if unlabelled else "")
        + (f"; {count(len(audit.skipped), 'file')} skipped" if audit.skipped else "")
    )
    print_skipped(audit.skipped)
    leaks, conflicts = len(audit.leaks), len(audit.conflicts)
    section(
        f"{count(len(audit.duplicates), 'picture')} more than once ({leaks:,} across splits, {conflicts:,} under "
        "several labels)",
        [group(found) for found in audit.duplicates],
    )
    section(
        f"{count(len(audit.label_errors), 'label')} to look at, most surprising first",
        [f"{name(e.image)} is labelled '{e.given}'; {e.statement}" for e in audit.label_errors],
    )
    section(
        f"{count(len(audit.outliers), 'image')} unlike all others, farthest first (robust standard deviations)",
        [f"{found.score:4.1f}  {name(found.image)}" for found in audit.outliers],
    )
    section(
        f"{count(len(audit.quality), 'image')} of which little can be seen",
        [f"{flaw.kind:<8}  {name(flaw.image)} ({flaw.value:.3g}, limit {flaw.limit:g})" for flaw in audit.quality],
    )
    section(
        "Classes that look alike",
        [
            f"'{pair.first}' and '{pair.second}': {count(pair.images, 'image')} of either taken for the other, "
            f"{as_percent(pair.rate)}"
            for pair in audit.alike
        ],
    )
    scarce = [f"'{share.name}': {count(share.images, 'image')}" for share in audit.classes if share.scarce]
    uneven = f" (the largest has {audit.imbalance:.1f} times the smallest)" if audit.imbalance >= 1.05 else ""
    section(f"Classes with few images{uneven}", scarce)
    section(
        f"{count(len(audit.suggestions), 'suggested label')}",
        [f"{as_probability(s.probability, 0):>6}  {name(s.image)}: '{s.label}'" for s in audit.suggestions],
    )
    section("Label these next; most would be learned from them", [name(number) for number in audit.next_to_label])
    if not found_some and not audit.skipped:
        print("Nothing found.")


def _print_done(done: Done, images: Path, as_json: bool) -> None:
    if as_json:
        values = {
            "moved": done.moved,
            "left": [{"path": path, "reason": reason} for path, reason in done.left],
            "undo": str(done.undo) if done.undo else None,
            "manifest": str(done.manifest) if done.manifest else None,
        }
        print_json(values)
    elif done.manifest:
        print(f"{count(done.moved, 'row')} changed or left out in the new manifest {done.manifest}; the old one stays")
    elif done.moved or done.left:
        print(f"{count(done.moved, 'file is', 'files are')} where the plan wants them; nothing is ever deleted")
    else:
        print("There is nothing to move: the plan keeps every file where it is")
    if not as_json:
        for path, reason in done.left:
            print(f"  left as it was: {path}: {reason}")
        if done.undo:
            print(f"Undo with: {pasted('audit', images, '--undo', done.undo)}")
    if done.left:
        raise typer.Exit(1)
