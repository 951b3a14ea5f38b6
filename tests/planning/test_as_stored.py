"""A plan read off a file says what the file holds."""

from __future__ import annotations

import pytest

from lamella.core.model import ModelIdentity, ModelSpec, TensorSpec
from lamella.planning.as_stored import as_stored

IDENTITY = ModelIdentity("llama", "tiny", structure="5" * 64, weights="9" * 64)


def _spec(*types: str) -> ModelSpec:
    """One layer a type list; each letter a matrix of 256 x 256, and a norm."""
    tensors = [TensorSpec("token_embd.weight", (256, 64), "Q8_0")]
    for layer, names in enumerate(types):
        tensors.append(TensorSpec(f"blk.{layer}.attn_norm.weight", (256,), "F32"))
        tensors += [TensorSpec(f"blk.{layer}.{i}.weight", (256, 256), name) for i, name in enumerate(names.split())]
    return ModelSpec(IDENTITY, len(types), tuple(tensors))


def test_the_precision_of_a_layer_is_the_type_of_its_weights_or_mixed() -> None:
    plan = as_stored(_spec("Q4_K Q4_K", "Q6_K Q4_K Q6_K", "F16 F16"), "imported", {"file": "x"})
    assert [x.precision for x in plan.layers] == ["Q4_K", "mixed", "F16"]
    assert [x.bits_per_weight for x in plan.layers] == [4.5, pytest.approx((4.5 + 2 * 6.5625) / 3), 16]
    assert plan.tensors["blk.1.1.weight"] == "Q4_K"
    assert (plan.policy, plan.settings, plan.model) == ("imported", {"file": "x"}, IDENTITY)


def test_sizes_and_bits_are_those_of_the_file() -> None:
    spec = _spec("Q4_K Q4_K", "Q6_K Q4_K")
    plan = as_stored(spec, "imported", {})
    assert [x.bytes for x in plan.layers] == [2 * 256 * 144 + 1024, 256 * (144 + 210) + 1024]
    assert plan.average_bits == pytest.approx((4.5 + (4.5 + 6.5625) / 2) / 2)
    assert plan.bytes.weights == plan.bytes.total == spec.n_bytes
    assert plan.bits_per_weight == spec.bits_per_weight


def test_it_may_be_a_plan_for_another_file_of_the_model() -> None:
    source = ModelIdentity("llama", "tiny", structure="5" * 64, weights="1" * 64)
    assert as_stored(_spec("Q4_K"), "like", {}, source).model == source


def test_a_model_without_layers_has_no_average() -> None:
    assert as_stored(_spec(), "imported", {}).average_bits == 0
