"""``lamella build``: make variants in a store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lamella import api
from lamella.cli.keeping import note_trim
from lamella.cli.options import ContextToPlanFor, ModelArgument, NewStoreArgument, SchemeOption, SequencesToPlanFor
from lamella.cli.output import JsonFlag, print_json, progress, say, stdout, table
from lamella.config import Config
from lamella.core.artifacts import Measurement, Plan
from lamella.core.errors import InvalidRequest
from lamella.core.precision import Scheme
from lamella.core.units import format_bytes, format_seconds
from lamella.llama.imatrix import ImportanceMatrix
from lamella.measuring import DEFAULT_WINDOWS, ImportanceSettings, MeasureSettings
from lamella.quantize.build import BuildReport
from lamella.quantize.making import BuildProgress
from lamella.quantize.tuned import Tuning
from lamella.store.store import Store
from lamella.store.usage import Usage


def build(
    model: ModelArgument,
    store: NewStoreArgument,
    plan: Annotated[list[Path] | None, typer.Option(help="A plan file; may be given several times.")] = None,
    alpha: Annotated[str | None, typer.Option(help="Variants by aggressiveness, such as 0.1,0.5,0.9.")] = None,
    precision: Annotated[str | None, typer.Option(help="Uniform variants, such as int8,int4.")] = None,
    memory: Annotated[str | None, typer.Option(help="LSAQ variants for memory sizes, such as 6GiB,4GiB.")] = None,
    measurement: Annotated[Path | None, typer.Option(help="Importance of the layers. Default: measured now.")] = None,
    context: ContextToPlanFor = None,
    parallel: SequencesToPlanFor = 1,
    scheme: SchemeOption = "block",
    imatrix: Annotated[
        Path | None,
        typer.Option(help="Importance matrix that rounding weighs columns by: of lamella or llama-imatrix."),
    ] = None,
    tune_on: Annotated[
        list[str] | None,
        typer.Option(metavar="[TASK=]FILE", help="Text to tune rounding on; may be given several times."),
    ] = None,
    tune_windows: Annotated[
        int | None,
        typer.Option(
            help=f"With --tune-on: windows of 512 tokens of each text, from its start. Default: {DEFAULT_WINDOWS}."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the variant, if there is only one.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace variants of these names; who runs one keeps the old one.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Build variants; layers that the store already has at the same types are shared.

    May be interrupted: what is finished stays, and the same command goes on from there.
    """
    config = Config.from_environment(os.environ)
    if not memory and (context is not None or parallel != 1):
        raise InvalidRequest("--context and --parallel belong to --memory: they say what to keep memory for")
    if plan and scheme != "block" and not (alpha or precision or memory):
        raise InvalidRequest("--scheme is part of a plan file; make the plan with: lamella plan --scheme " + scheme)
    if tune_windows is not None and not tune_on:
        raise InvalidRequest("--tune-windows belongs to --tune-on: it says how much of the text to read")
    if imatrix and tune_on:
        raise InvalidRequest("--imatrix and --tune-on exclude each other: tuning gathers an importance of its own")
    importance = api.read_importance(imatrix) if imatrix else None
    given = api.read_measurement(measurement) if measurement else None
    if given is None and (alpha or memory):
        with progress("measuring importance", quiet=json) as update:
            given = api.measure(model, settings=MeasureSettings(n_threads=config.n_threads), on_progress=update)
    plans = [api.read_plan(path) for path in plan or ()]
    plans += _plans(model, alpha, precision, memory, given, context, parallel, scheme)
    names = _names(plans, plan or (), name)
    tuning = None
    if tune_on:
        settings = ImportanceSettings(
            windows=DEFAULT_WINDOWS if tune_windows is None else tune_windows, n_threads=config.n_threads
        )
        with progress("tuning", quiet=json) as update:
            tuning = api.tune_on(model, tune_on, settings=settings, on_progress=update)
    reports = build_plans(
        model, store, plans, names,
        importance=importance, tuning=tuning, replace=replace, config=config, quiet=json,
    )  # fmt: skip
    usage = Store.open(store).usage()
    if json:
        joint = {"joint_bytes": usage.joint_bytes, "sum_of_variants_bytes": usage.sum_of_variants_bytes}
        print_json({"store": str(store), "built": [_document(r) for r in reports], **joint})
    else:
        _show(store, reports, usage)


def build_plans(
    model: str,
    store: Path,
    plans: Sequence[Plan],
    names: Sequence[str],
    *,
    importance: ImportanceMatrix | None = None,
    tuning: Tuning | None = None,
    replace: bool = False,
    config: Config,
    quiet: bool,
) -> list[BuildReport]:
    """Build one variant after the other, with progress."""
    reports = []
    with progress("building", quiet=quiet) as update:
        for made, variant_name in zip(plans, names, strict=True):

            def show(at: BuildProgress, variant_name: str = variant_name) -> None:
                where = f"{variant_name}: {at.label}, {at.n_done}/{at.n_shards} shards"
                update(at.weights_done, at.weights_total, where)

            report = api.build(
                model, store, made, variant_name, importance=importance, tuning=tuning, replace=replace,
                n_threads=config.n_threads or None, on_progress=show,
            )  # fmt: skip
            reports.append(report)
    for report in reports:
        note_trim(report.trimmed)
    return reports


def _show(store: Path, reports: Sequence[BuildReport], usage: Usage) -> None:
    shown = table("variant", ">size", ">bits/weight", ">shards", ">reused", ">written", ">time")
    for r in reports:
        shown.add_row(
            r.variant.name,
            format_bytes(r.variant.n_bytes),
            f"{r.variant.plan.bits_per_weight:.2f}",
            str(r.n_shards),
            str(r.n_reused),
            format_bytes(r.written_bytes),
            format_seconds(r.seconds),
        )
    stdout.print(shown)
    joint, alone = usage.joint_bytes, usage.sum_of_variants_bytes
    say(f"{store} holds {format_bytes(joint)}; its variants as separate files would take {format_bytes(alone)}")


def _plans(
    model: str,
    alpha: str | None,
    precision: str | None,
    memory: str | None,
    measurement: Measurement | None,
    context: int | None,
    parallel: int,
    scheme: Scheme,
) -> list[Plan]:
    """The plans that the short options ask for."""
    uniform = [api.plan(model, "uniform", precision=p, scheme=scheme) for p in _split(precision)]
    by_alpha = [
        api.plan(model, "alpha", alpha=_number(a), measurement=measurement, scheme=scheme) for a in _split(alpha)
    ]
    by_memory = [
        api.plan(model, "lsaq", memory=size, measurement=measurement, context=context, parallel=parallel, scheme=scheme)
        for size in _split(memory)
    ]
    return [*uniform, *by_alpha, *by_memory]


def _names(plans: Sequence[Plan], files: Sequence[Path], name: str | None) -> list[str]:
    if not plans:
        raise InvalidRequest(
            "say what to build: --plan FILE, --alpha 0.1,0.5,0.9, --precision int8,int4 or --memory 6GiB"
        )
    if name is not None and len(plans) > 1:
        raise InvalidRequest(f"--name names one variant, but {len(plans)} were asked for")
    if name is not None:
        return [name]
    names = [path.stem for path in files] + [api.default_name(p) for p in plans[len(files) :]]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise InvalidRequest(
            f"two variants would be named {', '.join(sorted(twice))}; build them one by one with --name"
        )
    return names


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"alpha must be a number in (0, 1], not '{text}'") from None


def _document(report: BuildReport) -> dict[str, object]:
    return {
        "variant": report.variant.name,
        "bytes": report.variant.n_bytes,
        "bits_per_weight": report.variant.plan.bits_per_weight,
        "shards": report.n_shards,
        "reused": report.n_reused,
        "written_bytes": report.written_bytes,
        "seconds": report.seconds,
    }
