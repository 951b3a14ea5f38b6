"""What a model is made of: layers, what stands outside them, and how a store cuts it into files."""

from __future__ import annotations

import pytest

from lamella.core.model import ModelIdentity, ModelSpec, TensorSpec, is_output, shard_groups

IDENTITY = ModelIdentity("llama", "tiny", "11" * 32)
TENSORS = (
    TensorSpec("token_embd.weight", (32, 100), "Q8_0"),
    TensorSpec("blk.1.ffn_up.weight", (32, 64), "Q4_0"),
    TensorSpec("blk.0.ffn_up.weight", (32, 64), "Q4_0"),
    TensorSpec("blk.0.attn_norm.weight", (32,), "F32"),
    TensorSpec("output_norm.weight", (32,), "F32"),
    TensorSpec("output.weight", (32, 100), "F16"),
)
SPEC = ModelSpec(IDENTITY, 2, TENSORS)


def test_a_tensors_place_and_size() -> None:
    experts = TensorSpec("blk.12.ffn_up_exps.weight", (256, 10, 4), "Q4_K")
    assert (experts.layer, experts.row_length, experts.n_rows, experts.n_weights) == (12, 256, 40, 10240)
    assert experts.n_bytes == 40 * 144
    assert TENSORS[0].layer is None


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.attn_q.weight", (32, 32), True),
        ("token_embd.weight", (32, 100), True),
        ("blk.0.attn_q.bias", (32, 1), False),
        ("blk.0.attn_q.weight", (32,), False),
        ("blk.0.attn_norm.weight", (32, 1), False),
        ("blk.0.ffn_gate_inp.weight", (32, 8), False),  # a router
        ("position_embd.weight", (32, 100), False),
    ],
)
def test_precision_is_chosen_for_matrices_that_llama_cpp_lets_be_quantized(
    name: str, shape: tuple[int, ...], expected: bool
) -> None:
    assert TensorSpec(name, shape, "F16").is_matrix is expected


def test_layers_and_what_stands_outside_are_all_of_it() -> None:
    assert [[t.name for t in layer.tensors] for layer in SPEC.layers] == [
        ["blk.0.ffn_up.weight", "blk.0.attn_norm.weight"],
        ["blk.1.ffn_up.weight"],
    ]
    assert [t.name for t in SPEC.layers[0].matrices] == ["blk.0.ffn_up.weight"]
    assert sum(layer.n_weights for layer in SPEC.layers) + sum(t.n_weights for t in SPEC.outside) == SPEC.n_weights
    assert SPEC.n_bytes == 100 * 34 + 2 * 64 * 18 + 2 * 32 * 4 + 100 * 64
    assert SPEC.bits_per_weight == 8 * SPEC.n_bytes / SPEC.n_weights
    assert SPEC.tensor("output.weight") is TENSORS[-1]


def test_a_store_cuts_a_model_by_layer_whatever_order_the_file_has() -> None:
    groups = list(shard_groups(SPEC))
    assert [(g.number, g.label, [t.name for t in g.tensors]) for g in groups] == [
        (0, "meta", []),
        (1, "layer 0", ["blk.0.attn_norm.weight", "blk.0.ffn_up.weight"]),
        (2, "layer 1", ["blk.1.ffn_up.weight"]),
        (3, "embedding", ["token_embd.weight"]),
        (4, "head", ["output.weight", "output_norm.weight"]),
    ]
    assert list(shard_groups(ModelSpec(IDENTITY, 2, TENSORS[::-1]))) == groups
    assert not is_output(TensorSpec("blk.0.attn_output.weight", (32, 32), "F16"))
