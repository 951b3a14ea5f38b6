"""Who holds which part of the KV cache, and what of it can be used again.

A *slot* is one of llama.cpp's sequence ids.  A running request owns one; a slot whose request has ended keeps its
tokens, so that the next turn of a chat, or another request with the same system prompt, need not compute them again.

Cells are shared or separate, as the context was made.  Shared, a prefix that is copied from slot to slot takes no room
of its own.  Separate, each slot has room for a whole sequence, and llama.cpp computes slots whose numbers follow each
other in one pass through the weights, slots with gaps between them in several: running requests are kept side by side.

Everything here is bookkeeping in plain Python; ``cache.py`` makes llama.cpp's cache follow it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lamella.run.prefix import shared_prefix

WORTH_TAKING_OVER = 0.5
"""A kept slot is taken over when at least this share of its tokens is of use; else its beginning is copied."""
COPIES_FOR_ONE = 64
"""So many tokens are copied between separate cells, at least, in the time that computing one takes."""
CELLS_AT_ONCE = 256
"""Attention looks at so many cells, or a multiple of them, of each sequence (``llama_kv_cache::get_n_kv``)."""
LEAST_COPIED = 16
"""Fewer tokens are not worth the copy: many prompts begin with the same few."""


@dataclass(slots=True)
class Extent:
    """Cells that were computed in one go: the first ``length`` of a run of cells with a number of its own."""

    run: int
    length: int


@dataclass(slots=True)
class Slot:
    """One sequence of the KV cache.

    Attributes:
        id: llama.cpp's sequence id; changes when slots change places.
        tokens: what the cache holds of it, from position 0 on.
        owner: id of the request that owns it; None for a slot that is kept for reuse.
        variants: names of the variants that computed its cells.
        last_used: number of the step that used it last.
        extents: the cells behind ``tokens``, in order.
        can_extend: whether the next cells belong to the last of ``extents``; not after it was cut or copied.
    """

    id: int
    tokens: list[int] = field(default_factory=list)
    owner: int | None = None
    variants: set[str] = field(default_factory=set)
    last_used: int = 0
    extents: list[Extent] = field(default_factory=list)
    can_extend: bool = False

    def cut_extents(self, n_tokens: int) -> list[Extent]:
        """The cells behind the first tokens."""
        kept: list[Extent] = []
        for extent in self.extents:
            if n_tokens <= 0:
                break
            kept.append(Extent(extent.run, min(extent.length, n_tokens)))
            n_tokens -= extent.length
        return kept


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a prompt is to be computed.

    Attributes:
        slot: the slot to use.
        source: slot whose beginning is copied first; None where ``slot`` itself holds it, or nothing is shared.
        n_shared: tokens that need not be computed.
    """

    slot: Slot
    source: Slot | None
    n_shared: int


class SlotTable:
    """All slots of a context.  Decides, and keeps the books; computes nothing.

    Attributes:
        slots: by sequence id.
        can_share_parts: whether the beginning of a sequence can be used without the rest (False for models with
            recurrent state, which has no positions).
        has_shared_cells: whether slots share cells.
    """

    def __init__(self, n_slots: int, *, can_share_parts: bool = True, has_shared_cells: bool = True) -> None:
        """Make empty slots."""
        self.slots = [Slot(i) for i in range(n_slots)]
        self.can_share_parts, self.has_shared_cells = can_share_parts, has_shared_cells
        self._runs = itertools.count()

    @property
    def cells_used(self) -> int:
        """Cells in use; shared ones count once."""
        return self.cells_of(self.slots)

    def cells_of(self, slots: Iterable[Slot]) -> int:
        """Cells that some slots use; those that they share count once."""
        if not self.has_shared_cells:
            return sum(len(slot.tokens) for slot in slots)
        longest: dict[int, int] = {}
        for slot in slots:
            for extent in slot.extents:
                longest[extent.run] = max(longest.get(extent.run, 0), extent.length)
        return sum(longest.values())

    @property
    def kept(self) -> list[Slot]:
        """Slots that hold tokens and belong to nobody, least recently used first."""
        return sorted((s for s in self.slots if s.owner is None and s.tokens), key=lambda s: s.last_used)

    def find_place(self, tokens: Sequence[int], variant: str | None = None) -> Placement | None:
        """Where to compute a prompt so that most of it is there already; None when every slot is owned.

        Args:
            variant: only cells that this variant alone computed may be used; None for any.
        """
        free = [s for s in self.slots if s.owner is None]
        if not free:
            return None
        best, n_shared = self._best_source(tokens, variant)
        if best is None:
            return Placement(self._least_missed(free), None, 0)
        if best.owner is None and (not self.can_share_parts or n_shared >= WORTH_TAKING_OVER * len(best.tokens)):
            return Placement(best, None, n_shared)
        others = [s for s in free if s is not best]
        if not others:
            return Placement(best, None, n_shared)
        if not self.has_shared_cells and not is_worth_copying(n_shared, len(best.tokens)):
            return Placement(self._least_missed(free), None, 0)
        return Placement(self._least_missed(others), best, n_shared)

    def _least_missed(self, free: Sequence[Slot]) -> Slot:
        """The slot to give away: an empty one, else the least recently used; beside running ones where that counts."""
        owned = {s.id for s in self.slots if s.owner is not None}

        def cost(slot: Slot) -> tuple[int, bool, int]:
            n_runs = 0 if self.has_shared_cells else len(runs({*owned, slot.id}))
            return n_runs, bool(slot.tokens), slot.last_used

        return min(free, key=cost)

    def out_of_place(self) -> tuple[Slot, Slot] | None:
        """A running slot and a free one that it should change places with, so that running ones come together.

        Asked again after each exchange, it ends with all of them side by side.
        """
        if self.has_shared_cells:
            return None
        found = runs({s.id for s in self.slots if s.owner is not None})
        if len(found) < 2:
            return None
        largest = max(found, key=len)
        lonely = min((r for r in found if r is not largest), key=len)
        place = largest[-1] + 1 if lonely[0] > largest[-1] else largest[0] - 1
        return self.slots[lonely[-1] if place < lonely[0] else lonely[0]], self.slots[place]

    def between(self, running: Sequence[Slot]) -> list[Slot]:
        """Slots that part running ones, where all of them could take part in a pass; none where cells are shared."""
        ids = {slot.id for slot in running}
        parting = [slot for slot in self.slots[min(ids) : max(ids)] if slot.id not in ids]
        if self.has_shared_cells or not parting:  # most steps: nothing more is looked at
            return []
        fit = self._fit_to_fill(running)
        return parting if all(slot.id in fit for slot in parting) else []

    def to_fill(self, running: Sequence[Slot], n_rows: int) -> list[Slot]:
        """Free slots that could take part in a pass with running ones, a row each; none where there are not so many.

        Separate cells: together they follow each other.
        """
        fit = self._fit_to_fill(running)
        if self.has_shared_cells:
            found = sorted(fit.values(), key=lambda s: len(s.tokens))[:n_rows]
            return found if len(found) == n_rows else []
        found = self.between(running)
        low, high = min(s.id for s in running), max(s.id for s in running)
        if high - low + 1 != len(running) + len(found):
            return []
        while len(found) < n_rows and (beside := [fit[i] for i in (low - 1, high + 1) if i in fit]):
            found.append(min(beside, key=lambda s: len(s.tokens)))
            low, high = min(low, found[-1].id), max(high, found[-1].id)
        return found if len(found) == n_rows else []

    def _fit_to_fill(self, running: Sequence[Slot]) -> dict[int, Slot]:
        """Free slots for which a pass looks at no more cells, of any sequence, than for the running ones."""
        most = max(_cells_looked_at(s) for s in running)
        return {s.id: s for s in self.slots if s.owner is None and _cells_looked_at(s) <= most}

    def exchange(self, one: Slot, other: Slot) -> None:
        """Two slots have changed their sequence ids, and what the cache holds under them."""
        one.id, other.id = other.id, one.id
        self.slots[one.id], self.slots[other.id] = one, other

    def shared_with_kept(self, tokens: Sequence[int], variant: str | None) -> int:
        """How many tokens some slot holds that ``find_place`` may use, be it kept or owned."""
        return self._best_source(tokens, variant)[1]

    def shared_with_owned(self, tokens: Sequence[int], variant: str | None) -> int:
        """How many tokens a slot holds that somebody owns: cells that are there as long as it runs."""
        owned = (s for s in self.slots if s.owner is not None and not (variant is not None and s.variants - {variant}))
        return max((self._usable(slot, tokens) for slot in owned), default=0)

    def shared_with_others(self, slot: Slot) -> int:
        """How many first tokens of a slot another slot holds too, computed by the same variants."""
        others = (s for s in self.slots if s is not slot and s.variants == slot.variants)
        return max((shared_prefix(s.tokens, slot.tokens) for s in others), default=0)

    def _best_source(self, tokens: Sequence[int], variant: str | None) -> tuple[Slot | None, int]:
        best, most = None, 0
        for slot in self.slots:
            if variant is not None and slot.variants - {variant}:
                continue
            n = self._usable(slot, tokens)
            if n > most or (n == most and n and best is not None and best.owner is not None and slot.owner is None):
                best, most = slot, n
        return best, most

    def _usable(self, slot: Slot, tokens: Sequence[int]) -> int:
        """Tokens of a prompt that a slot holds; the last one is always computed, for its logits."""
        n = shared_prefix(slot.tokens, tokens)
        if self.can_share_parts:
            return min(n, len(tokens) - 1)
        return n if n == len(slot.tokens) < len(tokens) and slot.owner is None else 0

    def cut(self, slot: Slot, n_tokens: int) -> None:
        """A slot holds its first tokens only."""
        slot.extents = slot.cut_extents(n_tokens)
        slot.can_extend = False
        del slot.tokens[n_tokens:]
        if not n_tokens:
            slot.variants = set()

    def copy(self, source: Slot, target: Slot, n_tokens: int) -> None:
        """``target`` holds the beginning of ``source``."""
        target.tokens = source.tokens[:n_tokens]
        target.extents = source.cut_extents(n_tokens)
        target.variants = set(source.variants)
        target.can_extend = False

    def extend(self, slot: Slot, tokens: Sequence[int], variant: str, step: int) -> None:
        """Tokens were computed at a slot's end, in new cells."""
        if slot.can_extend and slot.extents:
            slot.extents[-1].length += len(tokens)
        else:
            slot.extents.append(Extent(next(self._runs), len(tokens)))
            slot.can_extend = True
        slot.tokens.extend(tokens)
        slot.variants.add(variant)
        slot.last_used = step

    def take_over(self, slots: Sequence[Slot]) -> None:
        """Begin with what slots of another table held, least recently used first; nobody owns them yet."""
        for n_after, slot in zip(reversed(range(len(slots))), slots, strict=True):
            slot.last_used = -n_after
            self.slots[slot.id] = slot
        self._runs = itertools.count(1 + max((e.run for slot in slots for e in slot.extents), default=-1))

    def stale(self, variant: str) -> list[Slot]:
        """Kept slots whose cells another variant computed, least recently used first."""
        return [s for s in self.kept if s.variants - {variant}]


def _cells_looked_at(slot: Slot) -> int:
    """How many cells attention looks at when a slot gets its next token."""
    return -(-(len(slot.tokens) + 1) // CELLS_AT_ONCE) * CELLS_AT_ONCE


def is_worth_copying(n_used: int, n_copied: int) -> bool:
    """Whether ``n_used`` tokens are had sooner by copying a whole sequence of ``n_copied`` than by computing them."""
    return n_used >= LEAST_COPIED and n_used * COPIES_FOR_ONE >= n_copied


def runs(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers that follow each other, together."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][-1] + 1 == number:
            found[-1].append(number)
        else:
            found.append([number])
    return found
