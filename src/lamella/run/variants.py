"""The variants of a running model: which one computes, which ones are warm, and the change from one to another.

    live = LiveVariants(store, model, tensors, layouts, n_warm=2, check=False)
    live.switch_to(live.prepare("small").result())      # between two decodes

A switch points every weight whose state differs at the other variant's memory.  Nothing is copied and the KV cache is
not touched; after it, logits equal those of a freshly loaded variant bit for bit, for equal layouts.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from lamella.core.artifacts import Variant
from lamella.core.errors import EngineFailed, StoreError
from lamella.core.model import TensorSpec
from lamella.llama.model import Model
from lamella.llama.weights import WeightState, locate_weights, read_state, release_pages, write_state
from lamella.run.layouts import Layout
from lamella.run.shards import ShardPool
from lamella.store.leases import Lease
from lamella.store.store import Store
from lamella.store.variants import Version


@dataclass(frozen=True, slots=True)
class PreparedVariant:
    """A variant whose shards are in memory, ready to be switched to.

    Attributes:
        variant: the variant.
        version: of the variant's document when it was prepared; it may have been replaced since.
        prompt, token: where each weight points in the two phases of a generation.
        lease: keeps its shards in the store as long as they are open here.
        seconds: what preparing took: opening, reading pages in, repacking.
    """

    variant: Variant
    version: Version
    prompt: Mapping[str, WeightState]
    token: Mapping[str, WeightState]
    lease: Lease
    seconds: float


@dataclass(frozen=True, slots=True)
class SwitchReport:
    """What a switch did and cost.

    Attributes:
        before, after: names of the variants; ``before`` is empty for the first one.
        n_weights: tensors that were pointed elsewhere.
        n_shards: shards that the two variants do not share.
        switch_seconds: from the first pointer to the last.
        prepare_seconds: what preparing took; 0 if the variant was warm.
        mapped_bytes: size of all shards that are mapped now (page cache, shared between processes).
        repacked_bytes: private memory of repacked copies.
    """

    before: str
    after: str
    n_weights: int
    n_shards: int
    switch_seconds: float
    prepare_seconds: float
    mapped_bytes: int
    repacked_bytes: int


class LiveVariants:
    """Owns the open shards of a running model and decides where its weights point.

    ``prepare`` may be called at any time; ``switch_to`` and ``use`` only between two decodes.
    """

    def __init__(
        self,
        store: Store,
        model: Model,
        tensors: Mapping[str, TensorSpec],
        layouts: Mapping[str, Layout],
        *,
        n_warm: int,
        check: bool,
    ) -> None:
        """Find the weights of a loaded model.

        Args:
            tensors: the model's tensors by name.
            layouts: by ggml type name.
            n_warm: variants whose shards stay open, the running one included; least recently used go first.
            check: verify the hashes of a variant's shards when it is prepared.
        """
        self._store, self._tensors, self._n_warm, self._check = store, tensors, n_warm, check
        self._weights = locate_weights(model)
        self._pool = ShardPool(layouts, frozenset(n for n, w in self._weights.items() if w.is_only_multiplied))
        self._lock = threading.Lock()  # of _warm and _pending; the pool is the background thread's while one is pending
        self._now = {n: read_state(w.addresses[0]) for n, w in self._weights.items()}
        self._as_loaded = dict(self._now)
        self._pointed: Mapping[str, WeightState] = self._now
        self._warm: OrderedDict[str, PreparedVariant] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._pending: dict[str, Future[PreparedVariant]] = {}
        self._background = ThreadPoolExecutor(1, "lamella-prepare")
        self._is_closed = False
        self.current: PreparedVariant | None = None

    @property
    def repacked_bytes(self) -> int:
        """Private memory of repacked weights; everything else is shared page cache."""
        return self._pool.repacked_bytes

    def prepare(self, name: str) -> Future[PreparedVariant]:
        """Get a variant into memory in the background; one that was replaced in the store is got anew.

        Raises:
            UnknownVariant: at once.  What else fails is raised by the future; asking again tries again.
            EngineFailed: ``close`` was called.
        """
        version = self._store.version(name)
        with self._lock:
            if self._is_closed:
                raise EngineFailed("the engine was closed")
            self._forget_failures()
            warm = self._warm.get(name)
            if warm is not None and warm.version == version:
                done: Future[PreparedVariant] = Future()
                done.set_result(warm)
                return done
            pending = self._pending.get(name)
            if pending is not None and pending.done() and pending.result().version != version:
                self._pending.pop(name).result().lease.close()
            if name not in self._pending:
                self._pending[name] = self._background.submit(self._prepare, name)
            return self._pending[name]

    def is_ready(self, prepared: PreparedVariant) -> bool:
        """Whether its shards are still open: a switch in another thread may have pushed it out."""
        with self._lock:
            name = prepared.variant.name
            pending = self._pending.get(name)
            is_pending = (
                pending is not None and pending.done() and not pending.cancelled() and pending.result() is prepared
            )
            return is_pending or self._warm.get(name) is prepared

    def _prepare(self, name: str) -> PreparedVariant:
        start = time.perf_counter()
        prompt: dict[str, WeightState] = {}
        token: dict[str, WeightState] = {}
        with contextlib.ExitStack() as on_failure:
            lease = on_failure.enter_context(self._store.lease(reading=True))
            version = self._store.version(name)  # first: if it is replaced now, the next look finds another one
            variant = lease.hold(name)
            paths = self._store.ready_paths(variant, should_stop=lambda: self._is_closed)
            if self._check:
                self._store.check(variant)
            for shard, path in zip(variant.shards, paths, strict=True):
                states = self._pool.open(shard.id, path, self._tensors)
                prompt.update(states.prompt)
                token.update(states.token)
            missing = [n for n in self._weights if n not in token]
            if missing:
                raise StoreError(f"variant {variant.name} has no {', '.join(missing[:3])}: it is of another model")
            lease.settle()
            on_failure.pop_all()
        return PreparedVariant(variant, version, prompt, token, lease, time.perf_counter() - start)

    def switch_to(self, prepared: PreparedVariant) -> SwitchReport:
        """Run at this variant from the next decode on."""
        before, name = self.current, prepared.variant.name
        was_warm = self._warm.get(name) is prepared
        start = time.perf_counter()
        n_weights = self.use(prepared.token)
        seconds = time.perf_counter() - start
        self.current = prepared
        self._remember(prepared)
        if before is None:
            self._release_loader_pages()
        old = {s.id for s in before.variant.shards} if before else set()
        return SwitchReport(
            before=before.variant.name if before else "",
            after=name,
            n_weights=n_weights,
            n_shards=sum(s.id not in old for s in prepared.variant.shards),
            switch_seconds=seconds,
            prepare_seconds=0.0 if was_warm else prepared.seconds,
            mapped_bytes=self._pool.mapped_bytes,
            repacked_bytes=self._pool.repacked_bytes,
        )

    @property
    def warm(self) -> tuple[str, ...]:
        """Names of the variants that can be switched to at once."""
        with self._lock:
            done = (n for n, f in self._pending.items() if f.done() and not f.cancelled() and not f.exception())
            return (*self._warm, *done)

    @property
    def mapped_bytes(self) -> int:
        """Size of all shards that are mapped now."""
        return self._pool.mapped_bytes

    def hold(self, prepared: PreparedVariant) -> None:
        """Keep a variant open, beyond ``n_warm`` if need be, until it is released as often as it was held."""
        self._held[prepared.variant.name] += 1
        self._remember(prepared)

    def release(self, name: str) -> None:
        """Undo one ``hold``."""
        self._held[name] -= 1
        if self._held[name] <= 0:
            del self._held[name]
            self._close_what_is_too_much()

    def use(self, states: Mapping[str, WeightState]) -> int:
        """Point every weight that is elsewhere at ``states``; returns how many."""
        if states is self._pointed:
            return 0
        moved = 0
        self._pointed = {}  # an interrupt in the middle leaves no state that passes for complete
        for name, weight in self._weights.items():
            state = states[name]
            if state != self._now.get(name):
                self._now.pop(name, None)
                for address in weight.addresses:
                    write_state(address, state)
                self._now[name] = state
                moved += 1
        self._pointed = states
        return moved

    def _remember(self, prepared: PreparedVariant) -> None:
        with self._lock:
            name = prepared.variant.name
            self._let_go_of_others(name, prepared)
            self._warm[name] = prepared
            self._warm.move_to_end(name)
        self._close_what_is_too_much()

    def _close_what_is_too_much(self) -> None:
        """Close the shards of variants that are neither running, nor held, nor among the ``n_warm`` last used."""
        with self._lock:
            self._forget_failures()
            running = self.current.variant.name if self.current else None
            spare = [n for n in self._warm if n != running and n not in self._held]
            for name in spare[: max(0, len(self._warm) - self._n_warm)]:
                self._warm.pop(name).lease.close()
            self._drop_old_preparations()
            if all(f.done() for f in self._pending.values()):  # else the background thread is opening shards
                ready = [*self._warm.values(), *(f.result() for f in self._pending.values())]
                self._pool.keep_only(s.id for p in ready for s in p.variant.shards)

    def _let_go_of_others(self, name: str, prepared: PreparedVariant) -> None:
        """What else is open under this name: the variant before or after it was replaced in the store."""
        pending = self._pending.get(name)
        others = [self._warm.pop(name, None)]
        if pending is not None and pending.done():
            others.append(self._pending.pop(name).result())
        for other in others:
            if other is not None and other is not prepared:
                other.lease.close()

    def _drop_old_preparations(self) -> None:
        """Of variants that were prepared and never switched to, the newest stays ready."""
        done = [n for n, f in self._pending.items() if f.done()]
        for name in done[:-1]:
            self._pending.pop(name).result().lease.close()

    def _forget_failures(self) -> None:
        for name in [n for n, f in self._pending.items() if f.done() and (f.cancelled() or f.exception())]:
            del self._pending[name]

    def _release_loader_pages(self) -> None:
        """llama.cpp mapped the first variant to load it; the weights now point into mappings of our own."""
        release_pages(
            (state, self._tensors[name].n_bytes) for name, state in self._as_loaded.items() if name in self._tensors
        )

    def close(self) -> None:
        """Close all shards.  The model must not decode any more."""
        with self._lock:
            self._is_closed = True
        self._background.shutdown(wait=True, cancel_futures=True)
        self._pool.close()
        with self._lock:
            self._forget_failures()
            for prepared in (*self._warm.values(), *(f.result() for f in self._pending.values())):
                prepared.lease.close()
