"""How a server comes to change its variant by itself: its variants measured on this machine, and a policy over them.

With objectives the policy keeps them.  A model that is served by its name has a policy without any: the best variant
that the memory of the moment allows, and whoever asks for another one by hand keeps it.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

import msgspec
import typer

from lamella import api
from lamella.batching.settings import EngineSettings
from lamella.cli.child import lamella_in_child
from lamella.cli.engine_shape import shape_options
from lamella.cli.output import note
from lamella.cli.serve_options import ObjectiveFlags
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from lamella.qos.controller import HOLD_SECONDS
from lamella.qos.objectives.stated import Objectives
from lamella.qos.warmth import warm_variants
from lamella.resources.machine import cpu_memory


def steered_by(
    engine: EngineSettings, promises: ObjectiveFlags, wanted: Objectives
) -> tuple[EngineSettings, api.Steering]:
    """Engine and policy under one memory ceiling: the lower one of what the engine and the objectives say.

    Raises:
        InvalidRequest: objectives that cannot be met, a policy that is none.
        typer.Exit: the variants could not be measured; why has been said.
    """
    ceilings = [n for n in (engine.memory_bytes, wanted.memory_bytes) if n]
    wanted = replace(wanted, memory_bytes=min(ceilings, default=None))
    engine = msgspec.structs.replace(engine, memory_bytes=min(ceilings, default=0))
    _measure_missing(engine, promises, [])
    hold_seconds = HOLD_SECONDS if promises.hold is None else promises.hold
    return engine, _steering(engine, promises, wanted, hold_seconds)


def adapting(engine: EngineSettings, promises: ObjectiveFlags) -> api.Steering | None:
    """A policy that nothing was promised of: the best variant that memory allows.

    Returns:
        None where it would have nothing to choose, and where the variants do not fit the ceiling as they were measured.

    Raises:
        typer.Exit: the variants could not be measured; why has been said.
    """
    if len(engine.variants or ()) < 2:
        return None
    _measure_missing(engine, promises, ["--quick"])
    wanted = Objectives(memory_bytes=engine.memory_bytes or None)
    try:
        return _steering(engine, promises, wanted, math.inf if promises.hold is None else promises.hold)
    except InvalidRequest as error:
        note(f"the variant changes by hand only: {error}")
        return None


def warm_beside(engine: EngineSettings, steering: api.Steering) -> int:
    """How many variants the policy finds in memory, where nobody says; a device's memory is not known here."""
    if engine.device is not None or engine.rpc:
        return engine.n_warm
    available = cpu_memory().available_bytes
    return warm_variants(steering.profile, min(available, engine.memory_bytes or available))


def _steering(
    engine: EngineSettings, promises: ObjectiveFlags, wanted: Objectives, hold_seconds: float
) -> api.Steering:
    return api.steering(
        engine,
        wanted,
        promises.policy,
        profile=promises.profile,
        hold_seconds=hold_seconds,
        cache_folder=Config.from_environment(os.environ).cache_folder,
    )


def _measure_missing(engine: EngineSettings, promises: ObjectiveFlags, options: list[str]) -> None:
    """Measure what is served and was not measured on this machine, once and for all starts to come.

    Not where a file says it all.
    """
    if promises.profile is not None:
        return
    missing = api.unmeasured_variants(engine, Config.from_environment(os.environ).cache_folder)
    if not missing:
        return
    note(
        f"{', '.join(missing)}: measured once on this machine, so that a policy knows what each would do; "
        "Ctrl-C, and it goes on later"
    )
    code = lamella_in_child(["profile", engine.store, *missing, *options, *shape_options(engine)])
    if code:
        raise typer.Exit(code)
