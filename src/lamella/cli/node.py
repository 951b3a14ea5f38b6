"""``lamella node``: this machine computes layers for the coordinator of its cluster."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from lamella import api
from lamella.cli.output import note, say
from lamella.cli.serve import run_in_loop
from lamella.config import Config
from lamella.core.cores import MOST_THREADS
from lamella.core.units import parse_bytes


def node(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the coordinator reaches this machine.")],
    join: Annotated[
        str | None, typer.Option(metavar="INVITE", help="Join a cluster first; 'lamella cluster invite' prints one.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Key, certificate and shard cache. Default: the variable LAMELLA_NODE, or ~/.local/share/lamella/node."
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, max=MOST_THREADS, help="For computing; 0: the cores that it may use.")
    ] = 0,
    cache: Annotated[
        str | None, typer.Option(help="Most bytes of shards that are kept for later, as 20GiB. Default: all.")
    ] = None,
) -> None:
    """Compute layers for the coordinator of a cluster, and for nobody else.

    All that comes and goes is encrypted; who cannot show the coordinator's certificate is hung up on.
    """
    config = Config.from_environment(os.environ)
    run_in_loop(
        _run(
            folder or config.node_folder,
            listen,
            join,
            threads or config.n_threads,
            parse_bytes(cache) if cache else 0,
        )
    )


async def _run(folder: Path, listen: str, token: str | None, n_threads: int, cache_bytes: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await api.run_node(
        folder,
        listen,
        token,
        n_threads=n_threads,
        cache_bytes=cache_bytes,
        on_listening=lambda address: say(f"listening on {address}"),
        on_line=note,
        stop=stop,
    )
