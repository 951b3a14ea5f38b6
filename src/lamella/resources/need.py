"""What a running model needs besides its weights: KV cache, compute buffers and a reserve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamella.core.model import ModelSpec
from lamella.core.units import MIB
from lamella.llama.context import ContextOptions
from lamella.llama.memory import context_memory
from lamella.planning.memory import compute_bytes_estimate, kv_cache_bytes
from lamella.planning.request import Overhead

SMALLEST_RESERVE = 64 * MIB
RESERVE_SHARE = 0.02


def default_reserve(budget_bytes: int | None) -> int:
    """Memory left free under exact accounting: 2 % of the budget, at least 64 MiB.

    It covers what llama.cpp does not announce: tokenizer, graphs, the threads' work buffers (a few MiB each), and the
    drift of other processes between planning and running.  Loading SmolLM2-135M, Qwen2.5-0.5B and 1.5B and decoding a
    batch of 512 tokens took at most 3 MiB of resident memory beyond weights, cache and buffers.  LSAQ's 0.375 GiB
    stands for KV cache and compute buffers too and belongs to nominal accounting.
    """
    return max(SMALLEST_RESERVE, int((budget_bytes or 0) * RESERVE_SHARE))


def file_overhead(paths: Sequence[Path], options: ContextOptions) -> Overhead:
    """What running a model file needs, from llama.cpp's own dry run; its reserve is that of no budget.

    Raises:
        EngineFailed: llama.cpp cannot run the model with these options.
    """
    memory = context_memory(paths, options)
    return Overhead("exact", memory.kv_bytes, memory.compute_bytes + memory.output_bytes, default_reserve(None))


def spec_overhead(spec: ModelSpec, options: ContextOptions) -> Overhead:
    """What running a model of this shape would need, by formula (``lamella.planning.memory``); reserve as above."""
    n_ctx, n_sequences = options.n_ctx, options.n_sequences
    return Overhead(
        "exact",
        kv_cache_bytes(spec, n_ctx, n_sequences, options.kv_type),
        compute_bytes_estimate(spec, n_ctx, n_sequences, options.kv_type, options.n_batch, options.n_outputs),
        default_reserve(None),
    )
