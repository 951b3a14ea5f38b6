"""Who somebody is in a cluster, as certificates say it.

    Identity("5f0c...", "node", "laptop").uri      # lamella://5f0c.../node/laptop

The URI stands in the certificate's subject alternative name (RFC 5280, 4.2.1.6).  Addresses and DNS names do not count:
a node may move, and whoever takes over its address is not the node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from lamella.cluster.layers import COORDINATOR
from lamella.core.errors import ClusterRefused, InvalidRequest

Role = Literal["coordinator", "node"]
_NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CLUSTER_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Identity:
    """One member of one cluster.

    Attributes:
        cluster: the cluster's id, 32 hexadecimal digits.
        name: of the node; ``coordinator`` for that.
    """

    cluster: str
    role: Role
    name: str

    @property
    def uri(self) -> str:
        """How a certificate says it."""
        return f"lamella://{self.cluster}/{self.role}/{self.name}"

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """What a certificate says.

        Raises:
            ClusterRefused: it is none of ours.
        """
        scheme, _, rest = uri.partition("://")
        parts = rest.split("/")
        if scheme == "lamella" and len(parts) == 3:
            cluster, role, name = parts
            if _CLUSTER_ID.fullmatch(cluster) and role in get_args(Role) and _NODE_NAME.fullmatch(name):
                return cls(cluster, cast(Role, role), name)
        raise ClusterRefused(f"the certificate names no member of a cluster: {uri[:100]!r}")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection, by a certificate that the cluster's authority has signed.

    Attributes:
        serial: of the certificate, hexadecimal.
    """

    identity: Identity
    serial: str


def peer_of(certificate: Mapping[str, Any] | None) -> Peer:
    """The peer that ``ssl`` has verified.

    Args:
        certificate: what ``SSLObject.getpeercert`` gives.

    Raises:
        ClusterRefused: there is none, or it names nobody, or several.
    """
    names = [value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "URI"]
    if not certificate or len(names) != 1:
        raise ClusterRefused("the other side has no certificate of a cluster")
    return Peer(Identity.parse(names[0]), str(certificate["serialNumber"]).lower().lstrip("0"))


def check_node_name(name: str) -> str:
    """The name, if a node can have it.

    Raises:
        InvalidRequest: it cannot.
    """
    if not _NODE_NAME.fullmatch(name) or name == COORDINATOR:
        raise InvalidRequest(
            f"'{name}' cannot be a node's name: small letters, digits and '-' inside, at most 63, not 'coordinator'"
        )
    return name
