"""``lamella serve``: an OpenAI-compatible server whose model changes precision under it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from lamella import api
from lamella.batching.settings import EngineSettings
from lamella.cli.groups import takes_groups
from lamella.cli.opening import greeting
from lamella.cli.output import note
from lamella.cli.serve_options import EngineFlags, LimitFlags, ObjectiveFlags, ServerFlags
from lamella.cli.served import find_served
from lamella.config import Config
from lamella.core.listening import listen
from lamella.qos.objectives.stated import Objectives
from lamella.qos.warmth import warm_variants
from lamella.resources.machine import cpu_memory
from lamella.store.store import Store


@takes_groups
def serve(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|STORE[@VARIANT]",
            help="A model: 'smollm2', a GGUF file, hf:OWNER/REPO; or a store, and the variant to begin with.",
        ),
    ],
    server: ServerFlags,
    flags: EngineFlags,
    limits: LimitFlags,
    promises: ObjectiveFlags,
) -> None:
    """Serve a model, or a store's variants, behind an OpenAI-compatible API.

    A model is measured and gets a few variants the first time (lamella prepare); afterwards it starts in seconds.

    The variant changes while requests run: POST /admin/switch {"variant": "small"}, or /switch small in
    `lamella chat --url URL`.  A request may ask for one by the model name MODEL@VARIANT.  With objectives a policy
    changes it: the best variant that keeps them under the load of the moment.
    """
    engine, wanted, front = flags.settings(), promises.wanted, server.front(limits.limits)
    front.check_certificate()
    listen(front.host, front.port).close()  # a taken address is said now, and not after minutes of building
    known_device = None if flags.rpc else flags.device  # one of an RPC server is not known to others
    served = find_served(target, flags.memory, known_device)
    front = replace(front, name=front.name or served.name or api.model_name(Store.open(Path(served.store))))
    engine = msgspec.structs.replace(engine, store=served.store, variant=served.variant, variants=served.variants)
    steering = None
    if wanted is not None:
        engine, steering = _steered(engine, wanted, promises)
        if flags.warm is None:
            engine = msgspec.structs.replace(engine, n_warm=_warm_beside(engine, steering))
    run_in_loop(
        api.serve(
            engine,
            front,
            steering=steering,
            max_queue=limits.queue,
            cache_folder=Config.from_environment(os.environ).cache_folder,
            on_listening=greeting(len(front.keys), has_dashboard=front.dashboard),
            on_line=note,
        )
    )


def _steered(
    engine: EngineSettings, wanted: Objectives, promises: ObjectiveFlags
) -> tuple[EngineSettings, api.Steering]:
    """Engine and policy under one memory ceiling: the lower one of what the engine and the objectives say."""
    ceilings = [n for n in (engine.memory_bytes, wanted.memory_bytes) if n]
    wanted = replace(wanted, memory_bytes=min(ceilings, default=None))
    engine = msgspec.structs.replace(engine, memory_bytes=min(ceilings, default=0))
    steering = api.steering(
        engine,
        wanted,
        promises.policy,
        profile=promises.profile,
        hold_seconds=promises.hold,
        cache_folder=Config.from_environment(os.environ).cache_folder,
    )
    return engine, steering


def _warm_beside(engine: EngineSettings, steering: api.Steering) -> int:
    """How many variants the policy finds in memory, where nobody says; a device's memory is not known here."""
    if engine.device is not None or engine.rpc:
        return engine.n_warm
    available = cpu_memory().available_bytes
    return warm_variants(steering.profile, min(available, engine.memory_bytes or available))


def run_in_loop(work: Coroutine[Any, Any, None]) -> None:
    """In uvloop's event loop where there is one: the front shares the processor with the model."""
    if importlib.util.find_spec("uvloop") is None:
        asyncio.run(work)
        return
    import uvloop

    uvloop.run(work)
