"""Who is refused: by a node, and by the coordinator."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lamella.cluster import tls
from lamella.cluster.addresses import split_address
from lamella.cluster.channel import MOST_MESSAGE_BYTES, Channel
from lamella.cluster.dialling import Dialler
from lamella.cluster.folder import ClusterFolder, Credentials
from lamella.cluster.forwarding import Forwarder
from lamella.cluster.messages import Describe, Probe, Ready, UseRpc
from lamella.cluster.node import NodeAgent
from lamella.core.errors import ClusterRefused, InvalidRequest, RemoteFailed, RemoteInvalid
from tests.cluster.conftest import TestBed, admit, move
from tests.cluster.test_node import LIMIT_SECONDS, Run

RPC_HELLO = bytes([14]) + (24).to_bytes(8, "little") + bytes(24)


async def said_to(address: str, context: ssl.SSLContext | None, words: bytes) -> bytes:
    """What a node answers to some words, up to its hanging up."""
    host, port = split_address(address)
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        writer.write(words)
        answer = await asyncio.wait_for(reader.read(), LIMIT_SECONDS)
        writer.close()
    except (ssl.SSLError, ConnectionError):
        return b""
    return answer


def message(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


DESCRIBE = message(b'{"type":"describe"}')


def refusing(run: Run, context: Callable[[TestBed], ssl.SSLContext | None], words: bytes = DESCRIBE) -> None:
    """Such a client gets not one byte of an answer, and the node goes on answering its coordinator."""

    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            address = bed.folder.needed_node("laptop").address
            assert await said_to(address, tls.client_context(bed.folder.credentials), DESCRIBE)  # the right one
            assert await said_to(address, context(bed), words) == b""
            channel, _ = await bed.dialler.ask("laptop", Probe(), Ready)
            channel.close()

    run(test)


def test_without_a_certificate(run: Run) -> None:
    refusing(run, lambda _: tls.joining_client_context())


def test_with_a_certificate_of_another_authority(run: Run, tmp_path: Path) -> None:
    def strangers(bed: TestBed) -> ssl.SSLContext:
        stranger = ClusterFolder.create(tmp_path / "stranger").credentials
        return tls.client_context(dataclasses.replace(stranger, authority=bed.folder.credentials.authority))

    refusing(run, strangers)


def test_with_another_nodes_certificate(run: Run, tmp_path: Path) -> None:
    def neighbours(bed: TestBed) -> ssl.SSLContext:
        return tls.client_context(admit(bed.folder, "neighbour", tmp_path / "neighbour").credentials)

    refusing(run, neighbours)


def test_with_a_coordinators_certificate_that_names_another_cluster(run: Run, tmp_path: Path) -> None:
    """Signed by the right authority, so that TLS lets it in: then the name counts."""
    from lamella.cluster.certificates import Authority, new_request
    from lamella.cluster.identity import Identity

    def other(bed: TestBed) -> ssl.SSLContext:
        path = bed.folder.path
        authority = Authority((path / "authority.crt").read_bytes(), (path / "authority.key").read_bytes())
        key, request = new_request()
        identity = Identity("0" * 32, "coordinator", "coordinator")
        (tmp_path / "key").write_bytes(key)
        (tmp_path / "crt").write_bytes(authority.sign(request, identity).certificate)
        return tls.client_context(Credentials(identity, path / "authority.crt", tmp_path / "crt", tmp_path / "key"))

    refusing(run, other)


def test_speaking_another_protocol(run: Run) -> None:
    def old(bed: TestBed) -> ssl.SSLContext:
        context = tls.client_context(bed.folder.credentials)
        context.set_alpn_protocols(["lamella-cluster/0"])
        return context

    refusing(run, old)


def test_older_tls(run: Run) -> None:
    def old(bed: TestBed) -> ssl.SSLContext:
        context = tls.client_context(bed.folder.credentials)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

    refusing(run, old)


@pytest.mark.parametrize("words", [RPC_HELLO, b"GET / HTTP/1.1\r\n\r\n", DESCRIBE])
def test_in_clear(run: Run, words: bytes) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            answer = await said_to(bed.folder.needed_node("laptop").address, None, words)
            assert len(answer) <= 7  # at most an alert of TLS

    run(test)


@pytest.mark.parametrize(
    "words",
    [
        message(b"{}"),
        message(b'{"type":"delete-everything"}'),
        message(b"[" * 100_000),
        (MOST_MESSAGE_BYTES + 1).to_bytes(4, "big"),
        RPC_HELLO + bytes(100),
    ],
)
def test_nonsense_from_the_coordinator_itself_ends_its_connection_only(run: Run, words: bytes) -> None:
    refusing(run, lambda bed: tls.client_context(bed.folder.credentials), words)


def test_a_session_that_is_guessed_is_refused(run: Run) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            with pytest.raises(RemoteFailed, match="no session"):
                await bed.dialler.ask("laptop", UseRpc("0" * 32), Ready)

    run(test)


def test_a_revoked_node_is_not_dialled(run: Run) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            channel, _ = await bed.dialler.ask("laptop", Probe(), Ready)
            bed.folder.revoke("laptop")
            await asyncio.wait_for(channel.closed.wait(), LIMIT_SECONDS)  # the open connection is cut
            with pytest.raises(InvalidRequest, match="no node is called 'laptop'"):
                await bed.dialler.dial("laptop", Probe())

    run(test)


def test_a_revoked_node_is_refused_where_another_took_its_name(run: Run, tmp_path: Path) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            address = bed.folder.needed_node("laptop").address
            bed.folder.revoke("laptop")
            admit(bed.folder, "laptop", tmp_path / "new")
            move(bed.folder, "laptop", address)  # where the old one listens still
            with pytest.raises(ClusterRefused, match="no member"):
                await bed.dialler.dial("laptop", Probe())

    run(test)


def test_a_node_that_answers_for_another_is_refused(run: Run) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"), bed.node("server"):
            move(bed.folder, "laptop", bed.folder.needed_node("server").address)
            with pytest.raises(ClusterRefused, match="who answers for node 'laptop' is node 'server'"):
                await bed.dialler.dial("laptop", Probe())

    run(test)


def test_a_node_of_another_cluster_is_refused(run: Run, tmp_path: Path) -> None:
    async def test(bed: TestBed) -> None:
        other = ClusterFolder.create(tmp_path / "other")
        stop, listening = asyncio.Event(), asyncio.get_running_loop().create_future()
        agent = NodeAgent(admit(other, "laptop", tmp_path / "theirs"))
        serving = asyncio.create_task(agent.serve("127.0.0.1", 0, on_listening=listening.set_result, stop=stop))
        admit(bed.folder, "laptop", tmp_path / "ours")
        move(bed.folder, "laptop", await listening)
        with pytest.raises(ClusterRefused):
            await bed.dialler.dial("laptop", Probe())
        stop.set()
        await serving

    run(test)


def test_the_rpc_server_listens_on_loopback_and_nothing_else_does(run: Run) -> None:
    async def test(bed: TestBed) -> list[tuple[str, int]]:
        async with bed.node("laptop") as agent, Forwarder(bed.dialler, "laptop") as forwarder:
            await forwarder.ready(60)
            (session,) = agent.sessions.values()
            (await session.server.connect()).close()
            connections = psutil.Process(session.server.pid).net_connections("inet")
            return [found.laddr for found in connections if found.status == psutil.CONN_LISTEN]

    (listening,) = run(test)
    assert listening[0] == "127.0.0.1"


def test_a_message_is_bounded() -> None:
    async def main() -> None:
        channel = Channel()
        channel.data_received((MOST_MESSAGE_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(RemoteInvalid, match="are the most"):
            await channel.receive(Describe)

    asyncio.run(main())


def test_who_cannot_be_checked_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that cannot be read lets nobody in."""

    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):

            def broken(_: object) -> None:
                raise OSError("the disk is gone")

            monkeypatch.setattr(bed.folder, "check_member", broken)
            with pytest.raises(ClusterRefused, match="the disk is gone"):
                await bed.dialler.dial("laptop", Probe())

    run(test)


def test_who_cannot_be_checked_any_more_is_cut_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is whoever is revoked after that: what watches goes on."""

    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"), bed.node("server"):
            first, _ = await bed.dialler.ask("laptop", Probe(), Ready)
            with monkeypatch.context() as patched:

                def broken(_: object) -> None:
                    raise OSError("the disk is gone")

                patched.setattr(bed.folder, "check_member", broken)
                await asyncio.wait_for(first.closed.wait(), LIMIT_SECONDS)
            second, _ = await bed.dialler.ask("server", Probe(), Ready)
            bed.folder.revoke("server")
            await asyncio.wait_for(second.closed.wait(), LIMIT_SECONDS)

    run(test)


def test_a_dialler_that_has_ended_leaves_no_connection(folder: ClusterFolder, run: Run) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            async with Dialler(bed.folder) as dialler:
                channel, _ = await dialler.ask("laptop", Probe(), Ready)
            await asyncio.wait_for(channel.closed.wait(), LIMIT_SECONDS)

    run(test)
