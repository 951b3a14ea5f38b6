"""Routes where the way from one node to the next matters: the last node is part of the state.

    f[j, n, S] = min over i < j, m in S - n of  f[i, m, S - n] + between[m, n, i] + segment[n, i, j]

The minimum over m is taken once for each i, n and S, so that this costs little more than a star.
"""

from __future__ import annotations

import numpy as np

from lamella.planning.placement.arrays import Arc, Floats, Route
from lamella.planning.placement.star_routes import CACHE_ENTRIES, reverse, views, within


def reach(bound: Floats, between: Floats) -> Floats:
    """[L + 1, N, 2^N] least total from boundary 0 to a boundary, by last node and nodes used."""
    n_nodes, n_layers = bound.shape[0], bound.shape[1] - 1
    reached = np.full((n_layers + 1, n_nodes, 2**n_nodes), np.inf)
    arriving = np.full((n_nodes, n_layers + 1, 2**n_nodes), np.inf)  # by node, at a boundary: its segment may begin
    arriving[:, 0, 0] = 0.0
    for end in range(1, n_layers + 1):
        for node in range(n_nodes):
            _enter(reached[end, node], arriving[node], bound[node], end, node)
        for node in range(n_nodes):
            arriving[node, end] = _arriving(reached[end], between[:, node, end], end)
    return reached


def _enter(reached: Floats, arriving: Floats, bound: Floats, end: int, node: int) -> None:
    """Least totals of routes whose last segment is a node's that ends at a boundary; [2^N], written in place."""
    with_node = views(reached, node)[1]
    firsts = np.flatnonzero(np.isfinite(bound[:end, end]))
    block = max(1, CACHE_ENTRIES // len(reached))
    for at in range(0, len(firsts), block):
        some = firsts[at : at + block]
        totals = views(arriving[some], node)[0] + bound[some, end][:, None, None]
        np.minimum(with_node, totals.min(axis=0), out=with_node)


def best(bound: Floats, between: Floats) -> tuple[float, Route] | None:
    """Total and route of least total; None where there is none."""
    reached = reach(bound, between)
    last, used = divmod(int(reached[-1].argmin()), reached.shape[2])
    total = float(reached[-1, last, used])
    return (total, _trace(bound, between, reached, last, used)) if np.isfinite(total) else None


def through(bound: Floats, between: Floats) -> Floats:
    """[N, L + 1, L + 1] least total of a route that contains the segment."""
    n_layers = bound.shape[1] - 1
    before = reach(bound, between)
    after = within(reach(reverse(bound), between.transpose(1, 0, 2)[..., ::-1])[::-1])
    totals = np.full_like(bound, np.inf)
    for node in range(bound.shape[0]):
        arriving = [_arriving(before[b], between[:, node, b], b) for b in range(n_layers + 1)]
        leaving = [_leaving(after[b], between[node, :, b], n_layers - b) for b in range(n_layers + 1)]
        for first, end in np.argwhere(np.isfinite(bound[node])):
            others = views(arriving[first], node)[0] + views(leaving[end], node)[1]
            totals[node, first, end] = others.min() + bound[node, first, end]
    return totals


def _arriving(reached: Floats, ways: Floats, boundary: int) -> Floats:
    """[2^N] least total with the way to a node, at a boundary; at boundary 0 nothing has been used."""
    if boundary:
        return np.asarray((reached + ways[:, None]).min(axis=0))
    start = np.full(reached.shape[1], np.inf)
    start[0] = 0.0
    return start


def _leaving(after: Floats, ways: Floats, layers_left: int) -> Floats:
    """[2^N] least total of what follows a node without using a set of nodes; nothing follows the last boundary."""
    if layers_left:
        return np.asarray((after + ways[:, None]).min(axis=0))
    return np.zeros(after.shape[1])


def _trace(bound: Floats, between: Floats, reached: Floats, last: int, used: int) -> Route:
    arcs, end = list[Arc](), bound.shape[1] - 1
    while end:
        rest = used & ~(1 << last)
        arriving = reached[:end, :, rest] + between[:, last, :end].T
        arriving[0] = np.inf if rest else 0.0
        first, before = divmod(int((arriving + bound[last, :end, end][:, None]).argmin()), bound.shape[0])
        arcs.append(Arc(last, first, end))
        last, used, end = before, rest, first
    return tuple(reversed(arcs))
