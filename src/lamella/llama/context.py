"""Working memory of a model, and tokens through it."""

from __future__ import annotations

import ctypes as ct
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.cores import usable_cores
from lamella.core.errors import CacheFull, EngineFailed, InvalidRequest
from lamella.core.precision import CACHE_TYPES, GGML_TYPES
from lamella.llama import library, log, observing, pages
from lamella.llama.batch import Batch, BatchPart
from lamella.llama.handle import Handle
from lamella.llama.model import Model
from lamella.llama.observing import Observer, ProductObserver

NO_ROOM = 1  # what llama_decode returns when it finds no cells


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """Size and speed of a context.

    Attributes:
        n_ctx: most tokens of one sequence.
        n_sequences: sequences held at once.
        n_cells: tokens that the KV cache holds for all sequences together; 0 for ``n_ctx * n_sequences``.  With fewer,
            sequences share what there is, and whoever fills them watches that none passes ``n_ctx``.
        has_shared_cells: sequences share all cells (llama.cpp's unified cache).  False gives each ``n_ctx`` of its own:
            faster with several, because attention does not step over the cells of others; not with ``n_cells``.
        n_batch: most tokens in one pass through the model.
        n_outputs: most tokens of one call that logits are wanted for; bounds the compute buffer.
        kv_type: ggml type of the KV cache.
        value_type: of the cached values, where it is not that of the keys (``reproducible``); else "".
        n_threads: for single tokens and for batches alike; 0 for the cores this process may use.
    """

    n_ctx: int = 4096
    n_sequences: int = 1
    n_batch: int = 512
    n_outputs: int = 1
    n_cells: int = 0
    has_shared_cells: bool = True
    kv_type: str = "F16"
    value_type: str = ""
    n_threads: int = 0

    def __post_init__(self) -> None:
        for name in ("n_ctx", "n_sequences", "n_batch", "n_outputs"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_cells and self.n_cells < self.n_ctx:
            raise InvalidRequest(f"n_cells must be at least n_ctx ({self.n_ctx}), or 0, not {self.n_cells}")
        if self.n_cells and not self.has_shared_cells:
            raise InvalidRequest(f"n_cells ({self.n_cells}) is for sequences that share their cells")
        for kind in (self.kv_type, self.value_type or self.kv_type):
            if kind.upper() not in CACHE_TYPES:
                raise InvalidRequest(f"'{kind}' is no KV cache type; known: {', '.join(CACHE_TYPES)}")

    @property
    def cells(self) -> int:
        """Tokens that the KV cache holds in all; llama.cpp rounds them up to a multiple of 256."""
        return self.n_cells or self.n_ctx * self.n_sequences

    @property
    def most_outputs(self) -> int:
        """Most tokens of one pass that logits can be had for."""
        return max(self.n_outputs, self.n_sequences)

    @property
    def cache_types(self) -> tuple[int, int]:
        """ggml's numbers for the types of keys and values."""
        return GGML_TYPES[self.kv_type.upper()].code, GGML_TYPES[(self.value_type or self.kv_type).upper()].code

    def parameters(self) -> Any:
        """``llama_context_params`` for these options."""
        params = library.load().llama.llama_context_default_params()
        params.n_ctx = self.cells
        params.n_seq_max = self.n_sequences
        params.n_batch = params.n_ubatch = min(self.n_batch, params.n_ctx)
        params.n_outputs_max = self.most_outputs
        params.type_k, params.type_v = self.cache_types
        params.n_threads = params.n_threads_batch = self.n_threads or usable_cores()
        params.kv_unified = self.has_shared_cells
        params.no_perf = True
        return params


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
        self.n_batch = min(options.n_batch, options.cells)
        self._batch = Batch(self.n_batch)
        self._logits_at = library.function("llama_get_logits_ith", ct.c_void_p, ct.c_void_p, ct.c_int32)
        self._logits_views: dict[int, NDArray[np.float32]] = {}
        self._memory = lib.llama.llama_get_memory(address)

    def decode(self, tokens: Sequence[int], start: int, *, sequence: int = 0, n_outputs: int = 1) -> None:
        """Run tokens through the model at positions ``start``, ``start + 1``, ...; long inputs go in batches.

        Args:
            n_outputs: logits are kept for this many tokens at the end (of the last batch).

        Raises:
            CacheFull: no room; batches before the one that found none are in the cache.
            EngineFailed: the computation failed.
            InvalidRequest: more outputs than the context was made for (llama.cpp would abort the process).
        """
        self._check_outputs(n_outputs)
        for first in range(0, len(tokens), self.n_batch):
            part = tokens[first : first + self.n_batch]
            is_last = first + self.n_batch >= len(tokens)
            self._batch.fill([BatchPart(sequence, start + first, part, n_outputs if is_last else 0)])
            self._run_batch()

    def decode_parts(self, parts: Sequence[BatchPart]) -> tuple[int, ...]:
        """Run pieces of several sequences through the model in one pass.

        Returns:
            For each part the index of its first token in the batch: ``logits(index + i)`` are those after token i,
            where it is among the part's outputs.

        Raises:
            CacheFull: no room; the cache, and the logits of the pass before, are what they were.
            EngineFailed: the computation failed.
            InvalidRequest: no token, or more tokens or outputs than the context takes at once.
        """
        n_tokens = n_outputs = 0
        for part in parts:
            n_tokens += len(part.tokens)
            n_outputs += part.n_outputs
        if not 0 < n_tokens <= self.n_batch:
            raise InvalidRequest(f"{n_tokens} tokens in one pass, the context takes 1 to {self.n_batch}")
        self._check_outputs(n_outputs)
        first = self._batch.fill(parts)
        self._run_batch()
        return first

    def _check_outputs(self, n_outputs: int) -> None:
        if n_outputs > self.options.most_outputs:
            raise InvalidRequest(f"logits of {n_outputs} tokens asked, the context keeps {self.options.most_outputs}")

    def _run_batch(self) -> None:
        code = self._llama.llama_decode(self.address, self._batch.struct)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if code == NO_ROOM:
            raise CacheFull(
                f"the KV cache is full: it has room for {self.options.cells} tokens ({self.options.n_ctx} for each of "
                f"{self.options.n_sequences} sequences); use a larger context or a shorter prompt"
            )
        if code != 0:
            raise EngineFailed(f"llama_decode failed with code {code}: {log.complaints()}")

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
        self.check_open()
        return bool(self._llama.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def keep(self, n_tokens: int, sequence: int = 0) -> int:
        """Keep the cache of a sequence's first tokens; of none where the model has no positions to cut at.

        Returns:
            How many are kept.
        """
        if self.forget(sequence, n_tokens):
            return n_tokens
        self.forget(sequence)
        return 0

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> None:
        """Let a sequence begin with the first tokens of another; what it held before is dropped.

        Nothing is computed.  Where cells are shared it takes no room either; else they are copied.
        """
        if self.options.has_shared_cells:
            self.forget(target)
            self._llama.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)
        else:
            self.restore_sequence(target, self.save_sequence(source))
            self.keep(n_tokens, target)

    def rebuild_graph(self) -> None:
        """Have the next ``decode`` plan its graph anew; the KV cache stays.

        CUDA and RPC keep a graph with the addresses of its weights: after a switch they would read the old ones.
        Changing the control vector, even to none, makes llama.cpp reserve anew; it has no call for this alone.
        """
        self._llama.llama_set_adapter_cvec(self.address, None, 0, 0, 0, 0)

    def clear(self) -> None:
        """Drop the KV cache of all sequences."""
        self.check_open()
        self._llama.llama_memory_clear(self._memory, False)

    def save_sequence(self, sequence: int) -> memoryview:
        """What the KV cache holds of a sequence, for ``restore_sequence`` of a context of this model and cache type.

        Raises:
            EngineFailed: llama.cpp cannot copy it.
        """
        size = self._llama.llama_state_seq_get_size(self.address, sequence)
        n_header = len(self._state_header(0))
        saved = pages.new_memory(n_header + size)
        log.forget_complaints()
        n_bytes = self._llama.llama_state_seq_get_data(self.address, _bytes_at(saved, n_header), size, sequence)
        if n_bytes == 0:
            raise EngineFailed(f"llama.cpp cannot save sequence {sequence} ({size} bytes): {log.complaints()}")
        saved[:n_header] = np.frombuffer(self._state_header(n_bytes), np.uint8)
        return saved[: n_header + n_bytes].data

    def restore_sequence(self, sequence: int, data: bytes | memoryview) -> None:
        """Put what ``save_sequence`` gave into a sequence; what it held before is dropped.

        Raises:
            EngineFailed: the data is not of a context like this one.
            CacheFull: no room; the sequence is empty then.
        """
        n_header = len(self._state_header(0))
        n_bytes = len(data) - n_header
        if n_bytes <= 0 or bytes(data[:n_header]) != self._state_header(n_bytes):
            raise EngineFailed(f"these {len(data)} bytes were not saved by a context of this model and KV cache type")
        state = np.frombuffer(data, np.uint8)
        self.forget(sequence)
        if self._llama.llama_state_seq_set_data(self.address, _bytes_at(state, n_header), n_bytes, sequence) == 0:
            raise CacheFull(
                f"no room in the KV cache of {self.options.cells} tokens for a saved sequence of {n_bytes} bytes"
            )

    def _state_header(self, n_bytes: int) -> bytes:
        """What must agree for a saved state to be read; llama.cpp takes a state for whole and of its own kind."""
        shape = self.model.n_layers, self.model.vocabulary.n_tokens
        return struct.pack("<4s4IQ", b"KVSQ", *shape, *self.options.cache_types, n_bytes)

    def _guarded(self, visit: observing.Visit) -> Any:
        """An evaluation callback that keeps what ``visit`` raises."""

        def guarded(node: int, ask: bool, _: object) -> bool:
            try:
                return visit(node, ask)
            except BaseException as error:  # must not cross the C frame: raised again in decode()
                self._failure = error
                return False

        return self._llama.ggml_backend_sched_eval_callback(guarded)


def _bytes_at(array: NDArray[np.uint8], offset: int) -> Any:
    """A C pointer into an array, which the caller keeps alive."""
    return ct.cast(array.ctypes.data + offset, ct.POINTER(ct.c_uint8))
