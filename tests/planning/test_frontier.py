"""The frontier: rising size, falling loss, the same plans that a plan of that size gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella.core.errors import InvalidRequest
from lamella.planning.constraints import Constraints, TypePrice
from lamella.planning.cost import bits_per_weight, weight_bytes
from lamella.planning.frontier import frontier, predicted_loss
from lamella.planning.policies import make_plan
from lamella.planning.request import PlanRequest
from tests.planning.losses import made_losses
from tests.planning.models import tiny_spec

SPEC = tiny_spec(6)
REQUEST = PlanRequest(SPEC, losses=made_losses(SPEC))


def test_sizes_rise_and_losses_fall() -> None:
    points = frontier(REQUEST, 12, max_bits=17).points
    sizes, losses = [p.weights_bytes for p in points], [p.predicted_loss for p in points]
    assert sizes == sorted(set(sizes))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0
    assert all(p.loss_bound <= p.predicted_loss for p in points)
    assert all(p.loss_bound == p.predicted_loss for p in points if p.on_hull)
    assert points[0].on_hull
    assert points[-1].on_hull


def test_points_are_the_plans_of_their_sizes() -> None:
    for point in frontier(REQUEST, 5).points:
        plan = make_plan("knapsack", replace(REQUEST, bits_per_weight=point.bits_per_weight))
        assert plan.bytes.weights == point.weights_bytes == weight_bytes(SPEC, point.tensors)
        assert plan.predicted_loss == point.predicted_loss
        assert point.bits_per_weight == bits_per_weight(SPEC, point.tensors)
        assert predicted_loss(REQUEST, point.tensors) == point.predicted_loss


def test_the_hull_lies_below_all_points() -> None:
    found = frontier(REQUEST, 9)
    bits = [b for b, _ in found.hull]
    assert bits == sorted(bits)
    for point in found.points:
        later = [loss for b, loss in found.hull if b >= point.bits_per_weight]
        assert min(later) <= point.predicted_loss


def test_the_range_is_the_asked_one_or_the_useful_one() -> None:
    usual = frontier(REQUEST, 7).points
    assert usual[-1].bits_per_weight <= 8.5
    assert usual[0].bits_per_weight == min(p.bits_per_weight for p in frontier(REQUEST, 2, max_bits=17).points)
    part = frontier(REQUEST, 7, min_bits=4, max_bits=5).points
    assert all(p.bits_per_weight <= 5 for p in part)
    assert part[0].bits_per_weight <= 4


def test_constraints_move_the_whole_frontier() -> None:
    spec, constraints = tiny_spec(1), Constraints(at_least=(("token_embd", "F16"),))
    points = frontier(PlanRequest(spec, losses=made_losses(spec), constraints=constraints), 4).points
    assert points[0].bits_per_weight > 8.5  # and therefore to the largest
    assert all(p.tensors["token_embd.weight"] == "F16" for p in points)
    assert points[-1].predicted_loss == 0


def test_speeds_are_said_where_types_have_prices() -> None:
    assert {p.ms_per_token for p in frontier(REQUEST, 3).points} == {None}
    prices = {name: TypePrice(1, 2, 1, 2) for name in REQUEST.losses[0].by_type}
    n = sum(t.n_weights for t in SPEC.tensors if t.is_matrix)  # the embedding is the head
    for point in frontier(replace(REQUEST, prices=prices), 3).points:
        assert point.ms_per_token == pytest.approx(n / 1e6)
        assert point.prompt_tokens_per_second == pytest.approx(1e9 / (2 * (n - 256 * 1000)))


@pytest.mark.parametrize(
    ("points", "least", "most", "says"),
    [
        (1, None, None, "at least 2 points, not 1"),
        (5, 6.0, 5.0, "no plan has 6 to 5 bits per weight; they have"),
        (5, None, 1.0, "no plan has 0 to 1"),
        (5, 20.0, None, "no plan has 20"),
        (5, -1.0, None, "above 0, .* not -1"),
        (5, None, 1e308, r"at most 1e\+12, not 1e\+308"),
        (5, 1e308, None, r"at most 1e\+12, not 1e\+308"),
    ],
)
def test_ranges_without_plans_are_refused(points: int, least: float | None, most: float | None, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        frontier(REQUEST, points, least, most)
