"""Routes where neighbours do not matter: a dynamic program over boundaries and sets of nodes already used,

    f[j, S] = min over n in S, i < j of  f[i, S - n] + segment[n, i, j]

Sets are bit masks, so that the sets without a node are a view of the array, and one step over all sets is one addition.

The best route alone needs few of these sets: they are kept of the nodes that would otherwise be used twice, found by
solving with none and adding such nodes until none is (Boland, Dethridge, Dumitrescu 2006; Righini, Salani 2008).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from lamella.planning.placement.arrays import Arc, Floats, Ints, Route

CACHE_ENTRIES = 2**15
"""Sums made at once: larger arrays fall out of the processor's cache."""


def reach(bound: Floats, free: Floats | None = None) -> Floats:
    """[L + 1, 2^N] least total from boundary 0 to a boundary, by the nodes used.

    Args:
        bound: [N, L + 1, L + 1] of segments whose node is used once.
        free: [L + 1, L + 1] of segments that may be used however often; None for none.
    """
    n_nodes, n_layers = bound.shape[0], bound.shape[1] - 1
    tables = bound if free is None else np.concatenate([bound, free[None]])
    reached = np.full((n_layers + 1, 2**n_nodes), np.inf)
    reached[0, 0] = 0.0
    block = max(1, CACHE_ENTRIES // 2**n_nodes)
    for table, end, possible in _by_end(tables):
        into = reached[end][None] if table == n_nodes else views(reached[end], table)[1]
        for at in range(0, len(possible), block):
            firsts = possible[at : at + block]
            before = reached[firsts][:, None] if table == n_nodes else views(reached[firsts], table)[0]
            totals = before + tables[table, firsts, end][:, None, None]
            np.minimum(into, totals.min(axis=0) if len(firsts) > 1 else totals[0], out=into)
    return reached


def _by_end(bound: Floats) -> Iterator[tuple[int, int, Ints]]:
    """Node, end, and the first layers of the segments there are, by rising end."""
    ends, nodes, firsts = np.nonzero(np.isfinite(bound).transpose(2, 0, 1))
    cuts = np.flatnonzero((np.diff(ends) > 0) | (np.diff(nodes) != 0)) + 1
    edges = [0, *cuts.tolist(), len(ends)] if len(ends) else [0]
    for at, until in pairwise(edges):
        yield int(nodes[at]), int(ends[at]), firsts[at:until]


def best(bound: Floats, tracked: set[int] | None = None) -> tuple[float, Route] | None:
    """Total and route of least total; None where there is none.

    Args:
        tracked: nodes whose use is watched from the start, as a table nearby needed it; those that this one needs, too,
            are added.  It changes how long the search takes, and what it finds only among equals.
    """
    nodes, present = _present(bound)
    tracked = set() if tracked is None else tracked
    while True:
        found = _best_tracking(present, [at for at, node in enumerate(nodes) if int(node) in tracked])
        if found is None:
            return None
        total, route = found[0], tuple(Arc(int(nodes[a.node]), a.first, a.end) for a in found[1])
        again = {node for node, times in Counter(arc.node for arc in route).items() if times > 1}
        if not again:
            return total, route
        tracked |= again


def _best_tracking(bound: Floats, tracked: Sequence[int]) -> tuple[float, Route] | None:
    """As ``best``, where only the tracked nodes are used no more than once."""
    once = bound[list(tracked)]
    others = np.setdiff1d(np.arange(len(bound)), tracked)
    free = bound[others].min(axis=0, initial=np.inf)
    reached = reach(once, free)
    used = int(reached[-1].argmin())
    total = float(reached[-1, used])
    if not np.isfinite(total):
        return None

    def node_of(arc: Arc) -> int:
        if arc.node < len(tracked):
            return tracked[arc.node]
        return int(others[bound[others, arc.first, arc.end].argmin()])

    return total, tuple(Arc(node_of(a), a.first, a.end) for a in _trace(once, free, reached, used))


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


def _trace(bound: Floats, free: Floats, reached: Floats, used: int) -> Route:
    """The way back; a segment of ``free`` has the number of nodes as its node."""
    arcs, end, n_nodes = list[Arc](), bound.shape[1] - 1, bound.shape[0]
    while end:
        members = [n for n in range(n_nodes) if used >> n & 1]
        by_member = [reached[:end, used & ~(1 << n)] + bound[n, :end, end] for n in members]
        totals = np.array([*by_member, reached[:end, used] + free[:end, end]])
        which, first = divmod(int(totals.argmin()), end)
        node = members[which] if which < len(members) else n_nodes
        arcs.append(Arc(node, first, end))
        used, end = used & ~(1 << node), first
    return tuple(reversed(arcs))
