"""`quickstudy verify`: whether model files are whole, harmless and still give what they gave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quickstudy.cli.display import print_json
from quickstudy.cli.options import Json


def command(
    models: Annotated[list[Path], typer.Argument(help="Models (.onnx).", show_default=False)],
    as_json: Json = False,
) -> None:
    """Check models: checksum, what the graph holds, metadata, golden checks; exit status 1 if one of them fails."""
    rows = [_verify(path) for path in models]
    if as_json:
        print_json(rows)
    for row in rows if not as_json else ():
        if row["ok"]:
            print(
                f"{row['model']}: intact; {row['classes']} classes, {row['pixels']} pixels; golden checks differ by "
                f"{row['golden_difference']:.1g} at most (tolerance {row['tolerance']:g}); SHA-256 {row['sha256']}"
            )
        else:
            print(f"{row['model']}: FAILED: {row['error']}")
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


def _verify(path: Path) -> dict[str, Any]:
    from quickstudy.errors import QuickstudyError
    from quickstudy.files import sha256_of_file
    from quickstudy.models.loading import load

    try:
        model = load(path)
        difference = model.verify()
    except QuickstudyError as error:
        return {"model": str(path), "ok": False, "error": str(error)}
    return {
        "model": str(path),
        "ok": True,
        "sha256": sha256_of_file(path),
        "classes": len(model.classes),
        "pixels": model.input.size,
        "golden_difference": difference,
        "tolerance": model.golden_tolerance,
        "training": model.metadata.get("training"),
        "versions": model.metadata.get("versions"),
    }
