"""`quickstudy serve`: models behind an HTTP API, with a page to try them on."""

from __future__ import annotations

from typing import Annotated

import typer

from quickstudy.cli.options import Port, Token
from quickstudy.extras import require_server


def command(
    models: Annotated[
        list[str],
        typer.Argument(help="Models (.onnx); NAME=FILE gives one a name. Requests that name none go to the first."),
    ],
    host: Annotated[
        str,
        typer.Option(help="The address to listen on; one that other machines can reach needs --token or --no-auth."),
    ] = ("127.0.0.1"),
    port: Port = 8000,
    token: Token = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Answer everybody, without a token.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also answer under this host name, such as that of a reverse proxy."),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(
            metavar="PREFIX",
            help="Prefix that a proxy passes on, such as /photos; leave it out if the proxy strips it.",
        ),
    ] = "",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Images that are worked on at a time [default: one a core].")
    ] = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Images that may wait; when there are more, requests get status 503.")
    ] = 64,
    max_bytes: Annotated[str, typer.Option(metavar="SIZE", help="Largest request, such as 32MB.")] = "32MB",
    max_files: Annotated[int, typer.Option(min=1, help="Most images in one request.")] = 32,
    max_megapixels: Annotated[float, typer.Option(min=0.1, help="Largest image, in megapixels.")] = 64,
    max_connections: Annotated[int, typer.Option(min=1, help="Most connections at a time.")] = 512,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a request's body to arrive, and again for the answer.")
    ] = 30,
) -> None:
    """Serve models over HTTP: a page to try them on, POST /predict, documentation at /docs, metrics."""
    require_server()
    from quickstudy.options import parse_bytes
    from quickstudy.serving.limits import ServerSettings
    from quickstudy.serving.registry import parse_models
    from quickstudy.serving.server import serve

    chosen = {} if threads is None else {"threads": threads}
    settings = ServerSettings(
        host=host,
        port=port,
        token=token or None,
        no_auth=no_auth,
        allowed_hosts=tuple(allow_host or ()),
        root_path=root_path,
        queue=queue,
        most_bytes=int(parse_bytes(max_bytes)),
        most_files=max_files,
        most_pixels=round(max_megapixels * 1e6),
        most_connections=max_connections,
        body_seconds=timeout,
        answer_seconds=timeout,
        **chosen,
    )
    files = parse_models(models)

    def announce(address: str) -> None:
        names = ", ".join(files)
        print(f"Serving {names} on {address} (page, /docs, /metrics); Ctrl-C ends it", flush=True)

    serve(files, settings, announce=announce)
