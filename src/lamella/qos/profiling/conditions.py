"""What a profile that is measured here holds for: this machine, and an engine of these settings."""

from __future__ import annotations

from lamella.batching.settings import EngineSettings
from lamella.core.cores import usable_cores
from lamella.llama import library
from lamella.qos.profiles.documents import EngineShape, Machine
from lamella.run.kernel_table import processor_name


def this_machine(n_threads: int) -> Machine:
    """What a profile measured here holds for; ``n_threads`` 0: the cores that this process may use."""
    return Machine(processor_name(), n_threads or usable_cores(), library.installed_version())


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
