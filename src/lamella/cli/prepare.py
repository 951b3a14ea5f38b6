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
from lamella.cli.child import lamella_in_child
from lamella.cli.output import JsonFlag, note, print_json, progress, say
from lamella.config import Config
from lamella.core.units import format_seconds

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
HOST = "CPU"


def prepare(
    model: ModelTarget, memory: MemoryOption = None, device: DeviceOption = None, json: JsonFlag = False
) -> None:
    """Make a model ready to serve: fetch, measure, plan a few variants, build them.

    Into a store in the cache folder (LAMELLA_CACHE), where lamella serve MODEL finds it.  May be interrupted: the same
    command goes on where it was.  What is ready is found again at once.
    """
    config = Config.from_environment(os.environ)
    ready = api.find_ready(model, config.cache_folder, memory) or api.prepare(
        model,
        config.cache_folder,
        memory=memory,
        device=device or config.device or HOST,
        llama_cpp=config.llama_cpp,
        n_threads=config.n_threads,
        stage=lambda name: _stage(name, quiet=json),
    )
    store = ready.folder(config.cache_folder)
    if json:
        print_json({"store": str(store), "variants": list(ready.variants)})
        return
    target = str(store) if memory and device else model  # a server takes one of these two options
    options = _given({"--memory": None if device else memory, "--device": device})
    serve = shlex.join(["lamella", "serve", target, *options])
    say(f"{model} is ready: {', '.join(ready.variants)} in {store}; serve it with: {serve}")


def ready_for(model: str, memory: str | None, device: str | None, config: Config) -> api.Ready:
    """What serves a model, made ready if need be.

    In a process of its own: the front of a server loads no llama.cpp.

    Raises:
        typer.Exit: it cannot be made ready; the process has said why.
    """
    found = api.find_ready(model, config.cache_folder, memory)
    if found is not None:
        return found
    note(f"{model} is served for the first time: it is measured, and variants are built; Ctrl-C, and it goes on later")
    code = lamella_in_child(["prepare", model, *_given({"--memory": memory, "--device": device})])
    found = api.find_ready(model, config.cache_folder, memory)
    if code or found is None:
        raise typer.Exit(code or 1)
    return found


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
