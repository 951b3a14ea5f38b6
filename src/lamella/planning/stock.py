"""``stock``: the types that llama-quantize itself would choose for a mix such as Q4_K_M.

The choice is made by llama.cpp (``lamella.llama.stock_mix``) and comes here as data, so this policy only says what it
costs and whether it is within the limit.
"""

from __future__ import annotations

from lamella.core.artifacts import Plan
from lamella.core.errors import InvalidRequest, UnsupportedTensor
from lamella.core.model import ModelSpec
from lamella.planning.cost import build_tensor_plan, is_within, plan_does_not_fit, targets
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
        raise InvalidRequest("policy stock takes every type from the mix: schemes and outside do not go with it")
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
    settings = {**targets(request), "mix": stock.mix, "imatrix": "yes" if stock.with_importance else "no"}
    types = {t.name: stock.types[t.name] for t in request.spec.tensors}
    return build_tensor_plan("stock", request, request.overhead or Overhead(), types, settings=settings)
