"""A cluster as its coordinator keeps it: a folder of files that only its owner may read.

    cluster.json                        format, the cluster's id
    authority.crt, authority.key        who has this key makes members
    coordinator.crt, coordinator.key
    invites/HASH.json                   open invites, by the hash of their secret
    nodes/NAME.json                     who belongs to it: address, and the serial of the one certificate that counts
    .founding                           only until all this is there

Nodes are known by that list: a certificate that is not in it is refused, whoever signed it.  So revoking is removing a
file, and every process of the coordinator sees it at once.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lamella.cluster.addresses import split_address
from lamella.cluster.certificates import Authority, fingerprint, new_authority, new_request
from lamella.cluster.identity import Identity, Peer, check_node_name
from lamella.cluster.invites import Invite, new_secret, secret_id
from lamella.cluster.layers import COORDINATOR
from lamella.cluster.private_files import make_private_folder, write_private
from lamella.core.errors import ClusterRefused, InvalidRequest, StorageFailed, StoreFormatError
from lamella.core.input_files import read_file
from lamella.store.documents import read_document, read_note, write_document
from lamella.store.files import storage_errors, take_over

CLUSTER_FORMAT = "lamella.cluster-folder"
INVITE_FORMAT, NODE_FORMAT = "lamella.invite", "lamella.node"
FOUNDING = ".founding"
"""A file that is there, and locked, while a cluster is founded; without an owner, that was ended in the middle."""
REMOVE = "rm on that file, and make another invite"


@dataclass(frozen=True, slots=True)
class OpenInvite:
    """An invite that nobody has used yet.

    Attributes:
        name: what the node will be called.
        until: seconds since 1970.
    """

    name: str
    until: float


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A member.

    Attributes:
        address: HOST:PORT at which the node listens.
        serial: of its certificate, hexadecimal; no other counts.
        joined: seconds since 1970.
    """

    name: str
    address: str
    serial: str
    joined: float


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files by which a member proves who it is, and knows the others.

    Attributes:
        authority, certificate, key: PEM files.
    """

    identity: Identity
    authority: Path
    certificate: Path
    key: Path


class ClusterFolder:
    """The coordinator's folder.  Several processes may use it at once.

    Attributes:
        path: where it is.
        id: the cluster's.
    """

    def __init__(self, path: Path, cluster_id: str, clock: Callable[[], float] = time.time) -> None:
        """Use ``create`` or ``open``."""
        self.path, self.id, self._clock = path, cluster_id, clock

    @classmethod
    def create(cls, path: Path, clock: Callable[[], float] = time.time) -> ClusterFolder:
        """Found a cluster: an authority, and the coordinator's certificate.

        What was ended in the middle is begun anew by the next call.

        Raises:
            InvalidRequest: something is there already, or somebody else is founding one there.
            StorageFailed: the file system refused.
        """
        _check_place(path)
        make_private_folder(path)
        cluster_id = uuid.uuid4().hex
        with _founding(path):
            for folder in (path / "invites", path / "nodes"):
                make_private_folder(folder)
            authority = new_authority(cluster_id)
            key, request = new_request()
            signed = authority.sign(request, Identity(cluster_id, "coordinator", COORDINATOR))
            write_private(path / "authority.key", authority.key)
            write_private(path / "authority.crt", authority.certificate)
            write_private(path / "coordinator.key", key)
            write_private(path / "coordinator.crt", signed.certificate)
            write_private(path / "cluster.json", write_document(CLUSTER_FORMAT, {"id": cluster_id}))
        return cls(path, cluster_id, clock)

    @classmethod
    def open(cls, path: Path, clock: Callable[[], float] = time.time) -> ClusterFolder:
        """The cluster in a folder.

        Raises:
            InvalidRequest: there is none.
            StoreFormatError: its document is damaged or of a newer format.
        """
        with storage_errors(path, "read"):
            try:
                data = read_file(path / "cluster.json")
            except (FileNotFoundError, NotADirectoryError):
                raise InvalidRequest(f"{path} is no cluster; make one with: lamella cluster init {path}") from None
        document = read_document(data, CLUSTER_FORMAT, path / "cluster.json")
        return cls(path, str(document.get("id")), clock)

    @property
    def credentials(self) -> Credentials:
        """The coordinator's."""
        return Credentials(
            Identity(self.id, "coordinator", COORDINATOR),
            self.path / "authority.crt",
            self.path / "coordinator.crt",
            self.path / "coordinator.key",
        )

    # --- joining -----------------------------------------------------------------------------------------------------

    def invite(self, name: str, address: str, seconds: float) -> Invite:
        """Let a machine join, once, as node ``name``; an invite for that name that is open still is so no more.

        Args:
            address: HOST:PORT at which ``joining.JoinServer`` will answer it.
            seconds: how long the invite is good.

        Raises:
            InvalidRequest: no name for a node, one that a node has, no address, or no time.
            StorageFailed: the file system refused, perhaps to read the authority, without which nobody is admitted.
        """
        check_node_name(name)
        split_address(address)
        if seconds <= 0:
            raise InvalidRequest(f"an invite must be good for some time, not {seconds:g} s")
        if self.node(name) is not None:
            raise InvalidRequest(f"there is a node '{name}' already; revoke it first: lamella cluster revoke {name}")
        self._authority()
        self._withdraw_invites(name)
        secret = new_secret()
        open_invite = OpenInvite(name, self._clock() + seconds)
        write_private(self._invite(secret), write_document(INVITE_FORMAT, asdict(open_invite)))
        return Invite(address, fingerprint((self.path / "coordinator.crt").read_bytes()), secret)

    def is_open(self, invite: Invite) -> bool:
        """Whether the invite can still be used."""
        found = read_note(self._invite(invite.secret), INVITE_FORMAT, OpenInvite, REMOVE)
        return found is not None and self._clock() < found.until

    def admit(self, secret: bytes, request: bytes, address: str) -> tuple[Identity, bytes]:
        """Use an invite: sign the key of the machine that has it, and list it as a node.

        Returns:
            Who the node is now, and its certificate (PEM).

        Raises:
            ClusterRefused: no such invite is open, whether it never was, was used, or its time is over; there is a node
                of its name; or the request is none.  An invite is used up by the attempt.
            StorageFailed: the file system refused; where it does not give the authority, the invite stays open.
        """
        path, not_open = self._invite(secret), "this invite is not open: it was used, its time is over, or it never was"
        if not path.exists():
            raise ClusterRefused(not_open)
        authority = self._authority()
        claimed = path.with_suffix(f".{uuid.uuid4().hex[:8]}")
        try:
            path.rename(claimed)  # of two who come with it at once, one gets past here
        except OSError:
            raise ClusterRefused(not_open) from None
        try:
            found = read_note(claimed, INVITE_FORMAT, OpenInvite, REMOVE)
        finally:
            claimed.unlink(missing_ok=True)
        if found is None or self._clock() >= found.until:
            raise ClusterRefused(not_open)
        if self.node(found.name) is not None:  # whom it would shut out
            raise ClusterRefused(f"there is a node '{found.name}' already")
        identity = Identity(self.id, "node", found.name)
        signed = authority.sign(request, identity)
        record = NodeRecord(found.name, address, signed.serial, self._clock())
        write_private(self._node(found.name), write_document(NODE_FORMAT, asdict(record)))
        return identity, signed.certificate

    # --- members -----------------------------------------------------------------------------------------------------

    def nodes(self) -> tuple[NodeRecord, ...]:
        """All members, by name."""
        with storage_errors(self.path, "read"):
            names = sorted(path.stem for path in (self.path / "nodes").glob("*.json") if not path.name.startswith("."))
        found = (self.node(name) for name in names)
        return tuple(record for record in found if record is not None)

    def node(self, name: str) -> NodeRecord | None:
        """The member of that name; None if there is none."""
        return read_note(
            self._node(name), NODE_FORMAT, NodeRecord, f"lamella cluster revoke {name}, and invite it anew"
        )

    def needed_node(self, name: str) -> NodeRecord:
        """The member of that name.

        Raises:
            InvalidRequest: there is none; lists those there are.
        """
        found = self.node(name)
        if found is None:
            known = ", ".join(record.name for record in self.nodes()) or "none"
            raise InvalidRequest(f"no node is called '{name}'; there are: {known}")
        return found

    def revoke(self, name: str) -> NodeRecord:
        """Shut a node out: its certificate counts no more, and open connections to it are cut.

        Returns:
            Its record; address and serial are "" where that could not be read.

        Raises:
            InvalidRequest: there is no such node.
            StorageFailed: the file system refused.
        """
        try:
            record = self.node(name)
        except (StoreFormatError, StorageFailed):
            record = None
        with storage_errors(self._node(name), "remove"):
            try:
                self._node(name).unlink()
            except FileNotFoundError:
                return self.needed_node(name)  # which lists those there are
        return record or NodeRecord(name, "", "", 0.0)

    def check_member(self, peer: Peer) -> None:
        """Refuse whoever is not in the list of nodes with this very certificate.

        Raises:
            ClusterRefused: it is not.
        """
        record = self.node(peer.identity.name) if peer.identity.role == "node" else None
        if peer.identity.cluster != self.id or record is None or record.serial != peer.serial:
            raise ClusterRefused(
                f"{peer.identity.role} '{peer.identity.name}' is no member: it was revoked, or replaced"
            )

    def _withdraw_invites(self, name: str) -> None:
        """Those for a name, and those whose time is over."""
        with storage_errors(self.path, "read"):
            for path in (self.path / "invites").glob("*.json"):
                found = read_note(path, INVITE_FORMAT, OpenInvite, REMOVE)
                if found is not None and (found.name == name or self._clock() >= found.until):
                    path.unlink(missing_ok=True)

    def _authority(self) -> Authority:
        with storage_errors(self.path / "authority.key", "read"):
            return Authority((self.path / "authority.crt").read_bytes(), (self.path / "authority.key").read_bytes())

    def _invite(self, secret: bytes) -> Path:
        return self.path / "invites" / f"{secret_id(secret)}.json"

    def _node(self, name: str) -> Path:
        return self.path / "nodes" / f"{check_node_name(name)}.json"


def _check_place(path: Path) -> None:
    """Refuse a place where no cluster can be founded; one whose founding was ended in the middle is a good one.

    Raises:
        InvalidRequest: a file, or a folder with other things in it.
    """
    with storage_errors(path, "read"):
        if not path.exists():
            return
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else {path.name}
    if names and (FOUNDING not in names or "cluster.json" in names):
        raise InvalidRequest(f"{path} is there already, and not empty; name a new folder for the cluster")


@contextlib.contextmanager
def _founding(path: Path) -> Iterator[None]:
    """Mark a folder as one in which a cluster is being founded, until that has come to its end.

    Raises:
        InvalidRequest: somebody else is founding one there, or has just done so.
    """
    marker = path / FOUNDING
    with storage_errors(marker, "write"):
        fd = take_over(marker)
    if fd is None:
        raise InvalidRequest(f"{path}: another 'lamella cluster init' is at work there")
    try:
        with storage_errors(path, "remove from"):
            if (path / "cluster.json").exists():
                marker.unlink()
                raise InvalidRequest(f"{path}: another 'lamella cluster init' was faster")
            for left in path.glob(".*.*"):  # what a process that was killed was writing
                left.unlink()
        yield
        with storage_errors(marker, "remove"):
            marker.unlink()
    finally:
        os.close(fd)
