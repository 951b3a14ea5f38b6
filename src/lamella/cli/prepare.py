"""``lamella prepare``: a model made ready to serve, by its name alone.  ``lamella serve MODEL`` does it on its own."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from lamella import api
from lamella.batching.settings import EngineSettings
from lamella.cli.child import lamella_in_child
from lamella.cli.engine_shape import CacheFlags
from lamella.cli.groups import takes_groups
from lamella.cli.output import JsonFlag, note, print_json, progress, say
from lamella.config import Config
from lamella.core.units import format_bytes, format_seconds
from lamella.qos.profiling.shape import shape_options
from lamella.resources.machine import cpu_memory

if TYPE_CHECKING:
    from lamella.api.preparing import Update

ModelTarget = Annotated[
    str, typer.Argument(metavar="MODEL", help="'smollm2', the path of a GGUF file, or hf:OWNER/REPO[/FILE].")
]
MemoryOption = Annotated[
    str | None, typer.Option(help="What the engine may take, such as 6GiB.  Default: what the device has free now.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="Device whose memory that is.  Default: LAMELLA_DEVICE, else the CPU.")
]


@takes_groups
def prepare(
    model: ModelTarget,
    shape: CacheFlags,
    memory: MemoryOption = None,
    device: DeviceOption = None,
    again: Annotated[bool, typer.Option("--again", help="Plan anew, for the memory that there is now.")] = False,
    json: JsonFlag = False,
) -> None:
    """Make a model ready to serve: fetch, measure, plan a few variants, build them.

    Into a store in the cache folder (LAMELLA_CACHE), where lamella serve MODEL finds it when it is given the same
    options.  May be interrupted: the same command goes on where it was.  What is ready is found again at once.
    """
    config = Config.from_environment(os.environ)
    device = device or config.device
    engine = shape.cache(device if device and device.upper() != api.HOST else None)
    ready = None if again else found_ready(model, memory, engine, config)
    ready = ready or api.prepare(
        model,
        config.cache_folder,
        memory=memory,
        engine=engine,
        llama_cpp=config.llama_cpp,
        n_threads=config.n_threads,
        stage=lambda name: _stage(name, quiet=json),
        remark=note,
    )
    store = ready.folder(config.cache_folder)
    if json:
        print_json({"store": str(store), "variants": list(ready.variants)})
        return
    target = str(store) if memory and engine.device else model  # a server takes one of these two options
    options = [*_given({"--memory": None if engine.device else memory, "--device": engine.device}), *_cache(engine)]
    serve = shlex.join(["lamella", "serve", target, *options])
    say(f"{model} is ready: {', '.join(ready.variants)} in {store}; serve it with: {serve}")


def ready_for(model: str, memory: str | None, engine: EngineSettings, config: Config) -> api.Ready:
    """What serves a model on such an engine, made ready if need be.

    In a process of its own: the front of a server loads no llama.cpp.

    Raises:
        typer.Exit: it cannot be made ready; the process has said why.
    """
    found = found_ready(model, memory, engine, config)
    if found is not None:
        return found
    note(
        f"{model} is served for the first time with these options: it is measured, unless it was before, and variants "
        "are built; Ctrl-C, and it goes on later"
    )
    options = _given({"--memory": memory, "--device": engine.device or api.HOST})
    code = lamella_in_child(["prepare", model, *options, *_cache(engine)])
    found = api.find_ready(model, config.cache_folder, memory, engine)
    if code or found is None:
        raise typer.Exit(code or 1)
    return found


def found_ready(model: str, memory: str | None, engine: EngineSettings, config: Config) -> api.Ready | None:
    """What is ready, with a word where memory has grown since it was planned."""
    found = api.find_ready(model, config.cache_folder, memory, engine)
    if found is not None and found.is_bound:
        _speak_of_memory(model, memory, engine, found)
    return found


def _speak_of_memory(model: str, memory: str | None, engine: EngineSettings, found: api.Ready) -> None:
    planned = format_bytes(found.planned_bytes)
    options = [*_given({"--memory": memory, "--device": engine.device}), *_cache(engine)]
    again = shlex.join(["lamella", "prepare", model, *options, "--again"])
    if engine.device:  # whose memory is not known in this process
        note(f"its variants were planned for {planned} of {engine.device}; for what is free now: {again}")
        return
    now = cpu_memory()
    if found.is_outgrown(now.total_bytes, now.available_bytes):
        more = format_bytes(min(found.wanted.memory_bytes, now.total_bytes) or now.available_bytes)
        note(f"its variants were planned for {planned}, there are {more} now; larger ones are made by: {again}")


def _cache(engine: EngineSettings) -> list[str]:
    """The options of ``CacheFlags`` that make an engine's cache, those that are not at their default."""
    flags = CacheFlags(engine.n_ctx, engine.n_sequences, engine.n_cells, engine.kv_type, engine.is_reproducible)
    return shape_options(flags.cache())


def _given(options: Mapping[str, str | None]) -> list[str]:
    """Those options that have a value, as words of a command."""
    return [part for name, value in options.items() if value for part in (name, value)]


@contextmanager
def _stage(name: str, *, quiet: bool) -> Iterator[Update]:
    """A bar while it runs, and a line when it is done."""
    start = time.monotonic()
    with progress(name, quiet=quiet) as update:
        yield update
    if not quiet:
        note(f"{name}: {format_seconds(time.monotonic() - start)}")
