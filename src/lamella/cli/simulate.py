"""``lamella simulate``: what a policy would do with a trace, in virtual time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from lamella import api
from lamella.cli.engine_shape import ShapeFlags
from lamella.cli.groups import takes_groups
from lamella.cli.objectives import objectives_of_options
from lamella.cli.options import check_input, option_under, plot_option
from lamella.cli.output import JsonFlag, print_json, progress, say, stdout, table
from lamella.config import Config
from lamella.qos.objectives.stated import Objectives
from lamella.qos.policies.named import DEFAULT_POLICY, KNOWN
from lamella.qos.profiles.documents import Profile
from lamella.qos.simulator.outcome import Outcome
from lamella.qos.simulator.replay import ReplayOptions
from lamella.qos.simulator.slowdown import MOST_SCATTER
from lamella.qos.traces.arrivals import Trace
from lamella.qos.traces.files import write_trace
from lamella.qos.traces.named import named_trace
from lamella.store.files import new_file

MOST_TIMES = 1e6
_engine_option, _objective_option, _trace_option = (
    option_under("Engine"),
    option_under("Objectives"),
    option_under("Trace"),
)


@takes_groups
def simulate(
    target: Annotated[
        Path, typer.Argument(metavar="STORE|PROFILE", help="Store that was profiled here, or a profile's file.")
    ],
    trace: Annotated[
        str,
        _trace_option(
            help="File (own form or Azure's), or poisson:rate=2,seconds=600, bursts:rate=1,peak=6, day:rate=1."
        ),
    ],
    shape: ShapeFlags,
    policy: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join((*KNOWN, 'oracle'))}; several are compared.")
    ] = None,
    objectives: Annotated[Path | None, _objective_option(help="TOML file of objectives.")] = None,
    class_: Annotated[
        list[str] | None,
        _objective_option(
            "--class",
            metavar="NAME:FIELD=NUMBER,...",
            help="Objectives of a class: ttft_p95_ms, tpot_p95_ms, max_kl, priority.",
        ),
    ] = None,
    memory: Annotated[str | None, _objective_option(help="Memory ceiling.")] = None,
    power: Annotated[float | None, _objective_option(help="Power ceiling in watts.")] = None,
    faster: Annotated[
        float, _trace_option(min=1 / MOST_TIMES, max=MOST_TIMES, help="Press the trace into less time.")
    ] = 1.0,
    seconds: Annotated[float | None, _trace_option(help="Only the beginning of the trace.")] = None,
    write: Annotated[Path | None, _trace_option(help="Write the trace that is replayed to this file.")] = None,
    queue: Annotated[int, _engine_option(help="Requests that may wait; more fail.")] = 64,
    slowdown: Annotated[
        float,
        _engine_option(
            min=1 / MOST_TIMES, max=MOST_TIMES, help="How many times slower than the profile the machine is."
        ),
    ] = 1.0,
    scatter: Annotated[
        float,
        _engine_option(
            max=MOST_SCATTER,
            help="How far its speed wavers for seconds: 0.1 for a tenth up and down.",
        ),
    ] = 0.0,
    seed: Annotated[int, _engine_option(help="Of what is drawn for --scatter.")] = 0,
    plot: Annotated[
        Path | None, plot_option(help="Draw load, latency and variants of the last policy: .png, .svg, .pdf.")
    ] = None,
    changes: Annotated[bool, typer.Option("--changes", help="Show every change with its reason.")] = False,
    json: JsonFlag = False,
) -> None:
    """Replay a trace of requests against a profile, in virtual time, and report what was promised and kept."""
    replayed = _trace(trace, faster, seconds)
    promised = class_ or ([] if objectives else list(replayed.classes()))  # without any, nothing is promised to them
    wanted = objectives_of_options(objectives, promised, memory=memory, power=power)
    profile = _profile(target, shape, wanted)
    if write:
        _write(replayed, write)
    options = ReplayOptions(max_queue=queue, slowdown=slowdown, scatter=scatter, seed=seed)
    outcomes = []
    names = policy or [DEFAULT_POLICY]
    with progress("replaying", quiet=json) as update:
        for i, name in enumerate(names):
            update(i, len(names), name)
            outcomes.append(api.simulate(replayed, profile, wanted, name, options))
    if plot:
        api.plot_outcome(replayed, profile, wanted, outcomes[-1], plot)
    if json:
        print_json({"trace": _trace_fields(replayed), "outcomes": [_outcome_fields(o) for o in outcomes]})
    else:
        show_outcomes(replayed, outcomes, with_changes=changes)


def show_outcomes(trace: Trace, outcomes: list[Outcome], *, with_changes: bool) -> None:
    """A line for each policy and class; its changes with reasons."""
    say(f"{trace.name}: {len(trace.arrivals)} requests in {trace.seconds:.0f} s")
    shown = table(
        "policy", "class", ">requests", ">met", ">p95 first token", ">p95 token", ">KL", ">failed", ">changes",
    )  # fmt: skip
    for outcome in outcomes:
        for name, found in outcome.classes.items():
            shown.add_row(
                outcome.policy,
                name,
                str(found.n_requests),
                f"{found.attainment:.1%}",
                _milliseconds(found.ttft_p95_seconds),
                _milliseconds(found.tpot_p95_seconds),
                "" if found.mean_kl is None else f"{found.mean_kl:.4f}",
                str(found.n_failed),
                str(outcome.n_switches),
            )
    stdout.print(shown)
    for outcome in outcomes if with_changes else ():
        say(f"changes of {outcome.policy}:")
        for change in outcome.changes:
            say(f"  {change.time:8.1f} s  {change.before} -> {change.after}: {change.reason}")


def _profile(target: Path, shape: ShapeFlags, wanted: Objectives) -> Profile:
    """A file's; or what was measured of an engine as a server would have it, under this memory ceiling if any."""
    if not target.is_dir():
        return api.read_profile(target)
    engine = msgspec.structs.replace(shape.settings(str(target)), memory_bytes=wanted.memory_bytes or 0)
    return api.find_profile(engine, Config.from_environment(os.environ).cache_folder)


def _trace(name: str, faster: float, seconds: float | None) -> Trace:
    if Path(name).exists():
        check_input(Path(name))
    found = named_trace(name)
    found = found if faster == 1 else found.faster(faster)
    return found if seconds is None else found.until(seconds)


def _write(trace: Trace, path: Path) -> None:
    data = write_trace(trace)
    with new_file(path, len(data), replace=True) as file:
        file.write(data)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.0f} ms"


def _trace_fields(trace: Trace) -> dict[str, Any]:
    return {"name": trace.name, "requests": len(trace.arrivals), "seconds": trace.seconds, "classes": trace.classes()}


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    """Everything but the single requests."""
    fields: dict[str, Any] = msgspec.to_builtins(outcome)
    del fields["served"]
    return fields
