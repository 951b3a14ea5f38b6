"""A placement, what it costs, and how near it is to the best: read off the question itself, by no planner.

report = account(problem, placement)     # seconds, bytes, loss
violations(problem, placement)           # () where it keeps every limit
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lamella.core.units import format_bytes
from lamella.planning.placement.problem import PlacementProblem

TOLERANCE = 1e-9
"""Share of a limit on loss or seconds that sums of floating-point numbers may be beyond it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers in a row on one node.

    Attributes:
        first: index of its first layer.
        precisions: of each of its layers.
    """

    node: str
    first: int
    precisions: tuple[str, ...]

    @property
    def end(self) -> int:
        """Index after its last layer."""
        return self.first + len(self.precisions)


@dataclass(frozen=True, slots=True)
class Placement:
    """Segments in the order of their layers; nodes without layers are not named."""

    segments: tuple[Segment, ...]

    @property
    def precisions(self) -> tuple[str, ...]:
        """Of each layer of the model."""
        return tuple(name for segment in self.segments for name in segment.precisions)


@dataclass(frozen=True, slots=True)
class Account:
    """What a placement costs.

    Attributes:
        compute_seconds: node -> seconds of a request in its layers and its passes.
        transfer_seconds: of a request, waiting for hidden states.
        fixed_seconds: the problem's own.
        joules, price: of a request.
        objective: what is made least: seconds, and the worth of joules and price.
        loss: of all layers.
        node_bytes: node -> bytes of weights, KV cache and buffers.
    """

    compute_seconds: Mapping[str, float]
    transfer_seconds: float
    fixed_seconds: float
    joules: float
    price: float
    objective: float
    loss: float
    node_bytes: Mapping[str, int]

    @property
    def seconds(self) -> float:
        """Of a request from its arrival to its last token."""
        return math.fsum(self.compute_seconds.values()) + self.transfer_seconds + self.fixed_seconds


@dataclass(frozen=True, slots=True)
class Solution:
    """A placement that keeps every limit, and what no placement can go below.

    Attributes:
        bound: no placement has a smaller objective.
        planner: who found it.
    """

    placement: Placement
    account: Account
    bound: float
    planner: str

    @property
    def gap(self) -> float:
        """By what share of the bound the objective may be above the best one; infinite where nothing is proven."""
        return gap_of(self.account.objective, self.bound)


def gap_of(objective: float, bound: float) -> float:
    """By what share of a bound an objective is above it; infinite for a bound that proves nothing."""
    above = objective - bound
    if above <= 0:
        return 0.0
    return above / bound if bound > 0 else math.inf


def account(problem: PlacementProblem, placement: Placement) -> Account:
    """Add up a placement, of limits kept or not.

    Raises:
        KeyError: a precision that its node or its layer does not have.
    """
    seconds, n_bytes = {}, {}
    for segment in placement.segments:
        node = problem.cluster.node(segment.node)
        times = [problem.layer_seconds(i, node, p) for i, p in enumerate(segment.precisions, segment.first)]
        if any(time is None for time in times):
            raise KeyError(f"{segment.node} cannot run layers {segment.first} to {segment.end - 1} as planned")
        seconds[node.name] = problem.pass_seconds(node) + math.fsum(time for time in times if time is not None)
        layers = sum(problem.layer_bytes(i, p) for i, p in enumerate(segment.precisions, segment.first))
        n_bytes[node.name] = node.buffer_bytes + layers
    nodes = {name: problem.cluster.node(name) for name in seconds}
    transfer = _transfer_seconds(problem, placement)
    worth = math.fsum(problem.worth_of_second(nodes[name]) * time for name, time in seconds.items())
    options = (layer.options[p] for layer, p in zip(problem.layers, placement.precisions, strict=True))
    return Account(
        compute_seconds=seconds,
        transfer_seconds=transfer,
        fixed_seconds=problem.fixed_seconds,
        joules=math.fsum(nodes[name].watts * time for name, time in seconds.items()),
        price=math.fsum(nodes[name].price_per_hour * time / 3600 for name, time in seconds.items()),
        objective=worth + transfer + problem.fixed_seconds,
        loss=math.fsum(option.loss for option in options),
        node_bytes=n_bytes,
    )


def _transfer_seconds(problem: PlacementProblem, placement: Placement) -> float:
    """Follow the hidden state from the coordinator over all segments and back."""
    cluster, home = problem.cluster, problem.cluster.coordinator
    stops: list[tuple[str, int]] = [(home, 0)]
    for segment in placement.segments:
        if cluster.transfer == "star":
            stops.append((home, segment.first))
        stops.append((segment.node, segment.first))
    stops.append((home, len(problem.layers)))
    hops = pairwise(stops)
    return math.fsum(problem.transfer_seconds(cluster.link(a, b), boundary) for (a, _), (b, boundary) in hops)


def violations(problem: PlacementProblem, placement: Placement) -> tuple[str, ...]:
    """Each limit that a placement breaks, in words."""
    segments = placement.segments
    starts = [segment.first for segment in segments]
    ends = [0, *(segment.end for segment in segments)]
    if starts != ends[:-1] or ends[-1] != len(problem.layers) or any(not s.precisions for s in segments):
        return (f"the segments do not cover layers 0 to {len(problem.layers) - 1} in order",)
    found = [f"{name} has two segments" for name in _twice([segment.node for segment in segments])]
    try:
        costs = account(problem, placement)
    except KeyError as error:
        return (*found, str(error.args[0]))
    for name, used in costs.node_bytes.items():
        there = problem.cluster.node(name).memory_bytes
        if used > there:
            found.append(f"{name} needs {format_bytes(used)}, has {format_bytes(there)}")
    for name, seconds in costs.compute_seconds.items():
        limit = problem.cluster.node(name).seconds_limit
        if seconds > limit * (1 + TOLERANCE):
            found.append(f"{name} computes {seconds:.6g} s of a request, may {limit:.6g} s")
    if costs.loss > problem.loss_budget * (1 + TOLERANCE):
        found.append(f"loss {costs.loss:.6g} is beyond the budget of {problem.loss_budget:.6g}")
    return tuple(found)


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
