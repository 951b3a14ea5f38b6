"""Owning handles over llama.cpp: Model, Context, Sampler.

Each owns one C object, frees it in ``close()`` (or at the end of a ``with`` block) and may be closed twice.  A context
keeps its model's Python object alive; close contexts before their model.  No handle may be used by two threads at once.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.closing import Closing
from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.core.precision import GGML_TYPES
from lamella.llama import api, library, log

LOAD_WITHOUT_MMAP, LOAD_MMAP = 0, 1  # enum llama_load_mode
CACHE_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")

Observer = Callable[[str, NDArray[np.float32]], bool | None]
"""Receives (node name, values of shape (rows, row length)); the array is the observer's to keep.

Returning False leaves the rest of the pass uncomputed (the logits are then undefined)."""


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product of the graph, seen from its weight (``MUL_MAT``, ``MUL_MAT_ID``).

    Attributes:
        weight: name of the weight.
        n_matrices: matrices in the weight: its experts; 1 for most.
        inputs: what the weight is multiplied by, shape (tokens, slots, row length).  For experts a slot is one of the
            experts chosen for a token, or 1 where all of them see the same input; for stacked weights of
            ``MUL_MAT`` it is the matrix; otherwise it is 1.
        experts: expert of each token and slot, shape (tokens, chosen); None for ``MUL_MAT``.
    """

    weight: str
    n_matrices: int
    inputs: NDArray[np.float32]
    experts: NDArray[np.int32] | None


@dataclass(frozen=True, slots=True)
class ProductObserver:
    """Sees the inputs of weights, each when its product was computed.

    Attributes:
        wants: whether the products of a weight are of interest, by its name.
        observe: receives a product; the arrays are its to keep.
        last_node: graph node after which the pass may end, uncomputed; "" for none.
    """

    wants: Callable[[str], bool]
    observe: Callable[[Product], None]
    last_node: str = ""


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


class _Handle(Closing):
    """A C address with an owner."""

    def __init__(self, address: Any, free: Callable[[Any], object]) -> None:
        self._address = address
        self._free = free

    @property
    def address(self) -> Any:
        """The C object.

        Raises:
            EngineFailed: it was freed; C code would read freed memory.
        """
        self.check_open()
        return self._address

    def check_open(self) -> None:
        """Refuse the use of a closed handle.

        Raises:
            EngineFailed: it was closed.
        """
        if not self._address:
            raise EngineFailed(f"this {type(self).__name__.lower()} was closed")

    def close(self) -> None:
        """Free the C object; later calls do nothing."""
        if self._address:
            address, self._address = self._address, None
            self._free(address)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be shutting down
            self.close()


class Model(_Handle):
    """A loaded model, its weights memory-mapped and read-only.

    Attributes:
        vocabulary: its tokenizer.
    """

    def __init__(self, address: Any) -> None:
        super().__init__(address, library.load().llama.llama_model_free)
        self.vocabulary = Vocabulary(self)

    @classmethod
    def load(
        cls, paths: Sequence[Path], *, n_gpu_layers: int = 0, repack: bool = False, without_weights: bool = False
    ) -> Model:
        """Load a model from one file or from all parts of a split one, in order (``llama_model_load_from_splits``).

        Args:
            n_gpu_layers: layers for the GPUs; 0 keeps everything on the CPU, long prompts too.
            repack: let llama.cpp copy weights into CPU-specific layouts (``use_extra_bufts``); such weights cannot
                be switched to mapped shards.
            without_weights: read the header only and simulate allocations, for a dry run (``no_alloc``).

        Raises:
            EngineFailed: llama.cpp refuses the model; says what it said.
        """
        lib = library.load()
        params = lib.llama.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        no_devices = (ct.c_void_p * 1)(None)
        if n_gpu_layers == 0:  # else llama.cpp may still send large batches to a GPU (op_offload)
            params.devices = ct.cast(no_devices, ct.c_void_p)
        params.use_extra_bufts = repack
        params.no_alloc = without_weights
        params.load_mode = LOAD_WITHOUT_MMAP if without_weights else LOAD_MMAP
        names = (ct.c_char_p * len(paths))(*(os.fsencode(p) for p in paths))
        log.forget_complaints()
        address = lib.llama.llama_model_load_from_splits(names, len(paths), params)
        if not address:
            raise EngineFailed(f"llama.cpp cannot load {paths[0]}: {log.complaints()}")
        return cls(address)

    @property
    def n_layers(self) -> int:
        return int(library.load().llama.llama_model_n_layer(self.address))

    @property
    def trained_context(self) -> int:
        return int(library.load().llama.llama_model_n_ctx_train(self.address))

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of the GGUF, or None."""
        template = library.load().llama.llama_model_chat_template(self.address, None)
        return template.decode() if template else None


class Vocabulary:
    """The tokenizer of a model.

    Pieces are remembered: between two tokens the weights have pushed everything else out of the processor's caches,
    and each call into C then costs tens of microseconds.

    Raises:
        EngineFailed: from every method, once the model was closed.
    """

    def __init__(self, model: Model) -> None:
        self._llama = library.load().llama
        self._model = model
        self._address = self._llama.llama_model_get_vocab(model.address)
        self.n_tokens: int = self._llama.llama_vocab_n_tokens(self._address)
        self.bos: int = self._llama.llama_vocab_bos(self._address)
        self.eos: int = self._llama.llama_vocab_eos(self._address)
        self._buffer = ct.create_string_buffer(64)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._ends: dict[int, bool] = {}

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of ``text``.

        Args:
            add_special: add what the model wants at the start (and end), such as BOS.
            parse_special: recognise control tokens written in the text.
        """
        self._model.check_open()
        data = text.encode()
        n = len(data) + 8
        while True:
            tokens = (self._llama.llama_token * n)()
            n = self._llama.llama_tokenize(self._address, data, len(data), tokens, n, add_special, parse_special)
            if n >= 0:
                return list(tokens[:n])
            n = -n  # so many are needed

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token: possibly a part of a UTF-8 character, empty for control tokens."""
        found = self._pieces.get((token, special))
        if found is None:
            found = self._pieces[token, special] = self._read_piece(token, special)
        return found

    def _read_piece(self, token: int, special: bool) -> bytes:
        self._model.check_open()
        n = self._llama.llama_token_to_piece(self._address, token, self._buffer, len(self._buffer), 0, special)
        if n < 0:
            self._buffer = ct.create_string_buffer(-n)
            n = self._llama.llama_token_to_piece(self._address, token, self._buffer, len(self._buffer), 0, special)
        return self._buffer.raw[:n]

    def text(self, tokens: Sequence[int], *, special: bool = False) -> str:
        return b"".join(self.piece(t, special=special) for t in tokens).decode("utf-8", "replace")

    def ends_generation(self, token: int) -> bool:
        found = self._ends.get(token)
        if found is None:
            self._model.check_open()
            found = self._ends[token] = bool(self._llama.llama_vocab_is_eog(self._address, token))
        return found


class Context(_Handle):
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
            self._callback = self._watch(wants, observe)  # the C side keeps the pointer
            params.cb_eval = self._callback
        elif products:
            self._callback = self._watch_products(products)
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

    def _watch(self, wants: Callable[[str], bool], observe: Observer) -> Any:
        base = library.load().base

        def visit(node: int, ask: bool) -> bool:
            tensor = tensor_at(node)
            name = tensor.name.decode()
            if ask:
                return wants(name)
            values = np.empty((tensor.ne[1] * tensor.ne[2] * tensor.ne[3], tensor.ne[0]), np.float32)
            base.ggml_backend_tensor_get(node, values.ctypes.data, 0, values.nbytes)
            return observe(name, values) is not False

        return self._guarded(visit)

    def _watch_products(self, products: ProductObserver) -> Any:
        def visit(node: int, ask: bool) -> bool:
            tensor = tensor_at(node)
            if products.last_node and tensor.name.decode() == products.last_node:
                return ask
            weight = _weight_of_product(tensor)
            if ask:
                return weight is not None and products.wants(weight)
            if weight is not None:
                products.observe(_read_product(tensor, weight))
            return True

        return self._guarded(visit)

    def _guarded(self, visit: Callable[[int, bool], bool]) -> Any:
        """An evaluation callback.  ``visit(node, ask)`` says whether it wants a node, and then whether to go on."""

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


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k, top_p, min_p: llama.cpp's filters; 0, 1 and 0 switch them off.
        repeat_penalty: for the last 64 tokens; 1 switches it off.
        seed: equal seeds give equal draws.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InvalidRequest(f"temperature must be at least 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InvalidRequest(f"top_p must be in (0, 1], not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise InvalidRequest(f"min_p must be in [0, 1], not {self.min_p}")
        if not self.repeat_penalty > 0:
            raise InvalidRequest(f"repeat_penalty must be above 0, not {self.repeat_penalty}")
        if self.top_k < 0:
            raise InvalidRequest(f"top_k must be at least 0, not {self.top_k}")


class Sampler(_Handle):
    """A chain of llama.cpp samplers with its random state."""

    def __init__(self, options: SamplingOptions, vocabulary: Vocabulary) -> None:
        llama = library.load().llama
        super().__init__(
            llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params()), llama.llama_sampler_free
        )
        self._llama = llama
        self._is_argmax = options.temperature == 0 and options.repeat_penalty == 1
        for sampler in _chain(llama, options, vocabulary):
            llama.llama_sampler_chain_add(self.address, sampler)

    def sample(self, context: Context, index: int = -1) -> int:
        """Draw a token from the logits at ``index`` of the last batch, and remember it for penalties."""
        if self._is_argmax:  # a sampler chain would first copy the whole vocabulary into a list of candidates
            return int(context.logits(index).argmax())
        return int(self._llama.llama_sampler_sample(self.address, context.address, index))


def _chain(llama: Any, options: SamplingOptions, vocabulary: Vocabulary) -> list[Any]:
    chain = []
    if options.repeat_penalty != 1:
        chain.append(llama.llama_sampler_init_penalties(vocabulary.n_tokens, 64, options.repeat_penalty, 0.0, 0.0))
    if options.temperature == 0:
        return [*chain, llama.llama_sampler_init_greedy()]
    if options.top_k:
        chain.append(llama.llama_sampler_init_top_k(options.top_k))
    if options.top_p < 1:
        chain.append(llama.llama_sampler_init_top_p(options.top_p, 1))
    if options.min_p > 0:
        chain.append(llama.llama_sampler_init_min_p(options.min_p, 1))
    chain.append(llama.llama_sampler_init_temp(options.temperature))
    chain.append(llama.llama_sampler_init_dist(options.seed))
    return chain


def tensor_at(address: int) -> Any:
    """The ``ggml_tensor`` at an address, as a live struct: writing its fields writes C memory."""
    return ct.cast(address, ct.POINTER(api.Tensor)).contents


@functools.cache
def _operation(code: int) -> str:
    name: bytes = library.load().base.ggml_op_name(code)
    return name.decode()


def _weight_of_product(tensor: Any) -> str | None:
    """Name of the weight of a matrix product with float inputs; None for other nodes (imatrix.cpp)."""
    if _operation(tensor.op) not in ("MUL_MAT", "MUL_MAT_ID"):
        return None
    if tensor_at(tensor.src[1]).type != GGML_TYPES["F32"].code:
        return None
    name: str = tensor_at(tensor.src[0]).name.decode()
    return name.split("#")[1] if "#" in name else name  # "CUDA0#blk.0.attn_k.weight#0" is a copy for a device


def _read_product(tensor: Any, weight: str) -> Product:
    """Copy inputs and chosen experts of a matrix product out of the graph."""
    matrices = tensor_at(tensor.src[0])
    n_matrices = matrices.ne[2] * matrices.ne[3]
    inputs = _read_tensor(tensor.src[1], np.float32)  # (outermost, matrices or tokens, rows or slots, row length)
    if _operation(tensor.op) == "MUL_MAT_ID":
        experts = _read_tensor(tensor.src[2], np.int32)[0, 0]
        return Product(weight, n_matrices, inputs[0], experts)
    if n_matrices == 1:
        return Product(weight, 1, inputs.reshape(-1, 1, inputs.shape[-1]), None)
    if inputs.shape[0] != 1 or inputs.shape[1] != n_matrices:
        raise EngineFailed(f"weight {weight} of {n_matrices} matrices is multiplied by inputs of shape {inputs.shape}")
    return Product(weight, n_matrices, inputs[0].transpose(1, 0, 2), None)


def _read_tensor(address: int, dtype: Any) -> Any:
    """Values of a tensor of 4-byte numbers, wherever they are and however strided; outermost dimension first."""
    base, tensor = library.load().base, tensor_at(address)
    raw = np.empty(base.ggml_nbytes(address), np.uint8)
    base.ggml_backend_tensor_get(address, raw.ctypes.data, 0, raw.nbytes)
    shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
    return np.lib.stride_tricks.as_strided(raw.view(dtype), shape, strides, writeable=False)


def _decode_error(code: int, options: ContextOptions) -> str:
    if code == 1:
        return (
            f"the KV cache is full: it has room for {options.n_ctx * options.n_sequences} tokens "
            f"({options.n_ctx} x {options.n_sequences} sequences); use a larger context or a shorter prompt"
        )
    return f"llama_decode failed with code {code}: {log.complaints()}"
