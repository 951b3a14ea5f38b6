"""Options that ``plan`` and ``frontier`` share: what a tensor may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from lamella.planning.constraints import Constraints, all_but, parse_at_least

AvoidOption = Annotated[
    list[str] | None,
    typer.Option(metavar="TYPE", help="Of knapsack: a ggml type that no tensor may have; may be repeated."),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TYPE",
        help="Of knapsack: a ggml type that tensors may have; may be repeated, and then they have no other.",
    ),
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


def read_constraints(
    avoid: Sequence[str] | None, only: Sequence[str] | None, at_least: Sequence[str] | None, fused: bool
) -> Constraints | None:
    """The constraints that were given; None for none.

    Raises:
        InvalidRequest: an unknown type, or no ``PATTERN=TYPE``.
    """
    if not (avoid or only or at_least or fused):
        return None
    avoided = (*(avoid or ()), *(all_but(only) if only else ()))
    return Constraints(avoided, tuple(parse_at_least(text) for text in at_least or ()), fused)
