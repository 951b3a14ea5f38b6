"""``uniform``: one precision for all layers; with a limit and no precision, the largest within it."""

from __future__ import annotations

from lamella.core.artifacts import Plan
from lamella.core.errors import InvalidRequest
from lamella.core.precision import MENU, nominal_bits
from lamella.planning.cost import Choice, build_plan, does_not_fit, fits
from lamella.planning.request import KEEP, Overhead, PlanRequest, canonical

OUTSIDE = "int8"
"""Precision of embedding and head for layers of at most 8 bits.

llama-quantize stores the head in Q6_K or Q8_0 because errors there reach the logits directly.  The same choice at
every precision lets all variants of a store share these two shards, which are large in small models.
"""


def plan_uniform(request: PlanRequest) -> Plan:
    """All layers at ``request.precision``, or at the largest precision of the menu within the limit.

    Raises:
        InvalidRequest: neither a precision nor a limit was given.
        DoesNotFit: the plan, or the smallest one where the precision is free, exceeds the limit.
    """
    overhead = request.overhead or Overhead()
    if request.precision is not None:
        return _at(request, overhead, request.precision)
    if not request.has_limit:
        raise InvalidRequest(
            f"policy uniform needs a precision ({', '.join(MENU)}), or a limit: memory, average bits or bits per weight"
        )
    for precision in MENU:
        choice = _choice(request, precision)
        if fits(request, overhead, choice):
            return build_plan("uniform", request, overhead, choice)
    smallest = min(MENU, key=nominal_bits)
    raise does_not_fit(
        "uniform", f"the smallest plan (all {smallest.upper()})", request, overhead, _choice(request, smallest)
    )


def _at(request: PlanRequest, overhead: Overhead, precision: str) -> Plan:
    choice = _choice(request, precision)
    if not fits(request, overhead, choice):
        raise does_not_fit(
            "uniform", f"the uniform {precision} plan", request, overhead, choice, _advice(request, overhead, precision)
        )
    return build_plan("uniform", request, overhead, choice)


def _advice(request: PlanRequest, overhead: Overhead, precision: str) -> str:
    smaller = (p for p in MENU if nominal_bits(p) < nominal_bits(precision))
    fitting = next((p for p in smaller if fits(request, overhead, _choice(request, p))), None)
    return f"uniform {fitting} would fit" if fitting else "no smaller uniform precision fits either"


def _choice(request: PlanRequest, precision: str) -> Choice:
    name = canonical(precision)
    return Choice((name,) * request.spec.n_layers, request.outside_choice or outside_for(name))


def outside_for(precision: str) -> str:
    """Default precision of embedding and head beside layers of ``precision``: INT8, or kept with wider layers."""
    return OUTSIDE if nominal_bits(precision) < 16 else KEEP
