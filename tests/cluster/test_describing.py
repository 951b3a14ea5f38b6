"""A measured cluster as a document for planners."""

from __future__ import annotations

import msgspec
import pytest

from lamella.cluster.describing import PASS_SECONDS, describe, types_of
from lamella.cluster.layers import COORDINATOR
from lamella.cluster.links import MeasuredLink
from lamella.cluster.messages import NodeReport, Speed
from lamella.core.errors import InvalidRequest
from lamella.core.model import ModelSpec
from lamella.llama.gguf import read_model
from tests.fakes.tiny_model import write_tiny_model

LINK = MeasuredLink(0.002, 2e6, 1e6, 0.0)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return read_model(write_tiny_model(tmp_path_factory.mktemp("m") / "tiny.gguf", n_embd=256, n_ff=512)).spec


def report(token: float, types: dict[str, float]) -> NodeReport:
    speeds = {name: Speed(token * factor, factor) for name, factor in types.items()}
    return NodeReport("0", "0", "CPU", 4, 8 << 30, 6 << 30, "machine", [], speeds)


def test_seconds_of_a_layer_are_its_weights_times_the_speed_of_their_types(spec: ModelSpec) -> None:
    types = types_of(spec, ["int8", "int4"])
    assert types == {"Q8_0", "Q4_K"}
    nodes = {COORDINATOR: report(10, {"Q8_0": 2, "Q4_K": 1}), "laptop": report(100, {"Q8_0": 2, "Q4_K": 1})}
    document = describe(spec, nodes, {"laptop": LINK}, ["int8", "int4"])
    n_weights = sum(t.n_weights for layer in spec.layers for t in layer.matrices) / spec.n_layers
    here, laptop = document["nodes"]
    assert here["speeds"]["int8"] == pytest.approx(
        {"prompt_seconds": 2e-9 * n_weights, "token_seconds": 20e-9 * n_weights}
    )
    assert laptop["speeds"]["int4"]["token_seconds"] == pytest.approx(100e-9 * n_weights)
    assert (here["pass_seconds"], laptop["pass_seconds"]) == (0.0, PASS_SECONDS)
    assert laptop["memory_bytes"] == 6 << 30


def test_a_link_is_as_fast_as_its_slower_direction(spec: ModelSpec) -> None:
    speeds = {"Q8_0": 1.0}
    document = describe(spec, {COORDINATOR: report(1, speeds), "laptop": report(1, speeds)}, {"laptop": LINK}, ["int8"])
    assert document["links"] == [
        {"between": [COORDINATOR, "laptop"], "bytes_per_second": 1e6, "round_trip_seconds": 0.002}
    ]


def test_a_layers_attention_is_the_numbers_of_its_heads_times_the_speed_of_a_node_that_says_it(spec: ModelSpec) -> None:
    says = msgspec.structs.replace(report(1, {"Q8_0": 1.0}), attention=Speed(2.0, 0.5))
    here, laptop = describe(spec, {COORDINATOR: report(1, {"Q8_0": 1.0}), "laptop": says}, {"laptop": LINK}, ["int8"])[
        "nodes"
    ]
    assert "cell_seconds" not in here
    heads = 256  # of queries, all numbers together: as wide as the hidden state
    assert (laptop["cell_seconds"], laptop["prompt_cell_seconds"]) == pytest.approx((2e-9 * heads, 0.5e-9 * heads))


def test_a_pass_costs_what_was_measured_of_it_less_the_way_that_planners_count_themselves(spec: ModelSpec) -> None:
    nodes = {name: report(1, {"Q8_0": 1.0}) for name in (COORDINATOR, "laptop", "quick")}
    passes = {"laptop": 0.010, "quick": 0.001}
    document = describe(spec, nodes, {"laptop": LINK, "quick": LINK}, ["int8"], passes)
    way = 4 * 256 / 1e6  # a hidden state over the slower direction
    assert [node["pass_seconds"] for node in document["nodes"]] == pytest.approx([0.0, 0.010 - 0.002 - 2 * way, 0.0])


def test_a_speed_that_was_not_measured_is_named(spec: ModelSpec) -> None:
    with pytest.raises(InvalidRequest, match="node 'coordinator' does not know its speed at Q4_K"):
        describe(spec, {COORDINATOR: report(1, {"Q8_0": 1})}, {}, ["int8", "int4"])


def test_the_document_has_a_version(spec: ModelSpec) -> None:
    document = describe(spec, {COORDINATOR: report(1, {"Q8_0": 1})}, {}, ["int8"])
    assert (document["format"], document["format_version"]) == ("lamella.cluster", 1)
