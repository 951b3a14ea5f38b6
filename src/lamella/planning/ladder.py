"""A ladder: plans of falling size, made together so that layers are stored once for several of them.

    sizes = evenly_spaced(spec, n_steps=6, first_bits=8.5, last_bits=3.5)
    ladder = plan_ladder([replace(request, weights_bytes=n) for n in sizes], joint_budget=JointBudget.parse("1.6x"))
    [step.plan for step in ladder.steps], ladder.joint_bytes

Planned alone, two steps rarely agree on a layer, and a store holds the sum of them.  Here the steps agree where that
costs little (ALCS, joint storage): either within a budget for all of them, so that the step that strays farthest from
its own best plan strays as little as can be; or in as few bytes as can be, while no step strays beyond a given ratio.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

from lamella.core.artifacts import Plan
from lamella.core.errors import DoesNotFit, InvalidRequest
from lamella.core.model import ModelSpec, shard_groups
from lamella.core.units import format_bytes, parse_bytes
from lamella.planning.cost import build_tensor_plan
from lamella.planning.knapsack import bytes_limit, layer_scores, plan_knapsack
from lamella.planning.options import OptionMenu, option_menu
from lamella.planning.request import MOST, Overhead, PlanRequest
from lamella.planning.sharing import SharedProblem, UnitPicks, share

DEFAULT_RATIO = 1.05
"""Predicted loss of a step, at most, against the same step planned alone."""

_TIMES = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*[xX]\s*")


@dataclass(frozen=True, slots=True)
class JointBudget:
    """What all steps may take together: so many times the largest step, or bytes."""

    times_largest: float | None = None
    n_bytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """``1.6x`` or a size such as ``3GiB``.

        Raises:
            InvalidRequest: the text is neither, or less than 1x.
        """
        match = _TIMES.fullmatch(text)
        if match is None:
            try:
                return cls(n_bytes=parse_bytes(text))
            except InvalidRequest:
                raise InvalidRequest(f"'{text}' is no budget for a ladder; write 1.6x or a size such as 3GiB") from None
        if not 1 <= float(match.group(1)) <= MOST:
            raise InvalidRequest(
                f"a ladder takes at least 1x its largest step, at most {MOST:g}x, not {text.strip()[:40]}"
            )
        return cls(times_largest=float(match.group(1)))

    def resolve(self, largest_bytes: int) -> int:
        """Bytes for all steps, given those of the largest."""
        return math.floor((self.times_largest or 0) * largest_bytes) if self.n_bytes is None else self.n_bytes


@dataclass(frozen=True, slots=True)
class LadderStep:
    """One step.

    Attributes:
        plan: what it stores.
        alone_loss: predicted for the best plan of the same limit made alone, in nats a token.
        alone_bytes: of the weights of that plan.
    """

    plan: Plan
    alone_loss: float
    alone_bytes: int

    @property
    def loss_ratio(self) -> float:
        """What sharing costs: predicted loss by that of the step alone."""
        loss = self.plan.predicted_loss or 0.0
        return loss / self.alone_loss if self.alone_loss else 1.0 if loss == 0 else math.inf


@dataclass(frozen=True, slots=True)
class Ladder:
    """Steps of falling size.

    Attributes:
        own_bytes: of each step, what no other step uses.
        joint_bytes: of the weights of all steps, those that steps share counted once.
        budget_bytes: for that; None where the ratio was given instead.
        ratio_bound: no ladder within the budget has a smaller worst ratio; None where the ratio was given.
        joint_bound: no ladder within the ratio has fewer joint bytes; None where a budget was given.
    """

    steps: tuple[LadderStep, ...]
    own_bytes: tuple[int, ...]
    joint_bytes: int
    budget_bytes: int | None
    ratio_bound: float | None
    joint_bound: int | None

    @property
    def sum_bytes(self) -> int:
        """Of the weights of all steps as separate files."""
        return sum(step.plan.bytes.weights for step in self.steps)

    @property
    def worst_ratio(self) -> float:
        return max(step.loss_ratio for step in self.steps)


def evenly_spaced(spec: ModelSpec, n_steps: int, first_bits: float, last_bits: float) -> tuple[int, ...]:
    """Bytes of weights of steps evenly spaced in bits per weight, largest first.

    Raises:
        InvalidRequest: fewer than two steps, or no range.
    """
    if n_steps < 2:
        raise InvalidRequest(f"a ladder has at least 2 steps, not {n_steps}")
    if not 0 < last_bits < first_bits <= MOST:
        raise InvalidRequest(
            f"a ladder falls from many bits per weight, at most {MOST:g}, to few, "
            f"not from {first_bits:g} to {last_bits:g}"
        )
    between = (first_bits - last_bits) / (n_steps - 1)
    return tuple(math.floor((first_bits - i * between) * spec.n_weights / 8 + 1e-3) for i in range(n_steps))


def plan_ladder(
    requests: Sequence[PlanRequest], joint_budget: JointBudget | None = None, worst_ratio: float = DEFAULT_RATIO
) -> Ladder:
    """Plan all steps together.

    Args:
        requests: one for each step, with the same model, losses and constraints; each limited in memory or bytes of
            weights.  Steps come out by falling limit.
        joint_budget: for the weights of all steps; None: as little as ``worst_ratio`` allows.
        worst_ratio: without a budget: no step is predicted to lose more than so many times what it loses alone.

    Raises:
        InvalidRequest: fewer than two steps, two of one size, one without a limit, a ratio below 1.
        DoesNotFit: a step is too small for any plan, or the budget for the ladder of the smallest plans.
        ArtifactError: the losses are not for this model's tensors.
    """
    if not (math.isfinite(worst_ratio) and worst_ratio >= 1):
        raise InvalidRequest(f"a step cannot lose less than 1 times what it loses alone, and {worst_ratio:g} was asked")
    limited = sorted(((_limit(request), i, request) for i, request in enumerate(requests)), key=lambda x: (-x[0], x[1]))
    ordered = [request for _, _, request in limited]
    limits = [limit for limit, _, _ in limited]
    if len(ordered) < 2:
        raise InvalidRequest(f"a ladder has at least 2 steps, not {len(ordered)}")
    if twice := [b for a, b in pairwise(limits) if a == b]:
        raise InvalidRequest(f"two steps have the same {format_bytes(twice[0])} for weights")
    alone = [plan_knapsack(request) for request in ordered]
    menu = option_menu(ordered[0].spec, ordered[0].losses, ordered[0].constraints)
    layout = _Layout(menu)
    budget = None if joint_budget is None else joint_budget.resolve(alone[0].bytes.weights)
    problem = SharedProblem(
        units=[[[(o.n_bytes, o.loss) for o in menu.groups[g].options] for g in unit] for unit in layout.units],
        fixed=layout.fixed_bytes,
        limits=limits,
        alone=[layout.split(menu.picks_of(plan.tensors)) for plan in alone],
        joint_limit=budget,
        worst_ratio=worst_ratio,
    )
    _check_budget(budget, alone[-1], menu)
    found = share(problem)
    steps = tuple(
        LadderStep(_plan(request, menu, layout.join(picks), f"{i + 1} of {len(ordered)}", by_itself),
                   by_itself.predicted_loss or 0.0, by_itself.bytes.weights)
        for i, (request, picks, by_itself) in enumerate(zip(ordered, found.picks, alone, strict=True))
    )  # fmt: skip
    return Ladder(
        steps,
        _own_bytes(problem, found.picks),
        found.joint_weight,
        budget,
        ratio_bound=None if budget is None else found.bound,
        joint_bound=None if budget is not None else math.ceil(found.bound),
    )


def _check_budget(budget: int | None, smallest: Plan, menu: OptionMenu) -> None:
    """Refuse a budget that not even the lightest plan, for all steps, is within."""
    least = menu.kept_bytes + sum(min(option.n_bytes for option in group.options) for group in menu.groups)
    if budget is not None and budget < least:
        raise DoesNotFit(
            f"a ladder takes at least what the lightest plan does, {format_bytes(least)}, more than the budget of "
            f"{format_bytes(budget)} for all steps",
            needed_bytes=least,
            budget_bytes=budget,
            smallest_plan=smallest,
        )


class _Layout:
    """Which groups of a menu lie in which shard: what a store can share is a shard, or nothing of it."""

    def __init__(self, menu: OptionMenu) -> None:
        number_of = {t.name: i for i, g in enumerate(menu.groups) for t in g.tensors}
        kept = {t.name: t.n_bytes for t in menu.kept}
        shards = [group.tensors for group in shard_groups(menu.spec) if group.tensors]
        self.units = [sorted({number_of[t.name] for t in ts if t.name in number_of}) for ts in shards]
        self.fixed_bytes = [sum(kept.get(t.name, 0) for t in ts) for ts in shards]
        self._n_groups = len(menu.groups)

    def split(self, picks: Sequence[int] | None) -> tuple[tuple[int, ...], ...]:
        """Picks of a whole plan -> of each unit."""
        assert picks is not None, "the plan was made from the same menu"
        return tuple(tuple(picks[g] for g in unit) for unit in self.units)

    def join(self, picks: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """The other way."""
        whole = [0] * self._n_groups
        for unit, chosen in zip(self.units, picks, strict=True):
            for group, pick in zip(unit, chosen, strict=True):
                whole[group] = pick
        return tuple(whole)


def _own_bytes(problem: SharedProblem, steps: Sequence[Sequence[UnitPicks]]) -> tuple[int, ...]:
    users = Counter((unit, version) for picks in steps for unit, version in enumerate(picks))
    return tuple(
        sum(problem.weight(unit, version) for unit, version in enumerate(picks) if users[unit, version] == 1)
        for picks in steps
    )


def _limit(request: PlanRequest) -> int:
    limit = bytes_limit(request, request.overhead or Overhead())
    if limit is None:
        raise InvalidRequest("each step of a ladder needs a size: bits per weight, bytes of weights or memory")
    return limit


def _plan(request: PlanRequest, menu: OptionMenu, picks: Sequence[int], step: str, alone: Plan) -> Plan:
    settings: dict[str, int | float | str] = {
        **request.constraints.settings(),
        "step": step,
        "alone_loss": alone.predicted_loss or 0.0,
    }
    return build_tensor_plan(
        "ladder",
        replace(request, bits_per_weight=None),
        request.overhead or Overhead(),
        menu.types(picks),
        scores=layer_scores(request),
        predicted_loss=menu.loss(picks),
        settings=settings,
    )
