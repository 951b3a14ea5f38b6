"""From the question to the ladder, in three stages.

1. *Generate.*  A linear program over the patterns known so far gives prices, the prices give each unit its best
   pattern (``patterns``), until no new one helps: column generation (Gilmore, Gomory 1961).  Its value bounds every
   ladder whose versions get no heavier from step to step.
2. *Choose* one pattern for each unit by integer program, from those nearest to the prices.
3. *Fit.*  With the runs of steps settled, every option of every group is a column again: a few hundred small choices,
   where rounding to whole ones costs next to nothing.

Tried and left: fixing units one by one between linear programs (diving) takes a tenth of stage 2's time, but merges
steps too early: worst ratios of 1.7 where stage 2 finds 1.6.  Stage 2 alone stays 2 to 7 % above stage 3.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lamella.planning.sharing.patterns import Pattern, Prices, Run, Unit
from lamella.planning.sharing.problem import Shared, SharedProblem, UnitPicks
from lamella.planning.sharing.program import Column, Program

Ladder = tuple[tuple[UnitPicks, ...], ...]
"""Step -> unit -> picks."""

ENOUGH = 1e-3
"""New patterns that promise less than this share of the objective are not worth another round."""
MOST_ROUNDS = 100
PATTERNS_TO_CHOOSE_FROM = 30
"""Of each unit."""
PATTERN_GAP, PATTERN_NODES = 0.01, 200
SPARE_OPTIONS = 500
"""Columns of stage 3 beyond one for each choice."""
FIT_GAP, FIT_NODES = 0.002, 100
RATIO_TOLERANCE = 0.002
"""A worst ratio of 1.05 is kept by 1.052: predictions are far less exact."""
_SEED_PRICES = 12
_NEARBY_PRICES = (0.6, 0.8, 1.25, 1.7)
_TRIES = 3


def share(problem: SharedProblem) -> Shared:
    """Find a ladder.

    Raises:
        ValueError: not even the lightest versions are within a limit.
    """
    units = [Unit(groups, fixed, problem.n_steps) for groups, fixed in zip(problem.units, problem.fixed, strict=True)]
    alone = tuple(tuple(step) for step in problem.alone)
    if problem.joint_limit is not None and problem.keeps(alone):
        return Shared(alone, problem.joint_weight(alone), 1.0, 1.0)
    lightest = _ladder([unit.lightest() for unit in units], problem.n_steps)
    if not problem.keeps(lightest):
        raise ValueError("the lightest versions are beyond a limit")
    bound, found = _search(problem, units)
    possible = [ladder for ladder in (*found, alone, lightest) if problem.keeps(ladder)]
    best = min(possible, key=lambda ladder: _badness(ladder, problem))
    return Shared(best, problem.joint_weight(best), max(problem.ratios(best)), bound)


def _search(problem: SharedProblem, units: Sequence[Unit]) -> tuple[float, list[Ladder]]:
    """A bound, and ladders; where the ratio that was asked for is missed, the search aims lower and begins anew."""
    found: list[Ladder] = []
    aimed, bound = problem, -math.inf
    for _ in range(_TRIES):
        known = _Known(units, aimed)
        first_bound = known.generate()
        bound = max(bound, first_bound) if aimed is problem else bound
        patterns = known.choose()
        if patterns is None:
            break
        found.append(_ladder(patterns, problem.n_steps))
        fitted = _fit(aimed, units, patterns)
        found += [fitted] if fitted else []
        missed = min(max(problem.ratios(ladder)) for ladder in found) - problem.worst_ratio
        if problem.joint_limit is not None or missed <= RATIO_TOLERANCE:
            break
        aimed = replace(aimed, worst_ratio=max(1.0, aimed.worst_ratio - missed))
    return bound, found


class _Known:
    """The patterns known of each unit, and the program over them."""

    def __init__(self, units: Sequence[Unit], problem: SharedProblem) -> None:
        self._units, self._problem = units, problem
        self._program = Program(problem, len(units))
        self._patterns: list[Pattern] = []
        self._seen: list[set[Pattern]] = [set() for _ in units]
        self._prices = Prices((), 0.0, ())
        for number, unit in enumerate(units):
            for pattern in _seeds(number, unit, problem):
                self._add(number, pattern)

    def generate(self) -> float:
        """Add patterns until none promises more; returns a bound on every ladder (``Program.bound_from``)."""
        bound = -math.inf
        for _ in range(MOST_ROUNDS):
            relaxed = self._program.relaxed()
            self._prices = relaxed.prices
            found = [unit.best(relaxed.prices) for unit in self._units]
            saved = math.fsum(min(0.0, cost - w) for (cost, _), w in zip(found, relaxed.worths, strict=True))
            bound = max(bound, relaxed.value + saved)  # Lagrange: no more can be saved than all units promise
            added = [self._add(number, pattern) for number, (_, pattern) in enumerate(found)]
            if not any(added) or -saved < ENOUGH * abs(relaxed.value):
                break
        return self._program.bound_from(bound)

    def choose(self) -> list[Pattern] | None:
        """One pattern of each unit, from those nearest to the prices and their neighbours."""
        for number, unit in enumerate(self._units):
            for factor in _NEARBY_PRICES:
                self._add(number, unit.best(self._prices.scaled(factor))[1])
        ranked = defaultdict[int, list[tuple[float, int]]](list)
        for i, reduced in enumerate(self._program.relaxed().reduced_costs):
            ranked[self._program.columns[i].choice].append((reduced, i))
        allowed = [i for columns in ranked.values() for _, i in sorted(columns)[:PATTERNS_TO_CHOOSE_FROM]]
        chosen = self._program.choose(allowed, PATTERN_GAP, PATTERN_NODES)
        return None if chosen is None else [self._patterns[i] for i in chosen]

    def _add(self, number: int, pattern: Pattern) -> bool:
        """Whether the pattern is new."""
        if pattern in self._seen[number]:
            return False
        self._seen[number].add(pattern)
        self._patterns.append(pattern)
        weights = [run.weight for run in pattern for _ in range(run.first, run.last + 1)]
        costs = [run.cost for run in pattern for _ in range(run.first, run.last + 1)]
        self._program.add(Column(number, tuple(weights), tuple(costs), sum(run.weight for run in pattern)))
        return True


def _seeds(number: int, unit: Unit, problem: SharedProblem) -> Iterator[Pattern]:
    """Patterns to begin with: what every limit allows, what the steps are alone, and a range of prices."""
    yield unit.lightest()
    yield unit.pattern_of([step[number] for step in problem.alone])
    per_cost = tuple(1 / (problem.n_steps * reference) for reference in problem.references())
    typical = problem.n_steps / sum(problem.limits)
    for i in range(_SEED_PRICES):
        yield unit.best(Prices((0.0,) * problem.n_steps, typical * 10 ** (i / 2 - 4), per_cost))[1]


@dataclass(frozen=True, slots=True)
class _Place:
    """One group in one run: what stage 3 chooses an option for."""

    unit: int
    run: Run
    group: int


def _fit(problem: SharedProblem, units: Sequence[Unit], patterns: Sequence[Pattern]) -> Ladder | None:
    """Choose options anew, the runs of steps as they are."""
    places = [
        _Place(u, run, g) for u, pattern in enumerate(patterns) for run in pattern for g in range(len(units[u].hulls))
    ]
    program = Program(_without_fixed(problem, patterns), len(places))
    options: list[int] = []
    for number, place in enumerate(places):
        for option in units[place.unit].hulls[place.group].options:
            weight, cost = problem.units[place.unit][place.group][option]
            steps = [place.run.first <= k <= place.run.last for k in range(problem.n_steps)]
            program.add(Column(number, tuple(weight * s for s in steps), tuple(cost * s for s in steps), weight))
            options.append(option)
    reduced = program.relaxed().reduced_costs
    nearest = sorted(range(len(options)), key=lambda i: (reduced[i], i))
    chosen = program.choose(nearest[: len(places) + SPARE_OPTIONS], FIT_GAP, FIT_NODES)
    if chosen is None:
        return None
    picked = {(p.unit, p.run.first, p.group): options[i] for p, i in zip(places, chosen, strict=True)}
    fitted = [
        tuple(run._replace(picks=tuple(picked[u, run.first, g] for g in range(len(run.picks)))) for run in pattern)
        for u, pattern in enumerate(patterns)
    ]
    return _ladder(fitted, problem.n_steps)


def _without_fixed(problem: SharedProblem, patterns: Sequence[Pattern]) -> SharedProblem:
    """The same limits, less what versions weigh beside their groups."""
    fixed = sum(problem.fixed)
    joint = problem.joint_limit
    if joint is not None:
        joint -= sum(len(pattern) * f for pattern, f in zip(patterns, problem.fixed, strict=True))
    return replace(problem, limits=tuple(limit - fixed for limit in problem.limits), joint_limit=joint)


def _ladder(patterns: Sequence[Pattern], n_steps: int) -> Ladder:
    return tuple(
        tuple(next(run.picks for run in pattern if run.first <= step <= run.last) for pattern in patterns)
        for step in range(n_steps)
    )


def _badness(ladder: Ladder, problem: SharedProblem) -> tuple[float, float]:
    """What is made least: a ratio beyond the one asked for before all, then the ratio or the weight in question."""
    worst, joint = max(problem.ratios(ladder)), problem.joint_weight(ladder)
    if problem.joint_limit is not None:
        return worst, joint
    return max(0.0, worst - problem.worst_ratio - RATIO_TOLERANCE), joint
