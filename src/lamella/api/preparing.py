"""From the name of a model to variants that can be served, and nothing else said: fetched, measured, planned, built.

    ready = find_ready("smollm2", cache_folder) or prepare("smollm2", cache_folder)
    serve(EngineSettings(store=ready.store, variants=list(ready.variants)), ...)

Interrupted at any point it goes on from there: the Hub's client resumes downloads, finished probes are kept, and so are
finished shards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from lamella.api.frontiers import frontier, ladder
from lamella.api.measuring import measure_once
from lamella.api.models import devices, load
from lamella.api.plans import Budget, check_memory, plan
from lamella.api.remotes import pull_from_hub
from lamella.api.variants import build
from lamella.batching.settings import EngineSettings
from lamella.core.artifacts import Measurement, Plan
from lamella.core.errors import ModelError
from lamella.core.units import as_bytes
from lamella.llama.gguf import ModelFile
from lamella.measuring import MeasureSettings
from lamella.planning.first_ladder import WORST_LOSS, calibration_size, first_steps
from lamella.quantize.making import BuildProgress
from lamella.resources.homes import (
    HUB_PREFIX,
    Ready,
    canonical,
    fetched_folder,
    is_model,
    names_of,
    note_ready,
    store_name,
)
from lamella.store.sources import SourceFile

Update = Callable[[float, float, str], None]
"""Progress inside a stage: done, total, detail."""
Stage = Callable[[str], AbstractContextManager[Update]]
"""Begins a stage of that name."""

SERVED_CONTEXT = EngineSettings(store="").cells
"""Tokens of KV cache that the largest variant leaves memory for: those of ``lamella serve``'s defaults."""


def _quietly(_: str) -> AbstractContextManager[Update]:
    return contextlib.nullcontext(lambda _done, _total, _what: None)


def prepare(
    target: str,
    cache_folder: Path,
    *,
    memory: str | int | None = None,
    device: str | None = None,
    llama_cpp: Path | None = None,
    n_threads: int = 0,
    stage: Stage = _quietly,
) -> Ready:
    """Get a model ready to be served: fetch it, measure it, plan a few variants, build them.

    Which variants: see ``planning.first_ladder``.  At most as large as the model file, and as memory holds beside a
    KV cache of ``SERVED_CONTEXT`` tokens; four where there is room between that and the smallest.

    Args:
        target: ``smollm2``, the path of a GGUF file, or ``hf:OWNER/REPO[/FILE]``.
        memory: ceiling of a running variant with all it needs; None: what the device has free now.
        device: whose memory that is; None for the one with most.
        llama_cpp: checkout of llama.cpp, for repositories that have safetensors only.
        stage: told what begins, and gives who wants to know how far it is.

    Raises:
        DoesNotFit: not even the smallest plan fits; says what it needs.
        InvalidRequest, ModelError, RemoteFailed, StorageFailed: as the stages.
    """
    devices(device)  # an unknown one is said before anything is fetched
    with stage(f"looking for {target}") as update:
        source = load(_fetched(target, cache_folder, llama_cpp), cache_folder)
        files = tuple(SourceFile.of(path) for path in source.paths)
        update(1, 1, "")
    model, budget = str(source.paths[0]), Budget(as_bytes(memory), device)
    check_memory(model, budget.now(), context=_context(source))
    with stage(f"measuring {source.spec.identity.name}") as update:
        samples, tokens = calibration_size(source.spec.n_weights)
        settings = MeasureSettings(samples=samples, window_tokens=tokens, n_threads=n_threads)
        measured = measure_once(model, "sensitivity", cache_folder, settings=settings, on_progress=update)
    with stage("planning"):
        plans = _plans(source, measured, budget.now())
    names = names_of([p.bits_per_weight for p in plans], str(memory) if memory else None)
    home = store_name(source.spec.identity, source.paths[0])
    ready = Ready(canonical(target), as_bytes(memory) or 0, home, names, files)
    with stage(f"building {len(plans)} variants") as update:
        _build(model, ready.folder(cache_folder), plans, names, n_threads, update)
    note_ready(cache_folder, ready)
    return ready


def _fetched(target: str, cache_folder: Path, llama_cpp: Path | None) -> str:
    """The name or path of a model file that is on this machine."""
    if not is_model(target):
        raise ModelError(
            f"{target} is no model: name a GGUF file, 'smollm2' or hf:OWNER/REPO, or the folder of a store"
        )
    if not target.startswith(HUB_PREFIX):
        return target
    from lamella.remote.hub import HubSource

    repository = HubSource.parse(target).repository
    return str(pull_from_hub(target, fetched_folder(cache_folder, repository), llama_cpp=llama_cpp).path)


def _plans(source: ModelFile, measured: Measurement, budget_bytes: int) -> list[Plan]:
    model = str(source.paths[0])
    spec = source.spec
    largest = plan(model, "knapsack", memory=budget_bytes, context=_context(source), measurement=measured)
    least = frontier(model, measured, points=2).points[0].bits_per_weight
    useful = plan(model, "knapsack", kl=WORST_LOSS, measurement=measured).bits_per_weight
    steps = first_steps(spec.bits_per_weight, largest.bits_per_weight, least, useful)
    if steps.n_steps == 1 and steps.first_bits >= largest.bits_per_weight:
        return [largest]
    if steps.n_steps == 1:
        return [plan(model, "knapsack", bits_per_weight=steps.first_bits, measurement=measured)]
    found = ladder(model, measured, steps=steps.n_steps, first_bits=steps.first_bits, last_bits=steps.last_bits)
    return [step.plan for step in found.steps]


def _context(source: ModelFile) -> int:
    """Tokens of KV cache that memory is kept for."""
    return min(SERVED_CONTEXT, source.spec.context_length or SERVED_CONTEXT)


def _build(
    model: str, store: Path, plans: Sequence[Plan], names: Sequence[str], n_threads: int, update: Update
) -> None:
    for number, (made, name) in enumerate(zip(plans, names, strict=True)):

        def show(at: BuildProgress, number: int = number, name: str = name) -> None:
            share = at.weights_done / max(1, at.weights_total)
            update(number + share, len(plans), f"{name}: {at.label}")

        build(model, store, made, name, replace=True, n_threads=n_threads or None, on_progress=show)
