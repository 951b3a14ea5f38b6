"""Many plans at once: the frontier of size and loss, and ladders whose steps share layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lamella.api.losses import loss_request
from lamella.api.plans import needs_of
from lamella.core.artifacts import (
    Measurement,
)
from lamella.core.errors import InvalidRequest
from lamella.core.units import as_bytes
from lamella.planning import frontier as planning_frontier
from lamella.planning.constraints import Constraints, Prices
from lamella.planning.frontier import DEFAULT_POINTS, Frontier
from lamella.planning.ladder import DEFAULT_RATIO, JointBudget, Ladder, evenly_spaced, plan_ladder
from lamella.planning.request import PlanRequest

DEFAULT_STEPS = 6
DEFAULT_FIRST_BITS = planning_frontier.WIDEST_BITS


def frontier(
    model: str | Path,
    measurement: Measurement,
    *,
    points: int = DEFAULT_POINTS,
    min_bits: float | None = None,
    max_bits: float | None = None,
    constraints: Constraints | None = None,
    prices: Prices | None = None,
) -> Frontier:
    """The least predicted loss at each size, and the plan for it, in one call.

    Args:
        model: a path, ``smollm2``, or ``spec:NAME``.
        measurement: what each tensor loses at each type.
        points: how many sizes, evenly spaced in bits per weight.
        min_bits, max_bits: ends of the range; None: the smallest plan, and at most 8.5.
        prices: from ``measured_prices``, to predict speeds too.

    Raises:
        InvalidRequest, ArtifactError: see ``lamella.planning.frontier.frontier``.
    """
    request = loss_request(model, measurement)
    request = replace(request, constraints=constraints or Constraints(), prices=prices or {})
    return planning_frontier.frontier(request, points, min_bits, max_bits)


def ladder(
    model: str | Path,
    measurement: Measurement,
    *,
    steps: int | None = None,
    first_bits: float | None = None,
    last_bits: float | None = None,
    memory: Sequence[str | int] = (),
    budget: str | int | None = None,
    worst_ratio: float = DEFAULT_RATIO,
    constraints: Constraints | None = None,
    context: int | None = None,
    parallel: int = 1,
    kv_type: str = "F16",
) -> Ladder:
    """Plan several variants together, so that a store holds their common layers once.

    Args:
        model: a path, ``smollm2``, or ``spec:NAME``.
        measurement: what each tensor loses at each type.
        steps, first_bits, last_bits: so many steps, evenly spaced in bits per weight; default 6, from 8.5, or from
            what the file has if that is less, to the smallest plan's.
        memory: in place of these: one step for each memory size, what else running needs included.
        budget: for the weights of all steps: ``1.6x`` (times the largest step), or bytes; None: as little as
            ``worst_ratio`` allows.
        worst_ratio: without a budget: predicted loss of a step, at most, against that of the step planned alone.
        context, parallel, kv_type: with memory: what it is kept for.

    Raises:
        InvalidRequest, DoesNotFit, ArtifactError: see ``lamella.planning.ladder.plan_ladder``.
    """
    base = replace(loss_request(model, measurement), constraints=constraints or Constraints())
    joint = JointBudget.parse(budget) if isinstance(budget, str) else JointBudget(n_bytes=budget) if budget else None
    if not memory:
        sizes = evenly_spaced(base.spec, *_range_of_steps(base, steps, first_bits, last_bits))
        return plan_ladder([replace(base, weights_bytes=size) for size in sizes], joint, worst_ratio)
    if steps is not None or first_bits is not None or last_bits is not None:
        raise InvalidRequest("a ladder has steps from bits to bits, or one for each memory size, not both")
    needs = needs_of(model, base.spec, "ladder", context, parallel, kv_type)
    budgets = [as_bytes(size) for size in memory]
    return plan_ladder([replace(needs(base, b), budget_bytes=b) for b in budgets], joint, worst_ratio)


def _range_of_steps(
    request: PlanRequest, steps: int | None, first_bits: float | None, last_bits: float | None
) -> tuple[int, float, float]:
    """How many steps, and from how many bits to how many; not from more than a plan that loses nothing has.

    All larger plans are that one, as the tensors are stored, and steps would come out alike.
    """
    smallest, largest = planning_frontier.frontier(request, 2).points
    first = DEFAULT_FIRST_BITS if first_bits is None else first_bits
    if largest.predicted_loss == 0:
        first = min(first, largest.bits_per_weight)
    return (
        DEFAULT_STEPS if steps is None else steps,
        first,
        smallest.bits_per_weight if last_bits is None else last_bits,
    )
