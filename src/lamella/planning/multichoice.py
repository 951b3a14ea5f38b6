"""The multiple-choice knapsack: one option of each group, at least cost, within a limit on weight.

    >>> groups = [[(1, 9), (2, 3)], [(1, 5), (3, 0)]]  # (weight, cost) of each option
    >>> Hull(groups).best(limit=4)
    Answer(picks=(1, 0), cost=8, bound=8)

Relaxed, so that a group may be split between two options, the problem is solved for *every* limit by one sort: start
with the lightest options and take the steps of each group's lower convex hull in order of cost saved per weight
(Sinha, Zoltners 1979; it is the Lagrangian sweep over all multipliers).  Stopping after any whole step gives the best
choice of that weight: a *vertex* of the frontier.  Between two vertices just one group is split, and ``best`` branches
on that group's options, to a depth of ``DEPTH``; problems of a few groups are searched to the end.

Weights and costs are whole numbers, so that sums are exact in any order.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

DEPTH = 5
"""Groups branched on.  Depth 8 takes five times as long as depth 5 for 0.01 % less loss (226 tensors, 18 types).

That the depth is fixed, and not a count of nodes or seconds, makes ``best`` monotone.  A vertex is the best choice of
its weight; between two vertices the same group is branched on, and so in the problem that is left, down to the depth: a
larger limit searches a larger set.
"""
FEW_GROUPS = 12
"""So many groups are branched on to the end: where one tensor is a fifth of the model, depth 5 was seen 6 % off."""

Groups = Sequence[Sequence[tuple[int, int]]]
"""(weight, cost) of each option of each group."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A choice within the limit.

    Attributes:
        picks: index of the option taken, for each group.
        cost: sum over the groups.
        bound: no choice within the limit costs less than this; equal to ``cost`` where the choice is proven best.
    """

    picks: tuple[int, ...]
    cost: int
    bound: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One option of each group, at least cost, within all limits.

    Attributes:
        costs: of each option of each group.
        uses: for each limit, what each option of each group uses of it.
        limits: at most so much of each.
    """

    costs: Sequence[Sequence[int]]
    uses: Sequence[Sequence[Sequence[int]]]
    limits: Sequence[int]

    def cost(self, picks: Sequence[int]) -> int:
        return total(self.costs, picks)

    def keeps(self, picks: Sequence[int]) -> bool:
        """Whether a choice is within all limits."""
        return all(total(uses, picks) <= limit for uses, limit in zip(self.uses, self.limits, strict=True))


def total(values: Sequence[Sequence[int]], picks: Sequence[int]) -> int:
    """Sum over the groups of the picked option's value."""
    return sum(of_group[i] for of_group, i in zip(values, picks, strict=True))


class _Corner(NamedTuple):
    weight: int
    cost: int
    option: int


class _Step(NamedTuple):
    """From one corner of a group's hull to the next; sorts by cost saved per weight, most first."""

    slope: float
    group: int
    corner: int
    weight: int
    saved: int


@dataclass(frozen=True, slots=True)
class _Node:
    """A relaxed problem with some groups fixed, and its solution: the first ``n_steps`` steps, and a part of the next.

    Attributes:
        cost: of the whole steps: a choice that can be had.
        bound: of the relaxed solution, rounded up.
        split: the group that the next step belongs to; None where no step is left, and ``cost`` is the least there is.
    """

    fixed: tuple[tuple[int, _Corner], ...]
    n_steps: int
    cost: int
    bound: int
    split: int | None


class Hull:
    """The relaxed frontier of a problem: made once, asked for any limit."""

    def __init__(self, groups: Groups) -> None:
        """Sort the steps of all groups, in time n log n over all options.

        Raises:
            ValueError: a group without options.
        """
        self._efficient = [_efficient(options) for options in groups]
        self._hulls = [_lower_hull(corners) for corners in self._efficient]
        self._steps = sorted(step for g, hull in enumerate(self._hulls) for step in _steps_of(g, hull))
        self._weights = [sum(hull[0].weight for hull in self._hulls)]
        self._costs = [sum(hull[0].cost for hull in self._hulls)]
        self._positions: list[list[int]] = [[] for _ in groups]
        for position, step in enumerate(self._steps):
            self._weights.append(self._weights[-1] + step.weight)
            self._costs.append(self._costs[-1] - step.saved)
            self._positions[step.group].append(position)

    @property
    def least_weight(self) -> int:
        return self._weights[0]

    @property
    def least_cost_weight(self) -> int:
        """Weight from which on nothing is to be gained."""
        return self._weights[-1]

    def vertices(self) -> Iterator[tuple[int, int]]:
        """(weight, cost) of each vertex, by rising weight; each is the least cost of its weight."""
        return zip(self._weights, self._costs, strict=True)

    def has_vertex(self, weight: int, cost: int) -> bool:
        """Whether a choice of this weight and cost is a vertex: nothing of its weight or less costs less."""
        at = bisect_left(self._weights, weight)
        return at < len(self._weights) and (self._weights[at], self._costs[at]) == (weight, cost)

    def best(self, limit: int, depth: int | None = None) -> Answer | None:
        """The choice of least cost that was found within ``limit``; None if not even the lightest one is.

        It costs at most one step more than any choice can, never more at a larger limit, and is the best there is
        where ``depth`` is the number of groups.

        Args:
            depth: groups branched on; None: ``DEPTH``, or all where there are few.
        """
        if depth is None:
            depth = len(self._hulls) if len(self._hulls) <= FEW_GROUPS else DEPTH
        root = self._relax((), limit)
        if root is None:
            return None
        best, bound = root, root.cost
        queue = [(root.bound, 0, root)]
        n_made = 0
        while queue and queue[0][0] < best.cost:
            _, _, node = heapq.heappop(queue)
            if node.split is None or len(node.fixed) == depth:
                bound = min(bound, node.bound)
                continue
            for corner in self._efficient[node.split]:
                child = self._relax((*node.fixed, (node.split, corner)), limit)
                if child is None:
                    break  # corners get heavier
                best = child if child.cost < best.cost else best
                n_made += 1
                heapq.heappush(queue, (child.bound, n_made, child))
        return Answer(self._picks(best), best.cost, min(bound, best.cost))

    def _relax(self, fixed: tuple[tuple[int, _Corner], ...], limit: int) -> _Node | None:
        """Solve the relaxed problem with some groups fixed: bisect for the steps that fit."""
        if self._weight(fixed, 0) > limit:
            return None
        low, high = 0, len(self._steps)
        while low < high:
            middle = (low + high + 1) // 2
            if self._weight(fixed, middle) <= limit:
                low = middle
            else:
                high = middle - 1
        cost = self._costs[low]
        for group, corner in fixed:
            cost += corner.cost - self._corner(group, low).cost
        if low == len(self._steps):
            return _Node(fixed, low, cost, cost, None)
        step = self._steps[low]
        part = step.saved * (limit - self._weight(fixed, low)) // step.weight
        return _Node(fixed, low, cost, cost - part, step.group)

    def _weight(self, fixed: tuple[tuple[int, _Corner], ...], n_steps: int) -> int:
        weight = self._weights[n_steps]
        for group, corner in fixed:
            weight += corner.weight - self._corner(group, n_steps).weight
        return weight

    def _corner(self, group: int, n_steps: int) -> _Corner:
        """Where a group stands after the first steps of all groups."""
        return self._hulls[group][bisect_left(self._positions[group], n_steps)]

    def _picks(self, node: _Node) -> tuple[int, ...]:
        picks = [self._corner(group, node.n_steps).option for group in range(len(self._hulls))]
        for group, corner in node.fixed:
            picks[group] = corner.option
        return tuple(picks)


class GroupHull:
    """One group's options on their lower convex hull: what it takes at a price on weight."""

    def __init__(self, options: Sequence[tuple[int, int]]) -> None:
        """Find the hull.

        Raises:
            ValueError: no options.
        """
        efficient = _efficient(options)
        self._efficient, self._corners = efficient, _lower_hull(efficient)
        self._slopes = [_slope(a, b) for a, b in pairwise(self._corners)]

    @property
    def options(self) -> tuple[int, ...]:
        """Indices of the options that no other undercuts in weight and cost, by rising weight; on the hull or not."""
        return tuple(corner.option for corner in self._efficient)

    @property
    def lightest(self) -> int:
        """Index of the option of least weight."""
        return self._corners[0].option

    def best(self, price: float) -> int:
        """Index of the option of least cost + price * weight; of equal ones the lightest."""
        return self._corners[bisect_left(self._slopes, -price)].option


def _efficient(options: Sequence[tuple[int, int]]) -> list[_Corner]:
    """Options that no other undercuts in weight and cost, by rising weight; of equal ones the first."""
    if not options:
        raise ValueError("a group has no options")
    kept: list[_Corner] = []
    for corner in sorted(_Corner(weight, cost, i) for i, (weight, cost) in enumerate(options)):
        if not kept or corner.cost < kept[-1].cost:
            kept.append(corner)
    return kept


def _lower_hull(corners: Sequence[_Corner]) -> list[_Corner]:
    """Corners on the lower convex hull.  Slopes are compared as they sort, so that steps of a group stay in order."""
    hull: list[_Corner] = []
    for corner in corners:
        while len(hull) > 1 and _slope(hull[-1], corner) < _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(corner)
    return hull


def _steps_of(group: int, hull: Sequence[_Corner]) -> Iterator[_Step]:
    for i, (a, b) in enumerate(pairwise(hull)):
        yield _Step(_slope(a, b), group, i, b.weight - a.weight, a.cost - b.cost)


def _slope(a: _Corner, b: _Corner) -> float:
    """Cost per weight, below zero."""
    return (b.cost - a.cost) / (b.weight - a.weight)
