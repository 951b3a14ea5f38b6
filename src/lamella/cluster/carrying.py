"""Whether the KV cache goes along when layers move, or is computed again: what takes less time.  A pure decision.

    way = Move(model, machines, before, after)
    if is_worth_carrying(way, n_cells=900): ...

Each layer's cells are read over the link of the machine that had it, and written over that of the one that gets it;
also where that is the same machine, since the engine between them is another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamella.cluster.layers import LayersOf
from lamella.cluster.placing import MachineNow, ServedModel, seconds_of
from lamella.planning.placement import Link, Request

MESSAGES_EACH_WAY = 2
"""Of a layer: its keys and its values."""


@dataclass(frozen=True, slots=True)
class Move:
    """Layers of a model that go from some places to others; all of these are there."""

    model: ServedModel
    machines: Mapping[str, MachineNow]
    before: Sequence[LayersOf]
    after: Sequence[LayersOf]


def is_worth_carrying(move: Move, n_cells: int) -> bool:
    """Whether so many cells are carried sooner than they are computed at their new places."""
    again = seconds_of(move.model, move.machines, move.after, Request(n_cells, 1)) if n_cells else None
    return again is not None and seconds_to_carry(move, n_cells) < again


def seconds_to_carry(move: Move, n_cells: int) -> float:
    """What links take; this machine's memory and disk are as fast as anything that they are compared with."""
    return sum(_seconds(move, at, n_cells) for layers in (move.before, move.after) for at in layers)


def _seconds(move: Move, at: LayersOf, n_cells: int) -> float:
    link = move.machines[at.node].link
    return 0.0 if link is None else sum(_of_layer(link, n_cells * n) for n in move.model.cell_bytes[at.first : at.end])


def _of_layer(link: Link, n_bytes: int) -> float:
    return MESSAGES_EACH_WAY * link.round_trip_seconds + n_bytes / link.bytes_per_second
