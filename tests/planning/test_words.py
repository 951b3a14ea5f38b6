"""Plans in words."""

from __future__ import annotations

from lamella.core.model import ModelIdentity, ModelSpec, TensorSpec
from lamella.planning.as_stored import as_stored
from lamella.planning.words import counted, layer_words, plan_words


def _spec(*types: str) -> ModelSpec:
    """One layer a type list, each with a norm that is not counted; and an embedding."""
    tensors = [TensorSpec("token_embd.weight", (256, 64), "Q8_0")]
    for layer, names in enumerate(types):
        tensors.append(TensorSpec(f"blk.{layer}.attn_norm.weight", (256,), "F32"))
        tensors += [TensorSpec(f"blk.{layer}.{i}.weight", (256, 256), name) for i, name in enumerate(names.split())]
    return ModelSpec(ModelIdentity("llama", "tiny", "5" * 64, "9" * 64), len(types), tuple(tensors))


def test_layers_of_one_type_are_counted_by_it() -> None:
    plan = as_stored(_spec("Q4_K Q4_K", "Q6_K", "Q4_K"), "imported", {})
    assert plan_words(plan) == "2 Q4_K, 1 Q6_K"
    assert [layer_words(plan, layer) for layer in plan.layers] == ["Q4_K", "Q6_K", "Q4_K"]


def test_mixed_layers_are_counted_by_tensor_each_with_its_own() -> None:
    """Layer 1 is not taken for layers 10 and 11, whose names begin alike."""
    plan = as_stored(_spec("F16", "Q4_K Q6_K Q4_K", *["F16"] * 8, "Q5_K Q5_K", "Q2_K Q3_K"), "imported", {})
    assert layer_words(plan, plan.layers[1]) == "2 Q4_K, 1 Q6_K"
    assert layer_words(plan, plan.layers[0]) == "F16"
    assert plan_words(plan) == "9 F16, 2 Q4_K, 2 Q5_K, 1 Q8_0, 1 Q6_K, 1 Q2_K, 1 Q3_K"


def test_most_come_first() -> None:
    assert counted(["a", "b", "b"]) == "2 b, 1 a"
    assert counted([]) == ""
