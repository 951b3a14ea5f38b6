"""Models that have variants to serve in the user's cache; ``preparing`` makes them.  Loads no llama.cpp, no numpy."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lamella.batching.settings import EngineSettings
from lamella.core.units import as_bytes
from lamella.resources.homes import HOST, HUB_PREFIX, Ready, Wanted, canonical, is_model, spoken_name, stores_in
from lamella.resources.homes import find_ready as find_noted

__all__ = ["HOST", "HUB_PREFIX", "Ready", "find_ready", "is_model", "spoken_name", "stores_in", "wanted_of"]


def find_ready(
    target: str, cache_folder: Path, memory: str | int | None = None, engine: EngineSettings | None = None
) -> Ready | None:
    """What is built for a model already; None where ``prepare`` has work to do.

    Args:
        memory, engine: as of ``prepare``.
    """
    return find_noted(cache_folder, wanted_of(target, memory, engine))


def wanted_of(target: str, memory: str | int | None, engine: EngineSettings | None) -> Wanted:
    """What ``prepare`` is asked for, in the words by which it is found again."""
    engine, n_bytes = engine or EngineSettings(store=""), as_bytes(memory) or 0
    return Wanted(
        target=canonical(target),
        memory_bytes=n_bytes,
        device=(engine.device or HOST).upper(),
        n_ctx=engine.n_ctx,
        n_sequences=engine.n_sequences,
        n_cells=under_ceiling(engine, n_bytes).bounded_cells,
        kv_type=engine.kv_type.upper(),
        is_reproducible=engine.is_reproducible,
    )


def under_ceiling(engine: EngineSettings, memory_bytes: int) -> EngineSettings:
    """The engine with a ceiling, which changes how many cells it opens; 0 for none."""
    return msgspec.structs.replace(engine, memory_bytes=memory_bytes)
