"""Plots are files of the asked kind, written whole or not at all."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.core.artifacts import CalibrationText, LayerPlan, LayerScore, Measurement, MemoryNeed, Plan
from lamella.core.errors import InvalidRequest, StorageFailed
from lamella.core.model import ModelIdentity
from lamella.planning.frontier import Frontier, FrontierPoint
from lamella.planning.ladder import JointBudget, evenly_spaced, plan_ladder
from lamella.planning.request import PlanRequest
from lamella.report.figures import DPI, HEIGHT_INCHES
from lamella.report.plots import (
    PlanPoint,
    ladder_cells,
    plot_frontier,
    plot_ladder,
    plot_measurement,
    plot_plan,
)
from tests.planning.losses import made_losses
from tests.planning.models import tiny_spec

MODEL = ModelIdentity("llama", "A model of $5 \\frac and 50$", "s", "w")


def scores(n: int, error: float, offset: float = 0.0) -> tuple[LayerScore, ...]:
    return tuple(LayerScore(i, offset + 1 / (i + 1), error) for i in range(n))


def measured(metric: str = "jaccard", n_layers: int = 12, n_tasks: int = 2) -> Measurement:
    tasks = [f"task-{i}" for i in range(n_tasks)]
    return Measurement(
        metric,
        MODEL,
        {"k": 20, "seed": 0},
        [CalibrationText(task, "0" * 64, 4) for task in tasks],
        scores(n_layers, 0.05 if tasks else 0.0),
        per_task={task: scores(n_layers, 0.1, i / 10) for i, task in enumerate(tasks)},
        per_precision={p: scores(n_layers, 0.0, b) for p, b in (("int8", 0.01), ("int4", 0.1))}
        if metric == "weight-difference"
        else {},
    )


def plan(precisions: tuple[str, ...] = ("fp16", "int8", "int4", "int2", "Q5_K"), budget: int | None = None) -> Plan:
    return Plan(
        "lsaq", MODEL, "block", {}, [LayerPlan(i, p, 1000 * i) for i, p in enumerate(precisions)], {}, 5.5, 5.0,
        MemoryNeed(100, 10, 10, 10), budget,
    )  # fmt: skip


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize("n_tasks", [0, 1, 2, 9])
def test_measurement_is_drawn_at_the_expected_size(tmp_path: Path, n_tasks: int) -> None:
    path = tmp_path / "plot.png"
    plot_measurement(measured(n_tasks=n_tasks), path)
    width, height = png_size(path)
    assert height == HEIGHT_INCHES * DPI
    assert width == 7 * DPI
    assert path.stat().st_size > 10_000


def test_more_layers_make_a_wider_plot(tmp_path: Path) -> None:
    plot_measurement(measured(n_layers=48), tmp_path / "wide.png")
    plot_measurement(measured(n_layers=400), tmp_path / "widest.png")
    assert 7 * DPI < png_size(tmp_path / "wide.png")[0] < png_size(tmp_path / "widest.png")[0] == 14 * DPI


def test_precisions_are_drawn_by_name(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    plot_measurement(measured("weight-difference", n_tasks=0), path)
    text = path.read_text()
    assert all(f"<!-- {word} -->" in text for word in ("int8", "int4", "layer"))


def test_tasks_are_drawn_by_name(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    plot_measurement(measured(), path)
    assert all(f"<!-- {word} -->" in path.read_text() for word in ("task-0", "task-1"))


@pytest.mark.parametrize("budget", [None, 1, 10**9])
def test_plan_says_its_precisions_and_whether_it_fits(tmp_path: Path, budget: int | None) -> None:
    path = tmp_path / "plan.svg"
    plot_plan(plan(budget=budget), path)
    text = path.read_text()
    assert "int4: 1 layers" in text
    assert ("does not fit" in text) == (budget == 1)


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")]
)
def test_suffix_chooses_the_format_and_equal_plots_are_equal_files(tmp_path: Path, suffix: str, start: bytes) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    plot_plan(plan(), first)
    plot_plan(plan(), second)
    assert first.read_bytes().startswith(start)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["plot.gif", "plot", "png"])
def test_unknown_suffix_is_refused_with_those_that_are_known(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"\.png, \.svg, \.pdf"):
        plot_measurement(measured(), tmp_path / name)
    with pytest.raises(InvalidRequest):
        plot_plan(plan(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"missing/plot\.png: No such file or directory"):
        plot_plan(plan(), tmp_path / "missing" / "plot.png")


def test_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "plot.png"
    target.mkdir()  # a folder of that name cannot be replaced by a file
    with pytest.raises(StorageFailed, match="cannot write the plot"):
        plot_plan(plan(), target)
    assert list(tmp_path.iterdir()) == [target]


def mixed_plan() -> Plan:
    kinds = ("Q4_K", "Q6_K")
    tensors = {
        f"blk.{i}.{part}.weight": kinds[(i + j) % 2] for i in range(3) for j, part in enumerate(("attn_q", "up"))
    }
    tensors |= {"token_embd.weight": "Q8_0", "blk.0.attn_norm.weight": "F32", "blk.0.attn_q.bias": "F32"}
    return Plan(
        "knapsack", MODEL, "block", {}, [LayerPlan(i, "mixed", 1000) for i in range(3)], tensors, 5.5, 5.0,
        MemoryNeed(100, 10, 10, 10), None, 0.0625,
    )  # fmt: skip


def test_mixed_layers_are_drawn_tensor_by_tensor(tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    plot_plan(mixed_plan(), path)
    text = path.read_text()
    for words in ("attn_q", "up", "Q4_K: 3", "Q6_K: 3", "token_embd Q8_0", "predicted KL 0.0625"):
        assert words in text
    assert "F32" not in text


def found(losses: tuple[float, ...] = (1.0, 0.1, 0.0)) -> Frontier:
    points = [FrontierPoint(4.0 + i, 1000 * i, x, x, True, None, None, {}) for i, x in enumerate(losses)]
    return Frontier(MODEL, tuple(points), tuple((p.bits_per_weight, p.predicted_loss) for p in points))


def test_a_frontier_is_drawn_with_the_plans_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "frontier.svg"
    plot_frontier(found(), path, [PlanPoint("stock $mix$", 4.5, 0.4), PlanPoint("lossless", 16.0, 0.0)])
    text = path.read_text()
    assert "<!-- stock $mix$ -->" in text
    assert "bits per weight" in text
    assert "lossless" not in text  # zero has no place on a logarithmic axis


def test_a_frontier_needs_a_known_suffix(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        plot_frontier(found(), tmp_path / "frontier.bmp")
    assert list(tmp_path.iterdir()) == []


def test_a_ladder_has_a_row_for_each_step_and_a_cell_for_each_shard(tmp_path: Path) -> None:
    spec = tiny_spec(4)
    request = PlanRequest(spec, losses=made_losses(spec))
    steps = [replace(request, weights_bytes=size) for size in evenly_spaced(spec, 3, 8.5, 5)]
    found = plan_ladder(steps, JointBudget.parse("1.5x"))
    plot_ladder(found, ["large", "middle", "small"], tmp_path / "ladder.svg")
    drawn = (tmp_path / "ladder.svg").read_text()
    assert all(f"{name}  KL" in drawn for name in ("large", "middle", "small"))
    assert f"{found.joint_bytes / found.sum_bytes:.0%} of separate files" in drawn
    shards = {
        (layer, tuple(kind for name, kind in step.plan.tensors.items() if name.startswith(f"blk.{layer}.")))
        for step in found.steps
        for layer in range(spec.n_layers)
    }
    assert len(list(ladder_cells(found))) == len(shards)
