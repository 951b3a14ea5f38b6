"""``lamella cluster init``, ``invite``, ``revoke``, ``nodes``, ``serve``: a model over several machines."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from lamella import api
from lamella.cli.engine_shape import ShapeFlags
from lamella.cli.numbers import MOST_SEQUENCES, MOST_TOKENS, CommandGroup
from lamella.cli.opening import greeting
from lamella.cli.options import (
    KvTypeOption,
    ModelArgument,
    ModelOrSpecArgument,
    NewStoreArgument,
    TargetArgument,
    split_target,
)
from lamella.cli.output import JsonFlag, note, print_json, say, stdout, table
from lamella.cli.serve import run_in_loop
from lamella.cli.serve_options import EngineFlags, key_ring
from lamella.cluster.addresses import split_address_or_host
from lamella.config import Config
from lamella.core.errors import ClusterRefused, InvalidRequest
from lamella.core.units import format_bytes, parse_bytes
from lamella.serving.settings import DEFAULT_PORT, FrontSettings
from lamella.store.store import Store

app = CommandGroup(help="Spread a model over several machines.", no_args_is_help=True, rich_markup_mode=None)
DEFAULT_JOIN_PORT, USUAL_NODE_PORT = 7400, 7410
MOST_MINUTES = 365 * 24 * 60
NO_PROMPT_CACHE = "0"
"""What leaves the KV cache is not kept: it is on the nodes, and would have to come over the links."""

FolderOption = Annotated[
    Path | None,
    typer.Option(help="Of the cluster. Default: the variable LAMELLA_CLUSTER, or ~/.config/lamella/cluster."),
]


def _folder(given: Path | None) -> Path:
    return given or Config.from_environment(os.environ).cluster_folder


@app.command("init")
def init(folder: FolderOption = None, json: JsonFlag = False) -> None:
    """Found a cluster on this machine, which becomes its coordinator.

    The folder holds the key that makes members: back it up, and show it to nobody.
    """
    cluster = api.found_cluster(_folder(folder))
    if json:
        print_json({"folder": str(cluster.path), "cluster": cluster.id})
        return
    say(f"founded cluster {cluster.id[:8]} in {cluster.path}; now: lamella cluster invite NAME --listen HOST:PORT")


@app.command("invite")
def invite(
    name: Annotated[str, typer.Argument(help="What the node will be called: small letters, digits, '-'.")],
    listen: Annotated[str, typer.Option(metavar="HOST[:PORT]", help="Where this machine answers the one that joins.")],
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="By which it reaches this machine, if that is another.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="How long the invite is good.", max=MOST_MINUTES)] = 15.0,
    folder: FolderOption = None,
    json: JsonFlag = False,
) -> None:
    """Let one machine join, once, and wait until it has: run there what is printed.

    Exit code 10 if none has joined in time.
    """
    host, port = split_address_or_host(listen, DEFAULT_JOIN_PORT)
    cluster = api.open_cluster(_folder(folder))
    everywhere = "[::]" if ":" in host else "0.0.0.0"

    def show(token: str) -> None:
        if json:
            print_json({"invite": token, "name": name, "minutes": minutes})
        else:
            say(f"lamella node --listen {everywhere}:{USUAL_NODE_PORT} --join {token}")
            note(f"good once, for {minutes:g} minutes; waiting for it")

    joined = asyncio.run(api.invite(cluster, name, host, port, 60 * minutes, show, address))
    if joined is None:
        raise ClusterRefused(f"nobody has joined as '{name}' within {minutes:g} minutes; the invite is over")
    note(f"node '{name}' has joined; it listens on {joined}")


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the node.")], folder: FolderOption = None, json: JsonFlag = False
) -> None:
    """Shut a node out, at once: its certificate counts no more, and open connections to it are cut."""
    record = api.open_cluster(_folder(folder)).revoke(name)
    if json:
        print_json({"revoked": record.name, "serial": record.serial})
        return
    say(f"node '{record.name}' is shut out")


@app.command("nodes")
def nodes(
    types: Annotated[
        str, typer.Option(help="ggml types to know speeds of, with commas; half a second for each new one.")
    ] = "Q8_0,Q4_0",
    folder: FolderOption = None,
    json: JsonFlag = False,
) -> None:
    """Ask every node what it is and has, and measure the way to it through the tunnel."""
    wanted = [name.strip().upper() for name in types.split(",") if name.strip()]
    found = asyncio.run(api.look_at_nodes(api.open_cluster(_folder(folder)), wanted))
    if json:
        print_json({"nodes": [_node_document(status) for status in found]})
        return
    shown = table("node", "address", ">cores", ">free memory", ">round trip", ">bandwidth", ">cache", "")
    for status in found:
        if status.described is None or status.link is None:
            shown.add_row(status.name, status.address, "", "", "", "", "", status.trouble)
            continue
        report, link = status.described.report, status.link
        shown.add_row(
            status.name,
            status.address,
            str(report.n_cores),
            f"{format_bytes(report.available_bytes)} of {format_bytes(report.memory_bytes)}",
            f"{1e3 * link.round_trip_seconds:.2f} ms",
            f"{format_bytes(int(link.bytes_per_second))}/s",
            format_bytes(status.described.cached_bytes),
            ", ".join(f"{name} {1e3 * s.token:.0f} ps" for name, s in report.speeds.items() if name in wanted),
        )
    stdout.print(shown)


def _node_document(status: api.NodeStatus) -> dict[str, Any]:
    document: dict[str, Any] = {"name": status.name, "address": status.address, "trouble": status.trouble}
    if status.described is not None:
        document |= {"described": status.described}
    if status.link is not None:
        document |= {"link": status.link}
    return document


@app.command("describe")
def describe(
    model: ModelOrSpecArgument,
    precisions: Annotated[str, typer.Option(help="To know speeds at, with commas.")] = "int8,int6,int5,int4,int3",
    folder: FolderOption = None,
) -> None:
    """Print what is measured of this machine, nodes and links: the --cluster FILE of 'lamella cluster plan'."""
    config = Config.from_environment(os.environ)
    names = [name.strip() for name in precisions.split(",")]
    kernels = config.cache_folder / "kernels.json"
    print_json(
        asyncio.run(api.describe_cluster(api.open_cluster(_folder(folder)), model, names, kernels, config.n_threads))
    )


@app.command("build")
def build(
    model: ModelArgument,
    store: NewStoreArgument,
    placement: Annotated[Path, typer.Option(help="As 'lamella cluster plan --json' has printed it.")],
    name: Annotated[str, typer.Option(help="Of the variant.")] = "placed",
    json: JsonFlag = False,
) -> None:
    """Make the variant that a placement is of: each layer at the precision that it has there."""
    report = api.build(model, store, api.placed_plan(model, placement), name)
    if json:
        print_json({"variant": report.variant.name, "bytes": report.variant.n_bytes})
        return
    built = f"{report.variant.name}: {format_bytes(report.variant.n_bytes)}"
    say(f"{built}; serve it with: lamella cluster serve {store}@{name} --placement {placement}")


@app.command("serve")
def serve(
    target: TargetArgument,
    layers: Annotated[
        str | None,
        typer.Option(metavar="NODE=A-B,...", help="Which node computes which layers; 'coordinator' is this machine."),
    ] = None,
    placement: Annotated[
        Path | None, typer.Option(help="The same, as 'lamella cluster plan --json' has printed it.")
    ] = None,
    folder: FolderOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = DEFAULT_PORT,
    keys: Annotated[Path | None, typer.Option(help="File of API keys. Default: the variable LAMELLA_API_KEYS.")] = None,
    name: Annotated[str, typer.Option(help="What requests call the model.")] = "",
    context: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Most tokens of one request.")] = 4096,
    sequences: Annotated[int, typer.Option(min=1, max=MOST_SEQUENCES, help="Requests that run at once.")] = 8,
    cells: Annotated[
        int, typer.Option(min=0, max=MOST_TOKENS, help="Tokens in a KV cache that all requests share; 0: as they need.")
    ] = 0,
    kv_type: KvTypeOption = "F16",
    warm: Annotated[int, typer.Option(help="Variants that stay in memory, the running one included.")] = 1,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get 429.")] = 64,
    fixed: Annotated[bool, typer.Option("--fixed", help="Wait for a node that is lost, and move no layers.")] = False,
    gain: Annotated[float, typer.Option(help="Move where that is faster by this share.")] = 0.25,
    hold: Annotated[float, typer.Option(metavar="SECONDS", help="So long must that be so.")] = 30.0,
    moves: Annotated[int, typer.Option(help="In an hour; beyond it layers move only where they have to.")] = 12,
    memory_here: Annotated[str, typer.Option(metavar="SIZE", help="Of this machine. Default: what is free.")] = "",
    links: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="How often links are measured.")] = 60.0,
) -> None:
    """Serve a store's variants with layers on several machines: `lamella serve`, with nodes.

    Each node fetches the layers that it lacks, of all variants. The variant changes while requests run, as there.
    Without --layers and --placement, layers go where they run fastest. When a node is lost they move to those that are
    left, and back.
    """
    if layers is not None and placement is not None:
        raise InvalidRequest("--layers and --placement say the same; give one of them, or none")
    if fixed and layers is None and placement is None:
        raise InvalidRequest("--fixed needs --layers NODE=A-B,... or --placement FILE")
    placed = api.read_placed_layers(placement) if placement else api.parse_layers(layers) if layers else None
    replanning = api.Replanning(fixed, parse_bytes(memory_here) if memory_here else 0, gain, hold, moves, links)
    shape = ShapeFlags(context=context, sequences=sequences, cells=cells, kv_type=kv_type)
    engine = EngineFlags(warm=warm, prompt_cache=NO_PROMPT_CACHE).settings(shape)
    folder_of_store, variant = split_target(target)
    store = Store.open(folder_of_store)  # what is wrong with it is said here, and not by a process that dies
    engine = msgspec.structs.replace(engine, store=str(folder_of_store), variant=variant)
    ring, kernels = key_ring(keys), Config.from_environment(os.environ).cache_folder / "kernels.json"
    front = FrontSettings(name=name or api.model_name(store), host=host, port=port, keys=ring)
    run_in_loop(
        api.serve_cluster(
            api.open_cluster(_folder(folder)),
            api.ServedCluster(engine, front, placed, kernels, replanning, queue),
            on_listening=greeting(len(ring)),
            on_line=note,
        )
    )
