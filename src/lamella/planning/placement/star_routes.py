"""Routes where neighbours do not matter: a dynamic program over boundaries and sets of nodes already used,

    f[j, S] = min over n in S, i < j of  f[i, S - n] + segment[n, i, j]

Sets are bit masks, so that the sets without a node are a view of the array, and one step over all sets is one addition.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from lamella.planning.placement.arrays import Arc, Floats, Ints, Route

CACHE_ENTRIES = 2**15
"""Sums made at once: larger arrays fall out of the processor's cache."""


def reach(bound: Floats) -> Floats:
    """[L + 1, 2^N] least total from boundary 0 to a boundary, by the nodes used."""
    n_nodes, n_layers = bound.shape[0], bound.shape[1] - 1
    reached = np.full((n_layers + 1, 2**n_nodes), np.inf)
    reached[0, 0] = 0.0
    block = max(1, CACHE_ENTRIES // 2**n_nodes)
    for node, end, possible in _by_end(bound):
        with_node = views(reached[end], node)[1]
        for at in range(0, len(possible), block):
            firsts = possible[at : at + block]
            totals = views(reached[firsts], node)[0] + bound[node, firsts, end][:, None, None]
            np.minimum(with_node, totals.min(axis=0) if len(firsts) > 1 else totals[0], out=with_node)
    return reached


def _by_end(bound: Floats) -> Iterator[tuple[int, int, Ints]]:
    """Node, end, and the first layers of the segments there are, by rising end."""
    ends, nodes, firsts = np.nonzero(np.isfinite(bound).transpose(2, 0, 1))
    cuts = np.flatnonzero((np.diff(ends) > 0) | (np.diff(nodes) != 0)) + 1
    edges = [0, *cuts.tolist(), len(ends)] if len(ends) else [0]
    for at, until in pairwise(edges):
        yield int(nodes[at]), int(ends[at]), firsts[at:until]


def best(bound: Floats) -> tuple[float, Route] | None:
    """Total and route of least total; None where there is none."""
    nodes, present = _present(bound)
    reached = reach(present)
    used = int(reached[-1].argmin())
    total = float(reached[-1, used])
    if not np.isfinite(total):
        return None
    return total, tuple(Arc(int(nodes[a.node]), a.first, a.end) for a in _trace(present, reached, used))


def through(bound: Floats) -> Floats:
    """[N, L + 1, L + 1] least total of a route that contains the segment."""
    nodes, present = _present(bound)
    before = reach(present)
    after = within(reach(reverse(present))[::-1])
    totals = np.full_like(bound, np.inf)
    for node, first, end in np.argwhere(np.isfinite(present)):
        others = views(before[first], node)[0] + views(after[end], node)[1]
        totals[nodes[node], first, end] = others.min() + present[node, first, end]
    return totals


def _present(bound: Floats) -> tuple[Ints, Floats]:
    """The nodes that have segments, and these: every node less is half the sets."""
    nodes = np.flatnonzero(np.isfinite(bound).any(axis=(1, 2)))
    return nodes, bound[nodes]


def views(states: Floats, node: int) -> tuple[Floats, Floats]:
    """[..., sets] as the sets without and with a node, each [..., higher bits, lower bits]."""
    split = states.reshape(*states.shape[:-1], -1, 2, 2**node)
    return split[..., 0, :], split[..., 1, :]


def reverse(bound: Floats) -> Floats:
    """The same segments seen from the last layer."""
    return bound[:, ::-1, ::-1].transpose(0, 2, 1)


def within(states: Floats) -> Floats:
    """[..., sets S] least value of any set that has no node in common with S."""
    least = states.copy()
    n_sets = states.shape[-1]
    for node in range(n_sets.bit_length() - 1):
        without, with_node = views(least, node)
        np.minimum(with_node, without, out=with_node)
    return least[..., ::-1]  # the complement of S has the bits of S turned round


def _trace(bound: Floats, reached: Floats, used: int) -> Route:
    arcs, end = list[Arc](), bound.shape[1] - 1
    while end:
        members = [n for n in range(bound.shape[0]) if used >> n & 1]
        totals = np.array([reached[:end, used & ~(1 << n)] + bound[n, :end, end] for n in members])
        which, first = divmod(int(totals.argmin()), end)
        arcs.append(Arc(members[which], first, end))
        used, end = used & ~(1 << members[which]), first
    return tuple(reversed(arcs))
