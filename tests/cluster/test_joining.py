"""Joining a cluster: invites work once and end in time, and nobody else gets a certificate."""

from __future__ import annotations

import asyncio
import stat
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from lamella.cluster import folder as folder_module
from lamella.cluster.addresses import split_address
from lamella.cluster.certificates import new_request
from lamella.cluster.channel import Channel
from lamella.cluster.folder import ClusterFolder
from lamella.cluster.identity import Identity, Peer
from lamella.cluster.invites import Invite, secret_id
from lamella.cluster.joining import Join, Joined, JoinServer, NotJoined, join_cluster
from lamella.cluster.node_folder import NodeFolder
from lamella.cluster.private_files import write_private
from lamella.cluster.tls import joining_client_context
from lamella.core.errors import ClusterRefused, InvalidRequest, RemoteFailed, StorageFailed, StoreFormatError

LISTEN = "127.0.0.1:7410"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path, clock: Clock) -> ClusterFolder:
    return ClusterFolder.create(tmp_path / "cluster", clock)


def joining(folder: ClusterFolder, work: Any) -> Any:
    """Run ``work(address)`` beside a coordinator that lets machines join."""

    async def main() -> Any:
        async with JoinServer(folder, "127.0.0.1", 0) as server:
            return await work(server.address)

    return asyncio.run(main())


def join(folder: ClusterFolder, name: str, target: Path) -> Any:
    async def work(address: str) -> Any:
        return await join_cluster(folder.invite(name, address, 60), NodeFolder(target), LISTEN)

    return joining(folder, work)


def test_a_machine_with_an_invite_becomes_a_node(folder: ClusterFolder, tmp_path: Path) -> None:
    credentials = join(folder, "laptop", tmp_path / "node")
    assert credentials.identity == Identity(folder.id, "node", "laptop")
    assert NodeFolder(tmp_path / "node").credentials == credentials
    (record,) = folder.nodes()
    assert (record.name, record.address) == ("laptop", LISTEN)
    folder.check_member(Peer(credentials.identity, record.serial))


def test_an_unspecified_host_becomes_the_address_that_the_coordinator_is_reached_from(
    folder: ClusterFolder, tmp_path: Path
) -> None:
    async def work(address: str) -> None:
        await join_cluster(folder.invite("laptop", address, 60), NodeFolder(tmp_path / "node"), "0.0.0.0:7410")

    joining(folder, work)
    assert folder.needed_node("laptop").address == "127.0.0.1:7410"


def test_an_invite_works_once(folder: ClusterFolder, tmp_path: Path) -> None:
    async def work(address: str) -> None:
        invite = folder.invite("laptop", address, 60)
        await join_cluster(invite, NodeFolder(tmp_path / "first"), LISTEN)
        assert not folder.is_open(invite)
        with pytest.raises(ClusterRefused, match="not open"):
            await join_cluster(invite, NodeFolder(tmp_path / "second"), LISTEN)

    joining(folder, work)
    assert not NodeFolder(tmp_path / "second").has_joined


def test_of_many_that_come_with_one_invite_at_once_one_joins(folder: ClusterFolder, tmp_path: Path) -> None:
    async def work(address: str) -> list[Any]:
        invite = folder.invite("laptop", address, 60)
        tries: list[Coroutine[Any, Any, Any]] = [
            join_cluster(invite, NodeFolder(tmp_path / str(i)), LISTEN) for i in range(8)
        ]
        return await asyncio.gather(*tries, return_exceptions=True)

    results = joining(folder, work)
    assert sum(not isinstance(result, Exception) for result in results) == 1
    assert all(isinstance(r, ClusterRefused) for r in results if isinstance(r, Exception))


def test_an_invite_ends_in_time(folder: ClusterFolder, clock: Clock, tmp_path: Path) -> None:
    async def work(address: str) -> None:
        invite = folder.invite("laptop", address, 60)
        clock.now += 59
        assert folder.is_open(invite)
        clock.now += 1
        assert not folder.is_open(invite)
        with pytest.raises(ClusterRefused, match="not open"):
            await join_cluster(invite, NodeFolder(tmp_path / "node"), LISTEN)

    joining(folder, work)
    assert folder.nodes() == ()


def test_an_authority_that_cannot_be_read_is_said_and_costs_no_invite(folder: ClusterFolder, tmp_path: Path) -> None:
    key = folder.path / "authority.key"

    async def work(address: str) -> None:
        invite = folder.invite("laptop", address, 60)
        key.rename(tmp_path / "key")
        with pytest.raises(StorageFailed, match=r"cannot read .*authority\.key"):
            folder.invite("server", address, 60)
        with pytest.raises(ClusterRefused, match=r"cannot read .*authority\.key"):
            await join_cluster(invite, NodeFolder(tmp_path / "node"), LISTEN)
        with pytest.raises(ClusterRefused, match="this invite is not open"):  # strangers are told of no file
            await join_cluster(Invite(address, invite.fingerprint, bytes(16)), NodeFolder(tmp_path / "node"), LISTEN)
        (tmp_path / "key").rename(key)
        await join_cluster(invite, NodeFolder(tmp_path / "node"), LISTEN)

    joining(folder, work)


def test_a_machine_that_comes_to_a_damaged_cluster_is_told_so(folder: ClusterFolder, tmp_path: Path) -> None:
    async def work(address: str) -> None:
        invite = folder.invite("laptop", address, 60)
        (folder.path / "authority.key").write_text("no key")
        with pytest.raises(ClusterRefused):
            await join_cluster(invite, NodeFolder(tmp_path / "node"), LISTEN)

    joining(folder, work)


def test_a_name_has_one_open_invite(folder: ClusterFolder, clock: Clock) -> None:
    late = folder.invite("server", LISTEN, 10)
    lost, other, found = (folder.invite(name, LISTEN, 60) for name in ("laptop", "tower", "laptop"))
    assert [folder.is_open(invite) for invite in (lost, other, found)] == [False, True, True]
    clock.now += 10
    folder.invite("phone", LISTEN, 60)
    assert len(list((folder.path / "invites").iterdir())) == 3  # what is over leaves no file behind
    assert not folder.is_open(late)


def test_a_node_is_not_replaced_by_who_comes_with_another_invite_for_its_name(folder: ClusterFolder) -> None:
    """Two coordinator processes may write invites at once."""
    _, request = new_request()
    invite = folder.invite("laptop", LISTEN, 60)
    (path,) = (folder.path / "invites").iterdir()
    copy = path.with_name(f"{secret_id(bytes(16))}.json")
    copy.write_bytes(path.read_bytes())
    folder.admit(invite.secret, request, LISTEN)
    record = folder.needed_node("laptop")
    with pytest.raises(ClusterRefused, match="there is a node 'laptop' already"):
        folder.admit(bytes(16), request, "10.0.0.9:7410")
    assert folder.needed_node("laptop") == record


@pytest.mark.parametrize("host", ["a..b", ".a", "x" * 64])
def test_a_host_that_no_resolver_takes_is_refused(host: str) -> None:
    with pytest.raises(InvalidRequest, match="names no host"):
        split_address(f"{host}:7410")


@pytest.mark.parametrize("address", ["127.0.0.1:7410\x1b[2J", "a\x1b[2J:7410", "a b:7410", "a\nb:7410"])
def test_an_address_that_a_terminal_would_obey_is_refused(folder: ClusterFolder, address: str) -> None:
    async def work(at: str) -> object:
        channel = Channel()
        host, port = split_address(at)
        loop, context = asyncio.get_running_loop(), joining_client_context()
        await loop.create_connection(lambda: channel, host, port, ssl=context)
        _, request = new_request()
        channel.send(Join(folder.invite("laptop", at, 60).secret, request, address))
        answer: object = await channel.receive(Joined | NotJoined, 60)
        channel.close()
        return answer

    answer = joining(folder, work)
    assert isinstance(answer, NotJoined)
    assert answer.message.isprintable()
    assert folder.nodes() == ()


def test_a_node_cannot_join_with_a_port_that_nobody_knows(folder: ClusterFolder, tmp_path: Path) -> None:
    async def work(address: str) -> None:
        invite = folder.invite("laptop", address, 60)
        with pytest.raises(InvalidRequest, match="not 0"):
            await join_cluster(invite, NodeFolder(tmp_path / "node"), "0.0.0.0:0")
        assert folder.is_open(invite)

    joining(folder, work)


def test_a_secret_that_was_guessed_is_refused_and_leaves_real_invites_open(
    folder: ClusterFolder, tmp_path: Path
) -> None:
    async def work(address: str) -> None:
        invite = folder.invite("laptop", address, 60)
        guess = Invite(address, invite.fingerprint, bytes(16))
        with pytest.raises(ClusterRefused, match="not open"):
            await join_cluster(guess, NodeFolder(tmp_path / "node"), LISTEN)
        assert folder.is_open(invite)

    joining(folder, work)


def test_a_machine_says_nothing_to_a_coordinator_of_another_certificate(folder: ClusterFolder, tmp_path: Path) -> None:
    other = ClusterFolder.create(tmp_path / "other")

    async def work(address: str) -> None:
        invite = other.invite("laptop", address, 60)  # but ``folder`` answers at this address
        with pytest.raises(ClusterRefused, match="not the coordinator"):
            await join_cluster(invite, NodeFolder(tmp_path / "node"), LISTEN)
        assert other.is_open(invite)

    joining(folder, work)


def test_who_is_not_known_yet_cannot_send_much(folder: ClusterFolder) -> None:
    async def work(address: str) -> bytes:
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=joining_client_context())
        writer.write((1 << 20).to_bytes(4, "big"))
        return await asyncio.wait_for(reader.read(), 60)

    assert joining(folder, work) == b""


def test_where_nobody_listens_joining_says_so(folder: ClusterFolder, tmp_path: Path) -> None:
    invite = folder.invite("laptop", "127.0.0.1:1", 60)
    with pytest.raises(RemoteFailed, match=r"127\.0\.0\.1:1"):
        asyncio.run(join_cluster(invite, NodeFolder(tmp_path / "node"), LISTEN))


def test_only_a_request_that_its_key_has_signed_is_certified(folder: ClusterFolder) -> None:
    _, request = new_request()
    damaged = bytearray(request)
    damaged[-60] = ord("A") if damaged[-60] != ord("A") else ord("B")  # in the signature
    with pytest.raises(ClusterRefused):
        folder.admit(folder.invite("laptop", LISTEN, 60).secret, bytes(damaged), LISTEN)
    assert folder.nodes() == ()


def test_a_token_survives_copying_and_nothing_else_passes_for_one(folder: ClusterFolder) -> None:
    invite = folder.invite("laptop", "[fe80::1]:7400", 60)
    assert Invite.parse(f"  {invite.token}\n") == invite
    for wrong in ("", "lamella-", invite.token[:40], "LAMELLA-" + invite.token[8:], invite.token + "!"):
        with pytest.raises(InvalidRequest):
            Invite.parse(wrong)


def test_keys_and_invites_are_readable_by_their_owner_alone(folder: ClusterFolder, tmp_path: Path) -> None:
    folder.invite("other", LISTEN, 60)
    join(folder, "laptop", tmp_path / "node")
    for root in (folder.path, tmp_path / "node"):
        for path in (root, *root.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_secret_itself_is_nowhere_on_the_coordinators_disk(folder: ClusterFolder) -> None:
    invite = folder.invite("laptop", LISTEN, 60)
    secret, files = invite.secret, [path for path in folder.path.rglob("*") if path.is_file()]
    assert secret_id(secret) in {path.stem for path in files}  # its hash is
    forms = [secret, secret.hex().encode(), *(encode(secret).rstrip(b"=") for encode in (b64encode, urlsafe_b64encode))]
    for path in files:
        written = path.name.encode() + path.read_bytes()
        assert not any(form in written for form in forms), path


def test_a_name_is_given_once_and_again_after_it_was_revoked(folder: ClusterFolder, tmp_path: Path) -> None:
    first = join(folder, "laptop", tmp_path / "first").identity
    serial = folder.needed_node("laptop").serial
    with pytest.raises(InvalidRequest, match="already"):
        folder.invite("laptop", LISTEN, 60)
    folder.revoke("laptop")
    with pytest.raises(ClusterRefused, match="no member"):
        folder.check_member(Peer(first, serial))
    join(folder, "laptop", tmp_path / "second")
    with pytest.raises(ClusterRefused, match="no member"):
        folder.check_member(Peer(first, serial))  # the old certificate does not come back with the name


@pytest.mark.parametrize("name", ["", "Laptop", "a b", "../x", "-a", "a-", "coordinator", "x" * 64])
def test_names_that_nodes_cannot_have(folder: ClusterFolder, name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be a node's name"):
        folder.invite(name, LISTEN, 60)


def test_a_cluster_is_founded_in_an_empty_place_only(folder: ClusterFolder) -> None:
    assert ClusterFolder.open(folder.path).id == folder.id
    with pytest.raises(InvalidRequest, match="not empty"):
        ClusterFolder.create(folder.path)
    with pytest.raises(InvalidRequest, match="lamella cluster init"):
        ClusterFolder.open(folder.path / "nodes")


class Killed(BaseException):
    """Stands in for the end of the process."""


@pytest.mark.parametrize("n_written", range(5))
def test_a_founding_that_was_ended_in_the_middle_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_written: int
) -> None:
    path, written = tmp_path / "new", list[Path]()

    def write_and_die(target: Path, data: bytes) -> None:
        if len(written) == n_written:
            (target.with_name(f".{target.name}.0123abcd")).write_bytes(data[:10])
            raise Killed
        written.append(target)
        write_private(target, data)

    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "write_private", write_and_die)
        with pytest.raises(Killed):
            ClusterFolder.create(path)
    with pytest.raises(InvalidRequest, match="lamella cluster init"):
        ClusterFolder.open(path)
    founded = ClusterFolder.create(path)
    assert ClusterFolder.open(path).id == founded.id
    assert not [found for found in path.iterdir() if found.name.startswith(".")]
    join(founded, "laptop", tmp_path / "node")
    with pytest.raises(InvalidRequest, match="not empty"):
        ClusterFolder.create(path)


def test_of_two_who_found_a_cluster_at_once_one_does(tmp_path: Path) -> None:
    path = tmp_path / "new"
    path.mkdir()
    with folder_module._founding(path), pytest.raises(InvalidRequest, match="another"):
        ClusterFolder.create(path)
    assert not list(path.iterdir())


def test_a_folder_with_other_things_in_it_is_no_place_for_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "authority.key").write_text("of another program")
    with pytest.raises(InvalidRequest, match="not empty"):
        ClusterFolder.create(tmp_path)
    assert (tmp_path / "authority.key").read_text() == "of another program"


def test_a_node_whose_record_cannot_be_read_can_be_revoked(folder: ClusterFolder, tmp_path: Path) -> None:
    join(folder, "laptop", tmp_path / "node")
    (folder.path / "nodes" / "laptop.json").write_text("{")
    with pytest.raises(StoreFormatError, match="lamella cluster revoke laptop"):
        folder.node("laptop")
    assert folder.revoke("laptop").name == "laptop"
    assert folder.nodes() == ()
    with pytest.raises(InvalidRequest, match="no node is called 'laptop'"):
        folder.revoke("laptop")
