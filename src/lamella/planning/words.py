"""What the layers of a plan get, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lamella.core.artifacts import LayerPlan, Plan
from lamella.planning.cost import MIXED


def layer_words(plan: Plan, layer: LayerPlan) -> str:
    """``int8``, or ``5 Q4_K, 2 Q6_K`` where types are mixed."""
    if layer.precision != MIXED:
        return layer.precision
    return counted(
        kind for name, kind in plan.tensors.items() if name.startswith(f"blk.{layer.layer}.") and kind != "F32"
    )


def plan_words(plan: Plan) -> str:
    """The same of the whole plan: layers by precision, or tensors by type where layers are mixed."""
    if any(layer.precision == MIXED for layer in plan.layers):
        return counted(kind for kind in plan.tensors.values() if kind != "F32")
    return counted(layer.precision.upper() for layer in plan.layers)


def counted(words: Iterable[str]) -> str:
    """``20 Q4_K, 3 Q6_K``: each with how often it comes, most first."""
    return ", ".join(f"{n} {word}" for word, n in Counter(words).most_common())
