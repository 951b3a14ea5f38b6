"""The same knapsack as an integer program, solved by HiGHS: slower, proven, and for any number of limits.

    answer = solve_exactly(Problem(costs, uses, limits))

A binary variable says whether an option is taken; each group takes one.  This holds the sweep of ``multichoice`` to
account, and decides where several limits bind at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lamella.planning.multichoice import Answer, Problem, total

RELATIVE_GAP = 1e-5
"""A choice proven to be within this share of the best one is taken for the best: predictions are far less exact."""
TIME_LIMIT_SECONDS = 60.0
_LARGEST_COST = 1e4
_LIMIT = 1e6
"""Costs and limits are scaled to these, so that the solver's absolute tolerances (1e-6) mean little beside them."""
_TRIES = 4


def solve_exactly(problem: Problem, time_limit_seconds: float = TIME_LIMIT_SECONDS) -> Answer | None:
    """The choice of least cost; None if none keeps the limits, or the time was too short to find one.

    The bound says how near a choice is that the time limit cut off.
    """
    limits = list(problem.limits)
    for _ in range(_TRIES):
        answer = _solve(problem, limits, time_limit_seconds)
        if answer is None or problem.keeps(answer.picks):
            return answer
        # a limit is broken by what the solver tolerates: ask for as much less
        excess = [total(uses, answer.picks) - limit for uses, limit in zip(problem.uses, problem.limits, strict=True)]
        limits = [asked - over if over > 0 else asked for asked, over in zip(limits, excess, strict=True)]
    return None


def _solve(problem: Problem, limits: Sequence[int], time_limit_seconds: float) -> Answer | None:
    import pulp  # a third of a second, which only those pay who ask for it

    scale = _LARGEST_COST / (max((abs(c) for costs in problem.costs for c in costs), default=0) or 1)
    program = pulp.LpProblem("knapsack", pulp.LpMinimize)
    taken = [
        [program.add_variable(f"x_{g}_{i}", cat=pulp.LpBinary) for i in range(len(costs))]
        for g, costs in enumerate(problem.costs)
    ]
    program += pulp.lpSum(
        scale * c * x for cs, xs in zip(problem.costs, taken, strict=True) for c, x in zip(cs, xs, strict=True)
    )
    for group in taken:
        program += pulp.lpSum(group) == 1
    for uses, limit in zip(problem.uses, limits, strict=True):
        share = _LIMIT / max(1, abs(limit), *(abs(use) for us in uses for use in us))
        used = pulp.lpSum(
            share * use * x for us, xs in zip(uses, taken, strict=True) for use, x in zip(us, xs, strict=True)
        )
        program += used <= share * limit
    solver = pulp.HiGHS(msg=False, gapRel=RELATIVE_GAP, timeLimit=time_limit_seconds, threads=1)
    program.solve(solver)
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return None
    picks = tuple(max(range(len(group)), key=lambda i: group[i].value() or 0.0) for group in taken)
    cost = problem.cost(picks)
    return Answer(picks, cost, proven_bound(problem, cost, program.solverModel.getInfo().mip_dual_bound / scale))


def proven_bound(problem: Problem, cost: int, proven: float) -> int:
    """What no choice costs less than; where the time ended before anything was proven, each group's cheapest option."""
    least = sum(min(costs) for costs in problem.costs)
    return min(cost, max(least, math.floor(proven)) if math.isfinite(proven) else least)
