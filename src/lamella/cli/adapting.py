"""How a server comes to change its variant by itself: its variants measured on this machine, and a policy over them.

With objectives the policy keeps them.  A model that is served by its name has a policy without any: the best variant
that the memory of the moment allows, and whoever asks for another one by hand keeps it.
"""

from __future__ import annotations

import os
from dataclasses import replace

import msgspec
import typer

from lamella import api
from lamella.batching.settings import EngineSettings
from lamella.cli.child import lamella_in_child
from lamella.cli.output import note
from lamella.cli.serve_options import ObjectiveFlags
from lamella.config import Config
from lamella.core.errors import (
    INTERRUPTED_EXIT_CODE,
    TERMINATED_EXIT_CODE,
    EngineFailed,
    ImpossibleObjectives,
    UnknownVariant,
)
from lamella.qos.objectives.stated import Objectives
from lamella.qos.policies.named import static_variant
from lamella.qos.profiling.points import QUICK, Points
from lamella.qos.profiling.shape import shape_options
from lamella.qos.warmth import warm_variants
from lamella.resources.machine import cpu_memory
from lamella.store.store import Store


def steered_by(
    engine: EngineSettings, promises: ObjectiveFlags, wanted: Objectives, store: Store
) -> tuple[EngineSettings, api.Steering]:
    """Engine and policy under one memory ceiling: the lower one of what the engine and the objectives say.

    Raises:
        InvalidRequest: objectives that cannot be met, a policy that is none, a ceiling for an engine on a device.
        typer.Exit: the variants could not be measured; why has been said.
    """
    ceilings = [n for n in (engine.memory_bytes, wanted.memory_bytes) if n]
    wanted = replace(wanted, memory_bytes=min(ceilings, default=None))
    engine = msgspec.structs.replace(engine, memory_bytes=min(ceilings, default=0))
    engine.check_possible()
    code, known = _measured(engine, promises, store)
    if code:
        raise typer.Exit(code)
    return engine, _steering(known, promises, wanted)


def adapting(engine: EngineSettings, promises: ObjectiveFlags, store: Store) -> api.Steering | None:
    """A policy that nothing was promised of: the best variant that memory allows.

    Returns:
        None where it would have nothing to choose, where the variants could not be measured, and where they do not
        fit the ceiling as they were measured: nobody has asked for a policy, and so the server starts without.

    Raises:
        InvalidRequest: a policy or a profile that was named and cannot be used.
        typer.Exit: somebody ended the measurement.
    """
    if len(engine.variants or ()) < 2:
        return None
    try:
        code, known = _measured(engine, promises, store, is_quick=True)
        if code in (INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE):
            raise typer.Exit(code)
        if not code:
            return _steering(known, promises, Objectives(memory_bytes=engine.memory_bytes or None))
        reason = "the variants could not be measured"
    except (EngineFailed, ImpossibleObjectives) as error:
        reason = str(error)
    note(f"the variant changes by hand only: {reason}")
    return None


def warm_beside(engine: EngineSettings, steering: api.Steering) -> int:
    """How many variants the policy finds in memory, where nobody says; a device's memory is not known here."""
    if engine.device is not None or engine.rpc:
        return engine.n_warm
    available = cpu_memory().available_bytes
    return warm_variants(steering.profile, min(available, engine.memory_bytes or available))


def _steering(known: api.KnownVariants, promises: ObjectiveFlags, wanted: Objectives) -> api.Steering:
    return api.steering(
        known.settings,
        wanted,
        promises.policy,
        profile=promises.profile,
        hold_seconds=promises.hold,
        cache_folder=Config.from_environment(os.environ).cache_folder,
        known=known,
    )


def _measured(
    engine: EngineSettings, promises: ObjectiveFlags, store: Store, *, is_quick: bool = False
) -> tuple[int, api.KnownVariants]:
    """Measure what is served and was not measured on this machine, once and for all starts to come.

    Not where a file says it all.

    Args:
        store: that is served.
        is_quick: few points, where nothing is promised that has to be kept from the beginning.

    Returns:
        An exit code; why it is not 0 has been said.  And what is known now.

    Raises:
        UnknownVariant: a static policy of a variant that is not served.
    """
    cache_folder = Config.from_environment(os.environ).cache_folder
    known = api.known_variants(engine, cache_folder, store)
    _check_static(known, promises.policy)
    missing = known.unmeasured(QUICK if is_quick else Points()) if promises.profile is None else ()
    if not missing:
        return 0, known
    note(
        f"{', '.join(missing)}: measured once on this machine, so that a policy knows what each would do; "
        "Ctrl-C, and it goes on later"
    )
    quick = ["--quick"] if is_quick else []
    code = lamella_in_child(["profile", engine.store, *missing, *quick, *shape_options(engine)])
    return code, known if code else api.known_variants(engine, cache_folder, store)


def _check_static(known: api.KnownVariants, policy: str) -> None:
    """A variant that a policy names is served; said before minutes of measuring."""
    name, served = static_variant(policy), [variant.name for variant in known.variants]
    if name is not None and name not in served:
        raise UnknownVariant(f"'{name}' is not served; there are: {', '.join(served)}")
