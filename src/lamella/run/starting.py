"""Which variant an engine starts at, how its weights are read, and what its memory ceiling leaves for them.

    start = plan_start(store, variants, None, ContextOptions(), (fastest, MAPPED), memory_bytes=600 * MIB)
    start.variant, start.layouts, start.ceiling

What the engine takes besides weights is known before anything is loaded: llama.cpp plans the context in a dry run,
which reads the tokenizer too, and the process measures itself after it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamella.core.artifacts import Variant
from lamella.core.errors import ExceedsCeiling
from lamella.core.model import TensorSpec
from lamella.core.precision import GGML_TYPES
from lamella.core.units import MIB, format_bytes
from lamella.llama import gguf
from lamella.llama.context import ContextOptions
from lamella.llama.memory import ContextMemory, context_memory
from lamella.run.ceiling import Ceiling
from lamella.run.layouts import Layout
from lamella.run.process_memory import private_bytes
from lamella.store.store import Store

GROWTH_BYTES = 16 * MIB
"""Private memory that comes with the first requests: graphs, threads' work buffers, Python's own."""
CANDIDATE_BYTES = 12
"""llama.cpp's samplers keep a ``llama_token_data`` for each token of the vocabulary, each request its own."""
CELL_STEP = 256
"""llama.cpp rounds the KV cells up to a multiple of this."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where an engine starts: the variant's name, layouts by ggml type name, and its ceiling, or None for none."""

    variant: str
    layouts: Mapping[str, Layout]
    ceiling: Ceiling | None = None


@dataclass(frozen=True, slots=True)
class _Needs:
    """What an engine takes besides weights, and the shapes of those."""

    context: ContextMemory
    process_bytes: int
    cells: int
    tensors: Mapping[str, TensorSpec]

    @property
    def n_bytes(self) -> int:
        return self.context.total_bytes + self.process_bytes

    def cells_within(self, n_bytes: int) -> int:
        """KV cells that so much memory holds beside the rest, whole steps of them."""
        left = n_bytes - (self.n_bytes - self.context.kv_bytes)
        return max(0, int(left / max(1.0, self.context.kv_bytes / self.cells)) // CELL_STEP * CELL_STEP)


def plan_start(
    store: Store,
    variants: Sequence[Variant],
    named: str | None,
    options: ContextOptions,
    choices: Sequence[Mapping[str, Layout]],
    memory_bytes: int,
) -> Start:
    """The variant that was named, else the largest that fits.

    Args:
        variants: those that may run, the largest first; at least one.
        choices: layouts by ggml type name, the best first, of which the first that leaves room is taken; at least one.
        memory_bytes: ceiling of the process's memory; 0 for none.

    Raises:
        UnknownVariant: ``named`` is not among those of the store.
        ExceedsCeiling: it, or every variant, needs more; says what would fit.
        ShardDamaged, EngineFailed: the model cannot be loaded.
    """
    wanted = [store.variant(named)] if named else list(variants)
    if not memory_bytes:
        return Start(wanted[0].name, choices[0])
    needs = _measure(store, _likely(wanted, memory_bytes), options)

    def fits(variant: Variant, layouts: Mapping[str, Layout]) -> bool:
        return needs.n_bytes + weights_bytes(variant, needs.tensors, layouts) <= memory_bytes

    for variant, layouts in itertools.product(wanted, choices):
        if fits(variant, layouts):
            return Start(variant.name, layouts, Ceiling(memory_bytes, needs.n_bytes))
    least = choices[-1]
    others = [v.name for v in variants if fits(v, least)]
    smallest = wanted[-1]
    what = f"variant '{smallest.name}'" if named else f"the smallest variant, '{smallest.name}',"
    raise _refusal(what, weights_bytes(smallest, needs.tensors, least), needs, memory_bytes, others)


def weights_bytes(variant: Variant, tensors: Mapping[str, TensorSpec], layouts: Mapping[str, Layout]) -> int:
    """The most that a variant's weights take, mapped and repacked, while it is opened.

    Args:
        tensors: the model's, by name, for their shapes.
    """
    sizes = {n: (tensors[n].bytes_as(GGML_TYPES[t]), layouts.get(t, Layout())) for n, t in variant.plan.tensors.items()}
    beside = sum(size for size, layout in sizes.values() if layout.repack and not layout.is_copy_only)
    is_copied = any(layout.repack for _, layout in sizes.values())
    return variant.n_bytes + beside + (max(s.n_bytes for s in variant.shards) if is_copied else 0)


def _likely(variants: Sequence[Variant], memory_bytes: int) -> Variant:
    """The largest that may fit: what llama.cpp is asked about, so that shards of others are not fetched for nothing."""
    room = memory_bytes - private_bytes()
    return next((v for v in variants if v.n_bytes <= room), variants[-1])


def _measure(store: Store, variant: Variant, options: ContextOptions) -> _Needs:
    with store.lease(reading=True) as lease:
        paths = store.ready_paths(lease.hold(variant.name))
        context = context_memory(paths, options)
        tensors = gguf.read_specs(paths)
    vocabulary = tensors["token_embd.weight"].n_rows
    growth = GROWTH_BYTES + options.n_sequences * vocabulary * CANDIDATE_BYTES
    cells = math.ceil(options.cells / CELL_STEP) * CELL_STEP
    return _Needs(context, private_bytes() + growth, cells, tensors)


def _refusal(what: str, weights: int, needs: _Needs, memory_bytes: int, others: Sequence[str]) -> ExceedsCeiling:
    needed = needs.n_bytes + weights
    return ExceedsCeiling(
        f"{what} needs {format_bytes(needed)}, the memory ceiling is {format_bytes(memory_bytes)}: "
        f"{format_bytes(weights)} are for weights, {format_bytes(needs.context.kv_bytes)} for a KV cache of "
        f"{needs.cells} tokens, {format_bytes(needs.context.compute_bytes + needs.context.output_bytes)} for buffers, "
        f"{format_bytes(needs.process_bytes)} for the process; {_advice(weights, needs, memory_bytes, others)}",
        needed_bytes=needed,
        ceiling_bytes=memory_bytes,
    )


def _advice(weights: int, needs: _Needs, memory_bytes: int, others: Sequence[str]) -> str:
    cells = needs.cells_within(memory_bytes - weights)
    fitting = [f"{', '.join(others)} would fit"] if others else []
    if cells:
        fitting.append(f"{cells} tokens of KV cache would fit (--cells {cells}, --context not above it)")
    least = needs.n_bytes - needs.context.kv_bytes + CELL_STEP * needs.context.kv_bytes // needs.cells
    if not fitting and memory_bytes > least:
        fitting.append(f"a variant of at most {format_bytes(memory_bytes - least)} would fit with {CELL_STEP} tokens")
    return "; ".join(fitting) or f"no variant fits, since {format_bytes(least)} go without any weight; give more memory"
