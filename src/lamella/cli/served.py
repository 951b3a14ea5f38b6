"""What ``lamella serve`` was told to serve: a store, or a model that is made ready first."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lamella import api
from lamella.batching.settings import EngineSettings
from lamella.cli.options import split_target
from lamella.cli.prepare import ready_for
from lamella.config import Config
from lamella.core.errors import ModelError
from lamella.core.units import MIB, parse_bytes
from lamella.qos.objectives.stated import Objectives
from lamella.store.store import Store


@dataclass(frozen=True, slots=True)
class Served:
    """What to serve.

    Attributes:
        store: it, opened.
        variant: to begin with; None for the largest that fits.
        variants: names; None for all of the store.
        name: of the model; "" for what the store says.
        is_model: a model was named, and not a store.
    """

    store: Store
    variant: str | None = None
    variants: list[str] | None = None
    name: str = ""
    is_model: bool = False


def lower_ceiling(said: str | None, wanted: Objectives | None) -> str | None:
    """The lower one of what the engine and the objectives may take, which an engine has that serves both."""
    promised = wanted.memory_bytes if wanted is not None else None
    if promised is None or (said is not None and parse_bytes(said) <= promised):
        return said
    return str(promised) if promised % MIB else f"{promised // MIB}MiB"


def find_served(target: str, memory: str | None, engine: EngineSettings) -> Served:
    """A store as it is, or a model's, made ready if need be.

    Args:
        target: ``STORE``, ``STORE@VARIANT``, or a model.
        memory: ceiling that a model's variants are planned for; None for what the device has free.
        engine: that will serve it: a model's variants are planned beside what it opens.

    Raises:
        ModelError: there is nothing of that name.
        InvalidRequest: a store or a variant without a name.
        StoreError: what is there is no store, or it cannot be read.
        typer.Exit: the model cannot be made ready; why has been said.
    """
    if api.is_model(target):
        config = Config.from_environment(os.environ)
        ready = ready_for(target, memory, engine, config)
        store = Store.open(ready.folder(config.cache_folder))
        return Served(store, variants=list(ready.variants), name=api.spoken_name(target), is_model=True)
    folder, variant = split_target(target)
    if not folder.exists():
        raise ModelError(
            f"{folder} does not exist: name a GGUF file, 'smollm2' or hf:OWNER/REPO, or the folder of a store"
        )
    return Served(Store.open(folder), variant)  # what is wrong with it is said here, and not by a process that dies
