"""How fast this machine multiplies by weights of a type, mapped and repacked: measured, because both can win.

A repacked copy (``weights.RepackedShard``) costs memory and conversion time.  On some processors it doubles the speed
of one phase and slows the other down (seen: Q4_K prompts 147 tokens/s mapped and 100 repacked, single tokens the other
way round), so nothing but a measurement tells.
"""

from __future__ import annotations

import ctypes as ct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamella.core.errors import EngineFailed
from lamella.core.precision import GGML_TYPES, GgmlType
from lamella.llama import api, library, quantize
from lamella.llama.weights import repack_buffer_type

ROW_LENGTH, N_ROWS = 2048, 1024
TOKEN_WEIGHT_BYTES = 64 << 20  # for single tokens: more than caches hold, since a model streams from memory
PROMPT_MATRICES, PROMPT_TOKENS = 4, 128
REPEATS = 4
HEAD, HEADS, KV_HEADS, CELLS, ATTENTIONS = 64, 16, 4, 256, 24
"""Of the attention that is timed: numbers of a head, heads of queries and of keys, cells of the cache, layers."""


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """Nanoseconds for each weight and token, best of some repeats.

    Attributes:
        mapped_token, repacked_token: one token at a time.
        mapped_prompt, repacked_prompt: batches, as when reading a prompt.
        has_repacked: whether ggml has a repacked layout for this type here; if not, the repacked times are 0.
    """

    mapped_token: float
    mapped_prompt: float
    repacked_token: float = 0.0
    repacked_prompt: float = 0.0
    has_repacked: bool = False


def measure(ggml_type: GgmlType, n_threads: int, least_seconds: float = 0.0) -> KernelTimes:
    """Time matrix products with weights of one type on the CPU (about half a second).

    Args:
        least_seconds: that single tokens are computed for at a time.  A control group that gives half a core lets a
            process compute on a whole one for some milliseconds, so that short repeats look twice as fast.

    Raises:
        EngineFailed: ggml cannot allocate or compute.
    """
    with _products(ggml_type, n_threads, repacked=True) as repacked, _products(ggml_type, n_threads) as mapped:
        if repacked is None or mapped is None:
            if mapped is None:
                raise EngineFailed(f"the CPU device cannot multiply by {ggml_type.name}")
            return KernelTimes(mapped.token(least_seconds), mapped.prompt())
        # alternating, so that other load hits both
        runs = [
            (mapped.token(least_seconds), mapped.prompt(), repacked.token(least_seconds), repacked.prompt())
            for _ in range(REPEATS)
        ]
    mapped_token, mapped_prompt, repacked_token, repacked_prompt = (min(times) for times in zip(*runs, strict=True))
    return KernelTimes(mapped_token, mapped_prompt, repacked_token, repacked_prompt, has_repacked=True)


def measure_attention(n_threads: int, least_seconds: float = 0.0) -> KernelTimes:
    """Time attention over F16 keys and values on the CPU; nanoseconds for each number of a query head, cell and token.

    Args:
        least_seconds: as in ``measure``.

    Raises:
        EngineFailed: ggml cannot allocate or compute.
    """
    lib = library.load()
    base = lib.base
    device = lib.ggml.ggml_backend_dev_by_type(library.DEVICE_TYPE_CPU)
    backend = base.ggml_backend_dev_init(device, None)
    _set_threads(lib, device, backend, n_threads)
    context = base.ggml_init(api.InitParams(1 << 22, None, True))
    memory = None
    try:
        caches = [_tensor(base, context, "F16", HEAD, CELLS, KV_HEADS) for _ in range(2 * ATTENTIONS)]
        graphs = {n: _attention(base, context, caches, n) for n in (1, PROMPT_TOKENS)}
        memory = base.ggml_backend_alloc_ctx_tensors(context, backend)
        if not memory:
            raise EngineFailed("no memory to time attention")
        for tensor in (*caches, *(query for _, query in graphs.values())):
            _fill_tensor(base, tensor, np.float16 if tensor in caches else np.float32)
        times = {
            n: [_nanoseconds(base, backend, graph, least_seconds) for _ in range(1 + REPEATS)]
            for n, (graph, _) in graphs.items()
        }
    finally:
        if memory:
            base.ggml_backend_buffer_free(memory)
        base.ggml_free(context)
        base.ggml_backend_free(backend)
    token, prompt = (min(of_n) / (n * HEAD * HEADS * CELLS * ATTENTIONS) for n, of_n in times.items())
    return KernelTimes(token, prompt)


def _attention(base: Any, context: int, caches: list[int], n_tokens: int) -> tuple[int, int]:
    """A graph of layers' attentions, and their query."""
    graph = base.ggml_new_graph(context)
    query = _tensor(base, context, "F32", HEAD, n_tokens, HEADS)
    for keys, values in zip(caches[::2], caches[1::2], strict=True):
        found = base.ggml_flash_attn_ext(context, query, keys, values, None, HEAD**-0.5, 0.0, 0.0)
        base.ggml_build_forward_expand(graph, found)
    return int(graph), query


def _tensor(base: Any, context: int, type_name: str, *shape: int) -> int:
    return int(base.ggml_new_tensor(context, GGML_TYPES[type_name].code, len(shape), (ct.c_int64 * len(shape))(*shape)))


def _fill_tensor(base: Any, tensor: int, kind: type[np.floating[Any]]) -> None:
    n_bytes = base.ggml_nbytes(tensor)
    values = np.random.default_rng(2).standard_normal(n_bytes // np.dtype(kind).itemsize, np.float32).astype(kind)
    base.ggml_backend_tensor_set(tensor, values.ctypes.data, 0, n_bytes)


def _nanoseconds(base: Any, backend: int, graph: int, least_seconds: float = 0.0) -> float:
    """Of a graph, the mean of as many as fill some seconds."""
    start, n_done, taken = time.perf_counter_ns(), 0, 0
    while not n_done or taken < 1e9 * least_seconds:
        if base.ggml_backend_graph_compute(backend, graph) != 0:
            raise EngineFailed("ggml could not compute")
        n_done, taken = n_done + 1, time.perf_counter_ns() - start
    return taken / n_done


@dataclass(frozen=True, slots=True)
class _Products:
    """Two prepared graphs over the same weights."""

    base: Any
    backend: int
    token_graph: int
    prompt_graph: int
    n_matrices: int

    def token(self, least_seconds: float = 0.0) -> float:
        taken = _nanoseconds(self.base, self.backend, self.token_graph, least_seconds)
        return taken / (self.n_matrices * N_ROWS * ROW_LENGTH)

    def prompt(self) -> float:
        taken = _nanoseconds(self.base, self.backend, self.prompt_graph)
        return taken / (PROMPT_MATRICES * N_ROWS * ROW_LENGTH * PROMPT_TOKENS)


@contextmanager
def _products(ggml_type: GgmlType, n_threads: int, *, repacked: bool = False) -> Iterator[_Products | None]:
    """Weights in one layout and the graphs that multiply by them; None where the layout does not exist."""
    lib = library.load()
    base = lib.base
    device = lib.ggml.ggml_backend_dev_by_type(library.DEVICE_TYPE_CPU)
    buffer_type = repack_buffer_type(lib) if repacked else base.ggml_backend_dev_buffer_type(device)
    if buffer_type is None:
        yield None
        return
    matrix_bytes = ggml_type.row_bytes(ROW_LENGTH) * N_ROWS
    n_matrices = max(PROMPT_MATRICES, TOKEN_WEIGHT_BYTES // matrix_bytes)
    weights = base.ggml_backend_buft_alloc_buffer(buffer_type, matrix_bytes * n_matrices)
    if not weights:
        raise EngineFailed(f"no memory to time {ggml_type.name}: {matrix_bytes * n_matrices} bytes are needed")
    backend = base.ggml_backend_dev_init(device, None)
    _set_threads(lib, device, backend, n_threads)
    context = base.ggml_init(api.InitParams(1 << 22, None, True))
    scratch = None
    try:
        matrices = _fill(lib, context, weights, ggml_type, n_matrices)
        if not matrices:
            yield None
            return
        token, prompt = (
            _graph(base, context, matrices, 1),
            _graph(base, context, matrices[:PROMPT_MATRICES], PROMPT_TOKENS),
        )
        scratch = base.ggml_backend_alloc_ctx_tensors(context, backend)
        if not scratch:
            raise EngineFailed(f"no memory to time {ggml_type.name}")
        for graph in (token, prompt):
            _fill_activations(base, graph)
        products = _Products(base, backend, token.address, prompt.address, n_matrices)
        products.token(), products.prompt()  # warm up
        yield products
    finally:
        base.ggml_backend_buffer_free(weights)
        if scratch:
            base.ggml_backend_buffer_free(scratch)
        base.ggml_free(context)
        base.ggml_backend_free(backend)


def _fill(lib: library.Library, context: int, weights: int, ggml_type: GgmlType, n_matrices: int) -> list[int]:
    base = lib.base
    rows = np.random.default_rng(0).standard_normal((N_ROWS, ROW_LENGTH), np.float32)
    stored = quantize.encode_rows(rows, ggml_type)
    start, shape = base.ggml_backend_buffer_get_base(weights), (ct.c_int64 * 2)(ROW_LENGTH, N_ROWS)
    matrices = []
    for i in range(n_matrices):
        matrix = base.ggml_new_tensor(context, ggml_type.code, 2, shape)
        base.ggml_backend_tensor_alloc(weights, matrix, start + i * stored.nbytes)
        tensor = ct.cast(matrix, ct.POINTER(api.Tensor)).contents
        is_plain = base.ggml_backend_buft_is_host(base.ggml_backend_buffer_get_type(weights))
        if not is_plain and not tensor.extra:
            return []  # this type has no repacked layout here
        base.ggml_backend_tensor_set(matrix, stored.ctypes.data, 0, stored.nbytes)
        matrices.append(matrix)
    return matrices


@dataclass(frozen=True, slots=True)
class _Graph:
    address: int
    activations: int
    n_tokens: int


def _graph(base: Any, context: int, matrices: list[int], n_tokens: int) -> _Graph:
    graph = base.ggml_new_graph(context)
    activations = base.ggml_new_tensor(context, GGML_TYPES["F32"].code, 2, (ct.c_int64 * 2)(ROW_LENGTH, n_tokens))
    for matrix in matrices:
        base.ggml_build_forward_expand(graph, base.ggml_mul_mat(context, matrix, activations))
    return _Graph(int(graph), activations, n_tokens)


def _fill_activations(base: Any, graph: _Graph) -> None:
    """Numbers as in a model: what lies in fresh memory could be slow denormals."""
    values = np.random.default_rng(1).standard_normal((graph.n_tokens, ROW_LENGTH), np.float32)
    base.ggml_backend_tensor_set(graph.activations, values.ctypes.data, 0, values.nbytes)


def _set_threads(lib: library.Library, device: int, backend: int, n_threads: int) -> None:
    registry = lib.base.ggml_backend_dev_backend_reg(device)
    pointer = lib.base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
    if pointer:
        ct.CFUNCTYPE(None, ct.c_void_p, ct.c_int)(pointer)(backend, n_threads)
