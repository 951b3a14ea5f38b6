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
from lamella.api.homes import under_ceiling, wanted_of
from lamella.api.measuring import measure_once
from lamella.api.models import devices, load
from lamella.api.plans import plan
from lamella.api.remotes import pull_from_hub
from lamella.api.room import Room
from lamella.api.variants import build
from lamella.batching.settings import EngineSettings
from lamella.core.artifacts import Measurement, Plan
from lamella.core.errors import ModelError
from lamella.core.units import as_bytes, format_bytes
from lamella.llama.devices import besides_cpu
from lamella.llama.gguf import ModelFile
from lamella.measuring import MeasureSettings
from lamella.planning.first_ladder import WIDEST_BITS, WORST_LOSS, calibration_size, first_steps
from lamella.quantize.making import BuildProgress
from lamella.resources.devices import DeviceMemory
from lamella.resources.homes import (
    HOST,
    HUB_PREFIX,
    STORES,
    Ready,
    fetched_folder,
    is_model,
    names_of,
    note_ready,
    store_name,
)
from lamella.store.sources import SourceFile
from lamella.store.store import Store

Update = Callable[[float, float, str], None]
"""Progress inside a stage: done, total, detail."""
Stage = Callable[[str], AbstractContextManager[Update]]
"""Begins a stage of that name."""

Remark = Callable[[str], None]
"""Told a sentence for the user."""

VISIBLE_BITS = 0.01
"""Of a weight.  A plan that is so much smaller than it could be is smaller for want of memory, not by rounding."""


def _quietly(_: str) -> AbstractContextManager[Update]:
    return contextlib.nullcontext(lambda _done, _total, _what: None)


def _unsaid(_: str) -> None:
    """Default for remarks."""


def prepare(
    target: str,
    cache_folder: Path,
    *,
    memory: str | int | None = None,
    engine: EngineSettings | None = None,
    llama_cpp: Path | None = None,
    n_threads: int = 0,
    stage: Stage = _quietly,
    remark: Remark = _unsaid,
) -> Ready:
    """Get a model ready to be served: fetch it, measure it, plan a few variants, build them.

    Which variants: see ``planning.first_ladder``.  At most as large as the model file, and as memory holds beside what
    the engine opens; four where there is room between that and the smallest.

    Args:
        target: ``smollm2``, the path of a GGUF file, or ``hf:OWNER/REPO[/FILE]``.
        memory: ceiling of a running variant with all it needs, whatever is free at the moment; None: what the device
            has free now.
        engine: that will serve it: its context, sequences, cells, KV type and device count; None for the usual one.
        llama_cpp: checkout of llama.cpp, for repositories that have safetensors only.
        stage: told what begins, and gives who wants to know how far it is.
        remark: told what memory was planned for, where that is not plainly what was said.

    Raises:
        DoesNotFit: not even the smallest plan fits; says what it needs.
        InvalidRequest, ModelError, RemoteFailed, StorageFailed: as the stages.
    """
    engine, said_bytes = engine or EngineSettings(store=""), as_bytes(memory) or 0
    engine.check_possible()
    device = devices(engine.device or HOST)[1]  # an unknown one is said before anything is fetched
    with stage(f"looking for {target}") as update:
        source = load(_fetched(target, cache_folder, llama_cpp), cache_folder)
        files = tuple(SourceFile.of(path) for path in source.paths)
        update(1, 1, "")
    served = engine if besides_cpu(engine.device) else under_ceiling(engine, said_bytes)  # no ceiling on devices
    room = Room.of(source, served, min(said_bytes, device.total_bytes) or device.free_bytes)
    if said_bytes:
        _speak_of_ceiling(said_bytes, device, remark)
    room.check(source)
    with stage(f"measuring {source.spec.identity.name}") as update:
        samples, tokens = calibration_size(source.spec.n_weights)
        settings = MeasureSettings(samples=samples, window_tokens=tokens, n_threads=n_threads)
        measured = measure_once(
            str(source.paths[0]), "sensitivity", cache_folder, settings=settings, on_progress=update
        )
    with stage("planning"):
        plans, is_bound = _plans(source, measured, room)
    if is_bound and not said_bytes:
        remark(
            f"planned for the {format_bytes(room.budget_bytes)} that {device.name} has free now; when it has more, "
            "lamella prepare --again makes larger variants"
        )
    home = store_name(source.spec.identity, source.paths[0])
    names = _names(cache_folder / STORES / home, plans, str(memory) if memory else None)
    wanted = wanted_of(target, memory, engine)
    ready = Ready(wanted, room.budget_bytes, is_bound, home, names, files)
    with stage(f"building {len(plans)} variants") as update:
        _build(str(source.paths[0]), ready.folder(cache_folder), plans, names, n_threads, update)
    note_ready(cache_folder, ready)
    return ready


def _speak_of_ceiling(said_bytes: int, device: DeviceMemory, remark: Remark) -> None:
    """Where a ceiling that was said is not the memory that there is."""
    if said_bytes > device.total_bytes:
        remark(f"{device.name} has {format_bytes(device.total_bytes)} in all: planned for that")
    elif said_bytes > device.free_bytes:
        remark(
            f"planned for {format_bytes(said_bytes)} as was said, though {device.name} has only "
            f"{format_bytes(device.free_bytes)} free now: end other programs before it is served"
        )


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


def _plans(source: ModelFile, measured: Measurement, room: Room) -> tuple[list[Plan], bool]:
    """The plans, largest first, and whether more memory would have given a larger one."""
    model = str(source.paths[0])
    spec = source.spec
    largest = room.largest(model, measured)
    ends = [point.bits_per_weight for point in frontier(model, measured, points=2).points]
    least, most = ends[0], ends[-1]
    is_bound = largest.bits_per_weight < min(spec.bits_per_weight, most, WIDEST_BITS) - VISIBLE_BITS
    useful = plan(model, "knapsack", kl=WORST_LOSS, measurement=measured).bits_per_weight
    steps = first_steps(spec.bits_per_weight, largest.bits_per_weight, least, useful)
    if steps.n_steps == 1 and steps.first_bits >= largest.bits_per_weight:
        return [largest], is_bound
    if steps.n_steps == 1:
        return [plan(model, "knapsack", bits_per_weight=steps.first_bits, measurement=measured)], is_bound
    found = ladder(model, measured, steps=steps.n_steps, first_bits=steps.first_bits, last_bits=steps.last_bits)
    return [step.plan for step in found.steps], is_bound


def _names(store: Path, plans: Sequence[Plan], memory: str | None) -> tuple[str, ...]:
    """Names that no other plan's variant in the store has: what was made for other settings stays as it is."""
    built: dict[str, Plan] = {}
    if (store / "store.json").exists():
        built = {variant.name: variant.plan for variant in Store.open(store).readable_variants()[0]}

    def is_taken(number: int, name: str) -> bool:
        return name in built and dict(built[name].tensors) != dict(plans[number].tensors)

    return names_of([p.bits_per_weight for p in plans], memory, is_taken)


def _build(
    model: str, store: Path, plans: Sequence[Plan], names: Sequence[str], n_threads: int, update: Update
) -> None:
    for number, (made, name) in enumerate(zip(plans, names, strict=True)):

        def show(at: BuildProgress, number: int = number, name: str = name) -> None:
            share = at.weights_done / max(1, at.weights_total)
            update(number + share, len(plans), f"{name}: {at.label}")

        build(model, store, made, name, replace=True, n_threads=n_threads or None, on_progress=show)
