"""A ceiling for an engine's memory: what may be open beside what, and in which order shards are exchanged.

    room = ceiling.room_bytes(copied_bytes=0)                # for weights
    names = what_to_drop(wanted, kept, spare, footprints, room)
    exchanges = plan_exchanges(pairs, in_use_bytes, room)    # where even dropping is not enough

Counted are the pages of mapped shards that are read in, and the private memory of the process: KV cache, compute
buffers, repacked weights, interpreter.  Everything here is pure but for ``Ceiling.measure``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lamella.core.artifacts import ShardRef
from lamella.core.errors import ExceedsCeiling
from lamella.core.units import format_bytes
from lamella.run.process_memory import private_bytes


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of one shard.

    Attributes:
        mapped_bytes: pages of its file that stay in memory.
        copied_bytes: private memory of repacked copies.
        opening_bytes: the most that it takes while it is opened: the whole file and the copies.
    """

    mapped_bytes: int
    copied_bytes: int
    opening_bytes: int

    @property
    def n_bytes(self) -> int:
        """What it takes once it is open."""
        return self.mapped_bytes + self.copied_bytes


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most memory that an engine may take.

    Attributes:
        n_bytes: the ceiling.
        planned_bytes: private memory that it will come to without any weight.
        measure: private memory of the process now, copies of weights included.
    """

    n_bytes: int
    planned_bytes: int
    measure: Callable[[], int] = private_bytes

    def room_bytes(self, copied_bytes: int) -> int:
        """What is left for weights, mapped and copied.

        Args:
            copied_bytes: private memory of copies that are there now.
        """
        return self.n_bytes - max(self.planned_bytes, self.measure() - copied_bytes)

    def spare_bytes(self, mapped_bytes: int, copied_bytes: int) -> int:
        """What is left beside weights that are open, for what was not planned; negative where the ceiling is passed."""
        return self.room_bytes(copied_bytes) - mapped_bytes - copied_bytes

    def refusal(self, what: str, needed_bytes: int, room_bytes: int, hint: str) -> ExceedsCeiling:
        """The error that says what weights do not fit.

        Args:
            what: begins the sentence: ``variant 'large'``.
            hint: what would work.
        """
        return ExceedsCeiling(
            f"{what} needs {format_bytes(needed_bytes)} for weights; under the memory ceiling of "
            f"{format_bytes(self.n_bytes)} there is room for {format_bytes(max(0, room_bytes))}, the rest is for KV "
            f"cache, buffers and the process; {hint}",
            needed_bytes=needed_bytes + self.n_bytes - room_bytes,
            ceiling_bytes=self.n_bytes,
        )


def total_bytes(shard_ids: Iterable[str], footprints: Mapping[str, Footprint]) -> int:
    """Of shards that are open; one that is named twice is open once."""
    return sum(footprints[i].n_bytes for i in set(shard_ids))


def opening_peak(in_use_bytes: int, shard_ids: Iterable[str], footprints: Mapping[str, Footprint]) -> int:
    """The most memory of weights while shards are opened one after the other."""
    peak = in_use_bytes
    for shard_id in dict.fromkeys(shard_ids):
        peak = max(peak, in_use_bytes + footprints[shard_id].opening_bytes)
        in_use_bytes += footprints[shard_id].n_bytes
    return peak


def what_to_drop(
    wanted: Sequence[str],
    kept: Collection[str],
    spare: Sequence[tuple[str, Collection[str]]],
    footprints: Mapping[str, Footprint],
    room_bytes: int,
) -> tuple[str, ...] | None:
    """The fewest variants to let go, so that shards can be opened beside those that must stay.

    Args:
        wanted: ids of the shards, in the order in which they are opened.
        kept: ids of shards that are in use.
        spare: variants that are open and not in use, with their shards, the first to go first.

    Returns:
        Names out of ``spare``; None where it is not enough to let all of them go.
    """
    for n_dropped in range(len(spare) + 1):
        still_open = {*kept, *(i for _, ids in spare[n_dropped:] for i in ids)}
        new = [i for i in wanted if i not in still_open]
        if opening_peak(total_bytes(still_open, footprints), new, footprints) <= room_bytes:
            return tuple(name for name, _ in spare[:n_dropped])
    return None


@dataclass(frozen=True, slots=True)
class Pair:
    """A shard and the one that takes its place.

    Attributes:
        opening_bytes, added_bytes: of the new one: while it is opened, and from then on.
        freed_bytes: of the old one; 0 where others use it too.
    """

    old: ShardRef
    new: ShardRef
    opening_bytes: int
    added_bytes: int
    freed_bytes: int


def pairs_of(
    before: Sequence[ShardRef],
    after: Sequence[ShardRef],
    held: Collection[str],
    footprints: Mapping[str, Footprint],
) -> list[Pair]:
    """The shards that differ between two variants of one model, in the order of its layers.

    Args:
        held: ids of shards that others use: they are there already, and stay.
    """
    return [
        Pair(
            old,
            new,
            opening_bytes=0 if new.id in held else footprints[new.id].opening_bytes,
            added_bytes=0 if new.id in held else footprints[new.id].n_bytes,
            freed_bytes=0 if old.id in held else footprints[old.id].n_bytes,
        )
        for old, new in zip(before, after, strict=True)
        if old.id != new.id
    ]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One step of a change shard by shard.

    Attributes:
        frees_first: the old shard's pages must go before the new one's come, because both do not fit: nothing can be
            computed meanwhile.
    """

    old: ShardRef
    new: ShardRef
    frees_first: bool


def plan_exchanges(
    pairs: Iterable[Pair], in_use_bytes: int, room_bytes: int
) -> tuple[tuple[Exchange, ...] | None, int]:
    """The order in which shards are exchanged so that the most memory taken in between is least, and that figure.

    The jobs of a sequence each need something while they run and leave something else behind.  First those that leave
    less than they found, the ones that need least first; then, as the same seen backwards, those that leave more.

    Returns:
        None for the order where an exchange does not fit even when the old shard goes first; nothing that takes more
        than there is room for, and more than is taken already, is ever planned.
    """
    exchanges: list[Exchange] = []
    peak, limit = in_use_bytes, max(in_use_bytes, room_bytes)
    for pair in sorted(pairs, key=_turn):
        frees_first = pair.freed_bytes > 0 and in_use_bytes + pair.opening_bytes > room_bytes  # or somebody needs it
        before = in_use_bytes - pair.freed_bytes if frees_first else in_use_bytes
        peak = max(peak, before + pair.opening_bytes)
        in_use_bytes += pair.added_bytes - pair.freed_bytes
        exchanges.append(Exchange(pair.old, pair.new, frees_first))
    return (tuple(exchanges) if peak <= limit else None), peak


def _turn(pair: Pair) -> tuple[bool, int]:
    grows = pair.added_bytes > pair.freed_bytes
    return grows, -(pair.opening_bytes - pair.added_bytes + pair.freed_bytes) if grows else pair.opening_bytes
