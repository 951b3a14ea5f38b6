"""What determines a shard's bytes, before it is made.

    for job in shard_jobs(source, plan):
        print(job.group.label, job.recipe_id)

Two plans that agree on a layer have the same recipe for it, so the layer is made once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamella.core.artifacts import Plan, check_same_structure
from lamella.core.errors import ArtifactError, UnsupportedTensor
from lamella.core.model import ShardGroup, TensorSpec, shard_groups
from lamella.core.precision import GGML_TYPES, MENU, GgmlType
from lamella.llama import library
from lamella.llama.gguf import ModelFile
from lamella.quantize.tensor import Conversion

QUANTIZER_VERSION = 1  # raise when the bytes of a shard change for the same recipe

_FLOATS = ("F32", "F16", "BF16")
_PRECISION_OF_CONTAINER = {
    "Q8_0": "int8", "Q6_K": "int6", "Q5_0": "int5", "Q4_0": "int4", "Q3_K": "int3", "Q2_K": "int2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One shard to be had.

    Attributes:
        group: which part of the model.
        conversions: what becomes of each tensor of the group, in order.
        recipe: canonical description of everything that determines the shard's bytes.
    """

    group: ShardGroup
    conversions: tuple[Conversion, ...]
    recipe: Mapping[str, Any]

    @property
    def recipe_id(self) -> str:
        canonical = json.dumps(self.recipe, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def n_weights(self) -> int:
        return sum(c.source.spec.n_weights for c in self.conversions)

    @property
    def n_bytes(self) -> int:
        """Of the tensors' data."""
        return sum(c.n_bytes for c in self.conversions)


def shard_jobs(source: ModelFile, plan: Plan) -> tuple[ShardJob, ...]:
    """What a plan asks of a source, shard by shard.

    Raises:
        ArtifactError: the plan is for another model or other weights, or does not name every tensor.
        UnsupportedTensor: a type that the tensor's row length or the scheme does not allow.
    """
    check_plan(source, plan)
    return tuple(_job(source, plan, group) for group in shard_groups(source.spec))


def check_plan(source: ModelFile, plan: Plan) -> None:
    """Refuse a plan that is not for this model.

    Raises:
        ArtifactError: structure or weights differ (a plan from a specification names no weights), or tensors lack.
    """
    identity = source.spec.identity
    check_same_structure(plan, identity, "the plan")
    if plan.model.weights and plan.model.weights != identity.weights:
        raise ArtifactError(f"the plan is for other weights of {plan.model.name}: make one for this file")
    missing = [t.name for t in source.spec.tensors if t.is_matrix and t.name not in plan.tensors]
    if missing:
        raise ArtifactError(f"the plan names no type for {len(missing)} tensors, for example {missing[0]}")


def _job(source: ModelFile, plan: Plan, group: ShardGroup) -> ShardJob:
    conversions = tuple(_conversion(source, plan, tensor) for tensor in group.tensors)
    for conversion in conversions:
        conversion.check_possible()
    return ShardJob(group, conversions, _recipe(source, group, conversions))


def _conversion(source: ModelFile, plan: Plan, tensor: TensorSpec) -> Conversion:
    data = source.tensors[tensor.name]
    if not tensor.is_matrix:  # vectors and small tables stay as they are
        return Conversion(data, tensor.type, None)
    name = plan.tensors[tensor.name]
    target = GGML_TYPES.get(name)
    if target is None:
        raise ArtifactError(f"the plan gives tensor {tensor.name} the unknown type {name!r}")
    return Conversion(data, target, _rounding(plan, tensor, target))


def _rounding(plan: Plan, tensor: TensorSpec, target: GgmlType) -> str | None:
    """The precision eq. 4 rounds to: the layer's, where the type is its container, or else the container's own."""
    if plan.scheme == "block" or target.name in _FLOATS:
        return None
    by_layer = {layer.layer: layer.precision for layer in plan.layers}
    precision = by_layer.get(tensor.layer, "") if tensor.layer is not None else ""
    if precision in MENU and target.name in MENU[precision].channel:
        return precision
    if target.name not in _PRECISION_OF_CONTAINER:
        raise UnsupportedTensor(f"tensor {tensor.name}: scheme channel has no container {target.name}")
    return _PRECISION_OF_CONTAINER[target.name]


def _recipe(source: ModelFile, group: ShardGroup, conversions: tuple[Conversion, ...]) -> dict[str, Any]:
    identity = source.spec.identity
    return {
        "structure": identity.structure,
        "weights": identity.weights,
        "shard": group.number,
        "tensors": [_tensor_recipe(conversion) for conversion in conversions],
        "quantizer": f"{QUANTIZER_VERSION}, llama-cpp-python {library.installed_version()}",
    }


def _tensor_recipe(conversion: Conversion) -> list[str]:
    """Name, type and rounding; the scheme shows per tensor, so layers that both schemes leave alone are shared."""
    rounding = "copy" if conversion.copies else conversion.rounding or "block"
    return [conversion.source.spec.name, conversion.target.name, rounding]
