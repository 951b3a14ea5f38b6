"""``lsaq``: the strategy of LSAQ (section III, Table IV).

FP16 if it fits; else INT8; else INT8 with as few as possible of the layers, the least important ones, at INT4; else it
does not fit, and the caller waits for memory or gives up.  Embedding and head stay as they are, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator

from lamella.core.artifacts import Plan
from lamella.planning.cost import Choice, build_plan, does_not_fit, fits
from lamella.planning.importance import least_important_first
from lamella.planning.request import KEEP, LSAQ_OVERHEAD, Overhead, PlanRequest


def plan_lsaq(request: PlanRequest) -> Plan:
    """The plan of most bits that fits the budget; without a budget FP16.

    Raises:
        DoesNotFit: not even all layers at INT4 fit.
    """
    overhead = overhead_of(request)
    smallest = None
    for choice in _ladder(request):
        if fits(request, overhead, choice):
            return build_plan("lsaq", request, overhead, choice)
        smallest = choice
    assert smallest is not None
    raise does_not_fit(
        "lsaq", "the smallest plan (all INT4)", request, overhead, smallest, "free memory, shorten the context, or wait"
    )


def overhead_of(request: PlanRequest) -> Overhead:
    """The caller's overhead; by default LSAQ's own arithmetic for a specification, exact bytes for a model file."""
    if request.overhead is not None:
        return request.overhead
    return Overhead() if request.spec.identity.weights else LSAQ_OVERHEAD


def _ladder(request: PlanRequest) -> Iterator[Choice]:
    """Choices of falling size: FP16, INT8, then one more layer at INT4 each time."""
    n_layers, outside, scores = request.spec.n_layers, request.outside_choice or KEEP, request.scores
    yield Choice(("fp16",) * n_layers, outside, scores)
    precisions = ["int8"] * n_layers
    yield Choice(tuple(precisions), outside, scores)
    for layer in least_important_first(scores):
        precisions[layer] = "int4"
        yield Choice(tuple(precisions), outside, scores)
