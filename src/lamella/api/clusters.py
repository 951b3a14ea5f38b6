"""Clusters: founding and joining them, and what nodes say of themselves."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.api.models import load_spec
from lamella.core.errors import InvalidRequest, LamellaError, RemoteFailed

if TYPE_CHECKING:  # cryptography is an extra, and TLS takes a while to import
    from lamella.cluster.dialling import Dialler
    from lamella.cluster.folder import ClusterFolder
    from lamella.cluster.identity import Identity
    from lamella.cluster.links import MeasuredLink
    from lamella.cluster.messages import Described


def check_cluster_extra() -> None:
    """Refuse, in words, to go on without what clusters need.

    Raises:
        InvalidRequest: it is not installed.
    """
    if importlib.util.find_spec("cryptography") is None:
        raise InvalidRequest("clusters need the package cryptography: pip install 'lamella[cluster]'")


def found_cluster(folder: Path) -> ClusterFolder:
    """Make a cluster with an authority of its own.

    Raises:
        InvalidRequest: something is there already, or the extra is not installed.
        StorageFailed: the file system refused.
    """
    check_cluster_extra()
    from lamella.cluster.folder import ClusterFolder

    return ClusterFolder.create(folder)


def open_cluster(folder: Path) -> ClusterFolder:
    """The cluster that a folder has.

    Raises:
        InvalidRequest: there is none, or the extra is not installed.
    """
    check_cluster_extra()
    from lamella.cluster.folder import ClusterFolder

    return ClusterFolder.open(folder)


async def invite(
    cluster: ClusterFolder,
    name: str,
    host: str,
    port: int,
    seconds: float,
    on_invite: Callable[[str], None],
    address: str | None = None,
) -> str | None:
    """Invite a machine to be node ``name``, and wait for it.

    Args:
        host, port: where to listen for it; port 0 takes a free one.
        seconds: how long.
        on_invite: gets the token, once it can be used.
        address: HOST:PORT by which the machine reaches this one, if that is another.

    Returns:
        The address at which the node will listen; None if none has come in time.

    Raises:
        InvalidRequest: the name cannot be given, or the address not be listened on.
    """
    from lamella.cluster.joining import JoinServer

    joined: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def note(identity: Identity, at: str) -> None:
        if identity.name == name and not joined.done():  # who has another invite that is open may come here too
            joined.set_result(at)

    async with JoinServer(cluster, host, port, note) as server:
        made = cluster.invite(name, address or server.address, seconds)
        on_invite(made.token)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await joined
    return None


async def run_node(
    folder: Path,
    listen: str,
    token: str | None = None,
    *,
    n_threads: int = 0,
    cache_bytes: int = 0,
    on_listening: Callable[[str], None] = lambda _: None,
    on_line: Callable[[str], None] = lambda _: None,
    stop: asyncio.Event | None = None,
) -> None:
    """Be a node: join a cluster if a token is given, and compute for its coordinator until ``stop``.

    Args:
        listen: HOST:PORT.
        token: an invite.

    Raises:
        InvalidRequest: no address, no invite, or the folder belongs to a cluster already (with a token) or to none.
        ClusterRefused: the invite is not open.
        RemoteFailed: nobody answers where it leads.
    """
    check_cluster_extra()
    from lamella.cluster.addresses import split_address
    from lamella.cluster.invites import Invite
    from lamella.cluster.joining import join_cluster
    from lamella.cluster.node import NodeAgent, NodeOptions
    from lamella.cluster.node_folder import NodeFolder

    node = NodeFolder(folder)
    host, port = split_address(listen)
    if token is not None:
        if node.has_joined:
            raise InvalidRequest(
                f"{folder} belongs to a cluster as {node.credentials.identity.name} already; start it without --join, "
                "or name another folder with --folder"
            )
        await join_cluster(Invite.parse(token), node, listen)
    agent = NodeAgent(node, NodeOptions(n_threads=n_threads, cache_bytes=cache_bytes), on_line)
    await agent.serve(host, port, on_listening=on_listening, stop=stop)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What is known of a node.

    Attributes:
        described, link: None where it did not answer.
        pass_seconds: of a pass over it; None where none was measured.
        trouble: why it did not answer, or why no pass was measured.
    """

    name: str
    address: str
    described: Described | None = None
    link: MeasuredLink | None = None
    pass_seconds: float | None = None
    trouble: str = ""


async def look_at_nodes(cluster: ClusterFolder, types: Sequence[str] = (), width: int = 0) -> list[NodeStatus]:
    """Ask every node what it is, and measure the way to it; one after the other, so that transfers do not meet.

    Args:
        types: ggml types to know speeds of; half a second for each that a node has not measured yet.
        width: of a hidden state, to measure what passes cost; 0 where nobody wants to know.
    """
    from lamella.cluster.dialling import Dialler

    async with Dialler(cluster) as dialler:
        return [await _look_at(dialler, record.name, record.address, types, width) for record in cluster.nodes()]


async def describe_cluster(
    cluster: ClusterFolder, model: str | Path, precisions: Sequence[str], kernel_file: Path, n_threads: int
) -> dict[str, Any]:
    """What is measured of all nodes and of this machine, as ``lamella cluster plan`` reads it.

    Args:
        kernel_file: this machine's speeds, measured before or now.

    Raises:
        RemoteFailed: a node does not answer.
        UnsupportedTensor: rows of the model cannot be of a named type.
    """
    from lamella.cluster.describing import describe, types_of
    from lamella.cluster.layers import COORDINATOR
    from lamella.cluster.reporting import report_apart

    spec = load_spec(model)
    types = sorted(types_of(spec, precisions))
    found = await look_at_nodes(cluster, types, int(spec.hyperparameters["embedding_length"]))
    away = [status for status in found if status.described is None or status.link is None]
    if away:
        raise RemoteFailed(f"node '{away[0].name}' cannot be described: {away[0].trouble}")
    reports = {COORDINATOR: await report_apart(kernel_file, n_threads, types)}
    reports |= {s.name: s.described.report for s in found if s.described is not None}
    passes = {s.name: s.pass_seconds for s in found if s.pass_seconds is not None}
    return describe(spec, reports, {s.name: s.link for s in found if s.link is not None}, precisions, passes)


async def _look_at(dialler: Dialler, name: str, address: str, types: Sequence[str], width: int) -> NodeStatus:
    from lamella.cluster.links import measure_link
    from lamella.cluster.messages import Describe, Described
    from lamella.cluster.passes import measure_pass
    from lamella.cluster.reporting import REPORT_SECONDS

    status = NodeStatus(name, address)
    try:
        channel, described = await dialler.ask(name, Describe(list(types)), Described, REPORT_SECONDS)
        channel.close()
        status = replace(status, described=described, link=await measure_link(dialler, name))
        return replace(status, pass_seconds=await measure_pass(dialler, name, width)) if width else status
    except LamellaError as error:
        return replace(status, trouble=str(error))
