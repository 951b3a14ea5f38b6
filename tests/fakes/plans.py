"""Plans made by hand, so that tests of the builder do not depend on the policies."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.core.artifacts import LayerPlan, MemoryNeed, Plan
from lamella.core.model import ModelSpec
from lamella.core.precision import Scheme, container


def make_plan(spec: ModelSpec, layers: str | Sequence[str], *, outside: str = "int8", scheme: Scheme = "block") -> Plan:
    """A plan that gives each layer a precision (one for all, or one each), and ``outside`` to embedding and head."""
    precisions = [layers] * spec.n_layers if isinstance(layers, str) else list(layers)
    tensors = {
        t.name: container(outside if t.layer is None else precisions[t.layer], t.row_length, scheme).name
        if t.is_matrix
        else t.type_name
        for t in spec.tensors
    }
    return Plan(
        policy="uniform",
        model=spec.identity,
        scheme=scheme,
        settings={},
        layers=[LayerPlan(i, p, 0) for i, p in enumerate(precisions)],
        tensors=tensors,
        bits_per_weight=8.5,
        average_bits=8.0,
        bytes=MemoryNeed(0, 0, 0, 0),
    )
