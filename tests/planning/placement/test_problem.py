"""What a request asks of a layer on a node."""

from __future__ import annotations

import pytest

from lamella.planning.placement import Cluster, Layer, Node, Option, PlacementProblem, Request, Speed
from lamella.planning.placement.problem import CELL_STEP, cells


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
