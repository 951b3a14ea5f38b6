"""``lamella plan`` by policies that need no loss of each tensor (test_knapsack.py has those that do)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, json_of
from tests.fakes.tiny_model import write_tiny_model


def test_plan_has_what_scripts_rely_on(run: Run) -> None:
    document = json_of(run("plan", "spec:llama-2-7b", "--policy", "lsaq", "--memory", "6GiB", "--json"))
    assert document["policy"] == "lsaq"
    assert document["fits"] is True
    assert document["bits_per_weight"] > 0
    assert len(document["layers"]) == 32
    assert set(document["layers"][0]) >= {"layer", "precision", "bytes"}
    parts = document["bytes"]
    assert parts["total"] == parts["weights"] + parts["kv_cache"] + parts["compute"] + parts["reserve"]


@pytest.mark.parametrize(
    ("memory", "fp16", "int8", "int4"),
    [("16GiB", 32, 0, 0), ("12GiB", 0, 32, 0), ("8GiB", 0, 32, 0), ("6GiB", 0, 22, 10), ("4GiB", 0, 1, 31)],
)
def test_lsaq_table_iv(run: Run, memory: str, fp16: int, int8: int, int4: int) -> None:
    """LSAQ, Table IV (its 6G row prints 0 INT8 layers, which with 10 INT4 layers of 32 can only be 22)."""
    document = json_of(run("plan", "spec:llama-2-7b", "--policy", "lsaq", "--memory", memory, "--json"))
    precisions = [x["precision"] for x in document["layers"]]
    assert [precisions.count(p) for p in ("fp16", "int8", "int4")] == [fp16, int8, int4]


def test_what_does_not_fit_says_so_in_both_forms(run: Run) -> None:
    code, out, err = run("plan", "spec:llama-2-7b", "--policy", "lsaq", "--memory", "3GiB", "--json")
    assert code == 4
    document = json.loads(out)
    assert document["fits"] is False
    assert document["bytes"]["total"] > document["budget_bytes"] == 3 << 30
    assert "needs 3.88 GiB, 900 MiB more than the budget of 3.00 GiB" in err


def test_waiting_for_what_can_never_fit_fails_at_once(run: Run, model: Path, measured: Path) -> None:
    code, _, err = run("plan", model, "--policy", "lsaq", "--memory", "1MiB", "--wait", "--timeout", "30",
                       "--measurement", measured)  # fmt: skip
    assert code == 4
    assert "1.00 MiB" in err


@pytest.mark.parametrize("policy", ["lsaq", "lwq-cosine", "lwq-outlier", "random"])
def test_plans_of_equal_average_bits_compare(run: Run, policy: str) -> None:
    document = json_of(run("plan", "spec:llama-2-7b", "--policy", policy, "--average-bits", "7", "--json"))
    assert document["average_bits"] == 7
    assert document["budget_bytes"] is None
    assert [x["precision"] for x in document["layers"]].count("int4") == 8
    assert document["settings"]["target_average_bits"] == 7


def test_too_few_bits_do_not_fit_in_both_forms(run: Run) -> None:
    code, out, err = run("plan", "spec:llama-2-7b", "--average-bits", "3", "--json")
    document = json.loads(out)
    assert (code, document["fits"], document["average_bits"]) == (4, False, 4)
    assert "has 4 average bits, more than the 3 that were asked" in err


def test_a_stock_mix_is_planned_and_built(run: Run, model: Path, tmp_path: Path) -> None:
    plan, folder = tmp_path / "q4.json", tmp_path / "store"
    document = json_of(run("plan", model, "--policy", "stock", "--mix", "q4_k_m", "--out", plan, "--json"))
    assert (document["settings"]["mix"], document["settings"]["imatrix"]) == ("Q4_K_M", "no")
    assert {document["tensors"][f"blk.{i}.attn_q.weight"] for i in range(3)} == {"Q4_K"}
    assert json_of(run("build", model, folder, "--plan", plan, "--json"))["built"][0]["variant"] == "q4"
    assert " 445" in run("store", "ls", folder)[1]  # one character a layer
    assert (
        "stock, 20 Q4_K, 3 Q6_K"
        in run("plan", model, "--policy", "stock", "--mix", "Q4_K", "--plot", tmp_path / "p.png")[1]
    )


def test_bad_mixes_and_measurements_are_refused_before_work(
    run: Run, model: Path, measured: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    for arguments, code, says in (
        (["stock", "--mix", "Q4_K_XL"], 2, "llama-quantize knows Q1_0"),
        (["stock", "--mix", "IQ2_XS"], 2, "makes no IQ2_XS of this model without an importance matrix"),
        (["stock", "--mix", "Q4_K_M", "--imatrix", model], 5, "no importance matrix"),
        (["stock", "--mix", "Q4_K_M", "--outside", "int8"], 2, "every type from the mix"),
        (["stock", "--mix", "Q4_K_M", "--average-bits", "2"], 4, "ask for a smaller mix"),
        (["stock", "--mix", "Q4_K_M", "--measurement", measured], 2, "looks at no measurement"),
        (["lwq-cosine", "--measurement", measured], 2, "measure with --metric cosine"),
    ):
        found, shown, err = run("plan", model, "--policy", *arguments, "--out", out)
        assert (found, shown) == (code, "")
        assert says in err
        assert len(err.strip().splitlines()) == 1
    assert not out.exists()


def test_a_measurement_of_another_model_is_refused(run: Run, measured: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", n_layers=4, n_embd=256, n_ff=512, name="other")
    code, _, err = run("plan", other, "--policy", "alpha", "--alpha", "0.5", "--measurement", measured)
    assert code == 5
    assert "is for tiny" in err
    code, _, err = run("build", other, tmp_path / "s", "--alpha", "0.5", "--measurement", measured)
    assert code == 5
    assert not (tmp_path / "s").exists()
