"""``lwq-cosine`` and ``lwq-outlier``: LWQ, the baseline of LSAQ's Tables I and III.

LWQ gives the least important layers the lower of two precisions, as LSAQ does, and orders them by one of two metrics:
the cosine between a layer's input and output, or the share of its weights that stand out (z-score above 1).  Each
metric is a policy of its own, because the order is all that tells these baselines from ``lsaq``.
"""

from __future__ import annotations

from lamella.core.artifacts import Plan
from lamella.planning.importance import least_important_first
from lamella.planning.lsaq_steps import take_step
from lamella.planning.request import PlanRequest


def plan_lwq_cosine(request: PlanRequest) -> Plan:
    """The plan of most bits within the limit, layers ordered by ``cosine``; without a limit FP16.

    Raises:
        DoesNotFit: not even all layers at INT4 fit.
    """
    return _plan("lwq-cosine", request)


def plan_lwq_outlier(request: PlanRequest) -> Plan:
    """The same with layers ordered by ``outlier``.

    Raises:
        DoesNotFit: not even all layers at INT4 fit.
    """
    return _plan("lwq-outlier", request)


def _plan(policy: str, request: PlanRequest) -> Plan:
    return take_step(policy, request, least_important_first(request.scores), request.scores)
