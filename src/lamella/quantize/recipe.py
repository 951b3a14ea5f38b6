"""What determines a shard's bytes, before it is made.

    for job in shard_jobs(source, plan):
        print(job.group.label, job.recipe_id)

Two plans that agree on a layer have the same recipe for it, so the layer is made once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lamella.core.artifacts import Plan, check_same_structure
from lamella.core.errors import ArtifactError, InvalidRequest, UnsupportedTensor
from lamella.core.model import ShardGroup, TensorSpec, shard_groups
from lamella.core.precision import GGML_TYPES, MENU, GgmlType
from lamella.llama import library
from lamella.llama.gguf import ModelFile
from lamella.llama.imatrix import ImportanceMatrix, hash_values
from lamella.quantize.tensor import Conversion
from lamella.quantize.tuned import TUNER_VERSION, Tuning

QUANTIZER_VERSION = 1  # raise when the bytes of a shard change for the same recipe

IGNORE_IMPORTANCE = frozenset(("F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"))
"""Types that ggml rounds alike with and without an importance matrix (``quantize_*`` in ggml-quants.c)."""

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


def shard_jobs(
    source: ModelFile, plan: Plan, importance: ImportanceMatrix | None = None, tuning: Tuning | None = None
) -> tuple[ShardJob, ...]:
    """What a plan asks of a source, shard by shard.

    Args:
        importance: what ggml's rounding weighs columns by; tensors that it does not know are rounded plainly.
        tuning: instead of it, what the rounding of the layers' matrices is tuned with.

    Raises:
        ArtifactError: plan or importance matrix are for another model, or the plan does not name every tensor.
        InvalidRequest: an importance matrix or tuning for a scheme other than ``block``, which uses neither; or both.
        UnsupportedTensor: a type that the tensor's row length or the scheme does not allow, or that needs an
            importance matrix.
    """
    check_plan(source, plan)
    if tuning is not None:
        _check_tuning(plan, importance)
    if importance is not None:
        if plan.scheme != "block":
            raise InvalidRequest(f"scheme {plan.scheme} does not use an importance matrix; only scheme block does")
        importance.check_model(source.spec.identity, source.spec.tensors)
    return tuple(_job(source, plan, group, importance, tuning) for group in shard_groups(source.spec))


def copy_jobs(source: ModelFile) -> tuple[ShardJob, ...]:
    """The shards of a source whose tensors stay as they are."""
    return tuple(
        _shard_job(source, group, tuple(Conversion(source.tensors[t.name], t.type, None) for t in group.tensors))
        for group in shard_groups(source.spec)
    )


def importance_hash(jobs: Sequence[ShardJob]) -> str:
    """SHA-256 over the hashes of all importance values that the jobs use, in order; "" if they use none."""
    used = [hash_values(c.importance) for job in jobs for c in job.conversions if c.importance is not None]
    return hashlib.sha256("".join(used).encode()).hexdigest() if used else ""


def tuned_on(jobs: Sequence[ShardJob]) -> str:
    """Identity of the tuning that the jobs use; "" if none does."""
    return next((c.tuned_on for job in jobs for c in job.conversions if c.tuned_on), "")


def _check_tuning(plan: Plan, importance: ImportanceMatrix | None) -> None:
    if plan.scheme != "block":
        raise InvalidRequest(f"scheme {plan.scheme} is not tuned on text; only scheme block is")
    if importance is not None:
        raise InvalidRequest(
            "rounding is tuned on text or done under an importance matrix, not both: tuning has its own"
        )


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


def _job(
    source: ModelFile, plan: Plan, group: ShardGroup, importance: ImportanceMatrix | None, tuning: Tuning | None
) -> ShardJob:
    return _shard_job(source, group, tuple(_conversion(source, plan, t, importance, tuning) for t in group.tensors))


def _shard_job(source: ModelFile, group: ShardGroup, conversions: tuple[Conversion, ...]) -> ShardJob:
    for conversion in conversions:
        conversion.check_possible()
    return ShardJob(group, conversions, _recipe(source, group, conversions))


def _conversion(
    source: ModelFile, plan: Plan, tensor: TensorSpec, importance: ImportanceMatrix | None, tuning: Tuning | None
) -> Conversion:
    data = source.tensors[tensor.name]
    if not tensor.is_matrix:  # vectors and small tables stay as they are
        return Conversion(data, tensor.type, None)
    name = plan.tensors[tensor.name]
    target = GGML_TYPES.get(name)
    if target is None:
        raise ArtifactError(f"the plan gives tensor {tensor.name} the unknown type {name!r}")
    rounding = _rounding(plan, tensor, target)
    conversion = Conversion(data, target, rounding, truncated=_truncates(plan, rounding))
    if tuning is not None and _is_tuned(conversion):
        return replace(conversion, tuned_on=tuning.identity)
    if importance is None or conversion.copies or target.name in IGNORE_IMPORTANCE:
        return conversion
    values = importance.values(tensor.name)
    return conversion if values is None else replace(conversion, importance=values.reshape(-1, tensor.row_length))


def _is_tuned(conversion: Conversion) -> bool:
    """Whether there are errors to make up for, in a matrix whose inputs are seen (``measuring.covariance``)."""
    spec = conversion.source.spec
    return (
        spec.layer is not None
        and len(spec.shape) == 2
        and not conversion.copies
        and conversion.target.name not in _FLOATS
    )


def _rounding(plan: Plan, tensor: TensorSpec, target: GgmlType) -> str | None:
    """The precision of one scale a row: the layer's, where the type is its container, or else the container's own."""
    if plan.scheme == "block" or target.name in _FLOATS:
        return None
    by_layer = {layer.layer: layer.precision for layer in plan.layers}
    precision = by_layer.get(tensor.layer, "") if tensor.layer is not None else ""
    if precision in MENU and target.name in MENU[precision].channel:
        return precision
    if target.name not in _PRECISION_OF_CONTAINER:
        raise UnsupportedTensor(f"tensor {tensor.name}: scheme {plan.scheme} has no container {target.name}")
    return _PRECISION_OF_CONTAINER[target.name]


def _truncates(plan: Plan, rounding: str | None) -> bool:
    """Whether bits are dropped: not of 8, so that both schemes share such layers."""
    return plan.scheme == "truncate" and rounding is not None and MENU[rounding].bits < 8


def _recipe(source: ModelFile, group: ShardGroup, conversions: tuple[Conversion, ...]) -> dict[str, Any]:
    """What else stands in the metadata shard shows in its recipe alone: a new chat template leaves layers shared."""
    identity = source.spec.identity
    metadata = {"metadata": source.description} if group.number == 0 else {}
    return metadata | {
        "structure": identity.structure,
        "weights": identity.weights,
        "shard": group.number,
        "tensors": [_tensor_recipe(conversion) for conversion in conversions],
        "quantizer": f"{QUANTIZER_VERSION}, llama-cpp-python {library.installed_version()}",
    }


def _tensor_recipe(conversion: Conversion) -> list[str]:
    """Name, type and rounding; the scheme shows per tensor, so layers that schemes leave alone are shared.

    Likewise an importance matrix shows in those tensors only whose rounding uses it.
    """
    rounding = "copy" if conversion.copies else conversion.rounding or "block"
    if conversion.truncated:
        rounding = f"truncated {rounding}"
    if conversion.importance is not None:
        rounding += f", importance {hash_values(conversion.importance)}"
    if conversion.tuned_on:
        rounding += f", tuned {TUNER_VERSION} on {conversion.tuned_on}"
    return [conversion.source.spec.name, conversion.target.name, rounding]
