"""The variants of a running model: which one computes, which ones are warm, and the change from one to another.

    live = LiveVariants(store, model, tensors, layouts, n_warm=2, check=False)
    live.switch_to(live.prepare("small").result())      # between two decodes

A switch points every weight whose state differs at the other variant's memory.  Nothing is copied and the KV cache is
not touched; after it, logits equal those of a freshly loaded variant bit for bit, for equal layouts.

Under a memory ceiling ``prepare`` first closes what is only kept warm.  A variant that does not fit even so comes as a
``StagedVariant``, and is switched to shard by shard (``run.stepwise``).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lamella.core.artifacts import Variant
from lamella.core.errors import EngineFailed, StoreError
from lamella.core.model import TensorSpec
from lamella.llama import gguf
from lamella.llama.model import Model
from lamella.llama.weights import WeightState, locate_weights, read_state, release_pages, write_state
from lamella.run.ceiling import Ceiling, Pair, opening_peak, plan_exchanges, total_bytes, what_to_drop
from lamella.run.layouts import Layout
from lamella.run.prepared import PreparedVariant, Ready, StagedVariant, SwitchReport
from lamella.run.shards import ShardPool
from lamella.run.stepwise import StepwiseChange
from lamella.store.store import Store


class LiveVariants:
    """Owns the open shards of a running model and decides where its weights point.

    ``prepare`` may be called at any time; all that changes what runs, only between two decodes.  Weights always point
    into the running variant or into one that is held.
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
        ceiling: Ceiling | None = None,
    ) -> None:
        """Find the weights of a loaded model.

        Args:
            tensors: the model's tensors by name.
            layouts: by ggml type name.
            n_warm: variants whose shards stay open, the running one included; least recently used go first.
            check: verify the hashes of a variant's shards when it is prepared.
            ceiling: of the process's memory; None for none.
        """
        self._store, self._tensors, self._n_warm, self._check = store, tensors, n_warm, check
        self._ceiling = ceiling
        self._weights = locate_weights(model)
        repackable = frozenset(n for n, w in self._weights.items() if w.is_only_multiplied)
        self._pool = ShardPool(layouts, repackable, gives_back=ceiling is not None)
        self._pool_use = threading.Lock()  # held by whoever opens shards: a preparation, or a change shard by shard
        self._lock = threading.Lock()  # of current, _warm, _held and _pending
        self._now = {n: read_state(w.addresses[0]) for n, w in self._weights.items()}
        self._release_loader_pages()
        self._pointed: Mapping[str, WeightState] = self._now
        self._warm: OrderedDict[str, PreparedVariant] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._pending: dict[str, Future[Ready]] = {}
        self._background = ThreadPoolExecutor(1, "lamella-prepare")
        self._change: StepwiseChange | None = None
        self._is_closed = False
        self._name = ""
        self.current: PreparedVariant | None = None

    @property
    def name(self) -> str:
        """The variant that runs; during a change shard by shard the one before."""
        return self._name

    @property
    def repacked_bytes(self) -> int:
        """Private memory of repacked weights; everything else is shared page cache."""
        return self._pool.repacked_bytes

    @property
    def mapped_bytes(self) -> int:
        """Size of all shards that are mapped now."""
        return self._pool.mapped_bytes

    @property
    def warm(self) -> tuple[str, ...]:
        """Names of the variants that can be switched to at once."""
        with self._lock:
            warm = [n for n, p in self._warm.items() if not p.is_mixed]
            return (*warm, *(p.variant.name for p in self._prepared() if isinstance(p, PreparedVariant)))

    # --- getting ready ---------------------------------------------------------------------------------------------

    def prepare(self, name: str) -> Future[Ready]:
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
                done: Future[Ready] = Future()
                done.set_result(warm)
                return done
            pending = self._pending.get(name)
            if pending is not None and pending.done():
                ready = pending.result()
                if ready.version != version or isinstance(ready, StagedVariant):  # there may be room for it now
                    self._let_go(name)
            if name not in self._pending:
                self._pending[name] = self._background.submit(self._prepare, name)
            return self._pending[name]

    def _prepare(self, name: str) -> Ready:
        start = time.perf_counter()
        with contextlib.ExitStack() as on_failure:
            lease = on_failure.enter_context(self._store.lease(reading=True))
            version = self._store.version(name)  # first: if it is replaced now, the next look finds another one
            variant = lease.hold(name)
            paths = self._store.ready_paths(variant, should_stop=lambda: self._is_closed)
            if self._check:
                self._store.check(variant)
            self._check_model(variant, paths)
            prompt: dict[str, WeightState] = {}
            token: dict[str, WeightState] = {}
            with self._pool_use:
                if has_room := self._make_room(variant, paths):
                    for shard, path in zip(variant.shards, paths, strict=True):
                        states = self._pool.open(shard.id, path, self._tensors)
                        prompt.update(states.prompt)
                        token.update(states.token)
            lease.settle()
            on_failure.pop_all()
        seconds = time.perf_counter() - start
        if not has_room:
            return StagedVariant(variant, version, paths, lease, seconds)
        return PreparedVariant(variant, version, prompt, token, lease, seconds)

    def _check_model(self, variant: Variant, paths: Sequence[Path]) -> None:
        names = {n for path in paths for n in gguf.read_tensors(path)}
        missing = [n for n in self._weights if n not in names]
        if missing:
            raise StoreError(f"variant {variant.name} has no {', '.join(missing[:3])}: it is of another model")

    def _make_room(self, variant: Variant, paths: Sequence[Path]) -> bool:
        """Close what is only warm until a variant's shards fit beside those in use; whether they can.

        Raises:
            ExceedsCeiling: there is no room for them even alone.
        """
        if self._is_closed:
            raise EngineFailed("the engine was closed")
        for shard, path in zip(variant.shards, paths, strict=True):
            self._pool.footprint(shard.id, path, self._tensors)
        if self._ceiling is None:
            return True
        wanted = [s.id for s in variant.shards]
        room = self._ceiling.room_bytes(self._pool.repacked_bytes)
        self._check_alone(variant, wanted, room)
        with self._lock:
            spare = [(n, _ids(p)) for n, p in self._spare().items()]
            drop = what_to_drop(wanted, self._ids_in_use(), spare, self._pool.footprints, room)
            for name in drop or ():
                self._let_go(name)
            self._close_unused()
        return drop is not None

    def _check_alone(self, variant: Variant, wanted: Sequence[str], room: int) -> None:
        assert self._ceiling is not None  # or there is nothing to check
        needed = opening_peak(0, wanted, self._pool.footprints)
        if needed > room:
            hint = "a smaller variant, fewer KV cells (--cells) or a larger ceiling (--memory) would do"
            raise self._ceiling.refusal(f"variant '{variant.name}'", needed, room, hint)

    def change_to(self, name: str) -> SwitchReport:
        """Prepare a variant and run at it, for a caller who has the model to himself.

        Raises:
            UnknownVariant, ShardDamaged, ExceedsCeiling: it cannot be opened.
        """
        while True:
            ready = self.prepare(name).result()
            report = self._change_stepwise(ready) if isinstance(ready, StagedVariant) else self.switch_to(ready)
            if report is not None:
                return report

    def _change_stepwise(self, staged: StagedVariant) -> SwitchReport | None:
        change = self.begin(staged)
        if change is None:
            return None
        try:
            while not change.is_over:
                change.exchange_next()
        finally:
            report = self.end(change)
        return report

    # --- switching ---------------------------------------------------------------------------------------------------

    def switch_to(self, prepared: PreparedVariant) -> SwitchReport | None:
        """Run at this variant from the next decode on; None where another one pushed it out: prepare it again."""
        name = prepared.variant.name
        was_warm = self._warm.get(name) is prepared
        if not self.hold(prepared):
            return None
        before, peak = self.current, total_bytes(self._pool.open_ids, self._pool.footprints)
        start = time.perf_counter()
        n_weights = self.use(prepared.token)
        seconds = time.perf_counter() - start
        with self._lock:
            self.current = prepared
            report_before, self._name = self._name, name
            if before is not None and before is not self._warm.get(before.variant.name):
                before.lease.close()  # a mixture, or one that was replaced in the store while it ran
        self.release(name)
        old = set(_ids(before)) if before else set()
        return SwitchReport(
            before=report_before,
            after=name,
            n_weights=n_weights,
            n_shards=sum(s.id not in old for s in prepared.variant.shards),
            switch_seconds=seconds,
            prepare_seconds=0.0 if was_warm else prepared.seconds,
            mapped_bytes=self._pool.mapped_bytes,
            repacked_bytes=self._pool.repacked_bytes,
            n_steps=1,
            longest_seconds=seconds,
            peak_bytes=peak,
        )

    def hold(self, prepared: PreparedVariant) -> bool:
        """Keep a variant open, beyond ``n_warm`` if need be, until it is released as often as it was held.

        Returns:
            False where another one pushed it out: prepare it again.
        """
        with self._lock:
            if not self._is_ready(prepared):
                return False
            name = prepared.variant.name
            self._let_go_of_others(name, prepared)
            self._warm[name] = prepared
            self._warm.move_to_end(name)
            self._held[name] += 1
        self._close_what_is_too_much()
        return True

    def release(self, name: str) -> None:
        """Undo one ``hold``."""
        with self._lock:
            self._held[name] -= 1
            if self._held[name] <= 0:
                del self._held[name]
            gone = self._warm.get(name) if name not in self._held else None
        if (
            gone is not None
            and self.current is not None
            and (self._pointed is gone.prompt or self._pointed is gone.token)
        ):
            self.use(self.current.token)  # what is not held may be closed at any time
        self._close_what_is_too_much()

    def check_beside(self, staged: StagedVariant) -> None:
        """Refuse a variant that does not fit beside the running one even when nothing else is open.

        Raises:
            ExceedsCeiling: it does not.
        """
        assert self._ceiling is not None  # or there would be nothing staged
        assert self.current is not None
        running, wanted = set(_ids(self.current)), _ids(staged)
        in_use = total_bytes(running, self._pool.footprints)
        needed = opening_peak(in_use, [i for i in wanted if i not in running], self._pool.footprints)
        room = self._ceiling.room_bytes(self._pool.repacked_bytes)
        if needed > room:
            what = f"variant '{staged.variant.name}', beside '{self.name}', which runs,"
            raise self._ceiling.refusal(what, needed, room, "ask for it without a variant, or switch to it")

    def begin(self, staged: StagedVariant) -> StepwiseChange | None:
        """Begin a change shard by shard; it must be ended.  What is only warm is closed.

        Returns:
            None where another variant is being prepared, or has pushed this one out: prepare it again.

        Raises:
            ExceedsCeiling: there is no room for it beside variants that are held.
        """
        if not self._pool_use.acquire(blocking=False):
            return None
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._pool_use.release)
            with self._lock:
                if self._is_closed or not self._is_ready(staged):
                    return None
                self._change = self._plan(staged)
                del self._pending[staged.variant.name]
            on_failure.pop_all()
        return self._change

    def _plan(self, staged: StagedVariant) -> StepwiseChange:
        assert self._ceiling is not None  # or there would be nothing staged
        assert self.current is not None  # or it would have been refused
        before, footprints = self.current, self._pool.footprints
        held = {i for name in self._held for i in _ids(self._warm[name])}
        pairs = [
            Pair(
                old,
                new,
                opening_bytes=0 if new.id in held else footprints[new.id].opening_bytes,
                added_bytes=0 if new.id in held else footprints[new.id].n_bytes,
                freed_bytes=0 if old.id in held else footprints[old.id].n_bytes,
            )
            for old, new in zip(before.variant.shards, staged.variant.shards, strict=True)
            if old.id != new.id
        ]
        in_use = total_bytes(self._ids_in_use(), footprints)
        room = self._ceiling.room_bytes(self._pool.repacked_bytes)
        exchanges, peak = plan_exchanges(pairs, in_use, room)
        if exchanges is None:
            names = ", ".join(f"'{n}'" for n in self._held)
            what = f"variant '{staged.variant.name}', beside {names or 'what is in use'},"
            raise self._ceiling.refusal(what, peak, room, "switch when their requests have ended")
        for name in list(self._spare(besides=staged.variant.name)):
            self._let_go(name)
        self._close_unused()
        return StepwiseChange(
            self._pool,
            self._tensors,
            staged,
            self._mix(before, staged),
            exchanges,
            replaced=None if before.variant.name in self._held else before,
            peak_bytes=peak,
            kept=held,
            point=self._run_at,
        )

    def _mix(self, before: PreparedVariant, staged: StagedVariant) -> PreparedVariant:
        """What runs from the first exchange on; both variants' shards stay in the store for it."""
        leases = contextlib.ExitStack()
        leases.callback(staged.lease.close)
        name = before.variant.name
        if name not in self._held:
            leases.callback(before.lease.close)
            del self._warm[name]
        mixed_name = f"{name}>{staged.variant.name}"
        mixed = replace(before, variant=replace(before.variant, name=mixed_name), lease=leases, is_mixed=True)
        self._warm[mixed_name] = self.current = mixed
        return mixed

    def _run_at(self, mixed: PreparedVariant) -> int:
        with self._lock:
            self._warm[mixed.variant.name] = self.current = mixed
        return self.use(mixed.token)

    def end(self, change: StepwiseChange) -> SwitchReport | None:
        """End a change that is over, or give it up where it is: the model runs on at the mixture; None then."""
        before = self._name
        change.give_up()
        with self._lock:
            if self._change is change:
                if change.is_over:
                    self._finish(change)
                self._change = None
                self._pool_use.release()
        self._close_what_is_too_much()
        if not change.is_over:
            return None
        return SwitchReport(
            before=before,
            after=self._name,
            n_weights=change.n_weights,
            n_shards=change.n_steps,
            switch_seconds=change.stall_seconds,
            prepare_seconds=change.staged.seconds + change.open_seconds,
            mapped_bytes=self._pool.mapped_bytes,
            repacked_bytes=self._pool.repacked_bytes,
            n_steps=change.n_steps,
            longest_seconds=change.longest_seconds,
            peak_bytes=change.peak_bytes,
        )

    def _finish(self, change: StepwiseChange) -> None:
        """The mixture has become the variant."""
        staged, mixed = change.staged, change.mixed
        if change.replaced is not None:
            change.replaced.lease.close()
        del self._warm[mixed.variant.name]
        name = staged.variant.name
        self.current = PreparedVariant(
            staged.variant, staged.version, mixed.prompt, mixed.token, staged.lease, staged.seconds
        )
        self._warm[name] = self.current
        self._name = name

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

    # --- what stays open -------------------------------------------------------------------------------------------

    def _close_what_is_too_much(self) -> None:
        """Close the shards of variants that are neither running, nor held, nor among the ``n_warm`` last used.

        Under a ceiling also of the last used, if the process has grown meanwhile.
        """
        with self._lock:
            self._forget_failures()
            spare = [n for n in self._warm if not self._is_in_use(n)]
            for name in spare[: max(0, len(self._warm) - self._n_warm)]:
                self._let_go(name)
            for name in [n for n, p in self._warm.items() if p.is_mixed and p is not self.current]:
                self._let_go(name)
            for prepared in self._prepared()[:-1]:  # and never switched to: the newest stays ready
                self._let_go(prepared.variant.name)
            if not self._pool_use.acquire(blocking=False):
                return  # somebody is opening shards, and closes what is too much before
            try:
                self._keep_below_the_ceiling()
                self._close_unused()
            finally:
                self._pool_use.release()

    def _keep_below_the_ceiling(self) -> None:
        if self._ceiling is None:
            return
        spare = [(n, _ids(p)) for n, p in self._spare().items()]
        room = self._ceiling.room_bytes(self._pool.repacked_bytes)
        drop = what_to_drop((), self._ids_in_use(), spare, self._pool.footprints, room)
        for name in [n for n, _ in spare] if drop is None else drop:
            self._let_go(name)

    def _close_unused(self) -> None:
        """Close every shard that no variant needs that runs, is held, warm or prepared."""
        ready = [*self._warm.values(), *(p for p in self._prepared() if isinstance(p, PreparedVariant))]
        self._pool.keep_only(self._ids_in_use().union(*map(_ids, ready)))

    def _is_in_use(self, name: str) -> bool:
        return name in self._held or (self.current is not None and self._warm[name] is self.current)

    def _ids_in_use(self) -> set[str]:
        used = [p for n, p in self._warm.items() if self._is_in_use(n)]
        return {i for p in (*used, *([self.current] if self.current else ())) for i in _ids(p)}

    def _spare(self, besides: str = "") -> dict[str, Ready]:
        """What is open or staged and not in use, the first to go first, but for a preparation of that name."""
        spare: dict[str, Ready] = {n: p for n, p in self._warm.items() if not self._is_in_use(n)}
        return spare | {p.variant.name: p for p in self._prepared() if p.variant.name != besides}

    def _prepared(self) -> list[Ready]:
        """What was prepared and not switched to."""
        done = (f for f in self._pending.values() if f.done() and not f.cancelled() and not f.exception())
        return [f.result() for f in done]

    def _is_ready(self, ready: Ready) -> bool:
        """Whether its shards are still open, or its files held: a change in another thread may have pushed it out."""
        name = ready.variant.name
        return self._warm.get(name) is ready or any(p is ready for p in self._prepared())

    def _let_go(self, name: str) -> None:
        """Forget a variant that is not in use; its shards are closed with all that nobody needs."""
        if name in self._warm and not self._is_in_use(name):
            self._warm.pop(name).lease.close()
        pending = self._pending.get(name)
        if pending is not None and pending.done():
            self._pending.pop(name).result().lease.close()

    def _let_go_of_others(self, name: str, prepared: PreparedVariant) -> None:
        """What else is open under this name: the variant before or after it was replaced in the store."""
        pending = self._pending.get(name)
        others: list[Ready | None] = [self._warm.pop(name, None)]
        if pending is not None and pending.done():
            others.append(self._pending.pop(name).result())
        for other in others:
            if other is not None and other is not prepared and other is not self.current:
                other.lease.close()

    def _forget_failures(self) -> None:
        for name in [n for n, f in self._pending.items() if f.done() and (f.cancelled() or f.exception())]:
            del self._pending[name]

    def _release_loader_pages(self) -> None:
        """llama.cpp mapped the first variant to load it; the weights are about to point into mappings of our own."""
        release_pages(
            (state, self._tensors[name].n_bytes) for name, state in self._now.items() if name in self._tensors
        )

    def close(self) -> None:
        """Close all shards.  The model must not decode any more."""
        with self._lock:
            self._is_closed = True
            change = self._change
        if change is not None:
            self.end(change)
        self._background.shutdown(wait=True, cancel_futures=True)
        self._pool.close()
        with self._lock:
            self._forget_failures()
            for ready in (*self._warm.values(), *self._prepared()):
                ready.lease.close()


def _ids(ready: Ready) -> list[str]:
    return [shard.id for shard in ready.variant.shards]
