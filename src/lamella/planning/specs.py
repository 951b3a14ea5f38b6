"""Shapes of known models, named ``spec:llama-2-7b`` and so on, so that planning needs no weights.

Matrices are F16 and vectors F32, as llama.cpp's converter writes them.  Names are GGUF names.  Shapes follow the
models' ``config.json``; the tests hold the published parameter counts against them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lamella.core.errors import InvalidRequest
from lamella.core.model import ModelIdentity, ModelSpec, TensorSpec

PREFIX = "spec:"


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """``config.json`` of a Llama-like model."""

    name: str
    n_layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    rope_base: float = 10000.0


_LLAMAS = {
    "llama-2-7b": LlamaShape("Llama-2-7B", 32, 4096, 11008, 32, 32, 32000, 4096),
    "llama-2-13b": LlamaShape("Llama-2-13B", 40, 5120, 13824, 40, 40, 32000, 4096),
    "llama-3-8b": LlamaShape("Llama-3-8B", 32, 4096, 14336, 32, 8, 128256, 8192, 500000.0),
}


def known_specs() -> tuple[str, ...]:
    """Names that ``builtin_spec`` takes."""
    return tuple(PREFIX + name for name in _BUILDERS)


def is_builtin(name: str) -> bool:
    """Whether the name asks for a built-in specification rather than for a file."""
    return name.startswith(PREFIX)


def builtin_spec(name: str) -> ModelSpec:
    """The specification of that name, with or without ``spec:``.

    Raises:
        InvalidRequest: no such specification; lists the known ones.
    """
    build = _BUILDERS.get(name.removeprefix(PREFIX).lower())
    if build is None:
        raise InvalidRequest(f"unknown specification '{name}'; known: {', '.join(known_specs())}")
    return build()


def llama_spec(shape: LlamaShape) -> ModelSpec:
    """A dense Llama with separate embedding and head."""
    hyperparameters: dict[str, int | float | str | bool] = {
        "block_count": shape.n_layers,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.hidden // shape.heads,
        "rope.freq_base": shape.rope_base,
        "vocab_size": shape.vocabulary,
    }
    return _spec("llama", shape.name, shape.n_layers, tuple(_llama_tensors(shape)), hyperparameters)


def _llama_tensors(shape: LlamaShape) -> Iterator[TensorSpec]:
    hidden, wide = shape.hidden, shape.feed_forward
    kv = hidden // shape.heads * shape.kv_heads
    yield _matrix("token_embd", hidden, shape.vocabulary)
    for i in range(shape.n_layers):
        yield _vector(f"blk.{i}.attn_norm.weight", hidden)
        yield _matrix(f"blk.{i}.attn_q", hidden, hidden)
        yield _matrix(f"blk.{i}.attn_k", hidden, kv)
        yield _matrix(f"blk.{i}.attn_v", hidden, kv)
        yield _matrix(f"blk.{i}.attn_output", hidden, hidden)
        yield _vector(f"blk.{i}.ffn_norm.weight", hidden)
        yield _matrix(f"blk.{i}.ffn_gate", hidden, wide)
        yield _matrix(f"blk.{i}.ffn_up", hidden, wide)
        yield _matrix(f"blk.{i}.ffn_down", wide, hidden)
    yield _vector("output_norm.weight", hidden)
    yield _matrix("output", hidden, shape.vocabulary)


def opt_350m_spec() -> ModelSpec:
    """OPT-350m: embeddings of 512 projected to 1024 and back, biases everywhere, post-norm, tied head.

    llama.cpp has no OPT, so this one can be planned and not run.
    """
    n_layers, hidden, embedding, wide, vocabulary, positions = 24, 1024, 512, 4096, 50272, 2050
    hyperparameters: dict[str, int | float | str | bool] = {
        "block_count": n_layers,
        "context_length": 2048,
        "embedding_length": hidden,
        "word_embedding_length": embedding,
        "feed_forward_length": wide,
        "attention.head_count": 16,
        "attention.head_count_kv": 16,
        "vocab_size": vocabulary,
    }
    tensors = [
        _matrix("token_embd", embedding, vocabulary),
        _matrix("position_embd", hidden, positions),
        _matrix("project_in", embedding, hidden),
        *(t for i in range(n_layers) for t in _opt_layer(i, hidden, wide)),
        _matrix("project_out", hidden, embedding),
    ]
    return _spec("opt", "OPT-350m", n_layers, tensors, hyperparameters)


def _opt_layer(i: int, hidden: int, wide: int) -> Iterator[TensorSpec]:
    matrices = (
        ("attn_q", hidden, hidden), ("attn_k", hidden, hidden), ("attn_v", hidden, hidden),
        ("attn_output", hidden, hidden), ("ffn_up", hidden, wide), ("ffn_down", wide, hidden),
    )  # fmt: skip
    for name, row_length, rows in matrices:
        yield _matrix(f"blk.{i}.{name}", row_length, rows)
        yield _vector(f"blk.{i}.{name}.bias", rows)
    for name in ("attn_norm", "ffn_norm"):
        yield _vector(f"blk.{i}.{name}.weight", hidden)
        yield _vector(f"blk.{i}.{name}.bias", hidden)


_BUILDERS: dict[str, Callable[[], ModelSpec]] = {
    **{name: functools.partial(llama_spec, shape) for name, shape in _LLAMAS.items()},
    "opt-350m": opt_350m_spec,
}


def _matrix(stem: str, row_length: int, n_rows: int) -> TensorSpec:
    return TensorSpec(f"{stem}.weight", (row_length, n_rows), "F16")


def _vector(name: str, length: int) -> TensorSpec:
    return TensorSpec(name, (length,), "F32")


def _spec(
    architecture: str,
    name: str,
    n_layers: int,
    tensors: Sequence[TensorSpec],
    hyperparameters: dict[str, int | float | str | bool],
) -> ModelSpec:
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda t: t.name):
        digest.update(f"{tensor.name} {tensor.shape}\0".encode())
    identity = ModelIdentity(architecture, name, digest.hexdigest())
    return ModelSpec(identity, n_layers, tuple(tensors), hyperparameters)
