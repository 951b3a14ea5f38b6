"""What a choice of precisions costs, and the Plan made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamella.core.artifacts import LayerPlan, MemoryNeed, Plan
from lamella.core.errors import DoesNotFit
from lamella.core.model import LayerSpec, ModelSpec, TensorSpec
from lamella.core.precision import GGML_TYPES, Scheme, container, nominal_bits
from lamella.core.units import format_bytes
from lamella.planning.request import KEEP, Overhead, PlanRequest

_FP16_BITS = 16
MIXED = "mixed"
"""Precision of a layer whose matrices have several types."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision for each layer, and one for the matrices outside the layers.

    Attributes:
        scores: the importance that led to it, in [0, 1]; None for policies that look at none.
    """

    layers: tuple[str, ...]
    outside: str
    scores: tuple[float, ...] | None = None


def realise(
    spec: ModelSpec, layer_precisions: Sequence[str], scheme: Scheme = "block", outside: str = KEEP
) -> dict[str, str]:
    """Tensor name -> ggml type for every tensor of the model.

    The container is chosen for each tensor by its row length (``core.precision.container``).  Tensors that precision
    decisions do not apply to (norms, biases, routers) keep the type of the model file.

    Raises:
        UnsupportedTensor: the scheme or the named type has no container for a tensor's rows.
    """
    return {t.name: _type_name(t, _precision_of(t, layer_precisions, outside), scheme) for t in spec.tensors}


def weight_bytes(spec: ModelSpec, tensors: Mapping[str, str]) -> int:
    """Bytes of all tensors stored as the mapping says."""
    return stored_bytes(spec.tensors, tensors)


def stored_bytes(specs: Sequence[TensorSpec], tensors: Mapping[str, str]) -> int:
    """The same of some tensors."""
    return sum(t.bytes_as(GGML_TYPES[tensors[t.name]]) for t in specs)


def bits_per_weight(spec: ModelSpec, tensors: Mapping[str, str]) -> float:
    """Stored bits over all weights of the model, scales included."""
    return 8 * weight_bytes(spec, tensors) / spec.n_weights


def average_bits(layer_precisions: Sequence[str]) -> float:
    """Mean of the layers' nominal bits, as LSAQ's tables count."""
    return math.fsum(nominal_bits(p) for p in layer_precisions) / len(layer_precisions)


def layer_bytes(layer: LayerSpec, precision: str, scheme: Scheme, overhead: Overhead) -> int:
    """Bytes of a layer at a precision, under the accounting."""
    if overhead.accounting == "nominal":
        return _nominal_bytes(layer.n_weights, nominal_bits(precision))
    return sum(t.bytes_as(GGML_TYPES[_type_name(t, precision, scheme)]) for t in layer.tensors)


def outside_bytes(spec: ModelSpec, outside: str, scheme: Scheme, overhead: Overhead) -> int:
    """Bytes of embedding, head and what else is in no layer, under the accounting (nominal: kept means FP16)."""
    tensors = spec.outside
    if overhead.accounting == "nominal":
        bits = _FP16_BITS if outside == KEEP else nominal_bits(outside)
        return _nominal_bytes(sum(t.n_weights for t in tensors), bits)
    return sum(t.bytes_as(GGML_TYPES[_type_name(t, outside, scheme)]) for t in tensors)


def total_bytes(request: PlanRequest, overhead: Overhead, choice: Choice) -> int:
    """What a running variant of this choice needs, under the accounting."""
    return _need(request, overhead, choice)[1].total


def build_plan(policy: str, request: PlanRequest, overhead: Overhead, choice: Choice) -> Plan:
    """The plan of a choice, whether it fits or not.  Settings hold what is needed to make it again."""
    spec = request.spec
    tensors = realise(spec, choice.layers, request.scheme, choice.outside)
    layers, need = _need(request, overhead, choice)
    return Plan(
        policy=policy,
        model=spec.identity,
        scheme=request.scheme,
        settings=_settings(request, overhead, choice),
        layers=tuple(
            LayerPlan(i, precision, n_bytes, choice.scores[i] if choice.scores else None)
            for i, (precision, n_bytes) in enumerate(zip(choice.layers, layers, strict=True))
        ),
        tensors=tensors,
        bits_per_weight=bits_per_weight(spec, tensors),
        average_bits=average_bits(choice.layers),
        bytes=need,
        budget_bytes=request.budget_bytes,
    )


def fits(request: PlanRequest, overhead: Overhead, choice: Choice) -> bool:
    """Whether the choice is within the request's limit: memory, average bits or bits per weight; true without one."""
    if request.budget_bytes is not None:
        return total_bytes(request, overhead, choice) <= request.budget_bytes
    if request.average_bits is not None:
        return average_bits(choice.layers) <= request.average_bits
    if request.bits_per_weight is not None:
        tensors = realise(request.spec, choice.layers, request.scheme, choice.outside)
        return bits_per_weight(request.spec, tensors) <= request.bits_per_weight
    return True


def is_within(plan: Plan, request: PlanRequest) -> bool:
    """The same question about a plan that is made."""
    limits = (
        (plan.bytes.total, request.budget_bytes),
        (plan.average_bits, request.average_bits),
        (plan.bits_per_weight, request.bits_per_weight),
    )
    return all(limit is None or found <= limit for found, limit in limits)


def build_tensor_plan(
    policy: str,
    request: PlanRequest,
    overhead: Overhead,
    tensors: Mapping[str, str],
    *,
    scores: Sequence[float] | None = None,
    predicted_loss: float | None = None,
    settings: Mapping[str, int | float | str],
) -> Plan:
    """The plan of a choice made for each tensor, counted as stored (``mixed_layers``, ``mean_stored_bits``).

    Args:
        tensors: ggml type of every tensor.
        scores: importance of each layer in [0, 1]; None for policies that look at none.
        settings: of the policy, beside the request's own.
    """
    spec = request.spec
    need = MemoryNeed(
        weight_bytes(spec, tensors), overhead.kv_cache_bytes, overhead.compute_bytes, overhead.reserve_bytes
    )
    return Plan(
        policy=policy,
        model=spec.identity,
        scheme=request.scheme,
        settings={**request.settings, "accounting": "exact", **settings},
        layers=mixed_layers(spec, tensors, scores),
        tensors=dict(tensors),
        bits_per_weight=bits_per_weight(spec, tensors),
        average_bits=mean_stored_bits(spec, tensors),
        bytes=need,
        budget_bytes=request.budget_bytes,
        predicted_loss=predicted_loss,
    )


def mixed_layers(
    spec: ModelSpec, tensors: Mapping[str, str], scores: Sequence[float] | None = None
) -> tuple[LayerPlan, ...]:
    """What each layer gets by a choice made for each tensor: the type of all its matrices, or ``mixed``."""
    return tuple(
        LayerPlan(
            layer.index,
            layer_type(layer, tensors),
            stored_bytes(layer.tensors, tensors),
            scores[i] if scores else None,
            _matrix_bits(layer, tensors),
        )
        for i, layer in enumerate(spec.layers)
    )


def mean_stored_bits(spec: ModelSpec, tensors: Mapping[str, str]) -> float:
    """Mean over layers of the stored bits of a weight; what a mix is called says little about its bits."""
    return math.fsum(_matrix_bits(layer, tensors) for layer in spec.layers) / max(1, spec.n_layers)


def _matrix_bits(layer: LayerSpec, tensors: Mapping[str, str]) -> float:
    """Stored bits per weight of a layer's matrices: norms and biases are no part of what a precision is."""
    specs = layer.matrices or layer.tensors
    return 8 * stored_bytes(specs, tensors) / max(1, sum(t.n_weights for t in specs))


def layer_type(layer: LayerSpec, tensors: Mapping[str, str]) -> str:
    """The ggml type that all matrices of a layer have, or ``mixed``."""
    types = {tensors[t.name] for t in layer.matrices or layer.tensors}
    return types.pop() if len(types) == 1 else MIXED


def does_not_fit(
    policy: str, what: str, request: PlanRequest, overhead: Overhead, choice: Choice, advice: str = ""
) -> DoesNotFit:
    """The error that says by how much ``choice`` misses the limit, and where its bytes go.

    Args:
        what: names the choice: ``the smallest plan (all INT4)``.
        advice: what would fit.
    """
    return plan_does_not_fit(build_plan(policy, request, overhead, choice), what, request, advice)


def plan_does_not_fit(plan: Plan, what: str, request: PlanRequest, advice: str = "") -> DoesNotFit:
    """The same error for a plan that is made."""
    if request.budget_bytes is not None:
        message, needed, allowed = _memory_missed(plan, what, request.budget_bytes)
    elif request.average_bits is not None:
        n_weights = sum(layer.n_weights for layer in request.spec.layers)
        message, needed, allowed = _bits_missed(
            what, "average bits", plan.average_bits, request.average_bits, n_weights
        )
    else:
        assert request.bits_per_weight is not None
        message, needed, allowed = _bits_missed(
            what, "bits per weight as stored", plan.bits_per_weight, request.bits_per_weight, request.spec.n_weights
        )
        message += _outside_share(request.spec, plan)
    message += f"; {advice}" if advice else ""
    return DoesNotFit(message, needed_bytes=needed, budget_bytes=allowed, smallest_plan=plan)


def _memory_missed(plan: Plan, what: str, budget: int) -> tuple[str, int, int]:
    need = plan.bytes
    parts = {"weights": need.weights, "KV cache": need.kv_cache, "compute": need.compute, "reserve": need.reserve}
    listed = ", ".join(f"{name} {format_bytes(n)}" for name, n in parts.items() if n)
    message = (
        f"{what} of {plan.model.name} needs {format_bytes(need.total)}, "
        f"{format_bytes(need.total - budget)} more than the budget of {format_bytes(budget)} ({listed})"
    )
    return message, need.total, budget


def _bits_missed(what: str, unit: str, found: float, asked: float, n_weights: int) -> tuple[str, int, int]:
    """The sentence, and both figures as bytes of the weights that they speak of."""
    message = f"{what} has {found:.4g} {unit}, more than the {asked:.4g} that were asked"
    return message, _nominal_bytes(n_weights, found), _nominal_bytes(n_weights, asked)


def _outside_share(spec: ModelSpec, plan: Plan) -> str:
    """What no choice for the layers changes, where there is such: in small models the embedding is a large part."""
    outside = stored_bytes(spec.outside, plan.tensors)
    return f" ({format_bytes(outside)} of {format_bytes(plan.bytes.weights)} are embedding and head)"


def _need(request: PlanRequest, overhead: Overhead, choice: Choice) -> tuple[list[int], MemoryNeed]:
    layers = [
        layer_bytes(layer, precision, request.scheme, overhead)
        for layer, precision in zip(request.spec.layers, choice.layers, strict=True)
    ]
    weights = sum(layers) + outside_bytes(request.spec, choice.outside, request.scheme, overhead)
    return layers, MemoryNeed(weights, overhead.kv_cache_bytes, overhead.compute_bytes, overhead.reserve_bytes)


def _settings(request: PlanRequest, overhead: Overhead, choice: Choice) -> dict[str, int | float | str]:
    settings = {**request.settings, **targets(request)}
    settings["accounting"] = overhead.accounting
    settings["outside"] = choice.outside
    settings.setdefault("importance", "prior" if request.importance is None else "measured")
    if request.precision is not None:
        settings["precision"] = request.precision
    if request.alpha is not None:
        settings["alpha"] = request.alpha
    return settings


def targets(request: PlanRequest) -> dict[str, int | float | str]:
    """The limits in bits, as settings record them (``Plan.budget_bytes`` records the one in memory)."""
    limits = {"target_average_bits": request.average_bits, "target_bits_per_weight": request.bits_per_weight}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _precision_of(tensor: TensorSpec, layer_precisions: Sequence[str], outside: str) -> str:
    return outside if tensor.layer is None else layer_precisions[tensor.layer]


def _type_name(tensor: TensorSpec, precision: str, scheme: Scheme) -> str:
    if not tensor.is_matrix:
        return tensor.type_name
    if precision == KEEP:
        return "F16" if tensor.type.bits_per_weight > _FP16_BITS else tensor.type_name
    return container(precision, tensor.row_length, scheme).name


def _nominal_bytes(n_weights: int, bits: float) -> int:
    return math.ceil(n_weights * bits / 8)
