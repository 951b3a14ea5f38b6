"""The drawing of a placement shows every layer where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.placements import random_problem
from lamella.core.errors import InvalidRequest
from lamella.planning.placement import place
from lamella.report.placement import plot_placement


def test_every_node_and_precision_is_named(tmp_path: Path) -> None:
    problem = random_problem(0, 12, 3)
    solution = place(problem)
    plot_placement(problem, solution, tmp_path / "placement.svg")
    drawn = (tmp_path / "placement.svg").read_text()
    assert drawn.count("<path") > len(problem.layers)  # text and cells are paths
    for text in (*(n.name for n in problem.cluster.nodes), *{f"{p}: " for p in solution.placement.precisions}):
        assert f"<!-- {text}" in drawn


def test_only_kinds_that_are_drawn(tmp_path: Path) -> None:
    problem = random_problem(0, 12, 3)
    with pytest.raises(InvalidRequest, match=r"\.png"):
        plot_placement(problem, place(problem), tmp_path / "placement.gif")
