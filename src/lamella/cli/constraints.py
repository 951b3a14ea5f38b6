"""Options that ``plan`` and ``frontier`` share: what a tensor may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from lamella.planning.constraints import Constraints, parse_at_least

AvoidOption = Annotated[
    list[str] | None,
    typer.Option(metavar="TYPE", help="Of knapsack: a ggml type that no tensor may have; may be repeated."),
]
AtLeastOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN=TYPE",
        help="Of knapsack: tensors with PATTERN in their name get at least as many bits per weight; may be repeated.",
    ),
]
FusedFlag = Annotated[
    bool, typer.Option("--fused", help="Of knapsack: one type for attn_q, k and v of a layer, one for ffn_gate and up.")
]


def read_constraints(avoid: Sequence[str] | None, at_least: Sequence[str] | None, fused: bool) -> Constraints | None:
    """The constraints that were given; None for none.

    Raises:
        InvalidRequest: an unknown type, or no ``PATTERN=TYPE``.
    """
    if not avoid and not at_least and not fused:
        return None
    return Constraints(tuple(avoid or ()), tuple(parse_at_least(text) for text in at_least or ()), fused)
