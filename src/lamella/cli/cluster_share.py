"""``lamella cluster share``: several models on the nodes of one cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lamella import api
from lamella.cli.output import JsonFlag, print_json, say, stdout, table
from lamella.core.units import format_bytes, format_seconds
from lamella.planning.placement.several import SeveralProblem, SeveralSolution
from lamella.planning.placement.several.document import shared_document
from lamella.planning.placement.several.problem import use
from lamella.planning.placement.several.program import TIME_LIMIT_SECONDS


def cluster_share(
    tenants: Annotated[
        Path, typer.Argument(metavar="TENANTS", help="The models and their requests, as docs/placement.md describes.")
    ],
    cluster: Annotated[Path, typer.Option(help="The nodes and links, as docs/placement.md describes them.")],
    exact: Annotated[bool, typer.Option("--exact", help="By integer program: for a few small models.")] = False,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds that --exact may take.")] = TIME_LIMIT_SECONDS,
    json: JsonFlag = False,
) -> None:
    """Decide which nodes run the layers of each of several models, within the memory and the time of all nodes.

    Exit code 4 if they do not fit together.
    """
    problem = api.several_problem(tenants, api.read_cluster(cluster))
    solution = api.several_placements(problem, exact=exact, time_limit_seconds=time_limit)
    if json:
        print_json(shared_document(problem, solution))
        return
    show_models(problem, solution)
    show_nodes(problem, solution)


def show_models(problem: SeveralProblem, solution: SeveralSolution) -> None:
    """A line for each model."""
    say(
        f"{len(problem.tenants)} models, {format_seconds(solution.objective)} weighted; within "
        f"{100 * solution.gap:.2g} % of what is proven to be impossible to go below"
    )
    shown = table("model", ">a request", ">loss", "nodes and layers")
    for tenant, placement, account in zip(problem.tenants, solution.placements, solution.accounts, strict=True):
        nodes = ", ".join(f"{s.node} {s.first} to {s.end - 1}" for s in placement.segments)
        shown.add_row(tenant.name, format_seconds(account.seconds), f"{account.loss:.4g}", nodes)
    stdout.print(shown)


def show_nodes(problem: SeveralProblem, solution: SeveralSolution) -> None:
    """A line for each node that has layers."""
    taken = use(problem.tenants, solution.placements)
    shown = table("node", ">memory", ">busy", "models")
    for node in problem.cluster.nodes:
        if node.name not in taken.n_bytes:
            continue
        planned = zip(problem.tenants, solution.placements, strict=True)
        names = [t.name for t, placement in planned if any(s.node == node.name for s in placement.segments)]
        memory = f"{format_bytes(taken.n_bytes[node.name])} of {format_bytes(node.memory_bytes)}"
        shown.add_row(node.name, memory, f"{100 * taken.busy[node.name]:.0f} %", ", ".join(names))
    stdout.print(shown)
