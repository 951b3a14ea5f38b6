"""The machines that layers may be placed on, and the network between them.

    laptop = Node("laptop", 8 * GIB, {"int8": Speed(0.002, 0.010), "int4": Speed(0.002, 0.006)})
    server = Node("server", 24 * GIB, {"int8": Speed(0.0004, 0.003), "int4": Speed(0.0004, 0.002)})
    cluster = Cluster((laptop, server), "laptop", {("laptop", "server"): Link(1e8, 0.001)})

The *coordinator* is the machine that the request arrives at.  It holds embedding and head, and samples: every pass
begins and ends there.  It may be one of the nodes, whose memory is then what embedding and head leave.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from lamella.core.errors import InvalidRequest

Transfer = Literal["star", "mesh"]
"""``star``: all that leaves a node goes to the coordinator and on from there, as llama.cpp's RPC does it.
``mesh``: nodes send to each other, as in DILEMMA's network."""
TRANSFERS: tuple[Transfer, ...] = get_args(Transfer)
Tier = Literal["edge", "cloud"]
TIERS: tuple[Tier, ...] = get_args(Tier)


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds that a layer of work 1 takes on a node, at one precision.

    Attributes:
        prompt_seconds: for each token of a prompt, which is read in batches.
        token_seconds: for each generated token, one at a time.
    """

    prompt_seconds: float
    token_seconds: float


@dataclass(frozen=True, slots=True)
class Node:
    """A machine, or one device of it.

    Attributes:
        memory_bytes: for layers: their weights, their KV cache and ``buffer_bytes``.
        speeds: precision -> speed; a precision that is not named cannot run here.
        pass_seconds: what each pass costs that the node takes part in, however many layers it has.
        buffer_bytes: of the memory, what computing needs as soon as one layer is there.
        tier: ``edge`` near the coordinator, or ``cloud`` beyond a wide-area link; what the baselines tell apart.
        watts: drawn while it computes, beyond what it draws idle.
        price_per_hour: of computing, in any currency.
        seconds_limit: that a request may compute here; finite where the node has others to serve.
        cell_seconds, prompt_cell_seconds: of a layer's attention, for each cell of the KV cache that a generated token,
            or one of a prompt, looks at.
    """

    name: str
    memory_bytes: int
    speeds: Mapping[str, Speed]
    pass_seconds: float = 0.0
    buffer_bytes: int = 0
    tier: Tier = "edge"
    watts: float = 0.0
    price_per_hour: float = 0.0
    seconds_limit: float = math.inf
    cell_seconds: float = 0.0
    prompt_cell_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Link:
    """A way between two machines, alike in both directions."""

    bytes_per_second: float
    round_trip_seconds: float

    def seconds(self, n_bytes: float, n_messages: int = 1) -> float:
        """Until the last of some messages has arrived, each sent when the one before is used up."""
        return n_messages * self.round_trip_seconds / 2 + n_bytes / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes and the links between them.

    Attributes:
        coordinator: where requests arrive: the name of a node, or of a machine that computes no layers.
        links: (name, name) -> link, in either order.  A star needs one from each node to the coordinator, a mesh one
            between any two.
    """

    nodes: tuple[Node, ...]
    coordinator: str
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    transfer: Transfer = "star"

    def link(self, one: str, other: str) -> Link | None:
        """The link between two machines; None within one machine.

        Raises:
            InvalidRequest: there is none.
        """
        if one == other:
            return None
        found = self.links.get((one, other)) or self.links.get((other, one))
        if found is None:
            known = ", ".join(f"{a}-{b}" for a, b in self.links) or "none"
            raise InvalidRequest(f"no link between {one} and {other} is described; known links: {known}")
        return found

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            InvalidRequest: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise InvalidRequest(f"no node is called '{name}'; there are {', '.join(n.name for n in self.nodes)}")


def check_cluster(cluster: Cluster) -> None:
    """Refuse a cluster that nothing can be planned for.

    Raises:
        InvalidRequest: no nodes, two of one name, a link that is missing, a number that is no size, time or rate.
    """
    names = [node.name for node in cluster.nodes]
    if not names:
        raise InvalidRequest("a cluster needs at least one node")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"two nodes are called {', '.join(twice)}")
    if cluster.transfer not in TRANSFERS:
        raise InvalidRequest(f"transfer model '{cluster.transfer}' is none of {', '.join(TRANSFERS)}")
    for node in cluster.nodes:
        _check_node(node)
    for pair, link in cluster.links.items():
        if not (link.bytes_per_second > 0 and link.round_trip_seconds >= 0):
            raise InvalidRequest(
                f"link {'-'.join(pair)}: needs bytes per second above 0 and a round trip of at least 0 s, "
                f"not {link.bytes_per_second:g} and {link.round_trip_seconds:g}"
            )
    for name in names:
        for other in (cluster.coordinator, *(names if cluster.transfer == "mesh" else ())):
            cluster.link(name, other)


def _check_node(node: Node) -> None:
    times = [t for s in node.speeds.values() for t in (s.prompt_seconds, s.token_seconds)]
    rates = (node.pass_seconds, node.cell_seconds, node.prompt_cell_seconds, node.watts, node.price_per_hour, *times)
    if not all(0 <= value < float("inf") for value in rates):
        raise InvalidRequest(f"node {node.name}: times, watts and price must be finite and at least 0")
    if not node.seconds_limit >= 0:
        raise InvalidRequest(f"node {node.name}: a limit of {node.seconds_limit:g} seconds; it must be at least 0")
    if node.memory_bytes < 0 or node.buffer_bytes < 0:
        raise InvalidRequest(f"node {node.name}: memory and buffers must be at least 0 bytes")
    if node.tier not in TIERS:
        raise InvalidRequest(f"node {node.name}: tier '{node.tier}' is none of {', '.join(TIERS)}")
