"""The whole frontier at once: the least predicted loss at each size.

    found = frontier(PlanRequest(spec, losses=measurement.tensors), n_points=25)
    for point in found.points:
        print(point.bits_per_weight, point.predicted_loss)

One sweep (``multichoice.Hull``) serves all sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lamella.core.errors import InvalidRequest
from lamella.core.model import ModelIdentity
from lamella.core.precision import GGML_TYPES
from lamella.planning.knapsack import amounts, speeds
from lamella.planning.multichoice import Hull
from lamella.planning.options import PER_UNIT, OptionMenu, option_menu
from lamella.planning.request import PlanRequest, check_amount

DEFAULT_POINTS = 25
WIDEST_BITS = GGML_TYPES["Q8_0"].bits_per_weight
"""Where the frontier ends if nobody says: above 8.5 bits per weight there is nothing to gain."""


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """The best plan found of a size.

    Attributes:
        bits_per_weight: over all weights, as stored.
        weights_bytes: of all tensors.
        predicted_loss: in nats a token.
        loss_bound: no plan of that size is predicted to lose less.
        on_hull: whether the plan is proven best by lying on the convex hull of all plans.
        ms_per_token, prompt_tokens_per_second: of matrix products alone; None where types have no price.
        tensors: tensor name -> ggml type.
    """

    bits_per_weight: float
    weights_bytes: int
    predicted_loss: float
    loss_bound: float
    on_hull: bool
    ms_per_token: float | None
    prompt_tokens_per_second: float | None
    tensors: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Frontier:
    """Points of rising size and falling loss.

    Attributes:
        hull: (bits per weight, predicted loss) of every vertex of the sweep between the first point and the last.
    """

    model: ModelIdentity
    points: tuple[FrontierPoint, ...]
    hull: tuple[tuple[float, float], ...]


def frontier(
    request: PlanRequest,
    n_points: int = DEFAULT_POINTS,
    min_bits: float | None = None,
    max_bits: float | None = None,
) -> Frontier:
    """The best plans at sizes evenly spaced in bits per weight; fewer where neighbours are the same plan.

    Args:
        request: model, losses, constraints and prices; its limits are not looked at.
        min_bits, max_bits: bits per weight; None: the smallest plan, and the smallest without loss but at most 8.5.

    Raises:
        InvalidRequest: fewer than two points, an empty range, or see ``options.option_menu``.
        ArtifactError: the losses are not for this model's tensors.
    """
    if n_points < 2:
        raise InvalidRequest(f"a frontier has at least 2 points, not {n_points}")
    menu = option_menu(request.spec, request.losses, request.constraints, request.prices)
    n_bytes, losses = amounts(menu, "bytes"), amounts(menu, "loss")
    hull = Hull([list(zip(bs, ls, strict=True)) for bs, ls in zip(n_bytes, losses, strict=True)])
    first, last = _range(menu, hull, min_bits, max_bits)
    targets = [first + (last - first) * i // (n_points - 1) for i in range(n_points)]
    points = [_point(menu, hull, target) for target in targets]
    distinct = [p for i, p in enumerate(points) if i == 0 or p.weights_bytes != points[i - 1].weights_bytes]
    vertices = [(w + menu.kept_bytes, c) for w, c in hull.vertices()]
    return Frontier(
        request.spec.identity,
        tuple(distinct),
        tuple(
            (_bits(menu, w), c / PER_UNIT)
            for w, c in vertices
            if distinct[0].weights_bytes <= w <= distinct[-1].weights_bytes
        ),
    )


def predicted_loss(request: PlanRequest, tensors: Mapping[str, str]) -> float | None:
    """What any plan of the model would lose, by the same measurement; None where a type was not measured."""
    menu = option_menu(request.spec, request.losses)
    picks = menu.picks_of(tensors)
    return None if picks is None else menu.loss(picks)


def _range(menu: OptionMenu, hull: Hull, min_bits: float | None, max_bits: float | None) -> tuple[int, int]:
    """Bytes of all weights at both ends; what the constraints do not allow is cut off."""
    smallest, largest = (w + menu.kept_bytes for w in (hull.least_weight, hull.least_cost_weight))
    for bits in (min_bits, max_bits):
        check_amount("bits per weight", bits)
    widest = WIDEST_BITS if max_bits is None and _bits(menu, smallest) < WIDEST_BITS else max_bits
    first = smallest if min_bits is None else max(smallest, _bytes(menu, min_bits))
    last = largest if widest is None else min(largest, _bytes(menu, widest))
    if first > last:
        raise InvalidRequest(
            f"no plan has {min_bits or 0:g} to {widest or 0:g} bits per weight; they have "
            f"{_bits(menu, smallest):.2f} to {_bits(menu, largest):.2f}"
        )
    return first, last


def _point(menu: OptionMenu, hull: Hull, target_bytes: int) -> FrontierPoint:
    answer = hull.best(target_bytes - menu.kept_bytes)
    assert answer is not None, "targets start at the smallest plan"
    n_bytes = menu.n_bytes(answer.picks)
    speed = speeds(menu, answer.picks)
    on_hull = hull.has_vertex(n_bytes - menu.kept_bytes, answer.cost)
    return FrontierPoint(
        bits_per_weight=_bits(menu, n_bytes),
        weights_bytes=n_bytes,
        predicted_loss=answer.cost / PER_UNIT,
        loss_bound=(answer.cost if on_hull else answer.bound) / PER_UNIT,
        on_hull=on_hull,
        ms_per_token=speed.get("predicted_ms_per_token"),
        prompt_tokens_per_second=speed.get("predicted_prompt_tokens_per_second"),
        tensors=menu.types(answer.picks),
    )


def _bits(menu: OptionMenu, n_bytes: int) -> float:
    return 8 * n_bytes / menu.spec.n_weights


def _bytes(menu: OptionMenu, bits: float) -> int:
    return math.floor(bits * menu.spec.n_weights / 8 + 1e-3)
