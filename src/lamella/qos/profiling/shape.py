"""The shape of an engine, which a profile holds for: from its settings, and as options of the command line."""

from __future__ import annotations

from lamella.batching.settings import EngineSettings
from lamella.qos.profiles.documents import EngineShape


def shape_of(settings: EngineSettings) -> EngineShape:
    """The settings of an engine that a profile holds for."""
    return EngineShape(
        n_sequences=settings.n_sequences,
        n_batch=settings.n_batch,
        n_ctx=settings.n_ctx,
        kv_type=settings.kv_type,
        layout=settings.layout,
        longest_step_seconds=settings.longest_step_seconds,
        n_cells=settings.bounded_cells,
        device=settings.device,
        is_reproducible=settings.is_reproducible,
    )


def shape_options(settings: EngineSettings) -> list[str]:
    """The options that make ``lamella profile`` measure an engine of the same shape, where they are not the defaults.

    A memory ceiling shows as the number of cells: that is what it changes of an engine's speed and size.
    """
    usual, found = EngineSettings(store=""), []
    for option, value, default in (
        ("--context", settings.n_ctx, usual.n_ctx),
        ("--sequences", settings.n_sequences, usual.n_sequences),
        ("--cells", settings.bounded_cells, usual.n_cells),
        ("--longest-step", settings.longest_step_seconds, usual.longest_step_seconds),
        ("--kv-type", settings.kv_type, usual.kv_type),
        ("--device", settings.device, usual.device),
        ("--layout", settings.layout, usual.layout),
    ):
        if value != default:
            found += [option, str(value)]
    for address in settings.rpc:
        found += ["--rpc", address]
    return [*found, "--reproducible"] if settings.is_reproducible else found
