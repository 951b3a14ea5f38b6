"""``lsaq``: the strategy of LSAQ (section III, Table IV).

FP16 if it fits; else INT8; else INT8 with as few as possible of the layers, the least important ones, at INT4; else it
does not fit, and the caller waits for memory or gives up.  Embedding and head stay as they are, as in the paper.

The paper's metric is ``jaccard``, and that is measured where nothing was given; a measurement by any other metric is
taken too, because the strategy is the same for every order of the layers.
"""

from __future__ import annotations

from lamella.core.artifacts import Plan
from lamella.planning.importance import least_important_first
from lamella.planning.lsaq_steps import take_step
from lamella.planning.request import PlanRequest


def plan_lsaq(request: PlanRequest) -> Plan:
    """The plan of most bits within the limit; without a limit FP16.

    Raises:
        DoesNotFit: not even all layers at INT4 fit.
    """
    return take_step("lsaq", request, least_important_first(request.scores), request.scores)
