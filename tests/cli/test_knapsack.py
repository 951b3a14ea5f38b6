"""``lamella plan --policy knapsack`` and ``lamella frontier``: what is decided by the loss of each tensor."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

import lamella
from lamella import api
from lamella.llama.kernels import KernelTimes
from tests.cli.conftest import Run, json_of, write_losses


@pytest.fixture(scope="module")
def losses(model: Path) -> Path:
    return write_losses(model)


def test_a_knapsack_plan_is_built_and_runs(run: Run, model: Path, losses: Path, tmp_path: Path) -> None:
    out, plot, folder = tmp_path / "mixed.json", tmp_path / "mixed.png", tmp_path / "store"
    ask = ("plan", model, "--policy", "knapsack", "--measurement", losses, "--bits-per-weight", "5")
    plan = json_of(
        run(*ask, "--at-least", "token_embd=int6", "--avoid", "Q4_0", "--out", out, "--plot", plot, "--json")
    )
    assert plan["bits_per_weight"] <= 5
    assert plan["predicted_loss"] >= plan["settings"]["loss_bound"]
    assert plan["tensors"]["token_embd.weight"] == "Q6_K"
    assert "Q4_0" not in plan["tensors"].values()
    assert plot.exists()
    shown = run(*ask)[1]
    assert "predicted KL divergence" in shown
    assert "token_embd.weight Q" in shown
    built = json_of(run("build", model, folder, "--plan", out, "--json"))["built"][0]
    assert built["variant"] == "mixed"
    assert "mixed" in run("store", "ls", folder)[1]
    answer = json_of(run("run", folder, "once upon", "--raw", "--max-tokens", "4", "--context", "64", "--json"))
    assert answer["generated_tokens"] == 4


def test_tensors_have_the_types_that_are_named_and_no_other(run: Run, model: Path, losses: Path) -> None:
    ask = ("plan", model, "--policy", "knapsack", "--measurement", losses, "--bits-per-weight", "6")
    free, bound = (json_of(run(*ask, *only, "--json")) for only in ((), ("--only", "q8_0", "--only", "Q4_0")))
    matrices = {name: kind for name, kind in bound["tensors"].items() if kind not in ("F32", "F16")}
    assert set(matrices.values()) == {"Q8_0", "Q4_0"}
    assert not set(free["tensors"].values()) <= set(bound["tensors"].values())
    assert bound["bits_per_weight"] <= 6


def test_a_plan_by_file_size_makes_no_larger_file(run: Run, model: Path, losses: Path) -> None:
    limit = model.stat().st_size // 2
    ask = ("plan", model, "--policy", "knapsack", "--measurement", losses)
    plan = json_of(run(*ask, "--file-size", str(limit), "--json"))
    weights = lamella.load_spec(model).n_bytes
    assert 0.99 * limit < plan["bytes"]["weights"] + model.stat().st_size - weights <= limit
    code, _, err = run(*ask, "--file-size", "5KB")
    assert (code, "the metadata alone" in err) == (2, True)


@pytest.mark.parametrize("asked", [("--kl", "0.5"), ("--kl", "0.5", "--exact"), ("--memory", "100MiB"), ("--fused",)])
def test_limits_of_a_knapsack_plan(run: Run, model: Path, losses: Path, asked: tuple[str, ...]) -> None:
    plan = json_of(
        run("plan", model, "--policy", "knapsack", "--measurement", losses, "--context", "64", *asked, "--json")
    )
    assert plan["fits"]
    assert plan["predicted_loss"] <= (0.5 if "--kl" in asked else 0)  # else there is room for everything as it is
    assert (plan["budget_bytes"] is None) == ("--kl" in asked)


def test_a_knapsack_plan_by_speed(run: Run, model: Path, losses: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"F16": KernelTimes(8.0, 6.0), "Q8_0": KernelTimes(4.0, 3.0), "Q4_0": KernelTimes(2.0, 2.0)}
    monkeypatch.setattr(  # where ``measured_prices`` looks it up: the name in ``api`` is another
        api.losses, "kernel_times", lambda names, *_, **__: {n: times.get(n, KernelTimes(3.0, 3.0)) for n in names}
    )
    ask = ("plan", model, "--policy", "knapsack", "--measurement", losses, "--json")
    slow = json_of(run(*ask, "--ms-per-token", "100"))["settings"]["predicted_ms_per_token"]
    plan = json_of(run(*ask, "--ms-per-token", str(slow / 2)))
    assert slow / 4 < plan["settings"]["predicted_ms_per_token"] <= slow / 2
    shown = run("frontier", model, "--measurement", losses, "--points", "3", "--speed")[1]
    assert "ms/token" in shown
    assert len(json_of(run("frontier", model, "--measurement", losses, "--points", "3", "--json"))["points"]) == 3


def test_what_exceeds_a_size_says_where_its_bytes_go(run: Run, model: Path, losses: Path) -> None:
    ask = ("plan", model, "--policy", "knapsack", "--measurement", losses, "--bits-per-weight", "1")
    code, out, err = run(*ask, "--json")
    assert code == 4
    document = json.loads(out)
    assert document["fits"] is False
    assert document["bytes"]["total"] == document["bytes"]["weights"] > document["budget_bytes"]
    assert "the smallest plan of tiny needs" in err


@pytest.mark.parametrize(
    "asked",
    [
        ("plan", "--kl", "1e300"), ("plan", "--bits-per-weight", "1e308"), ("plan", "--ms-per-token", "1e308"),
        ("frontier", "--max-bpw", "1e308"), ("frontier", "--min-bpw", "1e308"),
        ("ladder", "--from", str(10**308)), ("ladder", "--budget", f"{10**400}x"),
    ],
)  # fmt: skip
def test_numbers_that_nothing_can_be_computed_of_are_bad_input(
    run: Run, model: Path, losses: Path, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    command, *options = asked
    store = [tmp_path / "store"] if command == "ladder" else []
    code, out, err = run(command, model, *store, "--measurement", losses, *options)
    assert (code, out) == (2, "")
    assert "at most 1e+12" in err or "must be at most 1000000000, not 1e+30" in err
    assert len(err.strip().splitlines()) == 1


def test_frontier_has_what_scripts_rely_on(run: Run, model: Path, losses: Path, tmp_path: Path) -> None:
    plan, plot = tmp_path / "uniform.json", tmp_path / "frontier.svg"
    json_of(run("plan", model, "--policy", "uniform", "--precision", "int4", "--out", plan, "--json"))
    ask = ("frontier", model, "--measurement", losses, "--points", "8", "--max-bpw", "8", "--plan", plan)
    document = json_of(run(*ask, "--plot", plot, "--json"))
    points = document["points"]
    assert len(points) == 8
    assert all(a["predicted_loss"] > b["predicted_loss"] for a, b in pairwise(points))
    assert all(p["bits_per_weight"] <= 8 and p["loss_bound"] <= p["predicted_loss"] for p in points)
    assert document["plans"][0]["name"] == "uniform"
    assert "uniform" in plot.read_text()
    shown = run(*ask)[1]
    assert f"{points[0]['bits_per_weight']:.3f}" in shown
    assert "uniform: " in shown


def test_measurements_of_layers_alone_make_no_knapsack(run: Run, model: Path, measured: Path) -> None:
    for ask in (("plan", model, "--policy", "knapsack"), ("frontier", model)):
        code, _, err = run(*ask, "--measurement", measured)
        assert code == 2
        assert "metric outlier does not say what each tensor loses" in err
