"""Which context an engine opens for its settings: slots, and the cells of the KV cache that they have or share.

    options = cells_by_room(context_options(settings), settings, model, device=None)

What is planned for a server (``api.room``) asks here, too, so that both mean the same memory.
"""

from __future__ import annotations

import dataclasses

from lamella.batching.running import SCORED_AT_ONCE
from lamella.batching.settings import EngineSettings
from lamella.core.precision import GGML_TYPES
from lamella.llama import devices, reproducible
from lamella.llama.context import ContextOptions
from lamella.llama.model import Model
from lamella.resources.machine import cpu_memory

OWN_CELLS_SHARE = 1 / 8
"""Most of the available memory that KV cells may take so that each sequence has its own: faster, and not scarce."""
KEPT_PREFIXES = 8
"""Slots beyond those of running requests, for beginnings that may be used again, where slots share their cells."""


def context_options(settings: EngineSettings) -> ContextOptions:
    """As far as it is known without the model; with ``cells_by_room`` what is opened."""
    options = ContextOptions(
        n_ctx=settings.n_ctx,
        n_sequences=settings.n_sequences + KEPT_PREFIXES,
        n_cells=settings.cells,
        n_batch=settings.n_batch,
        n_outputs=settings.n_sequences + SCORED_AT_ONCE,
        kv_type=settings.kv_type,
        n_threads=settings.n_threads,
    )
    if not settings.is_reproducible:
        return options
    return dataclasses.replace(_with_own_cells(options, settings), value_type=reproducible.value_type(settings.kv_type))


def cells_by_room(
    options: ContextOptions, settings: EngineSettings, model: Model, device: str | None
) -> ContextOptions:
    """Cells of its own for each sequence, where nobody has said how many there are and memory is plenty."""
    if not options.has_shared_cells or settings.n_cells or settings.memory_bytes or settings.layers:
        return options
    free = devices.find(device).free_bytes if device else cpu_memory().available_bytes
    return own_cells_where_there_is_room(options, settings, model.kv_bytes_per_token, free)


def own_cells_where_there_is_room(
    options: ContextOptions, settings: EngineSettings, bytes_per_token: float, available_bytes: int
) -> ContextOptions:
    """Give each sequence ``n_ctx`` cells of its own, if that takes a small part of the memory that is available.

    Args:
        options: with shared cells; returned where there is too little memory.
        bytes_per_token: of an F16 cache.
        available_bytes: of the device that holds the cache.
    """
    needed = cache_bytes(settings.n_ctx * settings.n_sequences, bytes_per_token, settings.kv_type)
    if needed > OWN_CELLS_SHARE * available_bytes:
        return options
    return _with_own_cells(options, settings)


def cache_bytes(n_tokens: int, bytes_per_token: float, kv_type: str) -> float:
    """Of so many tokens in a KV cache of a type; ``bytes_per_token`` is of an F16 one."""
    scale = GGML_TYPES[kv_type.upper()].bits_per_weight / GGML_TYPES["F16"].bits_per_weight
    return n_tokens * bytes_per_token * scale


def _with_own_cells(options: ContextOptions, settings: EngineSettings) -> ContextOptions:
    return dataclasses.replace(options, n_sequences=settings.n_sequences, n_cells=0, has_shared_cells=False)
