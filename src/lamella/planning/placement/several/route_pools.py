"""Routes that a model may take: the cheapest ones by bounds on their segments, each node once.

    pool = pool_of(planner, promising_routes(table.bound, most=500))

From boundary to boundary between layers, the best beginnings are gone on from (beam search).  Where there are no more
than are kept, all routes are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lamella.planning.placement.arrays import Arc, Floats, Ints, Mask, Route, nodes_of
from lamella.planning.placement.several.quick import QuickPlanner


@dataclass(frozen=True, slots=True)
class Pool:
    """Routes of one model, and what each costs and takes beside its layers.

    Attributes:
        nodes: [R, L] node of each layer.
        cost: [R] what it adds to the objective.
        n_bytes: [R, N] buffers.
        busy: [R, N] share of the nodes' time that passes take.
    """

    routes: tuple[Route, ...]
    nodes: Ints
    cost: Floats
    n_bytes: Ints
    busy: Floats

    def only(self, number: int) -> Pool:
        """One of the routes."""
        at = slice(number, number + 1)
        return Pool(self.routes[at], self.nodes[at], self.cost[at], self.n_bytes[at], self.busy[at])

    def on(self, nodes: Ints) -> Pool:
        """The same with nodes numbered as they stand in this rising list, which has all that routes go through."""
        return Pool(
            self.routes, np.searchsorted(nodes, self.nodes), self.cost, self.n_bytes[:, nodes], self.busy[:, nodes]
        )


def pool_of(planner: QuickPlanner, routes: Sequence[Route]) -> Pool:
    """Add up what routes, one at least, cost and take."""
    costs, n_bytes, busy = zip(*(planner.beside(route) for route in routes), strict=True)
    nodes = np.array([nodes_of(route) for route in routes])
    return Pool(tuple(routes), nodes, np.array(costs), np.array(n_bytes), np.array(busy))


@dataclass(frozen=True, slots=True)
class _Begun:
    """Beginnings of routes, up to one boundary.

    Attributes:
        totals: [B] of their segments.
        used: [B, N] nodes that they have.
    """

    totals: Floats
    used: Ints
    arcs: list[Route]


def promising_routes(bound: Floats, most: int) -> list[Route]:
    """Routes of least total, the best first; not always the very best where there are more.

    Args:
        bound: [N, L + 1, L + 1] of each segment; infinite where there is none.
        most: beginnings that are gone on from at each boundary, and routes.
    """
    n_nodes, n_layers = bound.shape[0], bound.shape[1] - 1
    well = _ends_well(bound)
    begun = _Begun(np.zeros(1), np.zeros((1, n_nodes), dtype=np.int64), [()])
    reached: list[list[tuple[Floats, Ints, Ints, int]]] = [[] for _ in range(n_layers + 1)]
    at = [begun]
    for end in range(1, n_layers + 1):
        _go_on(at[end - 1], end - 1, bound, well, reached)
        at.append(_best(reached[end], at, end, most))
    return list(at[n_layers].arcs)


def _go_on(
    begun: _Begun, first: int, bound: Floats, well: Mask, reached: list[list[tuple[Floats, Ints, Ints, int]]]
) -> None:
    """Every segment from here, of a node that a beginning does not have yet."""
    if not begun.arcs:
        return
    for end in range(first + 1, len(reached)):
        if well[end]:
            totals = np.where(begun.used, np.inf, begun.totals[:, None] + bound[None, :, first, end])
            which, node = np.nonzero(np.isfinite(totals))
            reached[end].append((totals[which, node], which, node, first))


def _best(found: list[tuple[Floats, Ints, Ints, int]], at: Sequence[_Begun], end: int, most: int) -> _Begun:
    """The beginnings that cost least, of all that end at a boundary."""
    n_nodes = at[0].used.shape[1]
    if not sum(len(totals) for totals, *_ in found):
        return _Begun(np.zeros(0), np.zeros((0, n_nodes), dtype=np.int64), [])
    totals = np.concatenate([part for part, *_ in found])
    which, node = (np.concatenate([part[i] for part in found]) for i in (1, 2))
    first = np.concatenate([np.full(len(part), start) for part, _, _, start in found])
    chosen = np.argpartition(totals, most)[:most] if len(totals) > most else np.arange(len(totals))
    chosen = chosen[np.argsort(totals[chosen], kind="stable")]
    rows = [(int(first[c]), int(which[c]), int(node[c])) for c in chosen]
    used = np.array([at[start].used[row] for start, row, _ in rows])
    used[np.arange(len(rows)), node[chosen]] = 1
    arcs = [(*at[start].arcs[row], Arc(n, start, end)) for start, row, n in rows]
    return _Begun(totals[chosen], used, arcs)


def _ends_well(bound: Floats) -> Mask:
    """[L + 1] whether the layers from a boundary on can be held."""
    n_layers = bound.shape[1] - 1
    held: Mask = np.asarray(np.isfinite(bound).any(axis=0))
    well = np.zeros(n_layers + 1, dtype=bool)
    well[n_layers] = True
    for first in range(n_layers - 1, -1, -1):
        well[first] = (held[first, first + 1 :] & well[first + 1 :]).any()
    return well
