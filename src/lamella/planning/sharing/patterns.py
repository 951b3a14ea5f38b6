"""Which steps share which version of one unit: a *pattern* is runs of neighbouring steps, each with one version.

With a price on the weight of each step, on the joint weight and on the loss of each step, units no longer depend on
each other.  Of a run, each group then takes the option of least priced cost on its lower convex hull, and a dynamic
program over runs finds the unit's best pattern.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from lamella.planning.multichoice import GroupHull, Groups
from lamella.planning.sharing.problem import UnitPicks


class Run(NamedTuple):
    """Steps ``first`` to ``last`` use one version of a unit."""

    first: int
    last: int
    picks: UnitPicks
    weight: int
    cost: int


Pattern = tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Prices:
    """What a unit of weight costs in each step and in the store, and a unit of loss in each step."""

    step_weight: tuple[float, ...]
    joint_weight: float
    step_cost: tuple[float, ...]

    def scaled(self, factor: float) -> Prices:
        """Weight dearer or cheaper against loss."""
        return replace(
            self, step_weight=tuple(factor * w for w in self.step_weight), joint_weight=factor * self.joint_weight
        )


class Unit:
    """A unit's groups, ready to be priced."""

    def __init__(self, groups: Groups, fixed: int, n_steps: int) -> None:
        """Find the hulls.

        Raises:
            ValueError: a group without options.
        """
        self._groups, self._fixed, self._n_steps = groups, fixed, n_steps
        self.hulls = [GroupHull(options) for options in groups]

    def pattern_of(self, picks: Sequence[UnitPicks]) -> Pattern:
        """The pattern of given picks for each step; equal neighbours are one run."""
        starts = [0, *(i for i, (a, b) in enumerate(pairwise(picks), 1) if a != b)]
        ends = [*(start - 1 for start in starts[1:]), len(picks) - 1]
        return tuple(self._run(first, last, picks[first]) for first, last in zip(starts, ends, strict=True))

    def lightest(self) -> Pattern:
        """One version for all steps: the lightest there is."""
        return (self._run(0, self._n_steps - 1, tuple(hull.lightest for hull in self.hulls)),)

    def best(self, prices: Prices) -> tuple[float, Pattern]:
        """The pattern of least priced cost, and that cost."""
        least: list[tuple[float, Pattern]] = [(0.0, ())]  # of the steps before each
        for last in range(self._n_steps):
            found = [
                (least[run.first][0] + cost, (*least[run.first][1], run)) for cost, run in self._runs_to(last, prices)
            ]
            least.append(min(found, key=lambda pair: pair[0]))
        return least[-1]

    def _runs_to(self, last: int, prices: Prices) -> Iterator[tuple[float, Run]]:
        """The best version, and its priced cost, for each run that ends at a step."""
        per_weight, per_cost = prices.joint_weight, 0.0
        for first in range(last, -1, -1):
            per_weight += prices.step_weight[first]
            per_cost += prices.step_cost[first]
            picks = tuple(hull.best(per_weight / per_cost) for hull in self.hulls)
            run = self._run(first, last, picks)
            yield per_weight * run.weight + per_cost * run.cost, run

    def _run(self, first: int, last: int, picks: UnitPicks) -> Run:
        chosen = [options[i] for options, i in zip(self._groups, picks, strict=True)]
        return Run(first, last, picks, self._fixed + sum(w for w, _ in chosen), sum(c for _, c in chosen))
