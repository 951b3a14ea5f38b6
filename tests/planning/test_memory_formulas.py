"""KV cache and compute formulas where they can be checked by hand; tests/llama/test_memory.py has llama.cpp's word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest, UnsupportedTensor
from lamella.core.model import ModelIdentity, ModelSpec, TensorSpec
from lamella.core.units import GIB, MIB
from lamella.planning.memory import compute_bytes_estimate, kv_cache_bytes, kv_cells
from lamella.planning.specs import builtin_spec


def test_llama_2_7b_has_the_known_cache() -> None:
    # 32 layers x 2 x 4096 values x 2 bytes = 0.5 MiB a token
    assert kv_cache_bytes(builtin_spec("llama-2-7b"), 4096) == 2 * GIB


def test_grouped_heads_need_a_quarter() -> None:
    assert kv_cache_bytes(builtin_spec("llama-3-8b"), 8192) == GIB


def test_context_is_for_each_sequence() -> None:
    spec = builtin_spec("llama-3-8b")
    assert kv_cache_bytes(spec, 2048, 4) == kv_cache_bytes(spec, 8192, 1)


def test_quantized_cache_counts_its_scales() -> None:
    spec = builtin_spec("llama-3-8b")
    assert kv_cache_bytes(spec, 8192, kv_type="Q8_0") == GIB * 34 // 64


@given(st.integers(1, 10_000), st.integers(1, 16))
def test_cells_are_padded_and_enough(n_ctx: int, n_sequences: int) -> None:
    cells = kv_cells(n_ctx, n_sequences)
    assert cells % 256 == 0
    assert 0 <= cells - n_ctx * n_sequences < 256


def test_layers_may_differ_and_have_no_attention() -> None:
    tensors = (
        TensorSpec("blk.0.attn_k.weight", (64, 32), "F16"),
        TensorSpec("blk.0.attn_v.weight", (64, 16), "F16"),
        TensorSpec("blk.1.ssm_in.weight", (64, 128), "F16"),
    )
    spec = ModelSpec(ModelIdentity("x", "x", ""), 2, tensors)
    assert kv_cache_bytes(spec, 256) == 2 * 256 * (32 + 16)
    with pytest.raises(UnsupportedTensor, match="rows of 16 weights"):
        kv_cache_bytes(spec, 256, kv_type="Q8_0")


def test_fused_attention_is_taken_apart() -> None:
    hyperparameters: dict[str, int | float | str | bool] = {"attention.head_count": 4, "attention.head_count_kv": 2}
    fused = TensorSpec("blk.0.attn_qkv.weight", (64, 16 * (4 + 2 + 2)), "F16")
    spec = ModelSpec(ModelIdentity("x", "x", ""), 1, (fused,), hyperparameters)
    assert kv_cache_bytes(spec, 256) == 2 * 256 * (32 + 32)


def test_compute_of_llama_2_7b() -> None:
    # dry run of llama.cpp 0c1e570 on a file of this shape: 100.51 MiB, and 0.12 MiB of logits
    assert compute_bytes_estimate(builtin_spec("llama-2-7b"), 4096) / MIB == pytest.approx(100.63, rel=0.001)


@pytest.mark.parametrize(("n_ctx", "n_sequences"), [(0, 1), (1, 0)])
def test_sizes_must_be_positive(n_ctx: int, n_sequences: int) -> None:
    with pytest.raises(InvalidRequest):
        kv_cells(n_ctx, n_sequences)


def test_unknown_cache_types_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="Q99"):
        kv_cache_bytes(builtin_spec("llama-2-7b"), 256, kv_type="Q99")
