"""KV cache and compute buffers as formulas, for models that exist only as specifications.

Model files are measured instead, by a dry run of llama.cpp itself (``lamella.llama.memory``); the tests hold these
formulas against it.  They speak of the contexts that ``lamella.llama.context.ContextOptions`` makes: one cache shared
by all sequences (``kv_unified``), flash attention, at most ``n_outputs`` rows of logits.
"""

from __future__ import annotations

import math

from lamella.core.errors import InvalidRequest
from lamella.core.model import LayerSpec, ModelSpec
from lamella.core.precision import GGML_TYPES

CELL_PADDING = 256
"""llama.cpp rounds the cells of a cache up to this (llama-context.cpp)."""

_FLOAT = 4
_HALF = 2
_INDEX_BYTES = 4 + 4 + 8 + 8  # token, position, cell index for K and for V, of each token of a batch


def kv_cells(n_ctx: int, n_sequences: int) -> int:
    """Tokens that the cache has room for: ``n_ctx`` for each sequence, padded."""
    if n_ctx < 1 or n_sequences < 1:
        raise InvalidRequest(f"context and sequences must be at least 1, not {n_ctx} and {n_sequences}")
    return math.ceil(n_ctx * n_sequences / CELL_PADDING) * CELL_PADDING


def kv_cache_bytes(spec: ModelSpec, n_ctx: int, n_sequences: int = 1, kv_type: str = "F16") -> int:
    """Bytes of the KV cache of a model with ordinary attention in every layer (llama-kv-cache.cpp).

    Widths come from the shapes of ``attn_k`` and ``attn_v``, so layers may differ (``head_count_kv`` may be an array).
    Sliding windows, latent attention and recurrent states are not covered: use the dry run.

    Raises:
        UnsupportedTensor: rows of K or V cannot be of ``kv_type``.
    """
    return sum(kv_row_bytes(spec, layer, kv_type) for layer in spec.layers) * kv_cells(n_ctx, n_sequences)


def kv_row_bytes(spec: ModelSpec, layer: LayerSpec, kv_type: str = "F16") -> int:
    """Bytes of one layer's KV cache for one token; models and errors as ``kv_cache_bytes``."""
    cache_type = GGML_TYPES.get(kv_type.upper())
    if cache_type is None:
        raise InvalidRequest(f"unknown KV cache type '{kv_type}'")
    return sum(cache_type.row_bytes(width) for width in _kv_widths(spec, layer))


def compute_bytes_estimate(
    spec: ModelSpec,
    n_ctx: int,
    n_sequences: int = 1,
    kv_type: str = "F16",
    n_batch: int = 512,
    n_outputs: int = 1,
) -> int:
    """Bytes of compute buffer and logits for a dense model with gated feed-forward, on the CPU.

    ggml's allocator lays all intermediate results of a batch into one buffer.  With T tokens in a batch, E = 4 T
    embedding_length and F = 4 T feed_forward_length its peak is in the feed-forward part:

        mask (2 T cells) + indices + 3 F (gate, up, product) + 4 E (residual, normed, two gaps left by attention)

    With a quantized cache K and V are rotated first (heads of a multiple of 64), which moves the gaps and saves one E.
    Where many logits are wanted the head is the peak: n_outputs * 4 * (vocabulary + 2 embedding_length).  Exact to
    1 % for Llama-2-7B, 13B, Llama-3-8B, SmolLM2 and Qwen2.5; too large where feed_forward_length is below twice
    embedding_length, and for llama.cpp models without a gate.
    """
    cells = kv_cells(n_ctx, n_sequences)
    n_tokens = min(n_batch, n_ctx * n_sequences)
    n_outputs = min(n_tokens, max(n_outputs, n_sequences))
    embedding = int(spec.hyperparameters["embedding_length"])
    vocabulary = spec.tensor("token_embd.weight").n_rows
    e, f = _FLOAT * n_tokens * embedding, _FLOAT * n_tokens * _feed_forward(spec)
    widths = [_kv_widths(spec, layer) for layer in spec.layers]
    attention = _FLOAT * n_tokens * max((sum(w) for w in widths), default=0) + e
    inputs = _HALF * n_tokens * cells + _INDEX_BYTES * n_tokens
    rotation = _rotation_bytes(spec, kv_type)
    body = inputs + rotation + max(3 * f, attention) + (3 if rotation else 4) * e
    head = n_outputs * _FLOAT * (vocabulary + 2 * embedding)
    return max(body, head) + output_bytes(spec, n_sequences)


def output_bytes(spec: ModelSpec, n_sequences: int = 1) -> int:
    """Bytes of the logits that llama.cpp hands out, one row a sequence (``llama_context::output_reserve``)."""
    return n_sequences * _FLOAT * spec.tensor("token_embd.weight").n_rows


def _kv_widths(spec: ModelSpec, layer: LayerSpec) -> tuple[int, int]:
    """Row lengths of K and V of a layer; (0, 0) where it has no attention."""
    rows = {t.name.split(".", 2)[2]: t.n_rows for t in layer.tensors}
    if "attn_k.weight" in rows:
        return rows["attn_k.weight"], rows.get("attn_v.weight", rows["attn_k.weight"])
    if "attn_qkv.weight" in rows:
        heads = int(spec.hyperparameters["attention.head_count"])
        kv = int(spec.hyperparameters.get("attention.head_count_kv", heads))
        head = rows["attn_qkv.weight"] // (heads + 2 * kv)
        return head * kv, head * kv
    return 0, 0


def _feed_forward(spec: ModelSpec) -> int:
    return max((t.n_rows for t in spec.tensors if t.name.endswith("ffn_up.weight")), default=0)


def _rotation_bytes(spec: ModelSpec, kv_type: str) -> int:
    """Bytes of the Hadamard matrices for quantized caches (llama-kv-cache.cpp, ``attn_rot_k``)."""
    embedding, heads = spec.hyperparameters["embedding_length"], spec.hyperparameters["attention.head_count"]
    head = int(spec.hyperparameters.get("attention.key_length", int(embedding) // int(heads)))
    is_quantized = GGML_TYPES[kv_type.upper()].block_weights > 1
    return _FLOAT * head * head if is_quantized and head % 64 == 0 else 0
