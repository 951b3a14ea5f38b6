"""What people do without a joint plan, as planners that answer the same question.

    for name in BASELINES:
        solution = baseline(name, problem)

Each decides where layers run by a simple rule, then gives the layers what precision the rule, or the best program for
that route, allows.  All are held to the same limits: a rule that breaks one has no placement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from lamella.core.errors import InvalidRequest, NoPlacement
from lamella.planning.placement.arrays import Arc, Arrays, Route, to_arrays, to_placement
from lamella.planning.placement.bits import best_bits
from lamella.planning.placement.cluster import Node, Tier
from lamella.planning.placement.problem import Layer, PlacementProblem, check_problem
from lamella.planning.placement.result import Placement, Segment, Solution, account, violations
from lamella.planning.placement.solver import place

_BITS_GAP, _BITS_NODES = 0.002, 1000
_SINGLE_GAP = 0.01

Planner = Callable[[PlacementProblem], Placement | None]


def baseline(name: str, problem: PlacementProblem) -> Solution:
    """The placement by one rule; its bound is minus infinity, as a rule proves nothing.

    Raises:
        InvalidRequest: no baseline is called so, or the question has no meaning.
        NoPlacement: what the rule leads to breaks a limit.
    """
    if name not in BASELINES:
        raise InvalidRequest(f"no baseline is called '{name}'; there are {', '.join(BASELINES)}")
    check_problem(problem)
    placement = BASELINES[name](problem)
    if placement is None:
        raise NoPlacement(f"baseline {name} leads to no placement within memory and loss budget")
    broken = violations(problem, placement)
    if broken:
        raise NoPlacement(f"baseline {name}: {'; '.join(broken)}")
    return Solution(placement, account(problem, placement), -math.inf, name)


def one_node(problem: PlacementProblem) -> Placement | None:
    """Everything on one node, the best of them, with the best precisions."""
    arrays = to_arrays(problem)
    return _best(problem, [(Arc(n, 0, arrays.n_layers),) for n in range(arrays.n_nodes)])


def equal_layers(problem: PlacementProblem) -> Placement | None:
    """As many layers on each node, nodes as they are listed, with the best precisions."""
    return _best(problem, [_split(problem, [1.0] * len(problem.cluster.nodes))])


def by_memory(problem: PlacementProblem) -> Placement | None:
    """Layers in proportion to the nodes' memory, at one precision for all: llama.cpp's default split."""
    return _uniform(problem, _split(problem, _memory(problem)))


def by_memory_with_bits(problem: PlacementProblem) -> Placement | None:
    """Bits only: llama.cpp's default split, with the best precisions for it."""
    return _best(problem, [_split(problem, _memory(problem))])


def greedy_by_speed(problem: PlacementProblem) -> Placement | None:
    """The fastest node takes as many layers as it holds, then the next; one precision for all, the best that works."""
    found = (_greedy(problem, precision) for precision in _shared_precisions(problem))
    return _cheapest(problem, [placement for placement in found if placement is not None])


def uniform_bits(problem: PlacementProblem) -> Placement | None:
    """Placement only: the best one at each precision alone, and the best of these."""
    found = []
    for precision in _shared_precisions(problem):
        layers = tuple(_only(layer, precision) for layer in problem.layers)
        try:
            found.append(place(replace(problem, layers=layers), gap=_SINGLE_GAP).placement)
        except NoPlacement:
            continue
    return _cheapest(problem, found)


def tier_only(problem: PlacementProblem, tier: Tier) -> Placement | None:
    """The joint plan of one tier's nodes alone."""
    nodes = tuple(node for node in problem.cluster.nodes if node.tier == tier)
    if not nodes:
        return None
    try:
        return place(replace(problem, cluster=replace(problem.cluster, nodes=nodes)), gap=_SINGLE_GAP).placement
    except NoPlacement:
        return None


BASELINES: dict[str, Planner] = {
    "one-node": one_node,
    "equal-layers": equal_layers,
    "by-memory": by_memory,
    "by-memory-with-bits": by_memory_with_bits,
    "greedy-by-speed": greedy_by_speed,
    "uniform-bits": uniform_bits,
    "edge-only": lambda problem: tier_only(problem, "edge"),
    "cloud-only": lambda problem: tier_only(problem, "cloud"),
}


def _memory(problem: PlacementProblem) -> list[float]:
    return [float(max(0, node.memory_bytes - node.buffer_bytes)) for node in problem.cluster.nodes]


def _split(problem: PlacementProblem, shares: Sequence[float]) -> Route:
    """Cut the layers in proportion to shares, rounded as llama.cpp rounds them: layer i goes where i / L falls."""
    total, n_layers, arcs, first, so_far = math.fsum(shares), len(problem.layers), list[Arc](), 0, 0.0
    for node, share in enumerate(shares):
        so_far += share
        end = n_layers if node == len(shares) - 1 else min(n_layers, math.ceil(n_layers * so_far / (total or 1.0)))
        if end > first:
            arcs.append(Arc(node, first, end))
        first = max(first, end)
    return tuple(arcs)


def _best(problem: PlacementProblem, routes: Sequence[Route]) -> Placement | None:
    """The best precisions on the best of some routes."""
    arrays, found = to_arrays(problem), list[Placement]()
    for route in routes:
        bits = best_bits(arrays, route, gap=_BITS_GAP, most_nodes=_BITS_NODES)
        if bits.found is not None:
            found.append(to_placement(problem, route, bits.found[1].tolist()))
    return _cheapest(problem, found)


def _uniform(problem: PlacementProblem, route: Route) -> Placement | None:
    """One precision for all layers on a route: the best that breaks no limit."""
    arrays, n_layers = to_arrays(problem), len(problem.layers)
    names = problem.precisions
    found = (to_placement(problem, route, [names.index(p)] * n_layers) for p in _shared_precisions(problem))
    return _cheapest(problem, [placement for placement in found if _runs(arrays, route, placement, names)])


def _runs(arrays: Arrays, route: Route, placement: Placement, names: Sequence[str]) -> bool:
    """Whether every node of a route has the precisions it is asked for."""
    picks = [names.index(p) for p in placement.precisions]
    return all(math.isfinite(arrays.cost[i, arc.node, picks[i]]) for arc in route for i in range(arc.first, arc.end))


def _shared_precisions(problem: PlacementProblem) -> list[str]:
    """Those that every layer has."""
    return [name for name in problem.precisions if all(name in layer.options for layer in problem.layers)]


def _only(layer: Layer, precision: str) -> Layer:
    return replace(layer, options={precision: layer.options[precision]})


def _greedy(problem: PlacementProblem, precision: str) -> Placement | None:
    def seconds(node: Node) -> float:
        found = problem.layer_seconds(0, node, precision)
        return math.inf if found is None else found

    segments, first = list[Segment](), 0
    for node in sorted((n for n in problem.cluster.nodes if precision in n.speeds), key=seconds):
        left, end = node.memory_bytes - node.buffer_bytes, first
        while end < len(problem.layers) and problem.layer_bytes(end, precision) <= left:
            left -= problem.layer_bytes(end, precision)
            end += 1
        if end > first:
            segments.append(Segment(node.name, first, (precision,) * (end - first)))
        first = end
    return Placement(tuple(segments)) if first == len(problem.layers) else None


def _cheapest(problem: PlacementProblem, placements: Sequence[Placement]) -> Placement | None:
    """Of those that keep all limits."""
    kept = [placement for placement in placements if not violations(problem, placement)]
    return min(kept, key=lambda placement: account(problem, placement).objective, default=None)
