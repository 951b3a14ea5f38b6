"""Several models as one integer program: the reference program of each, and the nodes' limits over all of them.

Placing more than one model is NP-hard (DILEMMA, by reduction from job-shop scheduling).  This is for a few small ones;
the time limit ends it, and the solution says what gap is proven.
"""

from __future__ import annotations

from typing import Any

from lamella.core.errors import NoPlacement
from lamella.planning.placement.program import ModelProgram, add_limits
from lamella.planning.placement.result import account
from lamella.planning.placement.several.problem import (
    SeveralProblem,
    SeveralSolution,
    check_several,
    several_violations,
    total,
)

GAP = 1e-4
TIME_LIMIT_SECONDS = 120.0


def solve_several(
    problem: SeveralProblem, gap: float = GAP, time_limit_seconds: float = TIME_LIMIT_SECONDS
) -> SeveralSolution:
    """The placements of least objective, to a gap that the time allows.

    Raises:
        InvalidRequest: the question has no meaning.
        NoPlacement: the models do not fit together, or nothing was found in time.
    """
    import pulp  # a third of a second, which only those pay who ask for it

    check_several(problem)
    program = pulp.LpProblem("several", pulp.LpMinimize)
    models = [ModelProgram(t.problem, program, f"m{k}_") for k, t in enumerate(problem.tenants)]
    weighted = zip(problem.tenants, models, strict=True)
    program += pulp.lpSum(tenant.weight * model.objective() for tenant, model in weighted)
    add_limits(program, problem.cluster, models)
    _add_busy(program, problem, models)
    program.solve(pulp.HiGHS(msg=False, gapRel=gap, timeLimit=time_limit_seconds, threads=1))
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        proven = program.status == pulp.LpStatusInfeasible
        what = "the models do not fit together" if proven else "no placements were found in the time given"
        raise NoPlacement(f"{what}: {len(problem.tenants)} models on {len(problem.cluster.nodes)} nodes")
    placements = tuple(model.read() for model in models)
    broken = several_violations(problem, placements)
    if broken:
        raise NoPlacement(f"the solver's tolerance let a limit be broken: {'; '.join(broken)}")
    accounts = tuple(account(t.problem, p) for t, p in zip(problem.tenants, placements, strict=True))
    fixed = sum(tenant.weight * tenant.problem.fixed_seconds for tenant in problem.tenants)
    bound = program.solverModel.getInfo().mip_dual_bound + fixed
    objective = total(problem, accounts)
    return SeveralSolution(placements, accounts, objective, min(objective, bound), "program")


def _add_busy(program: Any, problem: SeveralProblem, models: list[ModelProgram]) -> None:
    """Requests of all models together leave no node more than busy_limit of its time to do."""
    if not any(tenant.requests_per_second for tenant in problem.tenants):
        return
    for n in range(len(problem.cluster.nodes)):
        scale = 1e6 / (problem.busy_limit or 1.0)
        rates = [scale * tenant.requests_per_second for tenant in problem.tenants]
        busy = sum(rate * model.seconds(n) for rate, model in zip(rates, models, strict=True))
        program += busy <= scale * problem.busy_limit, f"busy_of_{n}"
