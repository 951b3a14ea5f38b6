"""The shape of an engine, which a profile holds for: from its settings, and as options of the command line."""

from __future__ import annotations

from dataclasses import fields

from lamella.batching.settings import EngineSettings
from lamella.qos.profiles.documents import EngineShape

OPTIONS = {
    "--context": "n_ctx",
    "--sequences": "n_sequences",
    "--cells": "n_cells",
    "--longest-step": "longest_step_seconds",
    "--kv-type": "kv_type",
    "--device": "device",
    "--layout": "layout",
    "--reproducible": "is_reproducible",
}
"""Option of ``lamella serve``, ``profile`` and ``simulate`` -> the field of the shape that it sets."""


def shape_of(settings: EngineSettings) -> EngineShape:
    """The settings of an engine that a profile holds for.

    A memory ceiling shows as the number of cells: that is what it changes of an engine's speed and size.
    """
    same = {field.name: getattr(settings, field.name) for field in fields(EngineShape)}
    return EngineShape(**{**same, "n_cells": settings.bounded_cells})


def shape_options(settings: EngineSettings) -> list[str]:
    """What makes ``lamella profile`` measure an engine of the same shape: the options that are not at their default."""
    shape, usual, found = shape_of(settings), shape_of(EngineSettings(store="")), []
    for option, name in OPTIONS.items():
        value = getattr(shape, name)
        if value != getattr(usual, name):
            found += [option] if value is True else [option, str(value)]
    for address in settings.rpc:
        found += ["--rpc", address]
    return found
