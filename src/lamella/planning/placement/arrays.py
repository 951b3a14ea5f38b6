"""The question as arrays, for the dynamic programs: L layers, N nodes, P precisions, L + 1 boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.planning.placement.problem import PlacementProblem
from lamella.planning.placement.result import Placement, Segment

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
"""[N, L + 1, L + 1] for node, first layer and end: which segments are meant."""

NO_BYTES = 2**50
"""Stands for the bytes of a precision that a layer does not have: more than any node, and sums do not overflow."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """A placement problem in numbers.

    Attributes:
        cost: [L, N, P] worth of the seconds a request spends in a layer; infinite where it cannot run.
        seconds: [L, N, P] that a request spends in a layer; infinite where it cannot run.
        n_bytes: [L, P] weights and KV cache.
        loss: [L, P]; infinite where the layer has no such precision.
        capacity: [N] bytes for layers; below 0 where not even the buffers fit.
        seconds_limit: [N] that a request may spend in a node's layers.
        opening: [N] cost of a node with any layers at all.
        entering, leaving: [N, L + 1] cost of the hidden state's way to and from a segment that begins or ends at a
            boundary, whatever the neighbours are.
        between: [N, N, L + 1] cost of its way from one segment to the next; None where neighbours do not matter.
        constant: part of every objective.
        loss_budget: at most so much loss; finite, as no choice loses more than the sum of the layers' largest losses.
    """

    cost: Floats
    seconds: Floats
    n_bytes: Ints
    loss: Floats
    capacity: Ints
    seconds_limit: Floats
    opening: Floats
    entering: Floats
    leaving: Floats
    between: Floats | None
    constant: float
    loss_budget: float

    @property
    def n_layers(self) -> int:
        return int(self.cost.shape[0])

    @property
    def n_nodes(self) -> int:
        return int(self.cost.shape[1])

    def on(self, nodes: Sequence[int]) -> Arrays:
        """The same question for some of the nodes, in this order."""
        chosen = list(nodes)
        return replace(
            self,
            cost=self.cost[:, chosen],
            seconds=self.seconds[:, chosen],
            capacity=self.capacity[chosen],
            seconds_limit=self.seconds_limit[chosen],
            opening=self.opening[chosen],
            entering=self.entering[chosen],
            leaving=self.leaving[chosen],
            between=None if self.between is None else self.between[np.ix_(chosen, chosen)],
        )


@dataclass(frozen=True, slots=True)
class Arc:
    """Layers ``first`` to ``end - 1`` on one node: a step of a route from boundary 0 to boundary L."""

    node: int
    first: int
    end: int


Route = tuple[Arc, ...]
"""Arcs from boundary 0 to boundary L, each of another node."""


def to_arrays(problem: PlacementProblem) -> Arrays:
    """Write a problem as arrays."""
    nodes, layers, names = problem.cluster.nodes, problem.layers, problem.precisions
    seconds = np.full((len(layers), len(nodes), len(names)), np.inf)
    n_bytes = np.full((len(layers), len(names)), NO_BYTES, dtype=np.int64)
    loss = np.full((len(layers), len(names)), np.inf)
    for i, layer in enumerate(layers):
        for p, name in enumerate(names):
            if name in layer.options:
                n_bytes[i, p], loss[i, p] = problem.layer_bytes(i, name), layer.options[name].loss
            for n, node in enumerate(nodes):
                taken = problem.layer_seconds(i, node, name)
                seconds[i, n, p] = np.inf if taken is None else taken
    worth = np.array([problem.worth_of_second(node) for node in nodes])
    opening = np.array([problem.pass_seconds(node) for node in nodes])
    limits = np.array([node.seconds_limit for node in nodes])
    entering, leaving, between = _transfers(problem)
    most_loss = float(np.where(np.isfinite(loss), loss, 0.0).max(axis=1).sum())
    return Arrays(
        cost=seconds * worth[:, None],
        seconds=seconds,
        n_bytes=n_bytes,
        loss=loss,
        capacity=np.array([node.memory_bytes - node.buffer_bytes for node in nodes], dtype=np.int64),
        seconds_limit=limits - opening,
        opening=opening * worth,
        entering=entering,
        leaving=leaving,
        between=between,
        constant=problem.fixed_seconds,
        loss_budget=min(problem.loss_budget, most_loss),
    )


def to_placement(problem: PlacementProblem, route: Route, picks: Sequence[int]) -> Placement:
    """A route, and the precision picked for each layer, in the problem's names."""
    names, nodes = problem.precisions, problem.cluster.nodes
    return Placement(
        tuple(
            Segment(nodes[arc.node].name, arc.first, tuple(names[p] for p in picks[arc.first : arc.end]))
            for arc in route
        )
    )


def nodes_of(route: Route) -> Ints:
    """[L] the node of each layer."""
    return np.concatenate([np.full(arc.end - arc.first, arc.node) for arc in route])


def route_cost(arrays: Arrays, route: Route) -> float:
    """What a route costs beside its layers: opening nodes, and the hidden state's way."""
    total = arrays.constant
    for before, arc in zip((None, *route), route, strict=False):
        total += float(arrays.opening[arc.node] + arrays.entering[arc.node, arc.first])
        total += float(arrays.leaving[arc.node, arc.end])
        if arrays.between is not None and before is not None:
            total += float(arrays.between[before.node, arc.node, arc.first])
    return total


def _transfers(problem: PlacementProblem) -> tuple[Floats, Floats, Floats | None]:
    cluster, n_layers = problem.cluster, len(problem.layers)
    boundaries = range(n_layers + 1)

    def ways(one: str, other: str) -> list[float]:
        link = cluster.link(one, other)
        return [problem.transfer_seconds(link, boundary) for boundary in boundaries]

    home: Any = np.array([ways(cluster.coordinator, node.name) for node in cluster.nodes])
    if cluster.transfer == "star":
        return home, home.copy(), None
    between = np.array([[ways(a.name, b.name) for b in cluster.nodes] for a in cluster.nodes])
    entering, leaving = np.zeros_like(home), np.zeros_like(home)
    entering[:, 0], leaving[:, n_layers] = home[:, 0], home[:, n_layers]
    return entering, leaving, between
