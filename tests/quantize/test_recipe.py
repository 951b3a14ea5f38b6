"""A recipe says everything that determines a shard, and nothing that does not; plans of other models are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.core.artifacts import Plan
from lamella.core.errors import ArtifactError, LamellaError, UnsupportedTensor
from lamella.core.precision import Scheme
from lamella.llama.gguf import ModelFile, read_model
from lamella.quantize.recipe import shard_jobs
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model


def recipe_ids(source: ModelFile, plan: Plan) -> list[str]:
    return [job.recipe_id for job in shard_jobs(source, plan)]


def roundings(source: ModelFile, plan: Plan) -> dict[str, str | None]:
    return {c.source.spec.name: c.rounding for job in shard_jobs(source, plan) for c in job.conversions}


def test_plans_share_the_recipes_of_the_layers_they_agree_on(tiny: ModelFile) -> None:
    a = recipe_ids(tiny, make_plan(tiny.spec, ["int8", "int4", "int8"]))
    b = recipe_ids(tiny, make_plan(tiny.spec, ["int8", "int8", "int8"]))
    assert [x == y for x, y in zip(a, b, strict=True)] == [True, True, False, True, True, True]
    assert len(set(a)) == len(a)


def test_name_policy_and_settings_of_a_plan_change_no_recipe(tiny: ModelFile) -> None:
    plan = make_plan(tiny.spec, "int8")
    other = dataclasses.replace(plan, policy="lsaq", settings={"context": 5}, budget_bytes=7)
    assert recipe_ids(tiny, plan) == recipe_ids(tiny, other)


def test_the_rounding_is_part_of_the_recipe(tiny: ModelFile) -> None:
    """int4 by block, by channel and truncated, and int4 and int3 by channel, may all be Q4_0."""
    block = make_plan(tiny.spec, "int4", scheme="channel")
    channel = dataclasses.replace(block, scheme="block")
    int3 = dataclasses.replace(block, layers=[dataclasses.replace(layer, precision="int3") for layer in block.layers])
    assert block.tensors == channel.tensors == int3.tensors
    truncated = dataclasses.replace(block, scheme="truncate")
    assert len({recipe_ids(tiny, plan)[1] for plan in (block, channel, truncated, int3)}) == 4


def test_eight_bits_of_eight_are_the_same_by_channel_and_truncated(tiny: ModelFile) -> None:
    plan = make_plan(tiny.spec, "int8", scheme="channel")
    assert recipe_ids(tiny, plan) == recipe_ids(tiny, dataclasses.replace(plan, scheme="truncate"))


def test_other_weights_make_other_recipes(tiny: ModelFile, tmp_path: Path) -> None:
    other = read_model(write_tiny_model(tmp_path / "o.gguf", n_embd=256, n_ff=512, seed=1))
    assert other.spec.identity.structure == tiny.spec.identity.structure
    plans = [make_plan(model.spec, "int8") for model in (tiny, other)]
    assert not set(recipe_ids(tiny, plans[0])) & set(recipe_ids(other, plans[1]))


@pytest.mark.parametrize("other", [{"chat_template": "b"}, {"chat_template": "a", "tags": ["x"]}, {"name": "other"}])
def test_other_metadata_makes_another_recipe_of_its_shard_alone(tmp_path: Path, other: dict[str, Any]) -> None:
    one, same, changed = (
        read_model(write_tiny_model(tmp_path / f"{i}.gguf", **{"chat_template": "a"} | more))
        for i, more in enumerate(({}, {}, other))
    )
    assert one.spec.identity.structure == changed.spec.identity.structure
    ids = [recipe_ids(source, make_plan(source.spec, "int8")) for source in (one, same, changed)]
    assert ids[0] == ids[1]
    assert [x == y for x, y in zip(ids[0], ids[2], strict=True)] == [False] + [True] * 5


def test_by_channel_each_matrix_is_rounded_to_its_layers_precision(tiny: ModelFile) -> None:
    found = roundings(tiny, make_plan(tiny.spec, ["int2", "int3", "fp16"], scheme="channel"))
    assert found["blk.0.attn_q.weight"] == "int2"
    assert found["blk.1.ffn_down.weight"] == "int3"
    assert found["blk.2.ffn_up.weight"] is None
    assert found["token_embd.weight"] == "int8"  # from its container, Q8_0
    assert found["blk.0.attn_norm.weight"] is None


def test_by_block_nothing_is_rounded_by_eq4(tiny: ModelFile) -> None:
    assert set(roundings(tiny, make_plan(tiny.spec, "int4")).values()) == {None}


def test_vectors_keep_the_sources_type_whatever_the_plan_says(tiny: ModelFile) -> None:
    plan = make_plan(tiny.spec, "int8")
    plan = dataclasses.replace(plan, tensors={**plan.tensors, "output_norm.weight": "F16"})
    head = shard_jobs(tiny, plan)[-1]
    assert {c.source.spec.name: c.target.name for c in head.conversions}["output_norm.weight"] == "F32"


def test_a_plan_from_a_specification_fits_a_file_of_that_structure(tiny: ModelFile) -> None:
    plan = make_plan(tiny.spec, "int8")
    assert shard_jobs(tiny, dataclasses.replace(plan, model=dataclasses.replace(plan.model, weights="")))


def _with_model(**changes: str) -> Callable[[Plan], Plan]:
    return lambda plan: dataclasses.replace(plan, model=dataclasses.replace(plan.model, **changes))


def _with_types(**types: Any) -> Callable[[Plan], Plan]:
    def change(plan: Plan) -> Plan:
        tensors = {**plan.tensors, **{k.replace("__", "."): v for k, v in types.items()}}
        return dataclasses.replace(plan, tensors={k: v for k, v in tensors.items() if v})

    return change


def _by_channel(change: Callable[[Plan], Plan]) -> Callable[[Plan], Plan]:
    scheme: Scheme = "channel"
    return lambda plan: dataclasses.replace(change(plan), scheme=scheme)


@pytest.mark.parametrize(
    ("change", "error", "fact"),
    [
        (_with_model(structure="0" * 64, name="giant"), ArtifactError, "for giant .*, not for tiny"),
        (_with_model(weights="0" * 64), ArtifactError, "other weights"),
        (_with_types(blk__1__attn_q__weight=None), ArtifactError, r"no type for 1 tensors.*blk\.1\.attn_q"),
        (_with_types(blk__1__attn_q__weight="Q9_Z"), ArtifactError, r"blk\.1\.attn_q\.weight the unknown type 'Q9_Z'"),
        (_with_types(output__weight="IQ1_S"), UnsupportedTensor, r"output\.weight: IQ1_S needs an importance matrix"),
        (_by_channel(_with_types(output__weight="Q4_K")), UnsupportedTensor, r"output\.weight: .* no container Q4_K"),
    ],
)
def test_plans_that_cannot_be_built_are_refused_with_the_facts(
    tiny: ModelFile, change: Callable[[Plan], Plan], error: type[LamellaError], fact: str
) -> None:
    with pytest.raises(error, match=fact):
        shard_jobs(tiny, change(make_plan(tiny.spec, "int8")))
