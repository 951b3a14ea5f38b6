"""What a policy is asked: model, importance, memory, and the policy's own arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lamella.core.artifacts import TensorLoss
from lamella.core.errors import InvalidRequest
from lamella.core.model import ModelSpec
from lamella.core.precision import MENU, SCHEMES, Scheme, nominal_bits
from lamella.core.units import GIB
from lamella.planning import importance
from lamella.planning.constraints import Constraints, Prices

Accounting = Literal["exact", "nominal"]
KEEP = "keep"
"""Value of ``outside``: leave embedding and head as they are in the model, at most F16."""
MOST = 1e12
"""Of bits, nats and milliseconds.  More means nothing, and what is computed of it is no number any more."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What running needs besides weights, and how weights are counted.

    Attributes:
        accounting: ``exact`` counts the bytes of the ggml types as stored; ``nominal`` counts as LSAQ does: 2, 1 and
            0.5 bytes for each weight of an FP16, INT8 and INT4 layer, no scales.
        kv_cache_bytes, compute_bytes: from ``planning.memory`` or a dry run (``resources.need``).
        reserve_bytes: left free on purpose.
    """

    accounting: Accounting = "exact"
    kv_cache_bytes: int = 0
    compute_bytes: int = 0
    reserve_bytes: int = 0

    def __post_init__(self) -> None:
        if min(self.kv_cache_bytes, self.compute_bytes, self.reserve_bytes) < 0:
            raise InvalidRequest(f"memory needs must not be negative: {self}")

    @property
    def total(self) -> int:
        return self.kv_cache_bytes + self.compute_bytes + self.reserve_bytes


LSAQ_OVERHEAD = Overhead("nominal", reserve_bytes=3 * GIB // 8)
"""LSAQ's own arithmetic: nominal weights and one reserve of 0.375 GiB for everything else (gives Table IV)."""


@dataclass(frozen=True, slots=True)
class StockTypes:
    """What llama-quantize would make of a model (``lamella.llama.stock_mix``).

    Attributes:
        mix: as llama-quantize writes it: ``Q4_K_M``.
        with_importance: whether an importance matrix is at hand; some mixes choose other types then.
        types: tensor name -> ggml type, for every tensor of the model.
    """

    mix: str
    with_importance: bool
    types: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """One question to a policy.

    Attributes:
        spec: the model.
        importance: one score per layer, larger is more important; None: the prior (``planning.importance.prior``).
        scheme: how values are rounded into types.
        budget_bytes: memory for weights and overhead together; None: no limit.
        overhead: None: LSAQ's own arithmetic for policy ``lsaq`` on a specification, else exact with no overhead.
        precision: ``uniform`` only: menu name or ggml type; None: the largest that fits the budget.
        alpha: ``alpha`` only: aggressiveness in (0, 1]; smaller is more aggressive.
        outside: precision of embedding and head, or ``keep``; None: the policy's default.
        average_bits: ceiling of the layers' mean nominal bits, as LSAQ's tables count: 7 is INT8 with a quarter of the
            layers at INT4; None: no limit.
        bits_per_weight: ceiling of the stored bits over all weights of the model, scales included; None: no limit.
        seed: ``random`` only: of the order of the layers; None: 0.
        stock: ``stock`` only: the types of the mix.
        weights_bytes: ``knapsack``: at most so many bytes of weights, whatever else running needs.
        losses: ``knapsack``: what each tensor loses at each type.
        loss_ceiling: ``knapsack``: the smallest plan that is predicted to lose at most so many nats a token.
        ms_per_token: ``knapsack``: matrix products of a generated token take at most so long, by ``prices``.
        prompt_tokens_per_second: ``knapsack``: those of a prompt are at least so fast, by ``prices``.
        constraints: ``knapsack``: types to avoid, floors, fused groups.
        prices: ``knapsack``: how fast this machine multiplies by each type.
        exact: ``knapsack``: prove the plan by integer program.
        settings: recorded in the plan as they are: metric, context, parallel, KV type.

    ``budget_bytes``, ``average_bits`` and ``bits_per_weight`` are three ways to say how large a plan may be; a request
    has at most one of them, but for ``knapsack``, which keeps all limits that it is given.
    """

    spec: ModelSpec
    importance: tuple[float, ...] | None = None
    scheme: Scheme = "block"
    budget_bytes: int | None = None
    overhead: Overhead | None = None
    precision: str | None = None
    alpha: float | None = None
    outside: str | None = None
    average_bits: float | None = None
    bits_per_weight: float | None = None
    seed: int | None = None
    stock: StockTypes | None = None
    weights_bytes: int | None = None
    losses: tuple[TensorLoss, ...] = ()
    loss_ceiling: float | None = None
    ms_per_token: float | None = None
    prompt_tokens_per_second: float | None = None
    constraints: Constraints = field(default_factory=Constraints)
    prices: Prices = field(default_factory=dict)
    exact: bool = False
    settings: Mapping[str, int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_limits(self.budget_bytes, self.average_bits, self.bits_per_weight, together=bool(self.losses))
        if self.seed is not None and self.seed < 0:
            raise InvalidRequest(f"a seed must be at least 0, not {self.seed}")
        if self.scheme not in SCHEMES:
            raise InvalidRequest(f"unknown scheme '{self.scheme}'; known: {', '.join(SCHEMES)}")
        if self.alpha is not None and not (math.isfinite(self.alpha) and 0 < self.alpha <= 1):
            raise InvalidRequest(f"alpha must be in (0, 1], not {self.alpha:g}")
        for name in (self.precision, self.outside):
            if name is not None and canonical(name) != KEEP:
                nominal_bits(name)
        if self.precision is not None and canonical(self.precision) == KEEP:
            raise InvalidRequest("precision 'keep' is for embedding and head only")
        if self.spec.n_layers < 1:
            raise InvalidRequest(f"{self.spec.identity.name} has no layers to plan for")

    @property
    def has_limit(self) -> bool:
        """Whether the request says how large the plan may be."""
        return any(limit is not None for limit in (self.budget_bytes, self.average_bits, self.bits_per_weight))

    @property
    def outside_choice(self) -> str | None:
        """``outside`` as the menu or ggml writes it."""
        return None if self.outside is None else canonical(self.outside)

    @property
    def scores(self) -> tuple[float, ...]:
        """Importance of each layer in [0, 1]."""
        if self.importance is None:
            return importance.prior(self.spec.n_layers)
        return importance.normalise(self.importance, self.spec.n_layers)


def check_limits(
    budget_bytes: int | None, average_bits: float | None, bits_per_weight: float | None, *, together: bool = False
) -> None:
    """Refuse limits without a meaning, and more than one of them.

    Args:
        together: the policy keeps several limits at once.

    Raises:
        InvalidRequest: says which.
    """
    if budget_bytes is not None and budget_bytes <= 0:
        raise InvalidRequest(f"a memory budget must be more than zero bytes, not {budget_bytes}")
    check_amount("average bits", average_bits)
    check_amount("bits per weight", bits_per_weight)
    limits = {"memory": budget_bytes, "average bits": average_bits, "bits per weight": bits_per_weight}
    given = [name for name, limit in limits.items() if limit is not None]
    if len(given) > 1 and not together:
        raise InvalidRequest(
            f"a plan has one limit, memory, average bits or bits per weight, not {' and '.join(given)}"
        )


def check_goals(loss_ceiling: float | None, ms_per_token: float | None, prompt_tokens_per_second: float | None) -> None:
    """Refuse goals of ``knapsack`` without a meaning.

    Raises:
        InvalidRequest: says which.
    """
    if loss_ceiling is not None and not 0 <= loss_ceiling <= MOST:
        raise InvalidRequest(f"a ceiling on the loss must be zero nats or more, at most {MOST:g}, not {loss_ceiling:g}")
    check_amount("milliseconds a token", ms_per_token)
    check_amount("prompt tokens per second", prompt_tokens_per_second)


def check_amount(what: str, amount: float | None) -> None:
    """Refuse a number that limits nothing, or that cannot be computed with.

    Raises:
        InvalidRequest: says which.
    """
    if amount is not None and not 0 < amount <= MOST:
        raise InvalidRequest(f"{what} must be a number above 0, at most {MOST:g}, not {amount:g}")


def canonical(precision: str) -> str:
    """A precision as the menu (``int4``) or ggml (``Q4_K``) writes it, whatever case it was given in."""
    lower = precision.lower()
    return lower if lower in MENU or lower == KEEP else precision.upper()
