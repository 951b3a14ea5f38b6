"""What was measured of a cluster, as planners of placements want it (docs/placement.md).

    document = describe(spec, {"coordinator": here, "laptop": report}, {"laptop": link}, ["int8", "int4"])

A layer's seconds are its matrix products, weights of each type times the node's nanoseconds for a weight of that type,
and its attention by cells.  Norms, rotations and activations are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lamella.cluster.layers import COORDINATOR
from lamella.cluster.links import MeasuredLink
from lamella.cluster.messages import NodeReport
from lamella.core.errors import InvalidRequest
from lamella.core.model import ModelSpec
from lamella.planning.cost import realise
from lamella.planning.placement.layers import hidden_state_bytes
from lamella.version import __version__

CLUSTER_FORMAT, FORMAT_VERSION = "lamella.cluster", 1
ATTENTION_OUT = "attn_output.weight"
PASS_SECONDS = 0.001
"""Of a pass beside the link, where it was not measured (benchmarks/results/tunnel-smollm2.json: 1.1 ms on 2 cores)."""


def types_of(spec: ModelSpec, precisions: Sequence[str]) -> set[str]:
    """The ggml types that a model's layers have at some precisions: what nodes have to know their speed at."""
    names = {t.name for layer in spec.layers for t in layer.matrices}
    return {kind for p in precisions for name, kind in realise(spec, [p] * spec.n_layers).items() if name in names}


def describe(
    spec: ModelSpec,
    nodes: Mapping[str, NodeReport],
    links: Mapping[str, MeasuredLink],
    precisions: Sequence[str],
    passes: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A cluster document.

    Args:
        nodes: by name, the coordinator's own report among them as ``COORDINATOR``.
        links: from each other node to the coordinator.
        passes: seconds of a pass over a node (``passes.measure_pass``), for those where it was measured.

    Raises:
        InvalidRequest: a node does not know its speed at a type.
    """
    return {
        "format": CLUSTER_FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "coordinator": COORDINATOR,
        "transfer": "star",
        "nodes": [
            _node(spec, name, report, precisions) | {"pass_seconds": _pass_seconds(spec, name, links, passes or {})}
            for name, report in nodes.items()
        ],
        "links": [
            {
                "between": [COORDINATOR, name],
                "bytes_per_second": link.bytes_per_second,
                "round_trip_seconds": link.round_trip_seconds,
            }
            for name, link in links.items()
        ],
    }


def _node(spec: ModelSpec, name: str, report: NodeReport, precisions: Sequence[str]) -> dict[str, Any]:
    return {
        "name": name,
        "memory_bytes": report.available_bytes,
        **_attention(spec, report),
        "speeds": {precision: _speed(spec, name, report, precision) for precision in precisions},
    }


def _attention(spec: ModelSpec, report: NodeReport) -> dict[str, float]:
    """Seconds of the mean layer for a token and cell; nothing where the node did not say."""
    if report.attention is None:
        return {}
    numbers = sum(t.shape[0] for layer in spec.layers for t in layer.matrices if t.name.endswith(ATTENTION_OUT))
    each = 1e-9 * numbers / spec.n_layers  # what leaves the heads enters this matrix
    return {"cell_seconds": each * report.attention.token, "prompt_cell_seconds": each * report.attention.prompt}


def _pass_seconds(spec: ModelSpec, name: str, links: Mapping[str, MeasuredLink], passes: Mapping[str, float]) -> float:
    """Of a pass beside what its link takes, which planners count themselves."""
    if name == COORDINATOR:
        return 0.0
    if name not in passes:
        return PASS_SECONDS
    way = hidden_state_bytes(spec) / links[name].bytes_per_second
    return max(0.0, passes[name] - links[name].round_trip_seconds - 2 * way)


def _speed(spec: ModelSpec, name: str, report: NodeReport, precision: str) -> dict[str, float]:
    """Seconds of the mean layer, for a token of a prompt and for a generated one."""
    types = realise(spec, [precision] * spec.n_layers)
    token = prompt = 0.0
    for matrix in (t for layer in spec.layers for t in layer.matrices):
        speed = report.speeds.get(types[matrix.name])
        if speed is None:
            raise InvalidRequest(f"node '{name}' does not know its speed at {types[matrix.name]}")
        token += matrix.n_weights * speed.token
        prompt += matrix.n_weights * speed.prompt
    return {"prompt_seconds": 1e-9 * prompt / spec.n_layers, "token_seconds": 1e-9 * token / spec.n_layers}
