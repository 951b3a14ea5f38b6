"""The KV cache of the engine: makes llama.cpp's cache follow the slot table, and finds room in it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lamella.batching.saved import CELLS, read_slots, write_slots
from lamella.batching.shelf import Found, ParkedState, Shelf
from lamella.batching.slots import Placement, Slot, SlotTable, is_worth_copying
from lamella.core.errors import CacheFull, EngineFailed
from lamella.llama import saving
from lamella.llama.context import Context

STEPS_APART = 8
"""Steps for which running sequences stay apart: where one has ended another mostly begins soon, in its place.

Seven of eight sequences of SmolLM2 in two groups take 6 to 12 ms more for each step, and an exchange takes as long as
several steps where its memory is new (docs/log.md)."""


class SequenceCache:
    """Owns which sequence of a context holds what.

    Attributes:
        table: the bookkeeping.
        n_cells: tokens that the cache holds.
        shelf: sequences that had to leave it.
        copy_seconds: spent on copying sequences in and out, in all.
    """

    def __init__(
        self,
        context: Context,
        n_slots: int,
        n_cells: int,
        *,
        can_share_parts: bool,
        most_kept_bytes: int = 0,
        may_copy_out: Callable[[int], bool] = lambda n_tokens: True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """The cache is empty.

        Args:
            most_kept_bytes: for sequences that had to leave it.
            may_copy_out: whether memory has room for so many tokens of a request that is pushed aside.
        """
        self.has_shared_cells = context.options.has_shared_cells
        self.table = SlotTable(n_slots, can_share_parts=can_share_parts, has_shared_cells=self.has_shared_cells)
        self.n_cells = n_cells
        self.shelf = Shelf(most_kept_bytes)
        self.copy_seconds = 0.0
        self._context, self._clock, self._may_copy_out = context, clock, may_copy_out
        self._apart_since: int | None = None

    @property
    def cells_used(self) -> int:
        """Cells in use, kept ones included."""
        return self.table.cells_used

    @property
    def free_cells(self) -> int:
        return self.n_cells - self.cells_used

    def free_beside(self, slots: Sequence[Slot]) -> int:
        """Cells that are left where only these slots stay."""
        return self.n_cells - self.table.cells_of(slots)

    def place(self, tokens: Sequence[int], variant: str | None, owner: int, step: int) -> Slot:
        """Give a slot to a request, with as much of its prompt in it as is anywhere; one must be free.

        Args:
            variant: only what this variant alone computed may be used; None for any.
            step: number of this step.
        """
        place = self.table.find_place(tokens, variant)
        assert place is not None
        found = self._worth_putting_back(tokens, variant, place.n_shared)
        if found is None:
            return self._take(place, owner)
        slot = place.slot
        slot.owner = owner
        self.shelf.used(found.state)  # before what is put there may push it out
        self._leave(slot)
        if self.restore(slot, found.state, step):
            self._cut(slot, found.n_shared)
        return slot

    def shared_with_kept(self, tokens: Sequence[int], variant: str | None) -> int:
        """How many tokens of a prompt ``place`` would not compute."""
        n_shared = self.table.shared_with_kept(tokens, variant)
        found = self._worth_putting_back(tokens, variant, n_shared)
        return found.n_shared if found else n_shared

    def _worth_putting_back(self, tokens: Sequence[int], variant: str | None, n_shared: int) -> Found | None:
        found = self.shelf.find(tokens, variant, can_share_parts=self.table.can_share_parts)
        if found and is_worth_copying(found.n_shared - n_shared, len(found.state.tokens)):
            return found
        return None

    def _take(self, place: Placement, owner: int) -> Slot:
        slot = place.slot
        slot.owner = owner
        if place.source is not None:
            self._leave(slot)
            with self._copying():
                self._context.copy_prefix(place.source.id, slot.id, place.n_shared)
            self.table.copy(place.source, slot, place.n_shared)
        elif 2 * place.n_shared < len(slot.tokens):
            self._put_away(slot)
            self._cut(slot, place.n_shared)
        else:
            self._cut(slot, place.n_shared)
        return slot

    def _leave(self, slot: Slot) -> None:
        """What a slot holds goes to the shelf, and its cells to others."""
        self._put_away(slot)
        self.clear(slot)

    def _put_away(self, slot: Slot) -> None:
        if self.shelf.takes(self._n_only_here(slot)):
            self.shelf.put(self._state_of(slot))

    def _n_only_here(self, slot: Slot) -> int:
        """Tokens that would be computed again if a slot were lost: its end, where others hold its beginning."""
        n_tokens = len(slot.tokens)
        if not self.table.can_share_parts:
            return n_tokens
        return n_tokens - max(self.table.shared_with_others(slot), self.shelf.shared(slot.tokens, slot.variants))

    def _state_of(self, slot: Slot) -> ParkedState:
        with self._copying():
            data = self._context.save_sequence(slot.id) if slot.tokens else b""
        return ParkedState(tuple(slot.tokens), frozenset(slot.variants), data)

    @contextlib.contextmanager
    def _copying(self) -> Iterator[None]:
        began = self._clock()
        try:
            yield
        finally:
            self.copy_seconds += self._clock() - began

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
            self._leave(slot)
        return self.free_cells >= n_tokens

    def between(self, running: Sequence[Slot]) -> list[Slot]:
        """Free slots that part running ones: with a row of each, several passes are one; none where they cannot."""
        return self.table.between(running) if self.table.can_share_parts else []

    def to_fill(self, running: Sequence[Slot], n_rows: int) -> list[Slot]:
        """Slots for rows that nobody needs, one each; none where that would take something from somebody."""
        if not self.table.can_share_parts:  # such a row could not be taken back
            return []
        if self.has_shared_cells and self.free_cells < len(running) + n_rows:
            return []
        return self.table.to_fill(running, n_rows)

    @property
    def is_apart(self) -> bool:
        """Whether running sequences are to be brought together, now or when they have stayed apart for longer."""
        return self._apart_since is not None

    def bring_together(self, step: int) -> None:
        """Put one running sequence beside others, where one pass through the weights can serve them together.

        Args:
            step: number of this step: nothing happens until they have been apart for ``STEPS_APART``.
        """
        found = self.table.out_of_place() if self.table.can_share_parts else None
        if found is None:
            self._apart_since = None
        elif self._apart_since is None:
            self._apart_since = step
        elif step - self._apart_since >= STEPS_APART:
            with self._copying():
                self._exchange(*found)

    def _exchange(self, one: Slot, other: Slot) -> None:
        saved = [(slot, self._context.save_sequence(slot.id)) for slot in (one, other) if slot.tokens]
        for slot in (one, other):
            self._context.forget(slot.id)
        self.table.exchange(one, other)
        for slot, data in saved:
            self._context.restore_sequence(slot.id, data)

    def park(self, slot: Slot) -> ParkedState | None:
        """Take a sequence out of the cache, to be restored into any slot of this context.

        Returns:
            None where it is empty, or memory has no room for it: what was computed of it is computed again then.
        """
        parked = self._state_of(slot) if slot.tokens and self._may_copy_out(len(slot.tokens)) else None
        self.release(slot)
        self.clear(slot)
        return parked

    def restore(self, slot: Slot, parked: ParkedState, step: int) -> bool:
        """Put a saved state into a slot.

        Returns:
            False when the cache has no room for it; the slot is empty then.
        """
        self.clear(slot)
        if not self.make_room(len(parked.tokens)):
            return False
        try:
            with self._copying():
                self._context.restore_sequence(slot.id, parked.data)
        except CacheFull:
            self._context.forget(slot.id)
            return False
        self.table.extend(slot, parked.tokens, "", step)
        slot.variants = set(parked.variants)
        return True

    def save(self, folder: Path) -> int:
        """Write all that the cache holds into a folder, for ``load`` of another engine; returns bytes.

        Parked sequences and the shelf stay behind.

        Raises:
            EngineFailed: llama.cpp cannot, or the disk is full.
            StorageFailed: the disk does not take it.
        """
        n_bytes = saving.save_cache(self._context, folder / CELLS)
        write_slots(folder, self.table.slots)
        return n_bytes

    def load(self, folder: Path) -> int:
        """Begin with what ``save`` wrote; returns its tokens.  Nothing may have been computed before.

        Raises:
            EngineFailed: it is of another model, another kind of cache, or damaged; the cache is empty then.
            StorageFailed: it cannot be read; the cache is empty then.
        """
        slots = read_slots(folder, len(self.table.slots))
        saving.load_cache(self._context, folder / CELLS)
        if any(saving.length(self._context, slot.id) != len(slot.tokens) for slot in slots):
            self._context.clear()
            raise EngineFailed(f"the cells in {folder} are not those of the slots there")
        self.table.take_over(slots)
        return self.cells_used
