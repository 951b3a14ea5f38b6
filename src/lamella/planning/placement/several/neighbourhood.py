"""Two or three models placed anew together, on what the others leave.

Placed one after another, each takes what is best for itself.  Here routes of all of them are looked at in combination,
with precisions chosen for each combination:

1. Each model has a pool of promising routes (``route_pools``).
2. With three models, the search parts by the route of the one that has fewest, the most promising routes first.
3. Shared prices bound every pair of the others' routes from below (``screening``).
4. The most promising pairs get prices of their own (``batch_bits``), by which most of them are set aside; those that
   remain get precisions, by single changes, and the best few by an integer program (``joint_bits``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lamella.planning.placement.arrays import Floats, Ints, Route
from lamella.planning.placement.several.batch_bits import Combinations, Layers
from lamella.planning.placement.several.joint_bits import joint_bits
from lamella.planning.placement.several.quick import Choice, QuickPlanner
from lamella.planning.placement.several.route_pools import Pool
from lamella.planning.placement.several.screening import Screened, promising_pairs, screen_all

_STEPS, _STEPS_OF_PART = 60, 30
"""Towards the best prices, for all routes, and for those with one route of the third model."""
_COMBINATIONS, _PAIRS = 60_000, (300, 3000)
"""Of routes that get prices of their own, together, and in each part of the search."""
_HOPES = (1.3, 1.7, 4.0)
"""Times the bound on all combinations, one after another: dearer ones are not looked for while nothing is known."""
_LEAST_GAIN = 1e-4
"""Share of what all cost: less is not looked for."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long is searched.

    Attributes:
        routes: of each model.
        branches: routes of the third model that are gone through.
        programs: combinations in each part whose precisions the integer program chooses.
    """

    routes: int
    branches: int
    programs: int


def place_together(
    planners: Mapping[int, QuickPlanner],
    pools: Mapping[int, Pool],
    memory: Ints,
    busy: Floats,
    known: float,
    effort: Effort,
) -> dict[int, Choice] | None:
    """Placements of two or three models that cost less together; None where none were found.

    Args:
        planners, pools: of these models, by number.
        memory, busy: [N] bytes and share of the time that they may take.
        known: what they cost now; infinite where not all have a place.
    """
    numbers = sorted(planners, key=lambda k: len(pools[k].routes), reverse=True)
    group = _Group([planners[k] for k in numbers], [pools[k] for k in numbers], memory, busy, effort)
    everything = group.everything(known)
    for limit in (known,) if known < np.inf else (hope * everything.bound for hope in _HOPES):
        found = group.best(everything, limit)
        if found is not None:
            return dict(zip(numbers, found, strict=True))
    return None


class _Group:
    """Models, the one with most routes first, and what they may take together."""

    def __init__(
        self, planners: Sequence[QuickPlanner], pools: Sequence[Pool], memory: Ints, busy: Floats, effort: Effort
    ) -> None:
        self._planners, self._memory, self._busy, self._effort = planners, memory, busy, effort
        nodes = np.unique(np.concatenate([pool.nodes.ravel() for pool in pools]))
        self._pools = tuple(pool.on(nodes) for pool in pools)
        self._layers = Layers(planners, nodes, memory[nodes], busy[nodes])

    def everything(self, cutoff: float) -> Screened:
        """All combinations."""
        return screen_all(self._layers, self._pools, np.zeros_like(self._layers.limits), cutoff, _STEPS)

    def best(self, everything: Screened, known: float) -> list[Choice] | None:
        """The best placements found that cost less than what is known."""
        best: list[Choice] | None = None
        cutoff = known * (1 - _LEAST_GAIN)
        parts = self.parts(everything, cutoff)
        pairs = int(np.clip(_COMBINATIONS // max(1, len(parts)), *_PAIRS))
        for part in parts:
            found = self.search(part, cutoff, pairs) if part.bound < cutoff else None
            if found is not None:
                best, cutoff = found, sum(choice.cost for choice in found) * (1 - _LEAST_GAIN)
        return best

    def parts(self, everything: Screened, cutoff: float) -> list[Screened]:
        """What may cost less than the cutoff, the most promising first: the combinations with each third route."""
        if len(self._pools) == 2:
            return [everything]
        *others, third = self._pools
        bounds = everything.with_each(2)
        routes = [int(r) for r in np.argsort(bounds, kind="stable")[: self._effort.branches] if bounds[r] < cutoff]
        parts = (
            screen_all(self._layers, (*others, third.only(r)), everything.prices, cutoff, _STEPS_OF_PART)
            for r in routes
        )
        return sorted(parts, key=lambda part: part.bound)

    def search(self, part: Screened, cutoff: float, pairs: int) -> list[Choice] | None:
        """The best placements found that cost less than the cutoff.

        Args:
            pairs: of routes that are looked at closely.
        """
        which = promising_pairs(self._layers, part, cutoff)[:pairs]
        combinations = Combinations(self._layers, part.pools, which)
        combinations.bound(part.prices, cutoff)
        if not len(combinations.which):
            return None
        best = self._settled(part, combinations, cutoff)
        for c in _most_promising(combinations, self._effort.programs):
            cutoff = sum(choice.cost for choice in best) if best else cutoff
            if combinations.bounds[c] >= cutoff:
                continue
            routes = dict(enumerate(_routes(part, combinations.which[c])))
            found = joint_bits(dict(enumerate(self._planners)), routes, self._memory, self._busy, cutoff)
            best = best if found is None else [found[k] for k in range(len(found))]
        return best

    def _settled(self, part: Screened, combinations: Combinations, cutoff: float) -> list[Choice] | None:
        """The best placements by single changes of precisions."""
        costs = combinations.settle()
        c = int(costs.argmin())
        if not costs[c] < cutoff:
            return None
        routes = zip(self._planners, _routes(part, combinations.which[c]), strict=True)
        picks = [combinations.picks[c, self._layers.of(k)] for k in range(len(self._planners))]
        found = [planner.choice(route, of_model) for (planner, route), of_model in zip(routes, picks, strict=True)]
        used, taken = sum(choice.n_bytes for choice in found), sum(choice.busy for choice in found)
        kept = bool(np.all(used <= self._memory) and np.all(taken <= self._busy))
        return found if kept and all(map(_keeps_loss, self._planners, found)) else None


def _most_promising(combinations: Combinations, most: int) -> list[int]:
    """Those of least bound, and half as many that come nearest to keeping all limits."""
    by_bound = np.argsort(combinations.bounds, kind="stable")[:most]
    by_limits = np.lexsort((combinations.bounds, combinations.exceeded))[: most // 2]
    return list(dict.fromkeys([*by_bound.tolist(), *by_limits.tolist()]))


def _routes(part: Screened, numbers: Ints) -> list[Route]:
    return [pool.routes[r] for pool, r in zip(part.pools, numbers, strict=True)]


def _keeps_loss(planner: QuickPlanner, choice: Choice) -> bool:
    lost = float(planner.arrays.loss[np.arange(planner.arrays.n_layers), choice.picks].sum())
    return lost <= planner.arrays.loss_budget
