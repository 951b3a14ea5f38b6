"""``lamella frontier``: the least predicted loss at every size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lamella import api
from lamella.cli.constraints import AtLeastOption, AvoidOption, FusedFlag, OnlyOption, read_constraints
from lamella.cli.options import ModelOrSpecArgument, PlotOption
from lamella.cli.output import JsonFlag, note, print_json, progress, say, stdout, table
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from lamella.core.units import format_bytes
from lamella.planning.frontier import DEFAULT_POINTS, Frontier, FrontierPoint
from lamella.report.plots import PlanPoint, plot_frontier

MOST_POINTS = 1000


def frontier(
    model: ModelOrSpecArgument,
    measurement: Annotated[
        Path, typer.Option(help="What each tensor loses at each type: 'lamella measure --metric sensitivity --out'.")
    ],
    points: Annotated[
        int, typer.Option(min=2, max=MOST_POINTS, help="How many sizes, evenly spaced.")
    ] = DEFAULT_POINTS,
    min_bpw: Annotated[float | None, typer.Option(help="Least bits per weight. Default: the smallest plan.")] = None,
    max_bpw: Annotated[float | None, typer.Option(help="Most bits per weight. Default: no loss, at most 8.5.")] = None,
    avoid: AvoidOption = None,
    only: OnlyOption = None,
    at_least: AtLeastOption = None,
    fused: FusedFlag = False,
    speed: Annotated[
        bool, typer.Option("--speed", help="Also predict speeds, by the kernel times of this machine.")
    ] = False,
    plan: Annotated[
        list[Path] | None, typer.Option(help="A plan file to set beside the frontier; may be repeated.")
    ] = None,
    plot: PlotOption = None,
    json: JsonFlag = False,
) -> None:
    """Show the whole frontier of size and predicted loss, in one call.

    Each line is a plan: 'lamella plan MODEL --policy knapsack --bits-per-weight N' makes it.
    """
    config = Config.from_environment(os.environ)
    given = api.read_measurement(measurement)
    others = [_other(model, measurement, path) for path in plan or ()]
    prices = None
    if speed:
        with progress("timing kernels", quiet=json):
            prices = api.measured_prices(given.tensors, config.n_threads, cache_folder=config.cache_folder)
    found = api.frontier(
        model, given, points=points, min_bits=min_bpw, max_bits=max_bpw, prices=prices,
        constraints=read_constraints(avoid, only, at_least, fused),
    )  # fmt: skip
    if plot:
        plot_frontier(found, plot, others)
        note(f"drew {plot}")
    if json:
        print_json(_document(found, others))
    else:
        show_frontier(found, others, with_speeds=speed)


def show_frontier(found: Frontier, others: list[PlanPoint], *, with_speeds: bool) -> None:
    """A line for each size, and for each plan beside them; no speed where a type was not timed."""
    say(f"{found.model.name}: least predicted KL divergence at each size; * is proven best")
    speeds = (">ms/token", ">prompt tokens/s") if with_speeds else ()
    shown = table(">bits/weight", ">weights", ">KL", "", *speeds)
    for p in found.points:
        marks = (_number(p.ms_per_token, ".2f"), _number(p.prompt_tokens_per_second, ".0f")) if with_speeds else ()
        shown.add_row(
            f"{p.bits_per_weight:.3f}",
            format_bytes(p.weights_bytes),
            f"{p.predicted_loss:.4g}",
            "*" if p.on_hull else "",
            *marks,
        )
    stdout.print(shown)
    for other in others:
        say(f"{other.label}: {other.bits_per_weight:.3f} bits/weight, predicted KL {other.predicted_loss:.4g}")
    if with_speeds:
        say("speeds are of matrix products alone; attention and the rest come on top")


def _other(model: str, measurement: Path, path: Path) -> PlanPoint:
    plan = api.read_plan(path)
    loss = api.predicted_loss(model, api.read_measurement(measurement), plan)
    if loss is None:
        raise InvalidRequest(f"{path} has a type whose loss {measurement} does not predict")
    return PlanPoint(path.stem, plan.bits_per_weight, loss)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _document(found: Frontier, others: list[PlanPoint]) -> dict[str, Any]:
    return {
        "model": found.model,
        "points": [_point(p) for p in found.points],
        "plans": [
            {"name": o.label, "bits_per_weight": o.bits_per_weight, "predicted_loss": o.predicted_loss} for o in others
        ],
    }


def _point(point: FrontierPoint) -> dict[str, Any]:
    return {
        "bits_per_weight": point.bits_per_weight,
        "weights_bytes": point.weights_bytes,
        "predicted_loss": point.predicted_loss,
        "loss_bound": point.loss_bound,
        "on_hull": point.on_hull,
        "ms_per_token": point.ms_per_token,
        "prompt_tokens_per_second": point.prompt_tokens_per_second,
    }
