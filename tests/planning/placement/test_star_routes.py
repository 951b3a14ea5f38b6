"""The best route is found with few sets, whichever nodes are watched from the start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.planning.placement.arrays import Floats
from lamella.planning.placement.star_routes import best, reach


def segments(seed: int, n_nodes: int, n_layers: int, share: float) -> Floats:
    """Random ones; a small fixed cost for each makes the cheapest node worth using again and again."""
    draws = np.random.default_rng(seed)
    bound = np.full((n_nodes, n_layers + 1, n_layers + 1), np.inf)
    speed = draws.uniform(1.0, 3.0, n_nodes)
    for first in range(n_layers):
        for end in range(first + 1, n_layers + 1):
            there = draws.random(n_nodes) < share
            bound[there, first, end] = 0.01 + (speed * (end - first) ** draws.uniform(0.9, 1.6))[there]
    return bound


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 8), st.sampled_from([0.2, 0.5, 1.0]), st.data())
def test_as_good_as_with_all_sets_of_nodes(
    seed: int, n_nodes: int, n_layers: int, share: float, data: st.DataObject
) -> None:
    bound = segments(seed, n_nodes, n_layers, share)
    tracked = data.draw(st.sets(st.integers(0, n_nodes - 1)))
    least = float(reach(bound)[-1].min())
    found = best(bound, tracked)
    if found is None:
        assert least == np.inf
        return
    total, route = found
    assert total == pytest.approx(least)
    assert sum(bound[a.node, a.first, a.end] for a in route) == pytest.approx(total)
    assert len({a.node for a in route}) == len(route)
    assert [route[0].first, *(a.end for a in route)] == [*(a.first for a in route), n_layers]


def test_what_one_table_needs_watched_is_known_for_the_next() -> None:
    bound = segments(3, 6, 8, 1.0)
    tracked: set[int] = set()
    first = best(bound, tracked)
    assert tracked
    known = set(tracked)
    assert best(bound, tracked) == first
    assert tracked == known
