"""Losses made by formula, for tests of planning: smaller types lose more, and tensors differ."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.core.artifacts import TensorLoss
from lamella.core.model import ModelSpec
from lamella.core.precision import GGML_TYPES

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "IQ4_XS", "Q3_K", "Q2_K", "F16")


def made_losses(
    spec: ModelSpec, scales: Sequence[float] = (1.0, 0.3, 2.0, 0.1), types: Sequence[str] = TYPES
) -> tuple[TensorLoss, ...]:
    """``scale * 2^(4 - bits)`` for each matrix, the scales taken in turn; F16 loses nothing."""
    losses = []
    for i, tensor in enumerate(t for t in spec.tensors if t.is_matrix):
        scale = scales[i % len(scales)]
        by_type = {
            name: 0.0 if name == "F16" else scale * 2 ** (4 - GGML_TYPES[name].bits_per_weight)
            for name in types
            if GGML_TYPES[name].allows_row(tensor.row_length)
        }
        losses.append(TensorLoss(tensor.name, "Q4_0", by_type.get("Q4_0", 0.0), 0.0, by_type))
    return tuple(losses)
