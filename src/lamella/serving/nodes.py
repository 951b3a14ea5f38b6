"""Other machines that compute for this server: figures for Prometheus, and which has which layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """One node, now.

    Attributes:
        is_up: whether it computes for us.
        round_trip_seconds: of the last ping.
        sent_bytes, received_bytes: of RPC so far.
        saved_bytes: weights that did not travel, since the node had them.
    """

    name: str
    is_up: bool
    round_trip_seconds: float
    sent_bytes: int
    received_bytes: int
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class LayersOn:
    """Layers ``first`` to ``last`` of the model are computed by a machine."""

    node: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ClusterState:
    """Where the model's layers are.

    Attributes:
        state: ``moving``: an engine with another placement is about to start.  ``nothing fits``: the machines that are
            there do not hold the model; what is open waits, new requests get 503.
        why: of that state, in a sentence.
        layers: in order; of the placement that runs, or ran last.
        away: nodes that do not answer.
        n_moves: changes of placement so far.
    """

    state: Literal["placed", "moving", "nothing fits"]
    why: str
    layers: tuple[LayersOn, ...]
    away: tuple[str, ...] = ()
    n_moves: int = 0

    def document(self) -> dict[str, Any]:
        """As ``/health`` and ``/admin/status`` have it."""
        return asdict(self)


class NodeCollector(Collector):
    """Asks for the figures when Prometheus does."""

    def __init__(self, figures: Callable[[], Sequence[NodeFigures]]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("lamella_node_up", "Whether a node computes for this server.", labels=["node"])
        trip = GaugeMetricFamily("lamella_node_round_trip_seconds", "Of the last ping to a node.", labels=["node"])
        moved = CounterMetricFamily(
            "lamella_node_bytes", "Bytes of RPC: sent, received, saved (the node had them).", labels=["node", "way"]
        )
        for node in self._figures():
            up.add_metric([node.name], node.is_up)
            trip.add_metric([node.name], node.round_trip_seconds)
            for way in ("sent", "received", "saved"):
                moved.add_metric([node.name, way], getattr(node, f"{way}_bytes"))
        return (up, trip, moved)
