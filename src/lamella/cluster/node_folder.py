"""What a node keeps: who it is, and shards that it was given before.

node.json                      format, who it is
authority.crt, node.crt, node.key
shards.store/                  a store without variants: the shard cache
kernels.json                   measured speeds of this machine
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lamella.cluster.folder import Credentials
from lamella.cluster.identity import Identity
from lamella.cluster.private_files import make_private_folder, write_private
from lamella.core.errors import InvalidRequest
from lamella.store.documents import read_note, write_document

MEMBER_FORMAT = "lamella.node-folder"


@dataclass(frozen=True, slots=True)
class _Member:
    uri: str


@dataclass(frozen=True, slots=True)
class NodeFolder:
    """A node's folder; may not exist yet."""

    path: Path

    @property
    def cache(self) -> Path:
        """The store that shards are kept in."""
        return self.path / "shards.store"

    @property
    def kernels(self) -> Path:
        """The file of measured speeds."""
        return self.path / "kernels.json"

    @property
    def has_joined(self) -> bool:
        """Whether it belongs to a cluster."""
        return (self.path / "node.json").exists()

    @property
    def credentials(self) -> Credentials:
        """The node's.

        Raises:
            InvalidRequest: it has joined no cluster.
            StoreFormatError: its document is damaged.
        """
        member = read_note(self.path / "node.json", MEMBER_FORMAT, _Member, "lamella node --join INVITE")
        if member is None:
            raise InvalidRequest(
                f"{self.path} belongs to no cluster yet; join one with --join INVITE ('lamella cluster invite')"
            )
        return self._credentials(Identity.parse(member.uri))

    def keep(self, identity: Identity, authority: bytes, certificate: bytes, key: bytes) -> Credentials:
        """Write down who the node is now; certificates and key are PEM.

        Raises:
            StorageFailed: the file system refused.
        """
        make_private_folder(self.path)
        write_private(self.path / "authority.crt", authority)
        write_private(self.path / "node.crt", certificate)
        write_private(self.path / "node.key", key)
        write_private(self.path / "node.json", write_document(MEMBER_FORMAT, {"uri": identity.uri}))
        return self._credentials(identity)

    def _credentials(self, identity: Identity) -> Credentials:
        return Credentials(identity, self.path / "authority.crt", self.path / "node.crt", self.path / "node.key")
