"""Documents between stages: written canonically, read strictly."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from lamella.core.artifacts import (
    AdditivityCheck,
    CalibrationText,
    LayerScore,
    Measurement,
    MemoryNeed,
    Plan,
    ShardRef,
    TensorLoss,
    Variant,
    check_same_structure,
    check_same_weights,
    from_json,
    to_json,
)
from lamella.core.errors import ArtifactError
from lamella.core.model import ModelIdentity, ModelSpec, TensorSpec
from tests.fakes.plans import make_plan

MODEL = ModelIdentity("llama", "tiny", "11" * 32, "22" * 32)
SPEC = ModelSpec(MODEL, 2, tuple(TensorSpec(f"blk.{i}.ffn_up.weight", (256, 64), "F16") for i in range(2)))
MEASUREMENT = Measurement(
    "sensitivity", MODEL, {"k": 8, "seed": 1}, [CalibrationText("text", "33" * 32, 4)],
    [LayerScore(1, 0.25), LayerScore(0, 0.5, 0.1)], {"text": [LayerScore(0, 0.5)]}, {"int4": [LayerScore(0, 0.5)]},
    [TensorLoss("blk.0.ffn_up.weight", "Q4_0", 0.1, 0.01, {"Q4_0": 0.1}, {"Q8_0": 0.002})],
    [AdditivityCheck("Q4_0", 0.2, 0.25, 0.01)],
)  # fmt: skip
PLAN = dataclasses.replace(make_plan(SPEC, "int4"), budget_bytes=100, bytes=MemoryNeed(10, 20, 30, 40))
VARIANT = Variant("small", PLAN, [ShardRef("44" * 32, "meta", 5), ShardRef("55" * 32, "layer 0", 7)])


@pytest.mark.parametrize("document", [MEASUREMENT, PLAN, VARIANT], ids=lambda one: type(one).__name__)
def test_what_is_written_is_read_again_and_written_the_same(document: Any) -> None:
    data = to_json(document)
    read = from_json(type(document), data, "x")
    assert read == document
    assert to_json(read) == data
    assert data.endswith(b"}\n")
    assert list(json.loads(data)) == sorted(json.loads(data))


def test_derived_values_stand_in_the_document() -> None:
    document = json.loads(to_json(VARIANT))
    assert (document["plan"]["fits"], document["plan"]["bytes"]["total"]) == (True, 100)
    assert VARIANT.n_bytes == 12
    assert not dataclasses.replace(PLAN, budget_bytes=99).fits
    assert dataclasses.replace(PLAN, budget_bytes=None).fits
    assert MEASUREMENT.importance() == (0.5, 0.25)  # in the order of layers, not of the document


def _changed(document: Plan, **fields: Any) -> bytes:
    return json.dumps({**json.loads(to_json(document)), **fields}).encode()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{", "x is not JSON"),
        (b"[]", r"x is not a lamella.plan document \(format: 'list'\)"),
        (to_json(MEASUREMENT), r"not a lamella.plan document \(format: 'lamella.measurement'\)"),
        (_changed(PLAN, format_version=2), "x has format version 2; this version of Lamella .* reads 1 to 1"),
        (_changed(PLAN, format_version=0), "x has format version 0"),
        (_changed(PLAN, format_version="1"), "x has format version '1'"),
        (_changed(PLAN, tensors=None), r"x: .*tensors"),
        (_changed(PLAN, scheme="by feel"), r"x: .*scheme"),
    ],
)
def test_what_is_no_such_document_is_refused_with_its_name(data: bytes, why: str) -> None:
    with pytest.raises(ArtifactError, match=why):
        from_json(Plan, data, "x")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_cannot_hold_are_refused_with_their_place(number: float) -> None:
    with pytest.raises(ArtifactError, match=r"layers\[1\]\.mean is -?(nan|inf)"):
        to_json(dataclasses.replace(MEASUREMENT, layers=[LayerScore(0, 0.5), LayerScore(1, number)]))
    with pytest.raises(ArtifactError, match=r"plan\.predicted_loss|predicted_loss is"):
        to_json(dataclasses.replace(VARIANT, plan=dataclasses.replace(PLAN, predicted_loss=number)))


def test_documents_of_another_model_or_other_weights_are_told_apart() -> None:
    other_weights = dataclasses.replace(MODEL, weights="99" * 32)
    check_same_structure(PLAN, other_weights, "the plan")  # a plan holds for all precisions of a model
    with pytest.raises(ArtifactError, match=r"the plan is for tiny \(llama\), not for large \(qwen2\)"):
        check_same_structure(PLAN, ModelIdentity("qwen2", "large", "00" * 32), "the plan")
    check_same_weights(MEASUREMENT, MODEL)
    check_same_weights(MEASUREMENT, dataclasses.replace(MODEL, weights=""))  # a specification has none
    with pytest.raises(ArtifactError, match="other weights of tiny"):
        check_same_weights(MEASUREMENT, other_weights)
