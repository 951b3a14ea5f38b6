"""A model loaded at a variant of a store, ready to change to the others.

    loaded = load(store, "large", layouts, lambda model: ContextOptions(n_ctx=2048), n_warm=2, check=False)
    loaded.context.decode([1, 2, 3], 0)

Whatever fails on the way, nothing of it stays open.  While this runs, the variant's shards stay in the store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lamella.core.closing import Closing
from lamella.core.errors import InvalidRequest
from lamella.core.model import TensorSpec
from lamella.llama import gguf
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import LayerRange, Model
from lamella.run.ceiling import Ceiling
from lamella.run.layouts import Layout
from lamella.run.prepared import Closable
from lamella.run.variants import DeviceOf, LiveVariants
from lamella.store.store import Store

C = TypeVar("C", bound=Closable)


@dataclass(frozen=True)
class Loaded(Closing):
    """What computes.  Owns all of it."""

    model: Model
    context: Context
    live: LiveVariants

    def close(self) -> None:
        """Free everything; later calls do nothing."""
        self.context.close()
        self.model.close()
        self.live.close()


@dataclass(frozen=True, slots=True)
class Loading:
    """A model that has just been loaded, while more is opened for it.

    Attributes:
        tensors: of the model, by name.
    """

    model: Model
    tensors: Mapping[str, TensorSpec]
    _on_failure: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def own(self, opened: C) -> C:
        """Have something closed if the block fails."""
        self._on_failure.callback(opened.close)
        return opened


def load(
    store: Store,
    variant: str,
    layouts: Mapping[str, Layout],
    context_for: Callable[[Model], ContextOptions],
    *,
    n_warm: int,
    check: bool,
    ceiling: Ceiling | None = None,
    device: str | None = None,
    layers: Sequence[LayerRange] = (),
) -> Loaded:
    """Load the model at a variant, which runs then.

    Args:
        layouts: by ggml type name; none where anything else than the CPU computes.
        context_for: says how large a context the model gets.
        n_warm, ceiling: as of ``LiveVariants``.
        check: verify the hashes of a variant's shards before they are used.
        device, layers: as of ``Model.load``.

    Raises:
        UnknownVariant: no such variant.
        InvalidRequest: ``layers`` are not as many as the model has.
        ShardDamaged: a shard is missing and cannot be got back, or with ``check`` does not match its name.
        EngineFailed: llama.cpp cannot load it.
        ExceedsCeiling: it does not fit.
    """
    with loading(store, variant, check=check, device=device, layers=layers) as opened:
        context = opened.own(Context(opened.model, context_for(opened.model)))
        is_on_cpu = device is None and not layers
        live = opened.own(
            LiveVariants(
                store,
                opened.model,
                opened.tensors,
                layouts,
                n_warm=n_warm,
                check=check,
                ceiling=ceiling,
                device_of=None if is_on_cpu else _device_of(device, layers),
                on_moved=context.rebuild_graph,
            )
        )
        live.change_to(variant)
    return Loaded(opened.model, context, live)


@contextlib.contextmanager
def loading(
    store: Store, variant: str, *, check: bool, device: str | None = None, layers: Sequence[LayerRange] = ()
) -> Iterator[Loading]:
    """The model, loaded from a variant's shards; if the block fails it is closed, and so is what it ``own``s.

    Args and errors as of ``load``.
    """
    with store.lease(reading=True) as lease, contextlib.ExitStack() as on_failure:
        chosen = lease.hold(variant)
        paths = store.ready_paths(chosen)
        if check:
            store.check(chosen)
        tensors = gguf.read_specs(paths)
        if layers:
            _check_covers(layers, tensors)
        model = Model.load(paths, device=device, layers=layers)
        on_failure.callback(model.close)
        yield Loading(model, tensors, on_failure)
        on_failure.pop_all()


def _check_covers(layers: Sequence[LayerRange], tensors: Mapping[str, TensorSpec]) -> None:
    n_layers = 1 + max(t.layer for t in tensors.values() if t.layer is not None)
    if layers[-1].end != n_layers:
        raise InvalidRequest(f"the model has {n_layers} layers, and {layers[-1].end} have a place")


def _device_of(device: str | None, layers: Sequence[LayerRange]) -> DeviceOf:
    """The device of each layer; of several, none has what stands outside of layers."""
    if not layers:
        return lambda _layer: device
    return lambda layer: next((r.device for r in layers if layer is not None and r.first <= layer < r.end), None)
