"""The KV cache of the engine: makes llama.cpp's cache follow the slot table, and finds room in it."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.batching.slots import Placement, Slot, SlotTable
from lamella.core.errors import CacheFull
from lamella.llama.context import Context


@dataclass(frozen=True, slots=True)
class ParkedState:
    """The KV state of a request that was pushed aside: what its slot held, who computed it, and the bytes."""

    tokens: tuple[int, ...]
    variants: frozenset[str]
    data: bytes


class SequenceCache:
    """Owns which sequence of a context holds what.

    Attributes:
        table: the bookkeeping.
        n_cells: tokens that the cache holds.
    """

    def __init__(self, context: Context, n_slots: int, n_cells: int, *, can_share_parts: bool) -> None:
        self.has_shared_cells = context.options.has_shared_cells
        self.table = SlotTable(n_slots, can_share_parts=can_share_parts, has_shared_cells=self.has_shared_cells)
        self.n_cells = n_cells
        self._context = context

    @property
    def cells_used(self) -> int:
        """Cells in use, kept ones included."""
        return self.table.cells_used

    @property
    def free_cells(self) -> int:
        return self.n_cells - self.cells_used

    def take(self, place: Placement, owner: int) -> Slot:
        """Give a slot to a request, with the shared beginning in it."""
        slot = place.slot
        slot.owner = owner
        if place.source is not None:
            self.clear(slot)
            self._context.copy_prefix(place.source.id, slot.id, place.n_shared)
            self.table.copy(place.source, slot, place.n_shared)
        else:
            self._cut(slot, place.n_shared)
        return slot

    def _cut(self, slot: Slot, n_tokens: int) -> None:
        if n_tokens < len(slot.tokens):
            self.table.cut(slot, self._context.keep(n_tokens, slot.id))

    def clear(self, slot: Slot) -> None:
        """Forget all that a slot holds."""
        if slot.tokens:
            self._context.forget(slot.id)
            self.table.cut(slot, 0)

    def release(self, slot: Slot) -> None:
        """A request has ended; what its slot holds stays for others."""
        slot.owner = None

    def make_room(self, n_tokens: int) -> bool:
        """Drop kept slots, the least recently used first, until so many tokens fit; whether they do."""
        if not self.has_shared_cells:  # each slot has room for the longest sequence
            return True
        for slot in self.table.kept:
            if self.free_cells >= n_tokens:
                return True
            self.clear(slot)
        return self.free_cells >= n_tokens

    def bring_together(self) -> None:
        """Put running sequences side by side, where one pass through the weights can serve them together."""
        while self.table.can_share_parts and (found := self.table.out_of_place()):
            self._exchange(*found)

    def _exchange(self, one: Slot, other: Slot) -> None:
        saved = [(slot, self._context.save_sequence(slot.id)) for slot in (one, other) if slot.tokens]
        for slot in (one, other):
            self._context.forget(slot.id)
        self.table.exchange(one, other)
        for slot, data in saved:
            self._context.restore_sequence(slot.id, data)

    def park(self, slot: Slot) -> ParkedState | None:
        """Take a sequence out of the cache, to be restored into any slot of this context; None where there is none."""
        data = self._context.save_sequence(slot.id) if slot.tokens else b""
        parked = ParkedState(tuple(slot.tokens), frozenset(slot.variants), data)
        self.release(slot)
        self.clear(slot)
        return parked if parked.tokens else None

    def restore(self, slot: Slot, parked: ParkedState, step: int) -> bool:
        """Put a saved state into a slot.

        Returns:
            False when the cache has no room for it; the slot is empty then.
        """
        self.clear(slot)
        if not self.make_room(len(parked.tokens)):
            return False
        try:
            self._context.restore_sequence(slot.id, parked.data)
        except CacheFull:
            self._context.forget(slot.id)
            return False
        self.table.extend(slot, parked.tokens, "", step)
        slot.variants = set(parked.variants)
        return True
