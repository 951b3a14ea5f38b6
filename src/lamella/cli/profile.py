"""``lamella profile``: what the variants of a store do on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from lamella import api
from lamella.cli.engine_shape import ShapeFlags
from lamella.cli.groups import takes_groups
from lamella.cli.options import ChunksOption, output_option
from lamella.cli.output import JsonFlag, note, print_json, progress, say, stdout, table
from lamella.config import Config
from lamella.core.units import format_bytes
from lamella.evaluating.evaluation import Exams
from lamella.qos.profiles.documents import Profile, VariantProfile
from lamella.qos.profiles.speed import SpeedModel
from lamella.qos.profiling.points import QUICK, Points
from lamella.qos.profiling.quiet import MOST_OTHERS

MOST_REPEATS = 1000


@takes_groups
def profile(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Store whose variants are measured.")],
    shape: ShapeFlags,
    variants: Annotated[
        list[str] | None, typer.Argument(metavar="[VARIANT]...", help="Variants. Default: all of the store.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Measure KL divergence and perplexity on this text. Default: as planned.")
    ] = None,
    chunks: ChunksOption = None,
    task: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Tasks, as 'lamella eval'.")] = None,
    repeats: Annotated[
        int, typer.Option(min=1, max=MOST_REPEATS, help="Measurements of each point; the median counts.")
    ] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few points, once each: sizes as exact, times roughly; servers refine them.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure also what was measured before.")] = False,
    out: Annotated[Path | None, output_option(help="File of the profile. Default: one that is found again.")] = None,
    json: JsonFlag = False,
) -> None:
    """Measure speed, memory, energy and the cost of changes of each variant, on this machine with the real engine.

    A variant takes about a minute and is kept as soon as it is measured, so that an interrupted run goes on.  Measure
    while nothing else runs.
    """
    config = Config.from_environment(os.environ)
    settings = shape.settings(str(store))
    exams = Exams(text=text, n_windows=chunks, tasks=tuple(task or ()), n_threads=config.n_threads)
    with progress("measuring", quiet=json) as update:
        found, path = api.profile(
            settings,
            variants or (),
            out=out,
            cache_folder=config.cache_folder,
            exams=exams if text or task else None,
            points=QUICK if quick else Points(repeats=repeats),
            again=again,
            on_point=lambda name, done, total, what: update(done, total, f"{name}: {what}"),
        )
    if json:
        print_json({"path": str(path), **profile_fields(found)})
    else:
        show_profile(found)
        note(f"kept in {path}")


def show_profile(found: Profile) -> None:
    """A line for each variant: what one stream and all streams take."""
    n = found.engine.n_sequences
    say(f"{found.model.name} on {found.machine.processor}, {found.machine.n_threads} threads")
    shown = table(
        "variant", ">memory", ">KL", ">prompt tokens/s", ">ms/token", f">ms/token, {n} streams", ">switch", ">J/token",
        ">model off by",
    )  # fmt: skip
    for variant in sorted(found.variants, key=lambda v: -v.bits_per_weight):
        shown.add_row(*_row(variant, found))
    stdout.print(shown)
    if any(v.quality.kl is not None and not v.quality.is_measured for v in found.variants):
        say("KL is what the plans predict; --text FILE measures it")
    disturbed = [v for v in found.variants if v.others_share > MOST_OTHERS]
    if disturbed:
        most, names = max(v.others_share for v in disturbed), " ".join(v.name for v in disturbed)
        say(f"others took up to {most:.0%} of the processor meanwhile; measure again when it is quiet: {names} --again")


def _row(variant: VariantProfile, found: Profile) -> tuple[str, ...]:
    speed = SpeedModel(variant, found.engine.n_batch)
    n_batch, joules = found.engine.n_batch, variant.joules_per_token
    return (
        variant.name,
        format_bytes(variant.memory_bytes),
        "" if variant.quality.kl is None else f"{variant.quality.kl:.4f}",
        f"{n_batch / speed.prompt(n_batch):.0f}",
        f"{speed.writing(1, 64) * 1000:.1f}",
        f"{speed.writing(found.engine.n_sequences, 64) * 1000:.1f}",
        f"{variant.prepare_seconds:.2f} s + {variant.switch_seconds * 1000:.1f} ms",
        "" if joules is None else f"{joules:.2f}",
        f"{speed.error.mean:.0%}, at most {speed.error.largest:.0%}",
    )


def profile_fields(found: Profile) -> dict[str, Any]:
    """The document of ``--json``: the profile, and how far its models are off."""
    fields: dict[str, Any] = msgspec.to_builtins(found)
    for document, variant in zip(fields["variants"], found.variants, strict=True):
        error = SpeedModel(variant, found.engine.n_batch).error
        document["model_error"] = {"mean": error.mean, "largest": error.largest, "points": error.n_points}
    return fields
