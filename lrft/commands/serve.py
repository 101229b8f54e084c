"""`lrft serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lrft.commands.output import Json, Quiet, TrustRemoteCode
from lrft.core.notes import silence
from lrft.registry.errors import MissingExtra


def serve_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Runs whose adapters answer, and folders of plain low-rank adapters in PEFT's form; the first is a "
            "run, and its base answers too.",
            metavar="RUN...",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine only with a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 is a free one.")] = 8000,
    rows: Annotated[int, typer.Option(help="Answers computed at once.", metavar="N")] = 32,
    queue: Annotated[
        int, typer.Option(help="Answers that may wait; one more is refused with 429.", metavar="N")
    ] = 256,
    cache_tokens: Annotated[
        int, typer.Option(help="Positions kept for all answers at once, padding included.", metavar="N")
    ] = 32768,
    max_tokens: Annotated[int, typer.Option(help="New tokens a request may ask for.", metavar="N")] = 1024,
    adapter_memory: Annotated[
        str, typer.Option(help="For adapters; the one used longest ago makes room.", metavar="SIZE")
    ] = "1GiB",
    max_body: Annotated[str, typer.Option(help="Size of a request.", metavar="SIZE")] = "1MiB",
    timeout: Annotated[
        float, typer.Option(help="Seconds from a request to the end of its answer.", metavar="S")
    ] = 300.0,
    drain: Annotated[
        float, typer.Option(help="Seconds that answers have to end in after a signal.", metavar="S")
    ] = 30.0,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve runs over HTTP by OpenAI's protocol, each adapter a `model`; LRFT_SERVE_KEY holds the key, if any.

    Example: lrft serve runs/quickstart runs/other --port 8000
    """
    try:
        from lrft.serve.server import KEY, Settings, serve
    except ImportError as error:
        raise MissingExtra(
            f"lrft serve: answers go over HTTP by FastAPI and uvicorn; install them with `pip install 'lrft[serve]'` "
            f"({error})"
        ) from None
    from lrft.registry.size import parse_size
    from lrft.serve.desk import Offer
    from lrft.serve.waiting import Limits

    silence(quiet)
    settings = Settings(
        host=host,
        port=port,
        adapter_bytes=parse_size(adapter_memory, "--adapter-memory"),
        most_body=parse_size(max_body, "--max-body"),
        drain=drain,
        key=os.environ.get(KEY),
        limits=Limits(rows, queue, cache_tokens),
        offer=Offer(max_tokens, timeout),
    )
    serve(runs, settings, trust_remote_code)  # until a signal, whose error holds what was done
