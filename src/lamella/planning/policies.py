"""The policies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lamella.core.artifacts import Plan
from lamella.core.errors import InvalidRequest
from lamella.planning.alpha import plan_alpha
from lamella.planning.knapsack import plan_knapsack
from lamella.planning.lsaq import plan_lsaq
from lamella.planning.request import PlanRequest
from lamella.planning.uniform import plan_uniform

Policy = Callable[[PlanRequest], Plan]

POLICIES: Mapping[str, Policy] = {
    "uniform": plan_uniform,
    "lsaq": plan_lsaq,
    "alpha": plan_alpha,
    "knapsack": plan_knapsack,
}


def make_plan(policy: str, request: PlanRequest) -> Plan:
    """Ask a policy.

    Raises:
        InvalidRequest: no such policy, or arguments that it cannot use.
        DoesNotFit: no plan of this policy fits the budget; says by how much, and what would fit.
    """
    decide = POLICIES.get(policy)
    if decide is None:
        raise InvalidRequest(f"unknown policy '{policy}'; known: {', '.join(POLICIES)}")
    return decide(request)
