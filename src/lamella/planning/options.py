"""What each tensor may become, and what that costs: measured losses, constraints and prices -> groups of options.

    menu = option_menu(spec, measurement.tensors, Constraints(fused=True))
    picks = [0] * len(menu.groups)       # the first option of each group
    menu.types(picks), menu.n_bytes(picks), menu.loss(picks)

A *group* is one tensor, or several that share a type.  Losses of tensors add up.  Amounts are whole numbers (bytes,
1e-12 nats, picoseconds), so that sums do not depend on their order and limits are kept to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lamella.core.artifacts import TensorLoss
from lamella.core.errors import ArtifactError, InvalidRequest
from lamella.core.model import ModelSpec, TensorSpec
from lamella.core.precision import GGML_TYPES
from lamella.planning.constraints import Constraints, Prices
from lamella.planning.request import MOST

PER_UNIT = 10**12
"""Whole numbers in a nat or a second; sums below 9000 of either survive the way through a float."""
_PICOSECONDS = 1000  # in a nanosecond

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_FUSED = {
    "attn_q": "attn_qkv", "attn_k": "attn_qkv", "attn_v": "attn_qkv",
    "ffn_gate": "ffn_gate_up", "ffn_up": "ffn_gate_up",
    "ffn_gate_exps": "ffn_gate_up_exps", "ffn_up_exps": "ffn_gate_up_exps",
    "ffn_gate_shexp": "ffn_gate_up_shexp", "ffn_up_shexp": "ffn_gate_up_shexp",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Times:
    """Picoseconds of matrix products for one token: generated, and read in a prompt."""

    token: int
    prompt: int


@dataclass(frozen=True, slots=True)
class Option:
    """One type for all tensors of a group.

    Attributes:
        type_name: the ggml type.
        n_bytes: of all tensors of the group.
        loss: predicted, in 1e-12 nats a token; 0 for the type that the source stores.
        times: None where the type has no price.
    """

    type_name: str
    n_bytes: int
    loss: int
    times: Times | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that get the same type, and the types they may get."""

    tensors: tuple[TensorSpec, ...]
    options: tuple[Option, ...]

    def option(self, type_name: str) -> int | None:
        """Index of a type's option; None where the group may not have it."""
        return next((i for i, o in enumerate(self.options) if o.type_name == type_name), None)


@dataclass(frozen=True, slots=True)
class OptionMenu:
    """Every choice there is for a model.

    Attributes:
        groups: of the weight matrices, in the order of the model.
        kept: the other tensors, which stay as they are.
    """

    spec: ModelSpec
    groups: tuple[Group, ...]
    kept: tuple[TensorSpec, ...]

    @property
    def kept_bytes(self) -> int:
        return sum(t.n_bytes for t in self.kept)

    def types(self, picks: Sequence[int]) -> dict[str, str]:
        """Tensor name -> ggml type for every tensor of the model, in its order."""
        chosen = {t.name: g.options[i].type_name for g, i in zip(self.groups, picks, strict=True) for t in g.tensors}
        return {t.name: chosen.get(t.name, t.type_name) for t in self.spec.tensors}

    def n_bytes(self, picks: Sequence[int]) -> int:
        """Bytes of all tensors of the model."""
        return self.kept_bytes + sum(o.n_bytes for o in self._picked(picks))

    def loss(self, picks: Sequence[int]) -> float:
        """Predicted loss in nats a token."""
        return sum(o.loss for o in self._picked(picks)) / PER_UNIT

    def times(self, picks: Sequence[int]) -> Times | None:
        """Matrix products of one token; None where a type has no price."""
        times = [o.times for o in self._picked(picks)]
        known = [t for t in times if t is not None]
        if len(known) < len(times):
            return None
        return Times(sum(t.token for t in known), sum(t.prompt for t in known))

    def picks_of(self, tensors: Mapping[str, str]) -> tuple[int, ...] | None:
        """The picks that give these types, such as a finished plan's; None where an option for one is lacking."""
        picks = [g.option(tensors.get(g.tensors[0].name, "")) for g in self.groups]
        known = tuple(i for i in picks if i is not None)
        return known if len(known) == len(picks) else None

    def _picked(self, picks: Sequence[int]) -> Iterable[Option]:
        return (g.options[i] for g, i in zip(self.groups, picks, strict=True))


def option_menu(
    spec: ModelSpec,
    losses: Sequence[TensorLoss],
    constraints: Constraints | None = None,
    prices: Prices | None = None,
    *,
    priced_only: bool = False,
) -> OptionMenu:
    """Lay out the options of every tensor.

    A matrix may be of every type that its loss is predicted for, or stay as the source stores it (at most F16) at no
    loss.  A matrix without an entry stays.  So do norms, biases and routers.

    Args:
        losses: from a measurement.
        priced_only: leave out types without a price.

    Raises:
        InvalidRequest: there are no losses, or the constraints leave a tensor no type or name none.
        ArtifactError: a loss for a type that is unknown or that the rows do not allow.
    """
    constraints = constraints or Constraints()
    by_name = {loss.tensor: loss for loss in losses}
    matrices = tuple(t for t in spec.tensors if t.is_matrix)
    if not any(t.name in by_name for t in matrices):
        raise InvalidRequest(
            "policy knapsack needs a measurement of what each tensor loses at each type (metric sensitivity), "
            "and this one has none"
        )
    _check_patterns(constraints, tuple(t.name for t in matrices))
    pricing = _Pricing(spec, prices or {}, priced_only)
    groups = [
        Group(tensors, _options(tensors, by_name, constraints, pricing))
        for tensors in _grouped(matrices, constraints.fused)
    ]
    return OptionMenu(spec, tuple(groups), tuple(t for t in spec.tensors if not t.is_matrix))


def _grouped(matrices: Sequence[TensorSpec], fused: bool) -> list[tuple[TensorSpec, ...]]:
    groups: dict[tuple[int | None, str], list[TensorSpec]] = {}
    for tensor in matrices:
        part = tensor.name.removesuffix(".weight").rpartition(".")[2]
        key = (tensor.layer, _FUSED[part]) if fused and part in _FUSED else (tensor.layer, tensor.name)
        groups.setdefault(key, []).append(tensor)
    return [tuple(tensors) for tensors in groups.values()]


def _options(
    tensors: Sequence[TensorSpec], losses: Mapping[str, TensorLoss], constraints: Constraints, pricing: _Pricing
) -> tuple[Option, ...]:
    """The types that every tensor of the group may have."""
    allowed = [_allowed(t, losses.get(t.name), constraints) for t in tensors]
    shared = [name for name in allowed[0] if all(name in others for others in allowed[1:])]
    options = []
    for name in shared:
        times = [pricing.times(t, name) for t in tensors]
        known = [t for t in times if t is not None]
        priced = Times(sum(t.token for t in known), sum(t.prompt for t in known)) if len(known) == len(times) else None
        if priced is None and pricing.priced_only:
            continue
        n_bytes = sum(t.bytes_as(GGML_TYPES[name]) for t in tensors)
        options.append(Option(name, n_bytes, sum(types[name] for types in allowed), priced))
    if not options:
        names = ", ".join(t.name for t in tensors)
        raise InvalidRequest(
            f"no type is left for {names} together: they may be {'; '.join(', '.join(types) for types in allowed)}"
            if not shared
            else f"none of the types of {names} ({', '.join(shared)}) has a measured speed on this machine"
        )
    return tuple(options)


def _allowed(tensor: TensorSpec, loss: TensorLoss | None, constraints: Constraints) -> dict[str, int]:
    """Type -> loss for the types that one tensor may have, the kept one first."""
    kept = "F16" if tensor.type.bits_per_weight > GGML_TYPES["F16"].bits_per_weight else tensor.type_name
    if loss is None:
        return {kept: 0}
    _check_types(tensor, loss)
    types = {kept: 0} | {name: round(value * PER_UNIT) for name, value in loss.by_type.items() if name != kept}
    if kept != tensor.type_name:  # F32 is not kept but written as F16
        types[kept] = round(loss.by_type.get(kept, 0.0) * PER_UNIT)
    least = constraints.least_bits(tensor.name)
    left = {n: v for n, v in types.items() if n not in constraints.avoided and GGML_TYPES[n].bits_per_weight >= least}
    if not left:
        floor = f" of at least {least:g} bits" if least else ""
        avoided = f" after avoiding {', '.join(sorted(constraints.avoided))}" if constraints.avoided else ""
        raise InvalidRequest(f"{tensor.name} has no type left{floor}{avoided}; its rows allow {', '.join(types)}")
    return left


def _check_types(tensor: TensorSpec, loss: TensorLoss) -> None:
    for name, value in loss.by_type.items():
        if not 0 <= value <= MOST:
            raise ArtifactError(f"the measurement gives {tensor.name} a loss of {value:g} nats at {name}")
        if name not in GGML_TYPES:
            raise ArtifactError(f"the measurement gives {tensor.name} a loss for the unknown type {name!r}")
        if not GGML_TYPES[name].allows_row(tensor.row_length):
            raise ArtifactError(
                f"the measurement gives {tensor.name} a loss for {name}, "
                f"which its rows of {tensor.row_length} weights cannot be"
            )


def _check_patterns(constraints: Constraints, names: tuple[str, ...]) -> None:
    unmatched = constraints.unmatched(names)
    if unmatched:
        raise InvalidRequest(f"no weight matrix has '{unmatched[0]}' in its name; there are {', '.join(names[:8])} ...")


@dataclass(frozen=True, slots=True)
class _Pricing:
    spec: ModelSpec
    prices: Prices
    priced_only: bool

    def times(self, tensor: TensorSpec, type_name: str) -> Times | None:
        """Picoseconds of a tensor's products for one token.

        A head works once for a generated token and once for a whole prompt; an embedding is looked up, not multiplied,
        unless it is the head too, and then it stays mapped (``run.shards``).  Of experts only those in use work.
        """
        price = self.prices.get(type_name)
        if price is None:
            return None
        if tensor.layer is None:
            is_tied = all(t.name != _HEAD for t in self.spec.tensors)
            works = tensor.name == _HEAD or (tensor.name == _EMBEDDING and is_tied)
            nanoseconds = price.mapped_token if is_tied else price.token
            return Times(round(works * tensor.n_weights * nanoseconds * _PICOSECONDS), 0)
        n_weights = tensor.n_weights * self._share_in_use(tensor)
        return Times(round(n_weights * price.token * _PICOSECONDS), round(n_weights * price.prompt * _PICOSECONDS))

    def _share_in_use(self, tensor: TensorSpec) -> float:
        n_experts = tensor.shape[2] if len(tensor.shape) > 2 else 1
        if n_experts == 1:
            return 1.0
        return min(1.0, int(self.spec.hyperparameters.get("expert_used_count", n_experts)) / n_experts)
