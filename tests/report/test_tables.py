"""Rows of tables."""

from __future__ import annotations

from lamella.core.artifacts import LayerPlan, LayerScore, Measurement, MemoryNeed, Plan
from lamella.core.model import ModelIdentity
from lamella.report.tables import measurement_table, plan_table, score_text

MODEL = ModelIdentity("llama", "m", "s", "w")


def test_scores_show_their_error_unless_they_are_exact() -> None:
    assert score_text(LayerScore(0, 0.41234, 0.0207)) == "0.412 ± 0.021"
    assert score_text(LayerScore(0, 0.15866)) == "0.1587"


def test_layers_are_ranked_from_the_most_important() -> None:
    layers = [LayerScore(1, 0.9), LayerScore(0, 0.5), LayerScore(2, 0.7)]
    table = measurement_table(Measurement("outlier", MODEL, {}, (), layers))
    assert table.header == ("layer", "outlier", "rank")
    assert [(row[0], row[2]) for row in table.rows] == [("0", "3"), ("1", "1"), ("2", "2")]


def test_several_tasks_get_a_column_each_and_one_does_not() -> None:
    layers = [LayerScore(0, 0.5, 0.1)]
    one = Measurement("cosine", MODEL, {}, (), layers, per_task={"a": layers})
    two = Measurement("cosine", MODEL, {}, (), layers, per_task={"a": layers, "b": [LayerScore(0, 0.25, 0.1)]})
    assert measurement_table(one).header == ("layer", "cosine", "rank")
    assert measurement_table(two).header == ("layer", "cosine", "rank", "a", "b")
    assert measurement_table(two).rows == (("0", "0.500 ± 0.100", "1", "0.500 ± 0.100", "0.250 ± 0.100"),)


def test_plan_rows_name_the_types_of_the_matrices() -> None:
    tensors = {
        "token_embd.weight": "F16", "blk.0.attn_q.weight": "Q4_0", "blk.0.ffn_down.weight": "Q4_K",
        "blk.0.attn_norm.weight": "F32", "blk.0.attn_q.bias": "F32",
    }  # fmt: skip
    plan = Plan("alpha", MODEL, "block", {}, [LayerPlan(0, "int4", 2048)], tensors, 4.5, 4.0, MemoryNeed(1, 1, 1, 1))
    assert plan_table(plan).rows == (("0", "int4", "Q4_0 Q4_K", "2.00 KiB"),)
