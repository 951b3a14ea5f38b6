"""``lamella ladder``: several variants planned together and built into one store."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lamella import api
from lamella.cli.build import build_plans
from lamella.cli.constraints import AtLeastOption, AvoidOption, FusedFlag, OnlyOption, read_constraints
from lamella.cli.options import ContextToPlanFor, ModelArgument, NewStoreArgument, PlotOption, SequencesToPlanFor
from lamella.cli.output import JsonFlag, note, print_json, progress, say, stdout, table
from lamella.config import Config
from lamella.core.artifacts import Measurement
from lamella.core.errors import InvalidRequest
from lamella.core.units import format_bytes
from lamella.measuring import MeasureSettings
from lamella.planning.ladder import DEFAULT_RATIO, Ladder
from lamella.report.plots import plot_ladder
from lamella.store.store import Store

MOST_STEPS = 100
_BITS = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:bpw)?\s*")


def ladder(
    model: ModelArgument,
    store: NewStoreArgument,
    steps: Annotated[
        int | None, typer.Option(min=2, max=MOST_STEPS, help=f"How many variants. Default: {api.DEFAULT_STEPS}.")
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="BITS", help="Bits per weight of the largest, such as 8.5bpw.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="BITS", help="Of the smallest. Default: the smallest plan.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="In place of bits: one variant for each memory size, such as 6GiB,4GiB.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="For all weights together: 1.6x (times the largest), or a size. Default: what --within needs."
        ),
    ] = None,
    within: Annotated[
        float, typer.Option(help="Without --budget: predicted loss at most so many times that of the step alone.")
    ] = DEFAULT_RATIO,
    measurement: Annotated[
        Path | None, typer.Option(help="What each tensor loses (metric sensitivity). Default: measured, and kept.")
    ] = None,
    imatrix: Annotated[Path | None, typer.Option(help="Importance matrix that rounding weighs columns by.")] = None,
    context: ContextToPlanFor = None,
    parallel: SequencesToPlanFor = 1,
    avoid: AvoidOption = None,
    only: OnlyOption = None,
    at_least: AtLeastOption = None,
    fused: FusedFlag = False,
    name: Annotated[str, typer.Option(help="What the variants' names begin with.")] = "ladder",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and show; build nothing.")] = False,
    plot: PlotOption = None,
    json: JsonFlag = False,
) -> None:
    """Plan variants of falling size together, so that they share layers, and build them.

    May be interrupted: what is finished stays, and the same command goes on from there.  Variants by aggressiveness
    (alpha) are built with: lamella build --alpha 0.9,0.5,0.1
    """
    if memory is None and (context is not None or parallel != 1):
        raise InvalidRequest("--context and --parallel belong to --memory: they say what to keep memory for")
    config = Config.from_environment(os.environ)
    importance = api.read_importance(imatrix) if imatrix else None
    sizes = [part.strip() for part in memory.split(",") if part.strip()] if memory else []
    for size in sizes if measurement is None else ():
        api.check_memory(model, size, context=context, parallel=parallel)
    given = _measured(model, measurement, config, quiet=json)
    with progress("planning", quiet=json):
        found = api.ladder(
            model, given, steps=steps, first_bits=_bits(first), last_bits=_bits(last), memory=sizes, budget=budget,
            worst_ratio=within, constraints=read_constraints(avoid, only, at_least, fused), context=context,
            parallel=parallel,
        )  # fmt: skip
    names = step_names(name, [step.plan.bits_per_weight for step in found.steps])
    if plot:
        plot_ladder(found, names, plot)
        note(f"drew {plot}")
    if not dry_run:
        plans = [step.plan for step in found.steps]
        build_plans(model, store, plans, names, importance=importance, config=config, quiet=json)
    if json:
        print_json({"store": None if dry_run else str(store), **_document(found, names)})
        return
    _show(found, names)
    if not dry_run:
        usage = Store.open(store).usage()
        say(f"{store} holds {format_bytes(usage.joint_bytes)}; run it with: lamella run {store}@{names[0]}")


def step_names(prefix: str, bits: Sequence[float]) -> list[str]:
    """Names by bits per weight, with as many digits as it takes to tell them apart."""
    for digits in (2, 3, 4):
        names = [f"{prefix}-{b:.{digits}f}bpw" for b in bits]
        if len(set(names)) == len(names):
            return names
    raise InvalidRequest("two steps have the same bits per weight; ask for fewer steps, or farther apart")


def _measured(model: str, measurement: Path | None, config: Config, *, quiet: bool) -> Measurement:
    if measurement is not None:
        return api.read_measurement(measurement)
    settings = MeasureSettings(n_threads=config.n_threads)
    with progress("measuring", quiet=quiet) as update:
        return api.measure_once(model, "sensitivity", config.cache_folder, settings=settings, on_progress=update)


def _bits(text: str | None) -> float | None:
    if text is None:
        return None
    match = _BITS.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"'{text}' is no number of bits per weight; write for example 8.5bpw")
    return float(match.group(1))


def _show(found: Ladder, names: Sequence[str]) -> None:
    shown = table("variant", ">weights", ">bits/weight", ">KL", ">alone", ">ratio", ">its own")
    for step, name, own in zip(found.steps, names, found.own_bytes, strict=True):
        shown.add_row(
            name,
            format_bytes(step.plan.bytes.weights),
            f"{step.plan.bits_per_weight:.2f}",
            f"{step.plan.predicted_loss or 0:.4g}",
            f"{step.alone_loss:.4g}",
            f"{step.loss_ratio:.3f}",
            format_bytes(own),
        )
    stdout.print(shown)
    largest = found.steps[0].plan.bytes.weights
    say(
        f"{format_bytes(found.joint_bytes)} together: {found.joint_bytes / largest:.2f}x the largest, "
        f"{found.joint_bytes / found.sum_bytes:.0%} of separate files ({format_bytes(found.sum_bytes)})"
    )
    if found.ratio_bound is not None:
        say(f"worst ratio {found.worst_ratio:.3f}; no ladder within the budget has less than {found.ratio_bound:.3f}")
    if found.joint_bound is not None:
        say(f"worst ratio {found.worst_ratio:.3f}; no ladder of it takes less than {format_bytes(found.joint_bound)}")


def _document(found: Ladder, names: Sequence[str]) -> dict[str, Any]:
    return {
        "joint_bytes": found.joint_bytes,
        "sum_bytes": found.sum_bytes,
        "budget_bytes": found.budget_bytes,
        "worst_ratio": found.worst_ratio,
        "ratio_bound": found.ratio_bound,
        "joint_bound": found.joint_bound,
        "steps": [
            {
                "variant": name,
                "bytes": step.plan.bytes.weights,
                "bits_per_weight": step.plan.bits_per_weight,
                "predicted_loss": step.plan.predicted_loss,
                "alone_loss": step.alone_loss,
                "loss_ratio": step.loss_ratio,
                "own_bytes": own,
            }
            for step, name, own in zip(found.steps, names, found.own_bytes, strict=True)
        ],
    }
