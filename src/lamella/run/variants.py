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
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace

from lamella.core.model import TensorSpec
from lamella.llama.model import Model
from lamella.llama.weights import WeightState
from lamella.run.ceiling import Ceiling
from lamella.run.layouts import Layout
from lamella.run.pointers import WeightPointers
from lamella.run.prepared import PreparedVariant, Ready, StagedVariant, SwitchReport
from lamella.run.preparing import Preparations
from lamella.run.shards import Placement, ShardPool
from lamella.run.stepwise import StepwiseChange
from lamella.run.weight_memory import WeightMemory
from lamella.store.store import Store

DeviceOf = Callable[[int | None], str | None]
"""The ggml device that has a layer, or what stands outside of layers (None); None for the CPU."""


class LiveVariants:
    """Decides which variant a running model computes with: where its weights point.

    ``prepare`` may be called at any time; all that changes what runs, only between two decodes.  Weights always point
    into the running variant or into one that is held.

    Attributes:
        memory: the open shards, and what they take.
        is_computing: whether steps run that somebody waits for; a variant is then prepared in small pieces with rests.
            Whoever makes the steps sets it.
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
        device_of: DeviceOf | None = None,
        on_moved: Callable[[], None] | None = None,
    ) -> None:
        """Find the weights of a loaded model.

        Args:
            tensors: the model's tensors by name.
            layouts: by ggml type name.
            n_warm: variants whose shards stay open, the running one included; least recently used go first.
            check: verify the hashes of a variant's shards when it is prepared.
            ceiling: of the process's memory; None for none.
            device_of: the device of each layer, as the model was loaded for; None where the CPU computes all.
            on_moved: called after weights were pointed elsewhere, where a graph that is used again would keep their
                addresses: on devices, and where it has views of weights.
        """
        self._tensors = tensors
        self._pointers = WeightPointers(model, tensors)
        self._on_moved = on_moved if device_of or self._pointers.has_views else None
        placement = Placement(self._placed(device_of)) if device_of else None
        pool = ShardPool(layouts, self._pointers.repackable, gives_back=ceiling is not None, placement=placement)
        self.memory = WeightMemory(pool, tensors, n_warm=n_warm, ceiling=ceiling)
        self._open = self.memory.open
        self.is_computing = False
        self._preparations = Preparations(
            store, self.memory, self._pointers.names, check=check, is_computing=lambda: self.is_computing
        )
        self._change: StepwiseChange | None = None
        self._name = ""

    def _placed(self, device_of: DeviceOf) -> dict[str, str]:
        """Weight -> device, of those that leave the host."""
        found = {name: device_of(self._tensors[name].layer) for name in self._pointers.placeable}
        return {name: device for name, device in found.items() if device is not None}

    @property
    def current(self) -> PreparedVariant | None:
        """What runs: a variant, or in the middle of a change shard by shard a mixture; None before the first."""
        return self._open.current

    @property
    def name(self) -> str:
        """The variant that runs; during a change shard by shard the one before."""
        return self._name

    @property
    def warm(self) -> tuple[str, ...]:
        """Names of the variants that can be switched to at once."""
        with self.memory.lock:
            warm = [n for n, p in self._open.warm.items() if not p.is_mixed]
            return (*warm, *(p.variant.name for p in self._open.prepared if isinstance(p, PreparedVariant)))

    def prepare(self, name: str) -> Future[Ready]:
        """Get a variant into memory in the background; one that was replaced in the store is got anew.

        Raises:
            UnknownVariant: at once.  What else fails is raised by the future; asking again tries again.
            EngineFailed: ``close`` was called.
        """
        return self._preparations.prepare(name)

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
        was_warm = self._open.warm.get(name) is prepared
        if not self.hold(prepared):
            return None
        before, peak = self.current, self.memory.total_bytes
        try:
            start = time.perf_counter()
            n_weights = self.use(prepared.token)
            seconds = time.perf_counter() - start
            with self.memory.lock:
                self._open.current = prepared
                report_before, self._name = self._name, name
                if before is not None and before is not self._open.warm.get(before.variant.name):
                    before.lease.close()  # it was replaced in the store while it ran
        finally:
            self.release(name)
        old = set(before.shard_ids) if before else set()
        return SwitchReport(
            before=report_before,
            after=name,
            n_weights=n_weights,
            n_shards=sum(s.id not in old for s in prepared.variant.shards),
            switch_seconds=seconds,
            prepare_seconds=0.0 if was_warm else prepared.seconds,
            mapped_bytes=self.memory.mapped_bytes,
            repacked_bytes=self.memory.repacked_bytes,
            n_steps=1,
            longest_seconds=seconds,
            peak_bytes=peak,
        )

    def hold(self, prepared: PreparedVariant) -> bool:
        """Keep a variant open, beyond ``n_warm`` if need be, until it is released as often as it was held.

        Returns:
            False where another one pushed it out: prepare it again.
        """
        with self.memory.lock:
            if not self._open.is_ready(prepared):
                return False
            self._open.admit(prepared)
            self._open.held[prepared.variant.name] += 1
        self.memory.close_what_is_too_much()
        return True

    def release(self, name: str) -> None:
        """Undo one ``hold``."""
        with self.memory.lock:
            self._open.held[name] -= 1
            if self._open.held[name] <= 0:
                del self._open.held[name]
            used = self._open.in_use
        is_safe = any(self._pointers.is_at(states) for p in used for states in (p.prompt, p.token))
        if self.current is not None and not is_safe:  # what is not in use may be closed at any time
            self.use(self.current.token)
        self.memory.close_what_is_too_much()

    def check_beside(self, staged: StagedVariant) -> bool:
        """Refuse a variant that does not fit beside the running one, as ``WeightMemory.check_beside``."""
        assert self.current is not None
        return self.memory.check_beside(staged, self.current.shard_ids, self.name)

    def begin(self, staged: StagedVariant) -> StepwiseChange | None:
        """Begin a change shard by shard; it must be ended.  What is only warm is closed.

        Returns:
            None where another variant is being prepared, or has pushed this one out, or memory is not bounded any more:
            prepare it again.

        Raises:
            ExceedsCeiling: there is no room for it beside variants that are held.
        """
        if not self.memory.opening.acquire(blocking=False):
            return None
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.memory.opening.release)
            with self.memory.lock:
                if self.memory.is_closing or self._open.is_preparing or not self._open.is_ready(staged):
                    return None
                if not self.memory.is_bounded:
                    return None
                self._change = self._plan(staged)
                del self._open.pending[staged.variant.name]
            on_failure.pop_all()
        return self._change

    def _plan(self, staged: StagedVariant) -> StepwiseChange:
        memory = self.memory
        assert self.current is not None  # or it would have been refused
        before, held = self.current, self._open.held_ids
        exchanges, peak = memory.plan_exchanges(before, staged)
        is_warm = self._open.warm.get(before.variant.name) is before  # or it was replaced in the store while it ran
        is_held = is_warm and before.variant.name in self._open.held
        memory.let_go_of_spare(besides=staged.variant.name)
        memory.close_unused()
        return StepwiseChange(
            memory.pool,
            self._tensors,
            staged,
            self._mix(before, staged, is_warm=is_warm, is_held=is_held),
            exchanges,
            replaced=None if is_held else before,
            peak_bytes=peak,
            kept=held,
            point=self._run_at,
        )

    def _mix(self, before: PreparedVariant, staged: StagedVariant, *, is_warm: bool, is_held: bool) -> PreparedVariant:
        """What runs from the first exchange on; both variants' shards stay in the store for it."""
        leases = contextlib.ExitStack()
        leases.callback(staged.lease.close)
        name = before.variant.name
        if not is_held:
            leases.callback(before.lease.close)
            if is_warm:
                del self._open.warm[name]
        mixed_name = f"{name}>{staged.variant.name}"
        mixed = replace(before, variant=replace(before.variant, name=mixed_name), lease=leases, is_mixed=True)
        self._open.warm[mixed_name] = self._open.current = mixed
        return mixed

    def _run_at(self, mixed: PreparedVariant) -> int:
        with self.memory.lock:
            self._open.warm[mixed.variant.name] = self._open.current = mixed
        return self.use(mixed.token)

    def end(self, change: StepwiseChange) -> SwitchReport | None:
        """End a change that is over, or give it up where it is: the model runs on at the mixture; None then."""
        before = self._name
        change.give_up()
        with self.memory.lock:
            if self._change is change:
                if change.is_over:
                    self._finish(change)
                self._change = None
                self.memory.opening.release()
        self.memory.close_what_is_too_much()
        return change.report(before) if change.is_over else None

    def _finish(self, change: StepwiseChange) -> None:
        """The mixture has become the variant."""
        staged, mixed = change.staged, change.mixed
        if change.replaced is not None:
            change.replaced.lease.close()
        del self._open.warm[mixed.variant.name]
        name = staged.variant.name
        self._open.current = PreparedVariant(
            staged.variant, staged.version, mixed.prompt, mixed.token, staged.lease, staged.seconds
        )
        self._open.warm[name] = self._open.current
        self._name = name

    def use(self, states: Mapping[str, WeightState]) -> int:
        """Point every weight that is elsewhere at ``states``; returns how many."""
        moved = self._pointers.point_at(states)
        if moved and self._on_moved is not None:
            self._on_moved()
        return moved

    def close(self) -> None:
        """Close all shards.  The model must not decode any more."""
        with self.memory.lock:
            self.memory.is_closing = True
            change = self._change
        if change is not None:
            self.end(change)
        self._preparations.close()
        self.memory.close()
