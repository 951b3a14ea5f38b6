"""``stock``: the types that llama-quantize itself would choose for a mix such as Q4_K_M.

The choice is made by llama.cpp (``lamella.llama.stock_mix``) and comes here as data, so this policy only says what it
costs and whether it is within the limit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from lamella.core.artifacts import LayerPlan, MemoryNeed, Plan
from lamella.core.errors import InvalidRequest, UnsupportedTensor
from lamella.core.model import LayerSpec, ModelSpec
from lamella.core.precision import GGML_TYPES
from lamella.planning.cost import bits_per_weight, is_within, plan_does_not_fit, stored_bytes, targets, weight_bytes
from lamella.planning.request import Overhead, PlanRequest, StockTypes


def plan_stock(request: PlanRequest) -> Plan:
    """The plan of ``request.stock``.

    Raises:
        InvalidRequest: no mix, or arguments that would change it.
        UnsupportedTensor: the mix changes a tensor that Lamella keeps as it is.
        DoesNotFit: the mix exceeds the limit.
    """
    stock = request.stock
    if stock is None:
        raise InvalidRequest("policy stock needs a mix that llama-quantize knows, such as Q4_K_M")
    if request.scheme != "block" or request.outside is not None:
        raise InvalidRequest("policy stock takes every type from the mix: scheme channel and outside do not go with it")
    check_kept(request.spec, stock)
    plan = _plan(request, stock)
    if not is_within(plan, request):
        raise plan_does_not_fit(plan, f"the mix {stock.mix}", request, "ask for a smaller mix")
    return plan


def check_kept(spec: ModelSpec, stock: StockTypes) -> None:
    """Refuse types that a build would not realise: it copies vectors and small tables (``TensorSpec.is_matrix``).

    Raises:
        InvalidRequest: the types are of another model.
        UnsupportedTensor: names the first such tensor.
    """
    missing = [t.name for t in spec.tensors if t.name not in stock.types]
    if missing:
        raise InvalidRequest(f"the types of mix {stock.mix} lack {len(missing)} tensors, for example {missing[0]}")
    for tensor in spec.tensors:
        if not tensor.is_matrix and stock.types[tensor.name] != tensor.type_name:
            raise UnsupportedTensor(
                f"mix {stock.mix} makes tensor {tensor.name} {stock.types[tensor.name]}; "
                f"Lamella keeps it {tensor.type_name}"
            )


def _plan(request: PlanRequest, stock: StockTypes) -> Plan:
    spec, overhead = request.spec, request.overhead or Overhead()
    types = {t.name: stock.types[t.name] for t in spec.tensors}
    weights = weight_bytes(spec, types)
    return Plan(
        policy="stock",
        model=spec.identity,
        scheme=request.scheme,
        settings={
            **request.settings,
            **targets(request),
            "accounting": "exact",
            "mix": stock.mix,
            "imatrix": "yes" if stock.with_importance else "no",
        },
        layers=tuple(
            LayerPlan(layer.index, main_type(layer, types), stored_bytes(layer.tensors, types)) for layer in spec.layers
        ),
        tensors=types,
        bits_per_weight=bits_per_weight(spec, types),
        average_bits=math.fsum(matrix_bits(layer, types) for layer in spec.layers) / spec.n_layers,
        bytes=MemoryNeed(weights, overhead.kv_cache_bytes, overhead.compute_bytes, overhead.reserve_bytes),
        budget_bytes=request.budget_bytes,
    )


def main_type(layer: LayerSpec, types: Mapping[str, str]) -> str:
    """The ggml type that most weights of a layer have: what a mixed layer is called in tables and plots."""
    counts: Counter[str] = Counter()
    for tensor in layer.matrices or layer.tensors:
        counts[types[tensor.name]] += tensor.n_weights
    return max(counts, key=lambda name: (counts[name], GGML_TYPES[name].bits_per_weight), default="F32")


def matrix_bits(layer: LayerSpec, types: Mapping[str, str]) -> float:
    """Stored bits per weight of a layer's matrices; 0 for a layer without any."""
    n_weights = sum(t.n_weights for t in layer.matrices)
    return 8 * stored_bytes(layer.matrices, types) / n_weights if n_weights else 0.0
