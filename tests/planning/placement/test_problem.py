"""What a request asks of a layer on a node."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lamella.core.errors import InvalidRequest
from lamella.planning.placement import Cluster, Layer, Node, Option, PlacementProblem, Request, Speed
from lamella.planning.placement.problem import CELL_STEP, Exchange, cells, check_problem

ONE = Node("one", 1000, {"int8": Speed(0.25, 1.0)}, watts=20.0, price_per_hour=7200.0)
LAYER = Layer({"int8": Option(100, 0.0)})
ASKED = PlacementProblem((LAYER,), Cluster((ONE,), "one"), Request(4, 3), 0.0)


@pytest.mark.parametrize("prompt", [1, 255, 256, 257, 700])
@pytest.mark.parametrize("new", [1, 2, 300])
def test_cells_of_generated_tokens_are_those_of_each_token(prompt: int, new: int) -> None:
    request = Request(prompt, new)
    assert request.token_cells == sum(cells(prompt + i) for i in range(1, new))


def test_cells_of_a_prompt_are_those_that_each_batch_ends_with() -> None:
    assert Request(700, 1, batch_tokens=300).prompt_cells == 300 * 512 + 300 * 768 + 100 * 768
    assert Request(10, 1).prompt_cells == 10 * CELL_STEP


def test_attention_adds_to_the_products_where_a_layer_has_a_cache() -> None:
    option = {"int8": Option(100, 0.0)}
    layers = (Layer(option, kv_bytes_per_token=4, work=2.0), Layer(option))
    node = Node("one", 1000, {"int8": Speed(0.25, 1.0)}, cell_seconds=0.5, prompt_cell_seconds=0.125)
    problem = PlacementProblem(layers, Cluster((node,), "one"), Request(4, 3), 0.0)
    products = 4 * 0.25 + 2 * 1.0
    attention = 4 * CELL_STEP * 0.125 + 2 * CELL_STEP * 0.5
    assert problem.layer_seconds(0, node, "int8") == 2.0 * products + attention
    assert problem.layer_seconds(1, node, "int8") == products


def test_a_second_counts_itself_its_energy_and_its_price() -> None:
    assert ASKED.worth_of_second(ONE) == 1
    assert replace(ASKED, exchange=Exchange(seconds_per_joule=0.5)).worth_of_second(ONE) == 1 + 0.5 * 20
    assert replace(ASKED, exchange=Exchange(seconds_per_price=3.0)).worth_of_second(ONE) == 1 + 3 * 2


def test_what_can_be_placed_is_not_refused() -> None:
    for changed in ({}, {"loss_budget": math.inf}, {"request": Request(1, 1, 1, 1)}):
        check_problem(replace(ASKED, **changed))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"cluster": Cluster((), "one")}, "at least one node"),
        ({"layers": ()}, "at least one layer"),
        ({"request": Request(0, 3)}, "at least one prompt token"),
        ({"request": Request(4, 0)}, "one new token"),
        ({"request": Request(4, 3, batch_tokens=0)}, "one token a batch"),
        ({"request": Request(4, 3, sequences=0)}, "one sequence"),
        ({"input_bytes": -1}, "must be at least 0"),
        ({"fixed_seconds": -1.0}, "must be at least 0"),
        ({"fixed_seconds": math.inf}, "must be at least 0"),
        ({"exchange": Exchange(seconds_per_joule=-1.0)}, "the worth of energy and money"),
        ({"exchange": Exchange(seconds_per_price=math.nan)}, "the worth of energy and money"),
        ({"loss_budget": -0.1}, "the loss budget"),
        ({"loss_budget": math.nan}, "the loss budget"),
    ],
)
def test_a_question_without_meaning_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        check_problem(replace(ASKED, **changed))


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (Layer({}), "layer 1 has no precision to choose from"),
        (Layer({"int8": Option(-1, 0.0)}), "layer 1 at int8: -1 bytes"),
        (Layer({"int8": Option(1, -0.5)}), "layer 1 at int8: 1 bytes and a loss of -0.5"),
        (Layer({"int8": Option(1, math.inf)}), "a loss of inf"),
        (Layer({"int8": Option(1, math.nan)}), "a loss of nan"),
        (replace(LAYER, kv_bytes_per_token=-1), "layer 1: KV bytes, activation bytes and work"),
        (replace(LAYER, activation_bytes=-1), "layer 1: KV bytes, activation bytes and work"),
        (replace(LAYER, work=-1.0), "layer 1: KV bytes, activation bytes and work"),
        (replace(LAYER, work=math.inf), "layer 1: KV bytes, activation bytes and work"),
    ],
)
def test_a_layer_without_meaning_is_refused_and_named(layer: Layer, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        check_problem(replace(ASKED, layers=(LAYER, layer)))
