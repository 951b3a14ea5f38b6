"""``lamella pull``, ``push`` and ``serve-store``: variants of stores on other machines."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamella import api
from lamella.cli.keeping import note_trim
from lamella.cli.options import StoreArgument
from lamella.cli.output import JsonFlag, note, print_json, progress, say
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from lamella.core.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from lamella.remote.pull import OnTransfer, PullReport

TokenOption = Annotated[
    str | None, typer.Option(help="Token that the server asks for. Default: the variable LAMELLA_TOKEN.")
]
ConnectionsOption = Annotated[int, typer.Option(min=1, max=64, help="Connections at once.")]


def pull(
    source: Annotated[
        str, typer.Argument(metavar="URL@VARIANT|hf:OWNER/REPO[/FILE]", help="A variant of a remote store, or a model.")
    ],
    target: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", help="The local store, made if it does not exist; of hf: where files go."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the variant here. Default: the same as there.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the variant of that name here; who runs it keeps the old one.")
    ] = False,
    token: TokenOption = None,
    connections: ConnectionsOption = 4,
    json: JsonFlag = False,
) -> None:
    """Take a variant over from a remote store; only the shards that the local store lacks travel.

    May be interrupted: what arrived stays, and the same command goes on from there.
    """
    config = Config.from_environment(os.environ)
    if source.startswith(api.HUB_PREFIX):
        if name is not None:
            raise InvalidRequest("--name names a variant, and hf: fetches a model file")
        if replace:
            raise InvalidRequest("--replace is about a variant, and hf: fetches a model file")
        _pull_from_hub(source, target, config, json)
        return
    if target is None:
        raise InvalidRequest(f"say into which store: lamella pull {source} STORE")
    with progress("pulling", quiet=json) as update:
        report = api.pull(
            source,
            target,
            name,
            replace=replace,
            token=token or config.token,
            n_connections=connections,
            on_progress=_shown(update),
        )
    _tell_pulled(report, target, json)


def _tell_pulled(report: PullReport, target: Path, json: bool) -> None:
    if json:
        print_json(
            {
                "store": str(target),
                "variant": report.variant.name,
                "bytes": report.variant.n_bytes,
                "shards": report.n_shards,
                "fetched": report.n_fetched,
                "moved_bytes": report.moved_bytes,
                "resumed_bytes": report.resumed_bytes,
                "reused_bytes": report.reused_bytes,
                "seconds": report.seconds,
            }
        )
        return
    note_trim(report.trimmed)
    resumed = f", {format_bytes(report.resumed_bytes)} were left from before" if report.resumed_bytes else ""
    say(
        f"{report.variant.name}: {report.n_fetched} of {report.n_shards} shards fetched into {target}, "
        f"{format_bytes(report.moved_bytes)} moved{resumed}, {format_bytes(report.reused_bytes)} reused, "
        f"in {format_seconds(report.seconds)}"
    )


def _shown(update: Callable[[float, float, str], None]) -> OnTransfer:
    """How far a transfer is, on the progress bar."""
    return lambda at: update(
        at.done_bytes, at.total_bytes, f"{format_bytes(at.done_bytes)}, {at.n_done}/{at.n_shards} shards"
    )


def _pull_from_hub(source: str, target: Path | None, config: Config, json: bool) -> None:
    report = api.pull_from_hub(source, target, llama_cpp=config.llama_cpp, quiet=json)
    if json:
        print_json(
            {
                "path": str(report.path),
                "files": report.n_files,
                "bytes": report.n_bytes,
                "converted": report.converted,
                "seconds": report.seconds,
            }
        )
        return
    files = "1 file" if report.n_files == 1 else f"{report.n_files} files"
    say(f"{report.path}: {files}, {format_bytes(report.n_bytes)} in {format_seconds(report.seconds)}")


def push(
    store: StoreArgument,
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="Name of a variant.")],
    target: Annotated[
        str, typer.Argument(metavar="URL|FOLDER", help="A web server that takes PUT, or the folder of another store.")
    ],
    token: TokenOption = None,
    connections: ConnectionsOption = 4,
    json: JsonFlag = False,
) -> None:
    """Send a variant to a remote store; only the shards that it lacks travel, and the variant appears last."""
    config = Config.from_environment(os.environ)
    with progress("pushing", quiet=json) as update:
        report = api.push(
            store,
            variant,
            target,
            token=token or config.token,
            n_connections=connections,
            on_progress=_shown(update),
        )
    reused_bytes = report.variant.n_bytes - report.sent_bytes
    if json:
        print_json(
            {
                "target": target,
                "variant": report.variant.name,
                "bytes": report.variant.n_bytes,
                "shards": report.n_shards,
                "sent": report.n_sent,
                "moved_bytes": report.sent_bytes,
                "reused_bytes": reused_bytes,
                "seconds": report.seconds,
            }
        )
        return
    say(
        f"{variant}: {report.n_sent} of {report.n_shards} shards sent to {target}, {format_bytes(report.sent_bytes)} "
        f"moved, {format_bytes(reused_bytes)} were there, in {format_seconds(report.seconds)}"
    )


def serve_store(
    store: StoreArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8090,
    token: TokenOption = None,
    json: JsonFlag = False,
) -> None:
    """Let other machines pull variants of a store, read-only, until Ctrl-C."""
    token = token or Config.from_environment(os.environ).token
    with api.serving_store(store, host, port, token=token) as server:
        if json:
            print_json({"store": str(store), "url": server.url, "token": token is not None})
        else:
            say(f"{server.description}; take one with: lamella pull {server.url}@VARIANT STORE")
        if token is None and not server.is_local:
            note("anybody who reaches this machine may read the store; --token asks for a token")
        with contextlib.suppress(KeyboardInterrupt):
            server.run()
