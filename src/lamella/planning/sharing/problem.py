"""What is asked of a ladder, and what is found.

A *unit* is what is stored as one file: the groups of one layer.  A *version* of it is a choice of options.  Each step
is within its own limit, and all versions that any step uses are within a joint one.  Either the joint limit is given,
and the step that loses most, measured by what it would lose planned alone, loses as little as can be; or that ratio is
given, and the joint weight is as little as can be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lamella.planning.multichoice import Groups

UnitPicks = tuple[int, ...]
"""Index of the option taken, for each group of a unit."""


@dataclass(frozen=True, slots=True)
class SharedProblem:
    """One question.

    Attributes:
        units: of each unit its groups, of each group its options as (weight, cost).
        fixed: weight that every version of a unit has beside its groups.
        limits: at most so much weight of each step, largest first.
        alone: step -> unit -> picks of each step planned alone, within its limit.
        joint_limit: at most so much weight of all versions in use; None: as little as ``worst_ratio`` allows.
        worst_ratio: without a joint limit: each step costs at most so many times what it costs alone; at least 1.
    """

    units: Sequence[Groups]
    fixed: Sequence[int]
    limits: Sequence[int]
    alone: Sequence[Sequence[UnitPicks]]
    joint_limit: int | None = None
    worst_ratio: float = 1.0

    @property
    def n_steps(self) -> int:
        return len(self.limits)

    def references(self) -> tuple[int, ...]:
        """What each step costs alone; one, where that is nothing: such a step must not cost anything here either."""
        return tuple(max(1, self.cost(picks)) for picks in self.alone)

    def weight(self, unit: int, picks: UnitPicks) -> int:
        """Of one version."""
        return self.fixed[unit] + sum(g[i][0] for g, i in zip(self.units[unit], picks, strict=True))

    def step_weight(self, picks: Sequence[UnitPicks]) -> int:
        return sum(self.weight(unit, version) for unit, version in enumerate(picks))

    def cost(self, picks: Sequence[UnitPicks]) -> int:
        """Of one step."""
        return sum(
            g[i][1] for groups, version in zip(self.units, picks, strict=True)
            for g, i in zip(groups, version, strict=True)
        )  # fmt: skip

    def joint_weight(self, steps: Sequence[Sequence[UnitPicks]]) -> int:
        """Of all versions that any step uses."""
        versions = {(unit, version) for picks in steps for unit, version in enumerate(picks)}
        return sum(self.weight(unit, version) for unit, version in versions)

    def ratios(self, steps: Sequence[Sequence[UnitPicks]]) -> list[float]:
        """What each step costs, by what it costs alone."""
        return [self.cost(picks) / reference for picks, reference in zip(steps, self.references(), strict=True)]

    def keeps(self, steps: Sequence[Sequence[UnitPicks]]) -> bool:
        """Whether a ladder is within all limits on weight."""
        weights = map(self.step_weight, steps)
        joint = math.inf if self.joint_limit is None else self.joint_limit
        return all(w <= limit for w, limit in zip(weights, self.limits, strict=True)) and (
            self.joint_weight(steps) <= joint
        )


@dataclass(frozen=True, slots=True)
class Shared:
    """A ladder.

    Attributes:
        picks: step -> unit -> picks.
        joint_weight: of all versions in use.
        worst_ratio: of the step that costs most by what it costs alone.
        bound: no ladder has less of what was made least (the worst ratio, or the joint weight), of all those whose
            versions get no heavier from step to step.
    """

    picks: tuple[tuple[UnitPicks, ...], ...]
    joint_weight: int
    worst_ratio: float
    bound: float
