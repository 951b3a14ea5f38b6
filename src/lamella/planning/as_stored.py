"""A plan read off a file: the types its tensors have.

    as_stored(read_model(path).spec, "imported", {"file": "model.Q4_K_M.gguf"})

``lamella import`` describes so what it took in.  Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping

from lamella.core.artifacts import MemoryNeed, Plan
from lamella.core.model import ModelIdentity, ModelSpec
from lamella.planning.cost import mean_stored_bits, mixed_layers


def as_stored(
    spec: ModelSpec,
    policy: str,
    settings: Mapping[str, int | float | str],
    model: ModelIdentity | None = None,
) -> Plan:
    """The plan that gives every tensor the type it has in ``spec``.

    Args:
        model: what the plan is for; None: the model of ``spec``.
    """
    tensors = {t.name: t.type_name for t in spec.tensors}
    return Plan(
        policy=policy,
        model=model or spec.identity,
        scheme="block",
        settings=settings,
        layers=mixed_layers(spec, tensors),
        tensors=tensors,
        bits_per_weight=spec.bits_per_weight,
        average_bits=mean_stored_bits(spec, tensors),
        bytes=MemoryNeed(spec.n_bytes, 0, 0, 0),
    )
