"""Models and devices: what everything else begins with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lamella.config import Config
from lamella.core.model import ModelSpec
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.looking import Kind
from lamella.planning.specs import builtin_spec, is_builtin
from lamella.resources import devices as resource_devices
from lamella.resources.catalogue import model_path
from lamella.resources.devices import DeviceMemory
from lamella.resources.first_look import look_first

OnMeasure = Callable[[int, int, str], None]


def silent(_done: int, _total: int, _what: str) -> None:
    """Default progress: none."""


def load(model: str | Path, cache_folder: Path | None = None) -> ModelFile:
    """Open a model: a path, or ``smollm2``.  A child process with limits opens the file first.

    Args:
        cache_folder: where it is noted which files were opened well, so that the next process does not ask again;
            None for the user's, as the environment names it.

    Raises:
        ModelError: there is none, or it cannot be used.
    """
    path = model_path(str(model))
    look(path, cache_folder)
    return read_model(path)


def look(path: Path, cache_folder: Path | None = None, *, kind: Kind = "model") -> None:
    """``look_first``, with the user's cache for its notes where no other is named."""
    look_first(path, cache_folder or Config.from_environment(os.environ).cache_folder, kind=kind)


def load_spec(model: str | Path) -> ModelSpec:
    """The shape of a model file, or of a built-in specification (``spec:llama-2-7b``).

    Raises:
        ModelError, InvalidRequest: there is none.
    """
    name = str(model)
    return builtin_spec(name) if is_builtin(name) else load(model).spec


def devices(wanted: str | None = None) -> tuple[tuple[DeviceMemory, ...], DeviceMemory]:
    """Every device with its memory, and the one to use (LSAQ's resource detection).

    Raises:
        InvalidRequest: no device of the wanted name.
    """
    found = resource_devices.detect()
    return found, resource_devices.choose(found, wanted)
