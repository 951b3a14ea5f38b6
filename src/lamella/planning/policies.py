"""The policies by name, and the metric that each of them orders layers by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lamella.core.artifacts import Metric, Plan
from lamella.core.errors import InvalidRequest
from lamella.planning.alpha import plan_alpha
from lamella.planning.knapsack import plan_knapsack
from lamella.planning.lsaq import plan_lsaq
from lamella.planning.lwq import plan_lwq_cosine, plan_lwq_outlier
from lamella.planning.random_order import plan_random
from lamella.planning.request import PlanRequest
from lamella.planning.stock import plan_stock
from lamella.planning.uniform import plan_uniform

Policy = Callable[[PlanRequest], Plan]

POLICIES: Mapping[str, Policy] = {
    "uniform": plan_uniform,
    "lsaq": plan_lsaq,
    "alpha": plan_alpha,
    "knapsack": plan_knapsack,
    "lwq-cosine": plan_lwq_cosine,
    "lwq-outlier": plan_lwq_outlier,
    "random": plan_random,
    "stock": plan_stock,
}

METRICS: Mapping[str, Metric] = {
    "lsaq": "jaccard",
    "alpha": "jaccard",
    "knapsack": "sensitivity",
    "lwq-cosine": "cosine",
    "lwq-outlier": "outlier",
}
"""What is measured for a policy where no measurement was given; policies that are not here look at none."""

NAMED_BY_METRIC = frozenset(("knapsack", "lwq-cosine", "lwq-outlier"))
"""Policies that take a measurement of their own metric only."""

LADDER = frozenset(("lsaq", "lwq-cosine", "lwq-outlier", "random"))
"""Policies that take the largest step of LSAQ's ladder within a limit, and so want a limit."""


def make_plan(policy: str, request: PlanRequest) -> Plan:
    """Ask a policy.

    Raises:
        InvalidRequest: no such policy, or arguments that it cannot use.
        DoesNotFit: no plan of this policy is within the limit; says by how much, and what would be.
    """
    check_policy(policy)
    return POLICIES[policy](request)


def check_policy(policy: str, metric: Metric | None = None) -> None:
    """Refuse a policy that is not known, or a measurement that would make it another policy.

    Args:
        metric: of the measurement that was given, if one was.

    Raises:
        InvalidRequest: says what would do.
    """
    if policy not in POLICIES:
        raise InvalidRequest(f"unknown policy '{policy}'; known: {', '.join(POLICIES)}")
    if metric is None or policy not in NAMED_BY_METRIC or metric == METRICS[policy]:
        return
    if policy == "knapsack":
        raise InvalidRequest(
            f"metric {metric} does not say what each tensor loses, which policy knapsack needs: measure with "
            "--metric sensitivity"
        )
    raise InvalidRequest(
        f"policy {policy} orders layers by {METRICS[policy]}, and the measurement is of {metric}: measure with "
        f"--metric {METRICS[policy]}, or use policy lsaq, which takes any metric"
    )
