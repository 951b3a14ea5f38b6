"""``alpha``: bits by importance and aggressiveness, as in the poster's Table 1.

    bits = nearest of {2, 3, 4, 5, 6, 8} to 2 + 6 * s^((1 - alpha) / alpha)

with s in [0, 1] the layer's importance.  Alpha 1 gives every layer 8 bits; alpha near 0 gives 2 bits to all but the
most important one.
"""

from __future__ import annotations

from lamella.core.artifacts import Plan
from lamella.core.errors import InvalidRequest
from lamella.planning.cost import Choice, build_plan, does_not_fit, fits
from lamella.planning.request import Overhead, PlanRequest
from lamella.planning.uniform import OUTSIDE

LEVELS = (2, 3, 4, 5, 6, 8)


def bits_for(score: float, alpha: float) -> int:
    """Bits of a layer; of two levels equally near the larger.

    Args:
        score: importance in [0, 1].
        alpha: in (0, 1].

    Raises:
        InvalidRequest: a value outside its range.
    """
    if not 0 < alpha <= 1:
        raise InvalidRequest(f"alpha must be in (0, 1], not {alpha:g}")
    if not 0 <= score <= 1:
        raise InvalidRequest(f"an importance must be in [0, 1], not {score:g}")
    wanted = LEVELS[0] + (LEVELS[-1] - LEVELS[0]) * score ** ((1 - alpha) / alpha)
    return min(LEVELS, key=lambda level: (abs(level - wanted), -level))


def plan_alpha(request: PlanRequest) -> Plan:
    """The plan of ``request.alpha``.

    Raises:
        InvalidRequest: no alpha was given.
        DoesNotFit: the plan exceeds the limit.
    """
    if request.alpha is None:
        raise InvalidRequest("policy alpha needs an alpha in (0, 1]")
    overhead = request.overhead or Overhead()
    choice = _choice(request, request.alpha)
    if not fits(request, overhead, choice):
        what = f"the plan for alpha {request.alpha:g}"
        raise does_not_fit("alpha", what, request, overhead, choice, _advice(request, overhead, request.alpha))
    return build_plan("alpha", request, overhead, choice)


def _advice(request: PlanRequest, overhead: Overhead, alpha: float) -> str:
    smaller = (step / 100 for step in range(99, 0, -1) if step / 100 < alpha)
    fitting = next((a for a in smaller if fits(request, overhead, _choice(request, a))), None)
    return f"alpha {fitting:g} would fit" if fitting else "no smaller alpha fits either"


def _choice(request: PlanRequest, alpha: float) -> Choice:
    scores = request.scores
    return Choice(tuple(f"int{bits_for(s, alpha)}" for s in scores), request.outside_choice or OUTSIDE, scores)
