"""What is to be placed, what for, and what may be lost: the question that every planner of this package answers.

problem = PlacementProblem(layers, cluster, Request(prompt_tokens=512, new_tokens=128), loss_budget=0.05)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from lamella.core.errors import InvalidRequest
from lamella.planning.placement.cluster import Cluster, Link, Node, check_cluster

CELL_STEP = 256


@dataclass(frozen=True, slots=True)
class Option:
    """A layer at one precision.

    Attributes:
        n_bytes: of its weights.
        loss: what it adds to the model's loss: predicted KL divergence in nats a token, or a weight difference
            ||W - Q(W)|| as in DILEMMA.  Losses of layers are taken to add up.
    """

    n_bytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Layer:
    """A transformer block.

    Attributes:
        options: precision -> what the layer is at it.
        kv_bytes_per_token: of its KV cache.
        activation_bytes: of the hidden state of one token that leaves it.
        work: multiplications beside those of the layer that nodes' speeds were measured on.
    """

    options: Mapping[str, Option]
    kv_bytes_per_token: int = 0
    activation_bytes: int = 0
    work: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is timed, and what memory is kept for.

    Attributes:
        prompt_tokens: read before the first token is generated.
        new_tokens: generated.  The prompt's last pass brings the first one, so that ``new_tokens - 1`` passes follow.
        batch_tokens: of the prompt, read in one pass (llama.cpp's n_ubatch).
        sequences: whose KV cache is kept at once.
    """

    prompt_tokens: int
    new_tokens: int
    batch_tokens: int = 512
    sequences: int = 1

    @property
    def prompt_passes(self) -> int:
        return math.ceil(self.prompt_tokens / self.batch_tokens)

    @property
    def token_passes(self) -> int:
        return self.new_tokens - 1

    @property
    def passes(self) -> int:
        return self.prompt_passes + self.token_passes

    @property
    def cached_tokens(self) -> int:
        return self.sequences * (self.prompt_tokens + self.new_tokens)

    @property
    def prompt_cells(self) -> int:
        """Cells of the KV cache that the prompt's tokens look at, all together."""
        ends = [min(self.prompt_tokens, (i + 1) * self.batch_tokens) for i in range(self.prompt_passes)]
        return sum((end - start) * cells(end) for start, end in pairwise((0, *ends)))

    @property
    def token_cells(self) -> int:
        """Cells that the generated tokens look at, all together."""
        return _cells_up_to(self.prompt_tokens + self.token_passes) - _cells_up_to(self.prompt_tokens)


def cells(n_tokens: int) -> int:
    """That a pass looks at when so many tokens are in the cache: llama.cpp takes CELL_STEP at once, empty ones too."""
    return -(-n_tokens // CELL_STEP) * CELL_STEP


def _cells_up_to(n_tokens: int) -> int:
    """``cells(1) + ... + cells(n_tokens)``."""
    steps, left = divmod(n_tokens, CELL_STEP)
    return CELL_STEP * (CELL_STEP * steps * (steps + 1) // 2 + left * (steps + 1))


@dataclass(frozen=True, slots=True)
class Exchange:
    """What else counts beside time, in seconds: a joule, and a unit of the currency that nodes' prices are in."""

    seconds_per_joule: float = 0.0
    seconds_per_price: float = 0.0


@dataclass(frozen=True, slots=True)
class PlacementProblem:
    """One model to place.

    Attributes:
        layers: in order.
        loss_budget: the layers' losses may sum to this (delta).
        input_bytes: of the hidden state of one token that enters the first layer.
        fixed_seconds: of a request, wherever the layers are: embedding, head and sampling on the coordinator.
        exchange: the worth of energy and money.
    """

    layers: tuple[Layer, ...]
    cluster: Cluster
    request: Request
    loss_budget: float
    input_bytes: int = 0
    fixed_seconds: float = 0.0
    exchange: Exchange = field(default_factory=Exchange)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Every precision that some layer has, in the order they are first named."""
        return tuple(dict.fromkeys(name for layer in self.layers for name in layer.options))

    def boundary_bytes(self, boundary: int) -> int:
        """Of one token's hidden state between layers ``boundary - 1`` and ``boundary``; 0 is before the first."""
        return self.layers[boundary - 1].activation_bytes if boundary else self.input_bytes

    def layer_seconds(self, layer: int, node: Node, precision: str) -> float | None:
        """That a request spends in a layer; None where the node or the layer has no such precision."""
        speed = node.speeds.get(precision)
        if speed is None or precision not in self.layers[layer].options:
            return None
        request, described = self.request, self.layers[layer]
        products = request.prompt_tokens * speed.prompt_seconds + request.token_passes * speed.token_seconds
        attention = request.prompt_cells * node.prompt_cell_seconds + request.token_cells * node.cell_seconds
        return described.work * products + (attention if described.kv_bytes_per_token else 0.0)

    def pass_seconds(self, node: Node) -> float:
        """That a request spends on a node beside its layers."""
        return self.request.passes * node.pass_seconds

    def transfer_seconds(self, link: Link | None, boundary: int) -> float:
        """That a request waits for hidden states to cross a link, there or back."""
        if link is None:
            return 0.0
        request = self.request
        n_tokens = request.prompt_tokens + request.token_passes
        return link.seconds(n_tokens * self.boundary_bytes(boundary), request.passes)

    def layer_bytes(self, layer: int, precision: str) -> int:
        """That a layer takes on its node: weights and KV cache."""
        described = self.layers[layer]
        return described.options[precision].n_bytes + self.request.cached_tokens * described.kv_bytes_per_token

    def worth_of_second(self, node: Node) -> float:
        """What a second of computing there counts: itself, its energy and its price."""
        exchange = self.exchange
        hourly = exchange.seconds_per_price * node.price_per_hour
        return 1.0 + exchange.seconds_per_joule * node.watts + hourly / 3600.0


def check_problem(problem: PlacementProblem) -> None:
    """Refuse a question without meaning.

    Raises:
        InvalidRequest: no layers, a layer without options, a negative or infinite number, no token to generate, or what
            ``check_cluster`` refuses.
    """
    check_cluster(problem.cluster)
    if not problem.layers:
        raise InvalidRequest("a placement needs at least one layer")
    request = problem.request
    if request.prompt_tokens < 1 or request.new_tokens < 1 or request.batch_tokens < 1 or request.sequences < 1:
        raise InvalidRequest(
            "a request needs at least one prompt token, one new token, one token a batch, one sequence"
        )
    exchange = problem.exchange
    numbers = (problem.input_bytes, problem.fixed_seconds, exchange.seconds_per_joule, exchange.seconds_per_price)
    if not all(0 <= number < math.inf for number in numbers) or not problem.loss_budget >= 0:
        raise InvalidRequest("bytes, seconds, the worth of energy and money and the loss budget must be at least 0")
    for index, layer in enumerate(problem.layers):
        _check_layer(index, layer)


def _check_layer(index: int, layer: Layer) -> None:
    if not layer.options:
        raise InvalidRequest(f"layer {index} has no precision to choose from")
    for name, option in layer.options.items():
        if option.n_bytes < 0 or not 0 <= option.loss < math.inf:
            raise InvalidRequest(
                f"layer {index} at {name}: {option.n_bytes} bytes and a loss of {option.loss:g} must be finite and >= 0"
            )
    if layer.kv_bytes_per_token < 0 or layer.activation_bytes < 0 or not 0 <= layer.work < math.inf:
        raise InvalidRequest(f"layer {index}: KV bytes, activation bytes and work must be at least 0")
