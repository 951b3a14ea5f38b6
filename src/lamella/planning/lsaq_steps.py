"""The steps of LSAQ and LWQ: FP16, INT8, then INT8 with one more layer at INT4 each time, least important first.

    take_step("lsaq", request, least_important_first(scores), scores)

The papers differ in how they order the layers and in nothing else (LSAQ, section IV, tests LWQ under its own
quantization), so policies that are compared with each other share this: ``lsaq``, ``lwq-cosine``, ``lwq-outlier`` and
``random``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lamella.core.artifacts import Plan
from lamella.planning.cost import Choice, build_plan, does_not_fit, fits
from lamella.planning.request import KEEP, LSAQ_OVERHEAD, Overhead, PlanRequest


def take_step(policy: str, request: PlanRequest, order: Sequence[int], scores: tuple[float, ...] | None = None) -> Plan:
    """The largest step within the request's limit; without a limit FP16.

    Args:
        order: all layers, in the order in which they go to INT4.
        scores: the importance that led to the order, in [0, 1], to be shown in the plan.

    Raises:
        DoesNotFit: not even all layers at INT4 are within the limit.
    """
    overhead = overhead_of(request)
    smallest = None
    for choice in _steps(request, order, scores):
        if fits(request, overhead, choice):
            return build_plan(policy, request, overhead, choice)
        smallest = choice
    assert smallest is not None
    advice = "free memory, shorten the context, or wait" if request.budget_bytes is not None else ""
    raise does_not_fit(policy, "the smallest plan (all INT4)", request, overhead, smallest, advice)


def overhead_of(request: PlanRequest) -> Overhead:
    """The caller's overhead; by default LSAQ's own arithmetic for a specification, exact bytes for a model file."""
    if request.overhead is not None:
        return request.overhead
    return Overhead() if request.spec.identity.weights else LSAQ_OVERHEAD


def _steps(request: PlanRequest, order: Sequence[int], scores: tuple[float, ...] | None) -> Iterator[Choice]:
    """Choices of falling size."""
    n_layers, outside = request.spec.n_layers, request.outside_choice or KEEP
    yield Choice(("fp16",) * n_layers, outside, scores)
    precisions = ["int8"] * n_layers
    yield Choice(tuple(precisions), outside, scores)
    for layer in order:
        precisions[layer] = "int4"
        yield Choice(tuple(precisions), outside, scores)
