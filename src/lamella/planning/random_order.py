"""``random``: the same ladder in a random order of the layers, the baseline that every importance has to beat.

    make_plan("random", PlanRequest(spec, average_bits=7, seed=3))

Equal seeds give equal orders on every machine and Python: only ``random()`` of the generator is used, whose sequence
the standard library promises to keep.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from lamella.core.artifacts import Plan
from lamella.planning.importance import least_important_first
from lamella.planning.lsaq_steps import take_step
from lamella.planning.request import PlanRequest


def plan_random(request: PlanRequest) -> Plan:
    """The plan of most bits within the limit, layers in the order of ``request.seed``; without a limit FP16.

    Raises:
        DoesNotFit: not even all layers at INT4 fit.
    """
    seed = request.seed or 0
    settings = {**request.settings, "seed": seed, "importance": "random"}
    return take_step("random", replace(request, settings=settings), random_order(request.spec.n_layers, seed))


def random_order(n_layers: int, seed: int) -> tuple[int, ...]:
    """All layers, each order as likely as any other."""
    draw = Random(seed)
    return least_important_first([draw.random() for _ in range(n_layers)])
