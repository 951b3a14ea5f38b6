"""``knapsack``: a ggml type for every tensor, embedding and head included, so that the predicted loss is least.

    PlanRequest(spec, losses=measurement.tensors, budget_bytes=2 * GIB)        # memory, overhead included
    PlanRequest(spec, losses=measurement.tensors, bits_per_weight=4.5)         # weights alone
    PlanRequest(spec, losses=measurement.tensors, loss_ceiling=0.05)           # the smallest plan that loses no more
    PlanRequest(spec, losses=measurement.tensors, ms_per_token=30, prices=...) # as fast as that on this machine

Limits may be combined.  ``multichoice`` and ``exact`` say how the choice is found; a plan's settings hold how far from
the best it can be (``loss_bound`` or ``bytes_bound``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lamella.core.artifacts import Plan
from lamella.core.errors import DoesNotFit, InvalidRequest
from lamella.core.precision import MENU, container
from lamella.core.units import format_bytes
from lamella.planning.cost import build_tensor_plan, plan_does_not_fit
from lamella.planning.importance import normalise
from lamella.planning.multichoice import Problem
from lamella.planning.options import PER_UNIT, Group, Option, OptionMenu, option_menu
from lamella.planning.request import MOST, Overhead, PlanRequest, check_goals
from lamella.planning.solve import best_within
from lamella.planning.uniform import OUTSIDE

Kind = Literal["bytes", "loss", "token", "prompt"]
"""What is limited or made least: bytes of weights, 1e-12 nats a token, picoseconds of a token written or read."""

Limits = Mapping[Kind, int]


@dataclass(frozen=True, slots=True)
class Solution:
    """Picks for a menu, and what is known of them.

    Attributes:
        picks: index of each group's option.
        least: what was made least.
        bound: no picks within the limits have less of it.
    """

    picks: tuple[int, ...]
    least: Kind
    bound: int


def plan_knapsack(request: PlanRequest) -> Plan:
    """The plan of least predicted loss within the limits; with a ceiling on the loss, the smallest plan under it.

    Without any limit every tensor stays as the source stores it.

    Raises:
        InvalidRequest: no losses, arguments of other policies, or limits and constraints that no plan can keep.
        DoesNotFit: the smallest plan exceeds the bytes there are.
        ArtifactError: the losses are not for this model's tensors.
    """
    _check(request)
    overhead = request.overhead or Overhead()
    limits = _limits(request, overhead)
    priced_only = "token" in limits or "prompt" in limits
    menu = option_menu(request.spec, request.losses, request.constraints, request.prices, priced_only=priced_only)
    _check_reachable(menu, limits)
    smallest = _solve(menu, "bytes", {k: v for k, v in limits.items() if k != "bytes"}, request.exact)
    if smallest is None:
        raise InvalidRequest(f"no plan keeps all limits together, though each alone can be kept: {_listed(request)}")
    if menu.n_bytes(smallest.picks) > limits.get("bytes", math.inf):
        raise _too_large(request, overhead, menu, smallest, limits)
    if request.loss_ceiling is not None:
        return _plan(request, overhead, menu, smallest)
    best = _solve(menu, "loss", limits, request.exact)
    return _plan(request, overhead, menu, best or Solution(smallest.picks, "loss", 0))


def uniform_picks(menu: OptionMenu) -> Iterator[tuple[int, ...]]:
    """One precision or type for all layers; embedding and head the same, INT8, or as they are (``policy uniform``)."""
    outer = [i for i, g in enumerate(menu.groups) if g.tensors[0].layer is None]
    names = {o.type_name for g in menu.groups for o in g.options}
    rows = {label: [_option_at(g, label) for g in menu.groups] for label in (*MENU, *names)}
    kept = [0 if g.options[0].loss == 0 else None for g in menu.groups]
    for row in rows.values():
        for outside in (row, rows[OUTSIDE], kept):
            picks = [outside[i] if i in outer else at for i, at in enumerate(row)]
            found = tuple(at for at in picks if at is not None)
            if len(found) == len(picks):
                yield found


def _option_at(group: Group, precision: str) -> int | None:
    """The option that a uniform plan of this precision takes; None where the group does not have it."""
    if precision not in MENU:
        return group.option(precision)
    return group.option(container(precision, group.tensors[0].row_length).name)


def _solve(menu: OptionMenu, least: Kind, limits: Limits, exact: bool) -> Solution | None:
    kinds = [kind for kind in limits if kind != least]
    problem = Problem(
        amounts(menu, least),
        [amounts(menu, kind) for kind in kinds],
        [limits[kind] - (menu.kept_bytes if kind == "bytes" else 0) for kind in kinds],
    )
    answer = best_within(problem, exact=exact)
    if answer is None:
        return None
    picks = min((answer.picks, *filter(problem.keeps, uniform_picks(menu))), key=problem.cost)
    return Solution(picks, least, answer.bound + (menu.kept_bytes if least == "bytes" else 0))


def amounts(menu: OptionMenu, kind: Kind) -> list[list[int]]:
    """What each option of each group has of one kind."""
    return [[_amount(option, kind) for option in group.options] for group in menu.groups]


def _amount(option: Option, kind: Kind) -> int:
    if kind == "bytes":
        return option.n_bytes
    if kind == "loss":
        return option.loss
    assert option.times is not None, "limits on time leave priced types only"
    return option.times.token if kind == "token" else option.times.prompt


def _limits(request: PlanRequest, overhead: Overhead) -> dict[Kind, int]:
    limits: dict[Kind, int] = {}
    n_bytes = bytes_limit(request, overhead)
    if n_bytes is not None:
        limits["bytes"] = n_bytes
    if request.loss_ceiling is not None:
        limits["loss"] = round(request.loss_ceiling * PER_UNIT)
    if request.ms_per_token is not None:
        limits["token"] = round(request.ms_per_token * PER_UNIT / 1000)
    if request.prompt_tokens_per_second is not None:
        limits["prompt"] = round(PER_UNIT / max(request.prompt_tokens_per_second, 1 / MOST))
    return limits


def bytes_limit(request: PlanRequest, overhead: Overhead) -> int | None:
    """Bytes that weights may take, be it by memory or by what was said of them; None where nothing was said."""
    limits = [weights_limit(request)]
    if request.budget_bytes is not None:
        limits.append(request.budget_bytes - overhead.total)
    return min((limit for limit in limits if limit is not None), default=None)


def weights_limit(request: PlanRequest) -> int | None:
    """Bytes that weights alone may take; None where nothing was said of them."""
    limits = []
    if request.weights_bytes is not None:
        limits.append(request.weights_bytes)
    if request.bits_per_weight is not None:  # the bits of a plan, asked for again, are that plan's bytes
        limits.append(math.floor(request.bits_per_weight * request.spec.n_weights / 8 + 1e-3))
    return min(limits, default=None)


def _check(request: PlanRequest) -> None:
    if request.scheme != "block":
        raise InvalidRequest(f"policy knapsack plans ggml's own types; scheme {request.scheme} has no choice of them")
    if request.outside is not None:
        raise InvalidRequest(
            "policy knapsack chooses embedding and head too; set a floor instead, such as at least token_embd=Q6_K"
        )
    if request.average_bits is not None:
        raise InvalidRequest("policy knapsack has no target of average bits; give bits per weight")
    if request.weights_bytes is not None and request.weights_bytes <= 0:
        raise InvalidRequest(f"bytes of weights must be more than zero, not {request.weights_bytes}")
    check_goals(request.loss_ceiling, request.ms_per_token, request.prompt_tokens_per_second)


def _check_reachable(menu: OptionMenu, limits: Limits) -> None:
    """Refuse limits, other than on bytes, that no plan keeps even alone."""
    for kind, limit in limits.items():
        if kind == "bytes":
            continue
        least = sum(map(min, amounts(menu, kind)))
        if least > limit:
            raise InvalidRequest(_SAYS[kind].format(least=_in_words(kind, least), limit=_in_words(kind, limit)))


_SAYS: Mapping[Kind, str] = {
    "loss": "the best plan is predicted to lose {least}, more than the ceiling of {limit}",
    "token": "the fastest plan takes {least} a token in matrix products alone, more than {limit}",
    "prompt": "the fastest plan reads {least} in matrix products alone, fewer than {limit}",
}


def _in_words(kind: Kind, amount: int) -> str:
    if kind == "loss":
        return f"{amount / PER_UNIT:.4g} nats a token"
    if kind == "token":
        return f"{amount * 1000 / PER_UNIT:.3g} ms"
    return f"{PER_UNIT / amount:.3g} prompt tokens a second" if amount else "any number of prompt tokens a second"


def _too_large(
    request: PlanRequest, overhead: Overhead, menu: OptionMenu, smallest: Solution, limits: Limits
) -> DoesNotFit:
    """The error for the bytes there are: of the memory with its overhead, or of weights alone, whichever is less."""
    alone = weights_limit(request)
    if alone is not None and alone <= limits["bytes"]:
        request, overhead = replace(request, budget_bytes=alone), Overhead()
    others = _listed(replace(request, bits_per_weight=None, weights_bytes=None))
    what = "the smallest plan" + (f" within the other limits ({others})" if others else "")
    plan = _plan(request, overhead, menu, smallest)
    advice = f"it has {plan.bits_per_weight:.2f} bits per weight"
    free = option_menu(request.spec, request.losses)
    freed = free.kept_bytes + sum(map(min, amounts(free, "bytes")))
    if freed <= limits["bytes"] and request.constraints.settings():
        advice += f"; without the constraints {format_bytes(freed)} of weights would do"
    if request.loss_ceiling is not None:
        best = _solve(menu, "loss", {k: v for k, v in limits.items() if k != "loss"}, exact=False)
        advice += f"; these bytes allow a loss of {menu.loss(best.picks):.4g}" if best else ""
    return plan_does_not_fit(plan, what, request, advice)


def _listed(request: PlanRequest) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in _asked(request).items())


def _asked(request: PlanRequest) -> dict[str, int | float]:
    asked = {
        "bits_per_weight": request.bits_per_weight,
        "weights_bytes": request.weights_bytes,
        "loss_ceiling": request.loss_ceiling,
        "ms_per_token": request.ms_per_token,
        "prompt_tokens_per_second": request.prompt_tokens_per_second,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _plan(request: PlanRequest, overhead: Overhead, menu: OptionMenu, solution: Solution) -> Plan:
    bound = solution.bound if solution.least == "bytes" else solution.bound / PER_UNIT
    settings: dict[str, int | float | str] = {
        **_asked(request),
        **request.constraints.settings(),
        f"{solution.least}_bound": bound,
        **speeds(menu, solution.picks),
    }
    return build_tensor_plan(
        "knapsack",
        request,
        overhead,
        menu.types(solution.picks),
        scores=layer_scores(request),
        predicted_loss=menu.loss(solution.picks),
        settings=settings,
    )


def speeds(menu: OptionMenu, picks: Sequence[int]) -> dict[str, float]:
    """Predicted from matrix products alone, where the types have prices; attention and the rest come on top."""
    times = menu.times(picks)
    if times is None:
        return {}
    found = {"predicted_ms_per_token": times.token * 1000 / PER_UNIT}
    if times.prompt:
        found["predicted_prompt_tokens_per_second"] = PER_UNIT / times.prompt
    return found


def layer_scores(request: PlanRequest) -> tuple[float, ...]:
    """What each layer loses at the probes of its tensors, relative to the layer that loses most."""
    layer_of = {t.name: t.layer for t in request.spec.tensors}
    sums = [0.0] * request.spec.n_layers
    for loss in request.losses:
        layer = layer_of.get(loss.tensor)
        if layer is not None:
            sums[layer] += loss.mean
    return normalise(sums, request.spec.n_layers)
