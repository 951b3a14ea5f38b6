"""Tokens on their way into the model: ``llama_batch`` over arrays of our own."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lamella.llama import library


@dataclass(frozen=True, slots=True)
class BatchPart:
    """Tokens of one sequence in a pass that serves several.

    Attributes:
        sequence: below ``ContextOptions.n_sequences``.
        start: position of the first token.
        tokens: at least one.
        n_outputs: logits are kept for this many tokens at the end.
    """

    sequence: int
    start: int
    tokens: Sequence[int]
    n_outputs: int


class Batch:
    """A ``llama_batch`` and its arrays.

    Single tokens, which most passes consist of, are written through ctypes: between two passes the processor's caches
    are cold, and a numpy assignment there costs tens of microseconds.

    Attributes:
        struct: for ``llama_decode``; valid as long as this object.
    """

    def __init__(self, capacity: int) -> None:
        self._tokens = (ct.c_int32 * capacity)()
        self._positions = (ct.c_int32 * capacity)()
        self._sequences = (ct.c_int32 * capacity)()
        self._outputs = (ct.c_int8 * capacity)()
        self._n_sequences = (ct.c_int32 * capacity)(*[1] * capacity)
        address = ct.addressof(self._sequences)
        integer = ct.POINTER(ct.c_int32)
        self._sequence_pointers = (integer * capacity)(*(ct.cast(address + 4 * i, integer) for i in range(capacity)))
        self.struct = library.load().llama.llama_batch(
            n_tokens=0,
            token=ct.cast(self._tokens, integer),
            embd=None,
            pos=ct.cast(self._positions, integer),
            n_seq_id=ct.cast(self._n_sequences, integer),
            seq_id=ct.cast(self._sequence_pointers, ct.POINTER(integer)),
            logits=ct.cast(self._outputs, ct.POINTER(ct.c_int8)),
        )
        self._views = [np.ctypeslib.as_array(a) for a in (self._tokens, self._positions, self._sequences)]
        self._outputs_view = np.ctypeslib.as_array(self._outputs)

    def fill(self, parts: Sequence[BatchPart]) -> tuple[int, ...]:
        """Lay parts one after the other; returns the index of each part's first token."""
        first = []
        n = 0
        for part in parts:
            first.append(n)
            if len(part.tokens) == 1:
                self._tokens[n], self._positions[n], self._sequences[n] = part.tokens[0], part.start, part.sequence
                self._outputs[n] = part.n_outputs > 0
                n += 1
            else:
                n = self._fill_run(n, part)
        self.struct.n_tokens = n
        return tuple(first)

    def _fill_run(self, first: int, part: BatchPart) -> int:
        end = first + len(part.tokens)
        tokens, positions, sequences = self._views
        tokens[first:end] = part.tokens
        positions[first:end] = range(part.start, part.start + len(part.tokens))
        sequences[first:end] = part.sequence
        self._outputs_view[first:end] = 0
        self._outputs_view[max(first, end - part.n_outputs) : end] = 1
        return end
