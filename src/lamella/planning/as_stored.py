"""A plan read off a file: the types its tensors have.

    as_stored(read_model(path).spec, "imported", {"file": "model.Q4_K_M.gguf"})

``lamella import`` describes so what it took in.  Nothing is decided here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from lamella.core.artifacts import LayerPlan, MemoryNeed, Plan
from lamella.core.model import LayerSpec, ModelIdentity, ModelSpec


def as_stored(
    spec: ModelSpec,
    policy: str,
    settings: Mapping[str, int | float | str],
    model: ModelIdentity | None = None,
) -> Plan:
    """The plan that gives every tensor the type it has in ``spec``.

    The precision of a layer is the ggml type of most of its weights; files of other tools mix types within a layer, and
    ``tensors`` has them all.  ``average_bits`` is the mean of the layers' stored bits per weight: what such a mix is
    called says little about its bits.

    Args:
        model: what the plan is for; None: the model of ``spec``.
    """
    return Plan(
        policy=policy,
        model=model or spec.identity,
        scheme="block",
        settings=settings,
        layers=[LayerPlan(x.index, _main_type(x), sum(t.n_bytes for t in x.tensors)) for x in spec.layers],
        tensors={t.name: t.type_name for t in spec.tensors},
        bits_per_weight=spec.bits_per_weight,
        average_bits=math.fsum(_stored_bits(x) for x in spec.layers) / spec.n_layers if spec.n_layers else 0.0,
        bytes=MemoryNeed(spec.n_bytes, 0, 0, 0),
    )


def _main_type(layer: LayerSpec) -> str:
    n_weights: Counter[str] = Counter()
    for tensor in layer.matrices or layer.tensors:
        n_weights[tensor.type_name] += tensor.n_weights
    return max(n_weights, key=lambda name: (n_weights[name], name), default="F32")


def _stored_bits(layer: LayerSpec) -> float:
    """Bits of a weight of the layer's matrices: norms and biases are no part of what a precision is."""
    tensors = layer.matrices or layer.tensors
    return 8 * sum(t.n_bytes for t in tensors) / max(1, sum(t.n_weights for t in tensors))
