"""The cluster of DILEMMA's experiment, its question, and what other links and processors make of the answer."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.finished import Finished
from lamella.core.artifacts import LayerScore, Measurement
from lamella.core.errors import NoPlacement
from lamella.core.model import ModelSpec
from lamella.core.precision import nominal_bits
from lamella.planning.placement import Cluster, Layer, Link, Node, PlacementProblem, Request, Speed, place
from lamella.planning.placement.baselines import baseline
from lamella.planning.placement.layers import hidden_state_bytes

MENU = ("fp16", "int8", "int6", "int5", "int4")
"""The paper truncates to 4 to 8 bits; the program has no 7."""
PAPER_BITS = 32
"""Of a weight before: what the paper's ratio counts from (4 bits are its 12.5 %)."""
EDGES = (("edge-1", 1.0, 0.5), ("edge-2", 1.5, 0.35), ("edge-3", 2.5, 0.25))
"""Name, speed, and memory as a share of all layers at 16 bits."""
CLOUD_SPEED = 10.0
LAYER_TOKEN_SECONDS = 0.002
"""Of a layer at 16 bits on the slowest edge server; fewer bits take so much less, as fewer bytes are read."""
PROMPT_SHARE = 0.1
"""Of it, that a token of a prompt takes."""
EDGE_LINK, CLOUD_LINK = Link(12.5e6, 0.002), Link(2.5e6, 0.04)
"""100 Mbit/s near by, 20 Mbit/s to the cloud."""
REQUEST = Request(prompt_tokens=128, new_tokens=64)
FACTORS = tuple(2.0 ** (half / 2) for half in range(-8, 9))
RULES = ("one-node", "by-memory-with-bits", "uniform-bits", "edge-only", "cloud-only")
_GAP = 0.005


def question(spec: ModelSpec, layers: Sequence[Layer], delta: float) -> PlacementProblem:
    """Place a model's layers on the cluster, with a mean weight difference of at most delta."""
    at_16_bits = sum(2 * layer.n_weights for layer in spec.layers)
    nodes = [_node(name, speed, int(share * at_16_bits)) for name, speed, share in EDGES]
    nodes.append(replace(_node("cloud", CLOUD_SPEED, 2 * at_16_bits), tier="cloud"))
    names = ["user", *(node.name for node in nodes)]
    links = {pair: CLOUD_LINK if "cloud" in pair else EDGE_LINK for pair in itertools.combinations(names, 2)}
    cluster = Cluster(tuple(nodes), "user", links, "mesh")
    return PlacementProblem(tuple(layers), cluster, REQUEST, delta * len(layers), hidden_state_bytes(spec))


def bits_ratio(precisions: Sequence[str]) -> float:
    """Bits of the layers' weights as a share of the paper's 32: its quantization ratio."""
    return sum(nominal_bits(p) for p in precisions) / (PAPER_BITS * len(precisions))


def spread_over(spec: ModelSpec, differences: Mapping[str, float]) -> Measurement:
    """A measurement of a specification that has no weights: every layer loses what another model's do on average."""
    scores = {p: tuple(LayerScore(i, value) for i in range(spec.n_layers)) for p, value in differences.items()}
    return Measurement("weight-difference", spec.identity, {"scheme": "truncate"}, (), scores["int4"], {}, scores)


def sensitivity(problem: PlacementProblem, finished: Finished) -> dict[str, list[dict[str, Any]]]:
    """Seconds of a request by the joint plan and by rules, with links or edge processors so much faster.

    Args:
        finished: keeps each point as soon as it is there.
    """
    changed = {"links": _with_links, "processors": _with_processors}
    return {what: [_point(change(problem, f), finished) | {"factor": f} for f in FACTORS]
            for what, change in changed.items()}  # fmt: skip


def _point(problem: PlacementProblem, finished: Finished) -> dict[str, Any]:
    start = time.perf_counter()
    found: dict[str, Any] = finished.get((problem, _GAP, RULES), lambda: _times(problem))
    print(f"{found['joint']:.3f} s by the joint plan, after {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return found


def _times(problem: PlacementProblem) -> dict[str, Any]:
    joint = place(problem, gap=_GAP)
    found: dict[str, Any] = {
        "joint": joint.account.seconds,
        "gap": joint.gap,
        "nodes": [f"{s.node}:{len(s.precisions)}" for s in joint.placement.segments],
        "ratio": bits_ratio(joint.placement.precisions),
    }
    for rule in RULES:
        try:
            found[rule] = baseline(rule, problem).account.seconds
        except NoPlacement:
            found[rule] = None
    return found


def _node(name: str, speed: float, memory_bytes: int) -> Node:
    def at(bits: float) -> Speed:
        seconds = LAYER_TOKEN_SECONDS / speed * bits / 16
        return Speed(PROMPT_SHARE * seconds, seconds)

    return Node(name, memory_bytes, {p: at(nominal_bits(p)) for p in MENU})


def _with_links(problem: PlacementProblem, factor: float) -> PlacementProblem:
    """All links so many times faster, in bandwidth and in round trip."""
    links = {
        pair: Link(link.bytes_per_second * factor, link.round_trip_seconds / factor)
        for pair, link in problem.cluster.links.items()
    }
    return replace(problem, cluster=replace(problem.cluster, links=links))


def _with_processors(problem: PlacementProblem, factor: float) -> PlacementProblem:
    """The edge servers so many times faster; the cloud as it is."""
    nodes = tuple(
        node if node.tier == "cloud" else replace(node, speeds=_scaled(node.speeds, lambda s: s / factor))
        for node in problem.cluster.nodes
    )
    return replace(problem, cluster=replace(problem.cluster, nodes=nodes))


def _scaled(speeds: Mapping[str, Speed], change: Callable[[float], float]) -> dict[str, Speed]:
    return {p: Speed(change(s.prompt_seconds), change(s.token_seconds)) for p, s in speeds.items()}
