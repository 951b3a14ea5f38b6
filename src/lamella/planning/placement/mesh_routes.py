"""Routes where the way from one node to the next matters: the last node is part of the state.

    f[j, n, S] = min over i < j, m in S - n of  f[i, m, S - n] + between[m, n, i] + segment[n, i, j]

The minimum over m is taken once for each i, n and S, so that this costs little more than a star.
"""

from __future__ import annotations

import numpy as np

from lamella.planning.placement.arrays import Arc, Floats, Route
from lamella.planning.placement.star_routes import reverse, views, within


def reach(bound: Floats, between: Floats) -> Floats:
    """[L + 1, N, 2^N] least total from boundary 0 to a boundary, by last node and nodes used."""
    n_nodes, n_layers = bound.shape[0], bound.shape[1] - 1
    reached = np.full((n_layers + 1, n_nodes, 2**n_nodes), np.inf)
    for first in range(n_layers):
        for node in range(n_nodes):
            without = views(_arriving(reached[first], between[:, node, first], first), node)[0]
            for end in np.flatnonzero(np.isfinite(bound[node, first])):
                with_node = views(reached[end, node], node)[1]
                np.minimum(with_node, without + bound[node, first, end], out=with_node)
    return reached


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
