"""Getting variants into memory in the background, while the model runs at another one.

    future = preparations.prepare("small")      # a PreparedVariant, or a StagedVariant where there is no room for it

Only shards that are not open yet are read.  Beside steps that somebody waits for it is done in small pieces with rests.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lamella.core.artifacts import Variant
from lamella.core.errors import EngineFailed, StoreError
from lamella.core.giving_way import Rests, give_way
from lamella.llama.weights import WeightState
from lamella.run.prepared import PreparedVariant, Ready, StagedVariant
from lamella.run.weight_memory import WeightMemory
from lamella.store.store import Store


class Preparations:
    """Prepares the variants of a store for one running model, one after the other in a thread of its own."""

    def __init__(
        self,
        store: Store,
        memory: WeightMemory,
        weights: frozenset[str],
        *,
        check: bool,
        is_computing: Callable[[], bool],
    ) -> None:
        """Start the thread.

        Args:
            weights: names of all that a variant must have.
            check: verify the hashes of a variant's shards.
            is_computing: whether steps run that somebody waits for.
        """
        self._store, self._memory, self._weights, self._check = store, memory, weights, check
        self._is_computing = is_computing
        self._background = ThreadPoolExecutor(1, "lamella-prepare", give_way)

    def prepare(self, name: str) -> Future[Ready]:
        """As ``LiveVariants.prepare``."""
        version = self._store.version(name)
        opened = self._memory.open
        with self._memory.lock:
            if self._memory.is_closing:
                raise EngineFailed("the engine was closed")
            opened.forget_failures()
            warm = opened.warm.get(name)
            if warm is not None and warm.version == version:
                done: Future[Ready] = Future()
                done.set_result(warm)
                return done
            pending = opened.pending.get(name)
            if pending is not None and pending.done():
                ready = pending.result()
                if ready.version != version or isinstance(ready, StagedVariant):  # there may be room for it now
                    opened.let_go(name)
            if name not in opened.pending:
                opened.pending[name] = self._background.submit(self._prepare, name)
            return opened.pending[name]

    def close(self) -> None:
        """Wait for what is being prepared; what waits for its turn is cancelled."""
        self._background.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, name: str) -> Ready:
        start = time.perf_counter()
        with contextlib.ExitStack() as on_failure:
            lease = on_failure.enter_context(self._store.lease(reading=True))
            version = self._store.version(name)  # first: if it is replaced now, the next look finds another one
            variant = lease.hold(name)
            paths = self._store.ready_paths(variant, should_stop=lambda: self._memory.is_closing)
            if self._check:
                self._store.check(variant)
            with self._memory.opening:
                self._check_model(variant, paths)
                if self._memory.is_closing:
                    raise EngineFailed("the engine was closed")
                states = self._open(variant, paths) if self._memory.make_room(variant, paths) else None
            lease.settle()
            on_failure.pop_all()
        seconds = time.perf_counter() - start
        if states is None:
            return StagedVariant(variant, version, paths, lease, seconds)
        prompt, token = states
        return PreparedVariant(variant, version, prompt, token, lease, seconds)

    def _check_model(self, variant: Variant, paths: Sequence[Path]) -> None:
        shards = zip(variant.shards, paths, strict=True)
        names = {name for shard, path in shards for name in self._memory.pool.stored(shard.id, path)}
        missing = [name for name in sorted(self._weights) if name not in names]
        if missing:
            raise StoreError(f"variant {variant.name} has no {', '.join(missing[:3])}: it is of another model")

    def _open(self, variant: Variant, paths: Sequence[Path]) -> tuple[dict[str, WeightState], dict[str, WeightState]]:
        """Where the weights of a variant point while a prompt is read, and while tokens are made."""
        prompt: dict[str, WeightState] = {}
        token: dict[str, WeightState] = {}
        rests = Rests(self._may_rest)
        for shard, path in zip(variant.shards, paths, strict=True):
            with rests.after():
                states = self._memory.open_shard(shard.id, path)
            prompt.update(states.prompt)
            token.update(states.token)
        return prompt, token

    def _may_rest(self) -> bool:
        """Whether there are steps to give way to, and nothing that waits for this preparation's end."""
        memory = self._memory
        with memory.lock:
            n_waiting = sum(not f.done() for f in memory.open.pending.values())
            return self._is_computing() and n_waiting <= 1 and not memory.is_saving and not memory.is_closing
