"""Rows of text for tables; how they are laid out is the command line's matter.

table = measurement_table(measurement)
print(*table.header); [print(*row) for row in table.rows]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lamella.core.artifacts import LayerScore, Measurement, Plan
from lamella.core.units import format_bytes


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; every row is as long as the header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def measurement_table(measurement: Measurement) -> Table:
    """One row a layer: joint score, rank (1 = most important), then each task or precision."""
    columns = measurement.per_precision or (measurement.per_task if len(measurement.per_task) > 1 else {})
    layers = sorted(measurement.layers, key=lambda s: s.layer)
    ranks = _ranks([s.mean for s in layers])
    parts = [sorted(scores, key=lambda s: s.layer) for scores in columns.values()]
    rows = tuple(
        (str(score.layer), score_text(score), str(rank), *(score_text(part[i]) for part in parts))
        for i, (score, rank) in enumerate(zip(layers, ranks, strict=True))
    )
    return Table(("layer", measurement.metric, "rank", *columns), rows)


def plan_table(plan: Plan) -> Table:
    """One row a layer: precision, the ggml types of its tensors, bytes."""
    types: dict[int, set[str]] = {}
    for name, type_name in plan.tensors.items():
        if name.startswith("blk.") and name.endswith(".weight") and not name.endswith("_norm.weight"):
            types.setdefault(int(name.split(".")[1]), set()).add(type_name)
    rows = tuple(
        (str(p.layer), p.precision, " ".join(sorted(types.get(p.layer, ()))), format_bytes(p.bytes))
        for p in plan.layers
    )
    return Table(("layer", "precision", "types", "size"), rows)


def score_text(score: LayerScore) -> str:
    """``0.412 ± 0.021``; exact scores without an error."""
    return f"{score.mean:.3f} ± {score.standard_error:.3f}" if score.standard_error else f"{score.mean:.4f}"


def _ranks(values: Sequence[float]) -> list[int]:
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    ranks = [0] * len(values)
    for rank, i in enumerate(order, 1):
        ranks[i] = rank
    return ranks
