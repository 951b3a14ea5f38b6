"""``lamella serve``: an OpenAI-compatible server whose model changes precision under it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Coroutine
from dataclasses import replace
from typing import Annotated, Any

import msgspec
import typer

from lamella import api
from lamella.cli.adapting import adapting, steered_by, warm_beside
from lamella.cli.engine_shape import ShapeFlags
from lamella.cli.groups import takes_groups
from lamella.cli.opening import greeting
from lamella.cli.output import note
from lamella.cli.serve_options import EngineFlags, LimitFlags, ObjectiveFlags, ServerFlags
from lamella.cli.served import find_served, lower_ceiling
from lamella.config import Config
from lamella.core.listening import listen
from lamella.core.units import as_bytes


@takes_groups
def serve(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|STORE[@VARIANT]",
            help="A model: 'smollm2', a GGUF file, hf:OWNER/REPO[/FILE]; or a store, and the variant to begin with.",
        ),
    ],
    server: ServerFlags,
    shape: ShapeFlags,
    flags: EngineFlags,
    limits: LimitFlags,
    promises: ObjectiveFlags,
) -> None:
    """Serve a model, or a store's variants, behind an OpenAI-compatible API.

    A model is measured and gets a few variants the first time (lamella prepare); afterwards it starts in seconds.

    The variant changes while requests run: POST /admin/switch {"variant": "small"}, or /switch small in
    `lamella chat --url URL`.  A request may ask for one by the model name MODEL@VARIANT.  With objectives a policy
    changes it: the best variant that keeps them under the load of the moment.  A model served by its name goes down
    by itself when memory gets short, and up again (not with --policy off).
    """
    engine, wanted, front = flags.settings(shape), promises.wanted, server.front(limits.limits)
    front.check_certificate()
    promises.check_profile()
    listen(front.host, front.port).close()  # a taken address is said now, and not after minutes of building
    known_device = None if shape.rpc else shape.device  # one of an RPC server is not known to others
    memory = lower_ceiling(flags.memory, wanted)
    msgspec.structs.replace(engine, memory_bytes=as_bytes(memory) or 0).check_possible()
    served = find_served(target, memory, msgspec.structs.replace(engine, device=known_device))
    front = replace(front, name=front.name or served.name or api.model_name(served.store))
    engine = msgspec.structs.replace(
        engine, store=str(served.store.path), variant=served.variant, variants=served.variants
    )
    steering = None
    if wanted is not None:
        engine, steering = steered_by(engine, promises, wanted, served.store)
        if flags.warm is None:
            engine = msgspec.structs.replace(engine, n_warm=warm_beside(engine, steering))
    elif served.is_model and promises.has_policy:
        steering = adapting(engine, promises, served.store)
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


def run_in_loop(work: Coroutine[Any, Any, None]) -> None:
    """In uvloop's event loop where there is one: the front shares the processor with the model."""
    if importlib.util.find_spec("uvloop") is None:
        asyncio.run(work)
        return
    import uvloop

    uvloop.run(work)
