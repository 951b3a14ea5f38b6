"""Why a placement is as it is: what binds, and what more memory, a faster link or a larger loss budget would buy.

    for reason in explain(problem, solution).binding: print(reason)

What a change buys is found by planning again with it, not by duals: precisions and layers are whole.  Gains are what
is sure: the bound of the old plan is not used, so that a gain below the gap of the plans says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from lamella.core.errors import NoPlacement
from lamella.core.units import GIB, format_bytes, format_seconds
from lamella.planning.placement.cluster import Cluster, Link
from lamella.planning.placement.problem import PlacementProblem
from lamella.planning.placement.result import Solution
from lamella.planning.placement.solver import GAP, place

MORE_BYTES = GIB
FASTER = 2.0
MORE_LOSS = 1.1


@dataclass(frozen=True, slots=True)
class Gain:
    """What one change of the cluster or the limits would bring.

    Attributes:
        change: in words.
        objective: of the plan with it; infinite where none was found.
        saved: of the objective, at least 0: the old plan can mostly be kept.
    """

    change: str
    objective: float
    saved: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of one solution.

    Attributes:
        shares: where the time of a request goes, in words.
        binding: limits that the plan is at, in words.
        gains: of each change, the largest first.
    """

    shares: tuple[str, ...]
    binding: tuple[str, ...]
    gains: tuple[Gain, ...]


def explain(problem: PlacementProblem, solution: Solution, gap: float = GAP) -> Explanation:
    """Say where time goes and what binds, and plan again with each change.

    Args:
        gap: of the plans made for comparison.
    """
    changes = [*_more_memory(problem, solution), *_faster_links(problem, solution), _more_loss(problem)]
    gains = [_gain(change, changed, solution, gap) for change, changed in changes]
    return Explanation(
        tuple(_shares(solution)),
        tuple(_binding(problem, solution)),
        tuple(sorted(gains, key=lambda gain: -gain.saved)),
    )


def _shares(solution: Solution) -> Iterator[str]:
    account, total = solution.account, solution.account.seconds or 1.0
    for node, seconds in account.compute_seconds.items():
        yield f"{node} computes {format_seconds(seconds)}, {100 * seconds / total:.0f} %"
    travel = account.transfer_seconds
    yield f"hidden states travel {format_seconds(travel)}, {100 * travel / total:.0f} %"


def _binding(problem: PlacementProblem, solution: Solution) -> Iterator[str]:
    """A limit binds where what is left of it is too small for the smallest step that would use it."""
    used = solution.account.node_bytes
    for segment in solution.placement.segments:
        node = problem.cluster.node(segment.node)
        left = node.memory_bytes - used[node.name]
        step = _smallest_step(problem, segment.first, segment.precisions)
        if step is not None and left < step:
            yield (
                f"the memory of {node.name} is full: {format_bytes(left)} of {format_bytes(node.memory_bytes)} left, "
                f"the next layer or a finer one takes {format_bytes(step)}"
            )
    left_loss = problem.loss_budget - solution.account.loss
    coarser = _smallest_loss_step(problem, solution)
    if coarser is not None and left_loss < coarser:
        yield (
            f"the loss budget is used up: {solution.account.loss:.4g} of {problem.loss_budget:.4g}, "
            f"the cheapest coarser layer loses {coarser:.4g} more"
        )
    idle = [node.name for node in problem.cluster.nodes if node.name not in used]
    if idle:
        yield f"{', '.join(idle)} would cost more time than {'it saves' if len(idle) == 1 else 'they save'}"


def _smallest_step(problem: PlacementProblem, first: int, precisions: tuple[str, ...]) -> int | None:
    """Fewest bytes by which one of a segment's layers could grow, or the layers beside it could join."""
    steps = []
    for layer, precision in enumerate(precisions, first):
        here = problem.layer_bytes(layer, precision)
        sizes = [problem.layer_bytes(layer, other) for other in problem.layers[layer].options]
        steps += [size - here for size in sizes if size > here]
    for layer in (first - 1, first + len(precisions)):
        if 0 <= layer < len(problem.layers):
            steps.append(min(problem.layer_bytes(layer, other) for other in problem.layers[layer].options))
    return min(steps, default=None)


def _smallest_loss_step(problem: PlacementProblem, solution: Solution) -> float | None:
    """Least loss that one layer at fewer bytes would add."""
    steps = []
    for layer, precision in zip(problem.layers, solution.placement.precisions, strict=True):
        here = layer.options[precision]
        steps += [o.loss - here.loss for o in layer.options.values() if o.n_bytes < here.n_bytes and o.loss > here.loss]
    return min(steps, default=None)


def _more_memory(problem: PlacementProblem, solution: Solution) -> Iterator[tuple[str, PlacementProblem]]:
    for k, node in enumerate(problem.cluster.nodes):
        if node.name in solution.account.node_bytes:
            nodes = list(problem.cluster.nodes)
            nodes[k] = replace(node, memory_bytes=node.memory_bytes + MORE_BYTES)
            cluster = replace(problem.cluster, nodes=tuple(nodes))
            yield f"{format_bytes(MORE_BYTES)} more on {node.name}", replace(problem, cluster=cluster)


def _faster_links(problem: PlacementProblem, solution: Solution) -> Iterator[tuple[str, PlacementProblem]]:
    """Each link that the plan sends over, twice as fast: twice the bytes a second, half the round trip."""
    used = _links_used(problem.cluster, [s.node for s in solution.placement.segments])
    for pair in used:
        links = dict(problem.cluster.links)
        link = links[pair]
        links[pair] = Link(link.bytes_per_second * FASTER, link.round_trip_seconds / FASTER)
        changed = replace(problem, cluster=replace(problem.cluster, links=links))
        yield f"a twice faster link between {pair[0]} and {pair[1]}", changed


def _links_used(cluster: Cluster, names: list[str]) -> list[tuple[str, str]]:
    stops = [cluster.coordinator, *names, cluster.coordinator]
    hops = {(cluster.coordinator, name) for name in names}
    if cluster.transfer == "mesh":
        hops = set(pairwise(stops))
    return [pair for pair in cluster.links if pair in hops or pair[::-1] in hops]


def _more_loss(problem: PlacementProblem) -> tuple[str, PlacementProblem]:
    change = f"a loss budget {100 * (MORE_LOSS - 1):.0f} % larger"
    return change, replace(problem, loss_budget=problem.loss_budget * MORE_LOSS)


def _gain(change: str, changed: PlacementProblem, solution: Solution, gap: float) -> Gain:
    try:
        objective = place(changed, gap=gap).account.objective
    except NoPlacement:  # the search was cut off: every change allows what the old plan does
        objective = float("inf")
    return Gain(change, objective, max(0.0, solution.account.objective - objective))
