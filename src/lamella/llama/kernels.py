"""How fast this machine multiplies by weights of a type, mapped and repacked: measured, because both can win.

A repacked copy (``weights.RepackedShard``) costs memory and conversion time.  On some processors it doubles the speed
of one phase and slows the other down (seen: Q4_K prompts 147 tokens/s mapped and 100 repacked, single tokens the other
way round), so nothing but a measurement tells.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import EngineFailed
from lamella.core.precision import GgmlType
from lamella.llama import api, library, quantize
from lamella.llama.scratch import Scratch
from lamella.llama.weights import repack_buffer_type

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
        if mapped is None:
            raise EngineFailed(f"the CPU device cannot multiply by {ggml_type.name}")
        if repacked is None:
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
    with Scratch(_cpu(), n_threads) as scratch:
        caches = [scratch.tensor("F16", HEAD, CELLS, KV_HEADS) for _ in range(2 * ATTENTIONS)]
        graphs = {n: _attention(scratch, caches, n) for n in (1, PROMPT_TOKENS)}
        scratch.allocate("attention that is timed")
        for tensor in (*caches, *(query for _, query in graphs.values())):
            scratch.write(tensor, _numbers(scratch, tensor, np.float16 if tensor in caches else np.float32))
        times = {
            n: [_nanoseconds(scratch, graph, least_seconds) for _ in range(1 + REPEATS)]
            for n, (graph, _) in graphs.items()
        }
    token, prompt = (min(of_n) / (n * HEAD * HEADS * CELLS * ATTENTIONS) for n, of_n in times.items())
    return KernelTimes(token, prompt)


def _cpu() -> int:
    return int(library.load().ggml.ggml_backend_dev_by_type(library.DEVICE_TYPE_CPU))


def _attention(scratch: Scratch, caches: list[int], n_tokens: int) -> tuple[int, int]:
    """A graph of layers' attentions, and their query."""
    query = scratch.tensor("F32", HEAD, n_tokens, HEADS)
    pairs = zip(caches[::2], caches[1::2], strict=True)
    attend = scratch.base.ggml_flash_attn_ext
    found = [attend(scratch.context, query, keys, values, None, HEAD**-0.5, 0.0, 0.0) for keys, values in pairs]
    return scratch.graph(found), query


def _numbers(scratch: Scratch, tensor: int, kind: type[np.floating[Any]]) -> NDArray[Any]:
    """As in a model: what lies in fresh memory could be slow denormals."""
    n = scratch.base.ggml_nbytes(tensor) // np.dtype(kind).itemsize
    values: NDArray[Any] = np.random.default_rng(2).standard_normal(n, np.float32).astype(kind)
    return values


def _nanoseconds(scratch: Scratch, graph: int, least_seconds: float = 0.0) -> float:
    """Of a graph, the mean of as many as fill some seconds."""
    start, n_done, taken = time.perf_counter_ns(), 0, 0
    while not n_done or taken < 1e9 * least_seconds:
        scratch.compute(graph)
        n_done, taken = n_done + 1, time.perf_counter_ns() - start
    return taken / n_done


@dataclass(frozen=True, slots=True)
class _Products:
    """Two prepared graphs over the same weights."""

    scratch: Scratch
    token_graph: int
    prompt_graph: int
    n_matrices: int

    def token(self, least_seconds: float = 0.0) -> float:
        taken = _nanoseconds(self.scratch, self.token_graph, least_seconds)
        return taken / (self.n_matrices * N_ROWS * ROW_LENGTH)

    def prompt(self) -> float:
        taken = _nanoseconds(self.scratch, self.prompt_graph)
        return taken / (PROMPT_MATRICES * N_ROWS * ROW_LENGTH * PROMPT_TOKENS)


@contextmanager
def _products(ggml_type: GgmlType, n_threads: int, *, repacked: bool = False) -> Iterator[_Products | None]:
    """Weights in one layout and the graphs that multiply by them; None where the layout does not exist."""
    lib = library.load()
    base = lib.base
    buffer_type = repack_buffer_type(lib) if repacked else base.ggml_backend_dev_buffer_type(_cpu())
    if buffer_type is None:
        yield None
        return
    matrix_bytes = ggml_type.row_bytes(ROW_LENGTH) * N_ROWS
    n_matrices = max(PROMPT_MATRICES, TOKEN_WEIGHT_BYTES // matrix_bytes)
    weights = base.ggml_backend_buft_alloc_buffer(buffer_type, matrix_bytes * n_matrices)
    if not weights:
        raise EngineFailed(f"no memory to time {ggml_type.name}: {matrix_bytes * n_matrices} bytes are needed")
    with ExitStack() as owned:
        owned.callback(base.ggml_backend_buffer_free, weights)
        scratch = owned.enter_context(Scratch(_cpu(), n_threads))
        matrices = _matrices(scratch, weights, ggml_type, n_matrices)
        yield _prepared(scratch, matrices, ggml_type) if matrices else None


def _matrices(scratch: Scratch, weights: int, ggml_type: GgmlType, n_matrices: int) -> list[int]:
    """Matrices in a buffer, all with the same values; none where its layout does not take this type."""
    base = scratch.base
    rows = np.random.default_rng(0).standard_normal((N_ROWS, ROW_LENGTH), np.float32)
    stored = quantize.encode_rows(rows, ggml_type)
    start = base.ggml_backend_buffer_get_base(weights)
    is_plain = base.ggml_backend_buft_is_host(base.ggml_backend_buffer_get_type(weights))
    matrices = []
    for i in range(n_matrices):
        matrix = scratch.tensor(ggml_type.name, ROW_LENGTH, N_ROWS)
        base.ggml_backend_tensor_alloc(weights, matrix, start + i * stored.nbytes)
        if not is_plain and not api.tensor_at(matrix).extra:
            return []  # this type has no repacked layout here
        scratch.write(matrix, stored)
        matrices.append(matrix)
    return matrices


def _prepared(scratch: Scratch, matrices: list[int], ggml_type: GgmlType) -> _Products:
    """Both graphs, with numbers to multiply and computed once, to warm up."""
    graphs = []
    activations = []
    for n_tokens, some in ((1, matrices), (PROMPT_TOKENS, matrices[:PROMPT_MATRICES])):
        activations.append(scratch.tensor("F32", ROW_LENGTH, n_tokens))
        graphs.append(scratch.graph(scratch.base.ggml_mul_mat(scratch.context, m, activations[-1]) for m in some))
    scratch.allocate(f"products with {ggml_type.name} that are timed")
    for tensor in activations:
        scratch.write(tensor, _numbers(scratch, tensor, np.float32))
    products = _Products(scratch, graphs[0], graphs[1], len(matrices))
    products.token(), products.prompt()
    return products
