"""A llama model of a few hundred kilobytes that llama.cpp really loads: random weights, a real tokenizer.

path = write_tiny_model(tmp_path / "tiny.gguf", n_layers=3, n_embd=64)
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

N_HEADS = 4
CONTEXT_LENGTH = 256
EOS = 2
"""Drawn at random it ends a text early: tests that count tokens forbid it."""
N_EXPERTS, N_EXPERTS_USED = 4, 2


def write_tiny_model(
    path: Path,
    *,
    n_layers: int = 3,
    n_embd: int = 64,
    n_ff: int = 128,
    dtype: str = "F16",
    grid: str | None = None,
    seed: int = 0,
    tied: bool = False,
    grok: bool = False,
    name: str = "tiny",
    chat_template: str | None = None,
    tags: Sequence[str] = (),
    pooling: gguf.PoolingType | None = None,
    add_bos: bool = True,
    add_eos: bool = False,
) -> Path:
    """Write the model and return ``path``.

    Args:
        n_embd, n_ff: multiples of 32, so that every ``_0`` type fits; of 256 for K-quants.
        dtype: of the matrices: F32, F16, BF16, or a quantized type that the gguf package writes (Q8_0, Q4_0 ...).
        grid: quantized type that the matrices had before they were written as ``dtype``, or None.
        seed: equal seeds give equal weights.
        chat_template: Jinja template for chats, or None.
        tags: ``general.tags``.
        pooling: how embeddings are made, or None.
        add_bos, add_eos: what the tokenizer puts around a text.
        tied: leave the head out, so that llama.cpp uses the embedding for it.
        grok: a Grok instead of a Llama: it has experts, and llama.cpp computes its attention without flash attention,
            as products of computed tensors.
    """
    random = np.random.default_rng(seed)
    tokens, scores, kinds = _vocabulary()
    writer = gguf.GGUFWriter(path, "grok" if grok else "llama")
    writer.add_name(name)
    _add_shape(writer, n_layers, n_embd, n_ff, len(tokens))
    if grok:
        writer.add_expert_count(N_EXPERTS)
        writer.add_expert_used_count(N_EXPERTS_USED)
    _add_tokenizer(writer, tokens, scores, kinds)
    writer.add_add_bos_token(add_bos)
    if add_eos:
        writer.add_add_eos_token(True)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    if tags:
        writer.add_tags(tags)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    kind = gguf.GGMLQuantizationType[dtype]

    def matrix(tensor: str, *shape: int) -> None:
        values = (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        if grid is not None:
            coarse = gguf.GGMLQuantizationType[grid]
            values = gguf.quants.dequantize(gguf.quants.quantize(values, coarse), coarse)
        writer.add_tensor(f"{tensor}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(tensor: str) -> None:
        writer.add_tensor(f"{tensor}.weight", _norm(random, n_embd))

    matrix("token_embd", len(tokens), n_embd)
    for i in range(n_layers):
        norm(f"blk.{i}.attn_norm")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{part}", n_embd, n_embd)
        norm(f"blk.{i}.ffn_norm")
        if grok:
            norm(f"blk.{i}.attn_output_norm")
            norm(f"blk.{i}.layer_output_norm")
            router = random.standard_normal((N_EXPERTS, n_embd)).astype(np.float32)
            writer.add_tensor(f"blk.{i}.ffn_gate_inp.weight", router)
            matrix(f"blk.{i}.ffn_gate_exps", N_EXPERTS, n_ff, n_embd)
            matrix(f"blk.{i}.ffn_up_exps", N_EXPERTS, n_ff, n_embd)
            matrix(f"blk.{i}.ffn_down_exps", N_EXPERTS, n_embd, n_ff)
            continue
        matrix(f"blk.{i}.ffn_gate", n_ff, n_embd)
        matrix(f"blk.{i}.ffn_up", n_ff, n_embd)
        matrix(f"blk.{i}.ffn_down", n_embd, n_ff)
    norm("output_norm")
    if not tied:
        matrix("output", len(tokens), n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _norm(random: np.random.Generator, n: int) -> NDArray[np.float32]:
    return (1 + 0.1 * random.standard_normal(n)).astype(np.float32)


def _add_shape(writer: gguf.GGUFWriter, n_layers: int, n_embd: int, n_ff: int, n_vocab: int) -> None:
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_HEADS)
    writer.add_rope_dimension_count(n_embd // N_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(n_vocab)


def _vocabulary() -> tuple[list[bytes], list[float], list[int]]:
    """SentencePiece: control tokens, all bytes, the printable characters and a space."""
    kind = gguf.TokenType
    entries: list[tuple[bytes, float, int]] = [
        (b"<unk>", 0.0, kind.UNKNOWN), (b"<s>", 0.0, kind.CONTROL), (b"</s>", 0.0, kind.CONTROL),
    ]  # fmt: skip
    entries += [(f"<0x{byte:02X}>".encode(), 0.0, kind.BYTE) for byte in range(256)]
    entries += [
        (piece.encode(), -float(i), kind.NORMAL)
        for i, piece in enumerate(["\u2581", *string.ascii_letters, *string.digits, *string.punctuation])
    ]
    entries += [(f"<pad{i}>".encode(), -1e4, kind.UNUSED) for i in range(-len(entries) % 32)]
    tokens, scores, kinds = zip(*entries, strict=True)
    return list(tokens), list(scores), [int(k) for k in kinds]


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: list[bytes], scores: list[float], kinds: list[int]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(EOS)
