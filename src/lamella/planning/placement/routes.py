"""The best route through a table of segments: which nodes, in which order, with which ranges of layers.

``best_route`` goes through all orders of all sets of nodes (``star_routes``, ``mesh_routes``).  ``best_in_order`` tries
one order, in which nodes may be left out: a thousandth of the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamella.planning.placement import mesh_routes, star_routes
from lamella.planning.placement.arrays import Arc, Arrays, Floats, Route

MOST_NODES_STAR = 17
"""Nodes whose sets are gone through; states double with each.  17: a coordinator and llama.cpp's 16 servers."""
MOST_NODES_MESH = 13


def all_orders(arrays: Arrays) -> bool:
    """Whether the nodes are few enough for ``best_route``."""
    return arrays.n_nodes <= (MOST_NODES_STAR if arrays.between is None else MOST_NODES_MESH)


def best_route(arrays: Arrays, bound: Floats, tracked: set[int] | None = None) -> tuple[float, Route] | None:
    """Total and route of least total; None where no route holds all layers.

    Args:
        bound: [N, L + 1, L + 1] of each segment (``SegmentTable.bound``).
        tracked: what ``star_routes.best`` learned from tables nearby, and learns from this one.
    """
    return star_routes.best(bound, tracked) if arrays.between is None else mesh_routes.best(bound, arrays.between)


def totals_through(arrays: Arrays, bound: Floats) -> Floats:
    """[N, L + 1, L + 1] least total of a route that contains the segment; infinite where there is none."""
    return star_routes.through(bound) if arrays.between is None else mesh_routes.through(bound, arrays.between)


def best_in_order(arrays: Arrays, bound: Floats, order: Sequence[int]) -> tuple[float, Route] | None:
    """As ``best_route``, among the routes that visit nodes in this order."""
    n_layers = arrays.n_layers
    shape = (len(order) + 1, n_layers + 1)  # row 0: nothing yet; row k + 1: the last node is order[k]
    reached, came, began = np.full(shape, np.inf), np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    reached[0, 0] = 0.0
    least, last = reached[0].copy(), np.zeros(n_layers + 1, dtype=np.int64)  # over the rows so far
    for k, node in enumerate(order):
        if arrays.between is not None:
            arriving = np.vstack([reached[0], *(reached[r + 1] + arrays.between[order[r], node] for r in range(k))])
            least, last = arriving.min(axis=0), arriving.argmin(axis=0)
        came[k + 1] = last
        totals = least[:, None] + bound[node]
        began[k + 1], reached[k + 1] = totals.argmin(axis=0), totals.min(axis=0)
        last = np.where(reached[k + 1] < least, k + 1, last)
        least = np.minimum(least, reached[k + 1])
    row, end = int(reached[:, n_layers].argmin()), n_layers
    total, arcs = float(reached[row, n_layers]), list[Arc]()
    if not np.isfinite(total):
        return None
    while row:
        first = int(began[row, end])
        arcs.append(Arc(order[row - 1], first, end))
        row, end = int(came[row, first]), first
    return total, tuple(reversed(arcs))


def best_with_reuse(bound: Floats) -> tuple[float, Route] | None:
    """Total and route where a node may have several segments, and ways between nodes are free: a lower bound."""
    n_layers = bound.shape[1] - 1
    cheapest, node = bound.min(axis=0), bound.argmin(axis=0)
    reached, came = np.full(n_layers + 1, np.inf), np.zeros(n_layers + 1, dtype=np.int64)
    reached[0] = 0.0
    for end in range(1, n_layers + 1):
        totals = reached[:end] + cheapest[:end, end]
        came[end], reached[end] = totals.argmin(), totals.min()
    if not np.isfinite(reached[-1]):
        return None
    arcs, end = list[Arc](), n_layers
    while end:
        first = int(came[end])
        arcs.append(Arc(int(node[first, end]), first, end))
        end = first
    return float(reached[-1]), tuple(reversed(arcs))
