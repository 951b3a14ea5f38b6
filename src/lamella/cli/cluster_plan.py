"""``lamella cluster plan``: which node runs each layer, and with how many bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lamella import api
from lamella.cli.options import KvTypeOption, ModelOrSpecArgument, PlotOption
from lamella.cli.output import JsonFlag, note, print_json, say, stdout, table
from lamella.core.units import format_bytes, format_seconds
from lamella.planning.placement import PlacementProblem, Solution
from lamella.planning.placement.document import placement_document
from lamella.planning.placement.explaining import Explanation, explain
from lamella.report.placement import plot_placement

PRECISIONS = "int8,int6,int5,int4,int3"


def cluster_plan(
    model: ModelOrSpecArgument,
    cluster: Annotated[Path, typer.Option(help="The nodes and links, as docs/placement.md describes them.")],
    measurement: Annotated[
        Path,
        typer.Option(help="What layers lose: 'lamella measure --metric sensitivity (or weight-difference) --out'."),
    ],
    delta: Annotated[float, typer.Option(help="Loss allowed over all layers, in the measurement's unit.")],
    precisions: Annotated[str, typer.Option(help="To choose from, with commas.")] = PRECISIONS,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt of the request that is timed.")] = 512,
    generate: Annotated[int, typer.Option(help="Tokens that it generates.")] = 128,
    parallel: Annotated[int, typer.Option(help="Sequences to keep memory for.")] = 1,
    kv_type: KvTypeOption = "F16",
    gap: Annotated[float, typer.Option(max=1, help="Share above the best plan that will do.")] = 0.01,
    baselines: Annotated[bool, typer.Option("--baselines", help="Set simple rules beside the plan.")] = False,
    why: Annotated[bool, typer.Option("--explain", help="Say what binds, and what changes would buy.")] = False,
    plot: PlotOption = None,
    json: JsonFlag = False,
) -> None:
    """Decide which node runs each layer at which precision, so that a request is done soonest.

    Exit code 4 if nothing fits.
    """
    problem = api.placement_problem(
        model, api.read_cluster(cluster), api.read_measurement(measurement),
        precisions=[name.strip() for name in precisions.split(",")], prompt_tokens=prompt, new_tokens=generate,
        sequences=parallel, loss_budget=delta, kv_type=kv_type,
    )  # fmt: skip
    solution = api.placement(problem, gap)
    others = api.placement_baselines(problem) if baselines else {}
    told = explain(problem, solution, gap) if why else None
    if plot:
        plot_placement(problem, solution, plot)
        note(f"drew {plot}")
    if json:
        _print_document(problem, solution, others, told)
        return
    show_placement(problem, solution)
    if others:
        show_baselines(solution, others)
    if told:
        show_explanation(told)


def show_placement(problem: PlacementProblem, solution: Solution) -> None:
    """A line for each node that has layers."""
    account = solution.account
    say(
        f"{format_seconds(account.seconds)} a request, {format_seconds(account.transfer_seconds)} of it on the way; "
        f"loss {account.loss:.4g} of {problem.loss_budget:.4g}; within {100 * solution.gap:.2g} % of the best plan"
    )
    shown = table("node", "layers", ">seconds", ">memory", "precisions")
    for segment in solution.placement.segments:
        used, there = account.node_bytes[segment.node], problem.cluster.node(segment.node).memory_bytes
        counts = {name: segment.precisions.count(name) for name in problem.precisions if name in segment.precisions}
        shown.add_row(
            segment.node,
            f"{segment.first} to {segment.end - 1}",
            format_seconds(account.compute_seconds[segment.node]),
            f"{format_bytes(used)} of {format_bytes(there)}",
            ", ".join(f"{count} {name}" for name, count in counts.items()),
        )
    stdout.print(shown)


def show_baselines(solution: Solution, others: dict[str, Solution | str]) -> None:
    """The plan and the rules in one table, the fastest first."""
    shown = table("planner", ">a request", ">loss", ">nodes", "")
    best = solution.account.objective
    found = [solution, *(other for other in others.values() if isinstance(other, Solution))]
    for other in sorted(found, key=lambda s: s.account.objective):
        account = other.account
        times = f"{account.objective / best:.2f} times the plan's" if other is not solution and best > 0 else ""
        nodes = str(len(account.node_bytes))
        shown.add_row(other.planner, format_seconds(account.seconds), f"{account.loss:.4g}", nodes, times)
    stdout.print(shown)
    for reason in others.values():
        if isinstance(reason, str):
            say(reason)


def show_explanation(told: Explanation) -> None:
    """Where time goes, what binds, and what changes would buy."""
    for line in (*told.shares, *told.binding):
        say(line)
    for gain in told.gains:
        say(f"{gain.change} would save {format_seconds(gain.saved)}" if gain.saved else f"{gain.change} saves nothing")


def _print_document(
    problem: PlacementProblem, solution: Solution, others: dict[str, Solution | str], told: Explanation | None
) -> None:
    document = placement_document(problem, solution)
    if others:
        document["baselines"] = {
            name: placement_document(problem, other) if isinstance(other, Solution) else {"error": other}
            for name, other in others.items()
        }
    if told:
        document["explanation"] = {
            "shares": told.shares,
            "binding": told.binding,
            "gains": [
                {"change": g.change, "saved": g.saved, "objective": g.objective if g.objective < float("inf") else None}
                for g in told.gains
            ],
        }
    print_json(document)
