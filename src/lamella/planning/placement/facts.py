"""What an error says where nothing can be placed."""

from __future__ import annotations

from lamella.core.errors import NoPlacement
from lamella.core.units import format_bytes
from lamella.planning.placement.problem import PlacementProblem


def no_placement(problem: PlacementProblem, *, proven: bool) -> NoPlacement:
    """The error with its facts: least bytes and loss beside what there is.

    Args:
        proven: that there is no placement; otherwise the search was cut off.
    """
    fewest = sum(min(problem.layer_bytes(i, p) for p in layer.options) for i, layer in enumerate(problem.layers))
    there = sum(max(0, node.memory_bytes - node.buffer_bytes) for node in problem.cluster.nodes)
    least = sum(min(option.loss for option in layer.options.values()) for layer in problem.layers)
    what = "no placement keeps all limits" if proven else "no placement was found before the search was cut off"
    return NoPlacement(
        f"{what}: the layers need at least {format_bytes(fewest)} in whole layers on nodes that have "
        f"{format_bytes(there)} together, and lose at least {least:.4g} of a budget of {problem.loss_budget:.4g}; "
        "more memory, more precisions or a larger loss budget would help"
    )
