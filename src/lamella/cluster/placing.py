"""Where the layers of a variant that is served would run best on the machines that are there.

    model = ServedModel.of(spec, variant, n_cells=8192)
    found = place_served([model], {"coordinator": here, "laptop": laptop})      # None: it fits nowhere

Precisions are the variant's own: what a layer may be is what the store has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from lamella.cluster.describing import PASS_SECONDS
from lamella.cluster.layers import COORDINATOR, LayersOf
from lamella.cluster.messages import Speed as WeightSpeed
from lamella.core.artifacts import Variant
from lamella.core.errors import InvalidRequest, NoPlacement
from lamella.core.model import ModelSpec
from lamella.core.units import format_bytes
from lamella.planning.memory import kv_row_bytes
from lamella.planning.placement import (
    Cluster,
    Layer,
    Link,
    Node,
    Option,
    Placement,
    PlacementProblem,
    Request,
    Segment,
    Speed,
    account,
    place,
)
from lamella.planning.placement.layers import hidden_state_bytes

PROMPT_TOKENS, NEW_TOKENS = 256, 128
"""The request whose time is made least."""
REQUEST = Request(PROMPT_TOKENS, NEW_TOKENS)
GAP = 0.02
"""To which placements are solved: below what is worth a move."""
BUFFER_BYTES = 64 << 20
"""On each machine, for intermediate results."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A variant as the placement knows it.

    Attributes:
        kinds: name of each kind of layer -> weights of each ggml type in it.
        layers: each with one option, its kind.
        outside_bytes: of embedding and head, which stay with the coordinator.
        cell_bytes: by layer, of one token in the KV cache.
    """

    name: str
    kinds: Mapping[str, Mapping[str, int]]
    layers: tuple[Layer, ...]
    input_bytes: int
    outside_bytes: int
    cell_bytes: tuple[int, ...]

    @classmethod
    def of(cls, spec: ModelSpec, variant: Variant, n_cells: int, kv_type: str = "F16", n_copies: int = 1) -> Self:
        """Of a variant in a store.

        Args:
            spec: the model's shape.
            n_cells: tokens that the KV cache holds.
            n_copies: variants whose weights are in memory at once.
        """
        n_bytes = {shard.label: shard.n_bytes for shard in variant.shards}
        kinds: dict[tuple[tuple[str, int], ...], str] = {}
        cell_bytes = tuple(kv_row_bytes(spec, layer, kv_type) for layer in spec.layers)
        layers = []
        for layer in spec.layers:
            weights: dict[str, int] = {}
            for matrix in layer.matrices:
                kind = variant.plan.tensors[matrix.name]
                weights[kind] = weights.get(kind, 0) + matrix.n_weights
            name = kinds.setdefault(tuple(sorted(weights.items())), f"kind {len(kinds)}")
            option = Option(n_copies * n_bytes[f"layer {layer.index}"], 0.0)
            kv = math.ceil(cell_bytes[layer.index] * n_cells / (PROMPT_TOKENS + NEW_TOKENS))
            layers.append(Layer({name: option}, kv, hidden_state_bytes(spec)))
        outside = sum(size for label, size in n_bytes.items() if not label.startswith("layer "))
        return cls(
            variant.name,
            {name: dict(weights) for weights, name in kinds.items()},
            tuple(layers),
            hidden_state_bytes(spec),
            outside,
            cell_bytes,
        )

    @property
    def types(self) -> set[str]:
        """ggml types of its layers."""
        return {kind for weights in self.kinds.values() for kind in weights}

    @property
    def layer_bytes(self) -> int:
        """Of all layers, with their KV cache."""
        cached = PROMPT_TOKENS + NEW_TOKENS
        return sum(o.n_bytes + cached * lay.kv_bytes_per_token for lay in self.layers for o in lay.options.values())


@dataclass(frozen=True, slots=True)
class MachineNow:
    """A machine that is there.

    Attributes:
        memory_bytes: for layers; the coordinator's, for embedding and head too.
        speeds: by ggml type.
        link: to the coordinator; None for the coordinator.
        slowdown: how many times as long it takes as its speeds say.
    """

    memory_bytes: int
    speeds: Mapping[str, WeightSpeed]
    link: Link | None = None
    slowdown: float = 1.0


@dataclass(frozen=True, slots=True)
class Placed:
    """A variant and where its layers go.

    Attributes:
        seconds: that a request is predicted to take.
    """

    variant: str
    layers: tuple[LayersOf, ...]
    seconds: float


def place_served(models: Sequence[ServedModel], machines: Mapping[str, MachineNow]) -> Placed | None:
    """The best placement of the first variant that fits; None where none does.

    Args:
        models: the one that is wanted first.
    """
    for model in models:
        problem = problem_of(model, machines)
        try:
            found = place(problem, gap=GAP)
        except NoPlacement:
            continue
        layers = tuple(LayersOf(s.node, s.first, s.end) for s in found.placement.segments)
        return Placed(model.name, layers, found.account.seconds)
    return None


def seconds_of(
    model: ServedModel, machines: Mapping[str, MachineNow], layers: Sequence[LayersOf], request: Request = REQUEST
) -> float | None:
    """What a request takes with layers at some places; None where one of them is not there."""
    if any(at.node not in machines for at in layers):
        return None
    problem = replace(problem_of(model, machines), request=request)
    kinds = [next(iter(layer.options)) for layer in model.layers]
    segments = tuple(Segment(at.node, at.first, tuple(kinds[at.first : at.end])) for at in layers)
    return account(problem, Placement(segments)).seconds


def problem_of(model: ServedModel, machines: Mapping[str, MachineNow]) -> PlacementProblem:
    """The question for the planner.

    Raises:
        InvalidRequest: a machine does not know its speed at a type of the model.
    """
    nodes = tuple(_node(model, name, machine) for name, machine in machines.items())
    links = {(COORDINATOR, name): machine.link for name, machine in machines.items() if machine.link is not None}
    cluster = Cluster(nodes, COORDINATOR, links)
    return PlacementProblem(model.layers, cluster, REQUEST, 0.0, model.input_bytes)


def what_is_missing(models: Sequence[ServedModel], machines: Mapping[str, MachineNow]) -> str:
    """Why nothing fits, in a sentence: what the smallest variant needs, and what there is."""
    smallest = min(models, key=lambda model: model.layer_bytes)
    there = sum(_node(smallest, name, machine).memory_bytes for name, machine in machines.items())
    needed = smallest.layer_bytes + BUFFER_BYTES * len(machines)
    missing = max(0, needed - there)
    return (
        f"nothing fits: the layers of '{smallest.name}' need {format_bytes(smallest.layer_bytes)}, and "
        f"{format_bytes(there)} are there for them ({', '.join(machines)}), less {format_bytes(BUFFER_BYTES)} each to "
        f"compute in: {format_bytes(missing)} missing"
    )


def _node(model: ServedModel, name: str, machine: MachineNow) -> Node:
    outside = model.outside_bytes if name == COORDINATOR else 0
    speeds = {kind: _speed(name, machine, weights) for kind, weights in model.kinds.items()}
    pass_seconds = 0.0 if name == COORDINATOR else PASS_SECONDS * machine.slowdown
    return Node(name, max(0, machine.memory_bytes - outside), speeds, pass_seconds, BUFFER_BYTES)


def _speed(name: str, machine: MachineNow, weights: Mapping[str, int]) -> Speed:
    """Of a kind of layer."""
    unknown = weights.keys() - machine.speeds.keys()
    if unknown:
        raise InvalidRequest(f"machine '{name}' does not know its speed at {min(unknown)}")
    nanoseconds = 1e-9 * machine.slowdown
    prompt = sum(n * machine.speeds[kind].prompt for kind, n in weights.items())
    token = sum(n * machine.speeds[kind].token for kind, n in weights.items())
    return Speed(nanoseconds * prompt, nanoseconds * token)
