"""Sequences that left the KV cache, kept in ordinary memory for prompts that begin like them.

A chat comes back after others have used its slot; its state is then put back in a fraction of the time that computing
it would take (``slots.COPIES_FOR_ONE``).  llama-server has the same by the name of ``--cache-ram``.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from lamella.run.prefix import shared_prefix

LEAST_KEPT = 32
"""Shorter sequences are computed about as soon as they are put back."""


@dataclass(frozen=True, slots=True)
class ParkedState:
    """The KV state of a sequence out of the cache: what its slot held, who computed it, and the bytes."""

    tokens: tuple[int, ...]
    variants: frozenset[str]
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Found:
    """A kept state, and how many of a prompt's first tokens it holds."""

    state: ParkedState
    n_shared: int


class Shelf:
    """Kept states, the least recently used of which give way.

    Attributes:
        most_bytes: what the states may take together; 0 keeps nothing.
        n_bytes: what they take.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.n_bytes = most_bytes, 0
        self._states: list[ParkedState] = []

    def __len__(self) -> int:
        return len(self._states)

    def takes(self, n_tokens: int) -> bool:
        """Whether a sequence of that length is kept at all; saving it costs a copy."""
        return self.most_bytes > 0 and n_tokens >= LEAST_KEPT

    def put(self, state: ParkedState) -> None:
        """Keep a state, in place of those that are its beginning."""
        if len(state.data) > self.most_bytes or any(_covers(known, state) for known in self._states):
            return
        for known in [s for s in self._states if _covers(state, s)]:
            self._drop(known)
        self._states.append(state)
        self.n_bytes += len(state.data)
        while self.n_bytes > self.most_bytes:
            self._drop(self._states[0])

    def find(self, tokens: Sequence[int], variant: str | None, *, can_share_parts: bool) -> Found | None:
        """The state that holds most of a prompt's beginning; its last token is always computed, for its logits.

        Args:
            variant: only states that this variant alone computed; None for any.
            can_share_parts: whether the beginning of a state can be used without the rest.
        """
        best, prompt = None, tuple(tokens)
        for state in self._states:
            if variant is not None and state.variants - {variant}:
                continue
            n = min(shared_prefix(state.tokens, prompt), len(prompt) - 1)
            if not can_share_parts and n < len(state.tokens):
                continue
            if n > (best.n_shared if best else 0):
                best = Found(state, n)
        return best

    def shared(self, tokens: Sequence[int], variants: AbstractSet[str]) -> int:
        """How many first tokens of a sequence are kept, computed by the same variants."""
        known = tuple(tokens)  # slices of a list equal none of a tuple
        return max((shared_prefix(s.tokens, known) for s in self._states if s.variants == variants), default=0)

    def used(self, state: ParkedState) -> None:
        """A state was of use: others give way before it."""
        self._states.remove(state)
        self._states.append(state)

    def clear(self) -> None:
        """Keep nothing of what is there."""
        self._states.clear()
        self.n_bytes = 0

    def _drop(self, state: ParkedState) -> None:
        self._states.remove(state)
        self.n_bytes -= len(state.data)


def _covers(longer: ParkedState, shorter: ParkedState) -> bool:
    """Whether all that ``shorter`` holds is in ``longer``, computed by the same."""
    n = len(shorter.tokens)
    return longer.variants == shorter.variants and longer.tokens[:n] == shorter.tokens
