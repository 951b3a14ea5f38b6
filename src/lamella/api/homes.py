"""Models that have variants to serve in the user's cache; ``preparing`` makes them.  Loads no llama.cpp, no numpy."""

from __future__ import annotations

from pathlib import Path

from lamella.core.units import as_bytes
from lamella.resources.homes import HUB_PREFIX, Ready, canonical, is_model, spoken_name, stores_in
from lamella.resources.homes import find_ready as find_noted

__all__ = ["HUB_PREFIX", "Ready", "find_ready", "is_model", "spoken_name", "stores_in"]


def find_ready(target: str, cache_folder: Path, memory: str | int | None = None) -> Ready | None:
    """What is built for a model already; None where ``prepare`` has work to do."""
    return find_noted(cache_folder, canonical(target), as_bytes(memory) or 0)
