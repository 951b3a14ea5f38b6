"""The drawing of a placement: a row for each node, a cell for each layer, a colour for each precision.

plot_placement(problem, solution, Path("placement.png"))
"""

from __future__ import annotations

from pathlib import Path

from lamella.core.units import format_bytes, format_seconds
from lamella.planning.placement import PlacementProblem, Solution
from lamella.report.figures import add_legend, check_suffix, finish_layers, graded, over_layers, plain, save, set_title


def plot_placement(problem: PlacementProblem, solution: Solution, path: Path) -> None:
    """Draw which node runs each layer at which precision, and how full and how busy the nodes are.

    Raises:
        InvalidRequest: the suffix is none that is drawn.
        StorageFailed: the file cannot be written.
    """
    check_suffix(path)
    figure, axes = over_layers(len(problem.layers))
    rows = {node.name: row for row, node in enumerate(problem.cluster.nodes)}
    precisions = _by_bytes(problem)
    for k, precision in enumerate(precisions):
        cells = _cells(solution, precision)
        if cells:
            axes.bar(
                [layer for layer, _ in cells], 0.8, width=0.9, bottom=[rows[node] - 0.4 for _, node in cells],
                color=graded(k, len(precisions)),
                label=plain(f"{precision}: {len(cells)} layers"),
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_node_facts(problem, solution, name) for name in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False)
    set_title(axes, f"placement · {solution.planner}", _facts(solution))
    finish_layers(axes, range(len(problem.layers)))
    add_legend(axes)
    save(figure, path)


def _by_bytes(problem: PlacementProblem) -> list[str]:
    """Precisions, those of fewest bytes first."""
    sizes = {
        name: [layer.options[name].n_bytes for layer in problem.layers if name in layer.options]
        for name in problem.precisions
    }
    return sorted(sizes, key=lambda name: sum(sizes[name]) / len(sizes[name]))


def _cells(solution: Solution, precision: str) -> list[tuple[int, str]]:
    """(layer, node) of every layer at a precision."""
    return [
        (layer, segment.node)
        for segment in solution.placement.segments
        for layer, name in enumerate(segment.precisions, segment.first)
        if name == precision
    ]


def _node_facts(problem: PlacementProblem, solution: Solution, name: str) -> str:
    there = format_bytes(problem.cluster.node(name).memory_bytes)
    if name not in solution.account.node_bytes:
        return f"{plain(name)}\nunused, {there}"
    used, seconds = solution.account.node_bytes[name], solution.account.compute_seconds[name]
    return f"{plain(name)}\n{format_bytes(used)} of {there}, {format_seconds(seconds)}"


def _facts(solution: Solution) -> str:
    account = solution.account
    facts = [
        f"{format_seconds(account.seconds)} a request",
        f"{format_seconds(account.transfer_seconds)} of it on the way",
        f"loss {account.loss:.3g}",
    ]
    if solution.gap < float("inf"):
        facts.append(f"proven within {solution.gap:.1%} of the best")
    return " · ".join(facts)
