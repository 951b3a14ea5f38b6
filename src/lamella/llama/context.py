"""Working memory of a model, and tokens through it."""

from __future__ import annotations

import ctypes as ct
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.core.precision import GGML_TYPES
from lamella.llama import library, log, observing
from lamella.llama.handle import Handle
from lamella.llama.model import Model
from lamella.llama.observing import Observer, ProductObserver

CACHE_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """Size and speed of a context.

    Attributes:
        n_ctx: tokens for each sequence.
        n_sequences: sequences held at once; the KV cache has room for ``n_ctx * n_sequences`` tokens.
        n_batch: most tokens in one ``decode`` call, and in one pass through the model.
        n_outputs: most tokens of one call that logits are wanted for; bounds the compute buffer.
        kv_type: ggml type of the KV cache.
        n_threads: for single tokens and for batches alike; 0 for the cores this process may use.
    """

    n_ctx: int = 4096
    n_sequences: int = 1
    n_batch: int = 512
    n_outputs: int = 1
    kv_type: str = "F16"
    n_threads: int = 0

    def __post_init__(self) -> None:
        for name in ("n_ctx", "n_sequences", "n_batch", "n_outputs"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.kv_type.upper() not in CACHE_TYPES:
            raise InvalidRequest(f"'{self.kv_type}' is no KV cache type; known: {', '.join(CACHE_TYPES)}")

    def parameters(self) -> Any:
        """``llama_context_params`` for these options."""
        params = library.load().llama.llama_context_default_params()
        params.n_ctx = self.n_ctx * self.n_sequences
        params.n_seq_max = self.n_sequences
        params.n_batch = params.n_ubatch = min(self.n_batch, params.n_ctx)
        params.n_outputs_max = max(self.n_outputs, self.n_sequences)
        params.type_k = params.type_v = GGML_TYPES[self.kv_type.upper()].code
        params.n_threads = params.n_threads_batch = self.n_threads or usable_cores()
        params.kv_unified = True
        params.no_perf = True
        return params


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Context(Handle):
    """Working memory of a model: KV cache, compute buffers, logits of the last call."""

    def __init__(
        self,
        model: Model,
        options: ContextOptions,
        *,
        wants: Callable[[str], bool] | None = None,
        observe: Observer | None = None,
        products: ProductObserver | None = None,
    ) -> None:
        """Allocate a context.

        Args:
            wants: says for each graph node's name whether ``observe`` should see its values.
            products: sees the inputs of weights; not together with ``observe``.

        Raises:
            EngineFailed: llama.cpp cannot allocate it.
        """
        lib = library.load()
        self._llama = lib.llama
        self.model = model
        self.options = options
        self._failure: BaseException | None = None
        params = options.parameters()
        if wants and observe:
            self._callback = self._guarded(observing.nodes(wants, observe))  # the C side keeps the pointer
            params.cb_eval = self._callback
        elif products:
            self._callback = self._guarded(observing.weight_inputs(products))
            params.cb_eval = self._callback
        log.forget_complaints()
        address = lib.llama.llama_init_from_model(model.address, params)
        if not address:
            raise EngineFailed(
                f"llama.cpp cannot create a context of {options.n_ctx} tokens x {options.n_sequences}: "
                f"{log.complaints()}"
            )
        super().__init__(address, lib.llama.llama_free)
        self.n_batch = min(options.n_batch, options.n_ctx * options.n_sequences)
        self._batch = _Batch(lib.llama, self.n_batch)
        self._logits_at = library.function("llama_get_logits_ith", ct.c_void_p, ct.c_void_p, ct.c_int32)
        self._logits_views: dict[int, NDArray[np.float32]] = {}

    def close(self) -> None:
        super().close()
        if hasattr(self, "_batch"):
            self._batch.close()

    def decode(self, tokens: Sequence[int], start: int, *, sequence: int = 0, n_outputs: int = 1) -> None:
        """Run tokens through the model at positions ``start``, ``start + 1``, ...; long inputs go in batches.

        Args:
            n_outputs: logits are kept for this many tokens at the end (of the last batch).

        Raises:
            EngineFailed: no room in the KV cache, or the computation failed.
            InvalidRequest: more outputs than the context was made for (llama.cpp would abort the process).
        """
        if n_outputs > max(self.options.n_outputs, self.options.n_sequences):
            raise InvalidRequest(f"logits of {n_outputs} tokens asked, the context keeps {self.options.n_outputs}")
        for first in range(0, len(tokens), self.n_batch):
            part = tokens[first : first + self.n_batch]
            is_last = first + self.n_batch >= len(tokens)
            self._batch.fill(part, start + first, sequence, n_outputs if is_last else 0)
            self._run_batch()

    def decode_together(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """Run one token of each of several sequences through the model at once; logits of token i are at index i.

        Args:
            positions: of each token in its own sequence.
            sequences: whose token it is, below ``options.n_sequences``.

        Raises:
            EngineFailed: no room in the KV cache, or the computation failed.
            InvalidRequest: more tokens than the context takes at once.
        """
        most = min(self.n_batch, max(self.options.n_outputs, self.options.n_sequences))
        if len(tokens) > most:
            raise InvalidRequest(f"{len(tokens)} sequences decoded together, the context takes {most}")
        self._batch.fill_each(tokens, positions, sequences)
        self._run_batch()

    def _run_batch(self) -> None:
        code = self._llama.llama_decode(self.address, self._batch.struct)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if code != 0:
            raise EngineFailed(_decode_error(code, self.options))

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        """Logits of one token of the last ``decode``; a view that the next ``decode`` overwrites.

        Args:
            index: position in the last batch, or -1 for its last token.
        """
        address = self._logits_at(self.address, index)
        if not address:
            raise EngineFailed(f"no logits at index {index} of the last batch")
        view = self._logits_views.get(address)
        if view is None:  # llama.cpp reuses few addresses; making an array of one costs more than the call
            pointer = ct.cast(address, ct.POINTER(ct.c_float))
            view = self._logits_views[address] = np.ctypeslib.as_array(pointer, (self.model.vocabulary.n_tokens,))
        return view

    def last_logits(self, n_tokens: int) -> NDArray[np.float32]:
        """Logits of the last tokens of the last ``decode``, which must have asked for at least so many outputs.

        Returns:
            shape (n_tokens, vocabulary); a view that the next ``decode`` overwrites.
        """
        pointer = self._llama.llama_get_logits_ith(self.address, self._batch.struct.n_tokens - n_tokens)
        if not pointer:
            raise EngineFailed(f"no logits of the last {n_tokens} tokens of the last batch")
        return np.ctypeslib.as_array(pointer, (n_tokens, self.model.vocabulary.n_tokens))

    def forget(self, sequence: int = 0, start: int = 0) -> bool:
        """Drop a sequence's KV cache from position ``start`` on.

        Returns:
            False if the model cannot drop a part (recurrent state has no positions); nothing was dropped then.
        """
        memory = self._llama.llama_get_memory(self.address)
        return bool(self._llama.llama_memory_seq_rm(memory, sequence, start, -1))

    def keep(self, n_tokens: int, sequence: int = 0) -> int:
        """Keep the cache of a sequence's first tokens; of none where the model has no positions to cut at.

        Returns:
            How many are kept.
        """
        if self.forget(sequence, n_tokens):
            return n_tokens
        self.forget(sequence)
        return 0

    def _guarded(self, visit: observing.Visit) -> Any:
        """An evaluation callback that keeps what ``visit`` raises."""

        def guarded(node: int, ask: bool, _: object) -> bool:
            try:
                return visit(node, ask)
            except BaseException as error:  # must not cross the C frame: raised again in decode()
                self._failure = error
                return False

        return self._llama.ggml_backend_sched_eval_callback(guarded)


class _Batch:
    """A ``llama_batch`` and numpy views of its arrays."""

    def __init__(self, llama: Any, capacity: int) -> None:
        self._llama = llama
        self.struct = llama.llama_batch_init(capacity, 0, 1)
        self._tokens = np.ctypeslib.as_array(self.struct.token, (capacity,))
        self._positions = np.ctypeslib.as_array(self.struct.pos, (capacity,))
        self._outputs = np.ctypeslib.as_array(self.struct.logits, (capacity,))
        np.ctypeslib.as_array(self.struct.n_seq_id, (capacity,))[:] = 1
        self._capacity = capacity
        self._sequence = -1
        self._open = True
        self._first = [ct.cast(p, ct.POINTER(ct.c_int32)) for p in (self.struct.token, self.struct.pos)]
        self._first_output = ct.cast(self.struct.logits, ct.POINTER(ct.c_int8))

    def fill(self, tokens: Sequence[int], start: int, sequence: int, n_outputs: int) -> None:
        n = len(tokens)
        if n == 1 and sequence == self._sequence:  # each token of a generation comes this way
            self._first[0][0], self._first[1][0] = tokens[0], start
            self._first_output[0] = min(n_outputs, 1)
            self.struct.n_tokens = 1
            return
        self._tokens[:n] = tokens
        self._positions[:n] = range(start, start + n)
        self._outputs[:n] = 0
        self._outputs[max(0, n - n_outputs) : n] = 1
        if sequence != self._sequence:
            for i in range(self._capacity):
                self.struct.seq_id[i][0] = sequence
            self._sequence = sequence
        self.struct.n_tokens = n

    def fill_each(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """One token for each sequence, all with logits."""
        n = len(tokens)
        self._tokens[:n] = tokens
        self._positions[:n] = positions
        self._outputs[:n] = 1
        for i, sequence in enumerate(sequences):
            self.struct.seq_id[i][0] = sequence
        self._sequence = -1
        self.struct.n_tokens = n

    def close(self) -> None:
        if self._open:
            self._open = False
            self._llama.llama_batch_free(self.struct)


def _decode_error(code: int, options: ContextOptions) -> str:
    if code == 1:
        return (
            f"the KV cache is full: it has room for {options.n_ctx * options.n_sequences} tokens "
            f"({options.n_ctx} x {options.n_sequences} sequences); use a larger context or a shorter prompt"
        )
    return f"llama_decode failed with code {code}: {log.complaints()}"
