"""`quickstudy label`: from unlabelled photos to a classifier, in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quickstudy.cli.options import (
    BackboneName,
    Cache,
    EngineName,
    Port,
    Quiet,
    Separator,
    Several,
    Token,
    labelling_told,
)
from quickstudy.cli.report import Open, sees_browser
from quickstudy.extras import require_server


def command(
    images: Annotated[
        Path,
        typer.Argument(
            help="A folder of photos or an archive of one, labelled, half labelled or not at all; or a manifest.",
            show_default=False,
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="The manifest to write [default: <name of IMAGES>.labels.csv]."),
    ] = None,
    several: Several = False,
    separator: Separator = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The model that the page trains [default: <name of IMAGES>.onnx]."),
    ] = None,
    backbone: BackboneName = "efficientnet_lite0",
    engine: EngineName = "onnxruntime",
    port: Port = 8640,
    token: Token = None,
    open_: Open = None,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Label photos in the browser while a classifier learns; on this machine only."""
    require_server()
    import secrets

    from quickstudy.cli.display import print_alike, progress_for
    from quickstudy.files import cache_folder
    from quickstudy.images.listing import alike
    from quickstudy.labelling.app import make_label_app
    from quickstudy.labelling.photos import places_beside
    from quickstudy.labelling.session import Session
    from quickstudy.serving.limits import ServerSettings
    from quickstudy.serving.server import listen, run
    from quickstudy.wording import count

    settings = ServerSettings(port=port, token=token or secrets.token_urlsafe(24))
    manifest, model = places_beside(images, labels, output)
    with listen(settings, hint="choose another with --port") as listener:  # before anything is written
        session = Session(
            images,
            manifest,
            model,
            cache=cache_folder(cache),
            backbone=backbone,
            engine=engine,
            labelling=labelling_told(several, separator, None),
            progress=progress_for(quiet=quiet),
        )

        def announce(address: str) -> None:
            known, words = int(session.labelled.sum()), "labels, any number each" if session.several else "a label"
            print(f"{images}: {count(len(session.photos), 'photo')}, {known:,} with {words}; labels go to {manifest}")
            found = session.taken_over
            told = [f"{count(found.given, 'photo')} labelled"] * bool(found.given)
            told += [f"{count(found.cleared, 'photo')} not labelled any more"] * bool(found.cleared)
            if told:
                print(f"Taken over from {manifest}, which was changed by other means: {', '.join(told)}")
            print(f"{address}/?token={settings.token}", flush=True)
            print_alike(alike({name for _, name, labels in session.classes() if labels}))
            print("Ctrl-C ends it; what was labelled stays", flush=True)
            if sees_browser() if open_ is None else open_:
                import webbrowser

                webbrowser.open(f"{address}/?token={settings.token}")

        app, end = make_label_app(session, settings)
        run(app, settings, announce=announce, ending=end, listener=listener)
