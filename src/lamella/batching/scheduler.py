"""Requests through the model: who has a slot, what the next step computes, and what came of it.

All methods belong to the loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from lamella.batching import steps
from lamella.batching.cache import SequenceCache
from lamella.batching.filling import LEAST_ROWS, Filling
from lamella.batching.messages import EngineMessage, FinishReason, Step, TokenEvent
from lamella.batching.refusals import refusal
from lamella.batching.running import CELLS_AHEAD, RunningRequest
from lamella.batching.served import ServedVariants
from lamella.batching.slots import Slot
from lamella.batching.speeds import Speeds
from lamella.batching.steps import Admission, Pace, StepPlan
from lamella.batching.turns import Turns, Wish, take_turns
from lamella.core.errors import CacheFull, LamellaError
from lamella.llama.batch import BatchPart
from lamella.llama.context import Context
from lamella.run.engine import LONG_PROMPT_TOKENS


@dataclass(slots=True)
class Counters:
    """Since the process started."""

    n_steps: int = 0
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Again:
    """A kept beginning that is being computed again: its slot, what that held, and the variant that computes it."""

    slot: Slot
    tokens: tuple[int, ...]
    variant: str

    def is_valid(self, variant: str) -> bool:
        """Whether it can go on at the variant that runs now: nobody has used the slot since."""
        if self.slot.owner is not None or self.slot.variants != {self.variant} or variant != self.variant:
            return False
        done = tuple(self.slot.tokens)
        return len(done) < len(self.tokens) and self.tokens[: len(done)] == done


class Scheduler:
    """Requests that wait and run, and the steps that serve them.

    Attributes:
        counters: for the status.
    """

    def __init__(
        self,
        context: Context,
        cache: SequenceCache,
        variants: ServedVariants,
        send: Callable[[EngineMessage], None],
        *,
        n_sequences: int,
        n_batch: int,
        longest_step_seconds: float = steps.LONGEST_STEP_SECONDS,
        filling: Filling | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing runs yet.

        Args:
            filling: says which steps are filled up; None for none.
        """
        self._filling = filling
        self._context, self._cache, self._variants, self._send = context, cache, variants, send
        self._n_sequences, self._n_batch, self._clock = n_sequences, n_batch, clock
        self._longest_step_seconds = longest_step_seconds
        self._waiting: dict[int, RunningRequest] = {}
        self._running: dict[int, RunningRequest] = {}
        self._speeds = Speeds()
        self._steps_since_flip = 0
        self._repeated: tuple[StepPlan, str] | None = None
        self._copied_before = 0.0
        self._again: Again | None = None
        self.counters = Counters()

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """Requests without a slot, parked ones included."""
        return len(self._waiting)

    @property
    def n_parked(self) -> int:
        """Requests that had a slot and were pushed aside."""
        return sum(r.was_parked for r in list(self._waiting.values()))

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    def add(self, request: RunningRequest) -> None:
        """A new request; it waits for a slot."""
        self._repeated = None
        self._waiting[request.request.id] = request

    def cancel(self, request_id: int) -> None:
        """The front wants no more of a request; it ends before the next step.  One that has ended is passed over."""
        self._repeated = None
        for requests in (self._waiting, self._running):
            if request_id in requests:
                requests[request_id].is_cancelled = True

    def close(self) -> None:
        """Free the samplers of requests that have not ended."""
        for request in (*self._waiting.values(), *self._running.values()):
            request.close()

    def turn(self) -> bool:
        """End what has ended, give out slots, and run a step; returns whether there was one to run."""
        plan = self._same_again() or self._next()
        if plan is None:
            return False
        self._run(plan)
        self._repeated = (plan, self._variants.default) if self._only_writes(plan) else None
        return True

    def _same_again(self) -> StepPlan | None:
        """The step before, where nothing has changed but that every request has one more token.

        Most steps are such.  While Python decides, the model's threads wait, so what is known is not decided again.
        """
        if self._repeated is None or self._repeated[1] != self._variants.default:
            return None
        self._steps_since_flip += 1
        return self._fit(self._repeated[0])

    def _only_writes(self, plan: StepPlan) -> bool:
        """Whether all requests there are took part in a step, and each goes on with the one token that it drew."""
        if self._waiting or self._cache.is_apart or len(plan.parts) != len(self._running):
            return False
        return all(n == 1 and i in self._running and self._running[i].writes_on for i, n in plan.parts)

    def _next(self) -> StepPlan | None:
        """A step for the requests as they are now."""
        self._copied_before = self._cache.copy_seconds
        self._end_requests()
        self._admit()
        self._cache.bring_together(self.counters.n_steps)
        return self._plan()

    # --- beginnings and ends -----------------------------------------------------------------------------------------

    def _end_requests(self) -> None:
        now = self._clock()
        for request in [*self._running.values(), *self._waiting.values()]:
            reason = request.end_reason(now)
            if reason is not None:
                self._end(request, reason)

    def _end(self, request: RunningRequest, reason: FinishReason) -> None:
        self._send(request.finished(reason))
        self._forget(request)

    def _refuse(self, request: RunningRequest, error: LamellaError) -> None:
        self._send(refusal(request.request.id, error))
        self._forget(request)

    def _forget(self, request: RunningRequest) -> None:
        number = request.request.id
        if self._running.pop(number, None) is not None and request.request.variant is not None:
            self._variants.release(request.request.variant)
        self._waiting.pop(number, None)
        if request.slot is not None:
            self._cache.release(request.slot)
            request.slot = None
        request.close()

    def _admit(self) -> None:
        if self._waiting:
            self._fill_places()
        unused = self._turns(self._queue).let_go
        for variant in unused:
            self._variants.let_go(variant)
        if unused:
            self._open_variants()

    def _fill_places(self) -> None:
        """Let the most urgent of those that wait run."""
        decision = self._admission(self._ready())
        with_room = self._with_room([self._waiting[number] for number in decision.start])
        if len(with_room) < len(decision.start):
            decision = self._admission(with_room)
        for number in decision.park:
            self._park(self._running[number])
        has_streams = any(r.writes_on for r in self._running.values())
        for number in decision.start:
            if has_streams and self._pace.streams_go_first:  # the others begin after the next step
                break
            self._start(self._waiting[number])

    def _admission(self, ready: Sequence[RunningRequest]) -> Admission:
        """Who of those that could run gets a place, as far as places go."""
        default = self._variants.default
        running = [r.candidate(default) for r in self._running.values()]
        return steps.admit(running, [r.candidate(default) for r in ready], self._n_sequences)

    def _ready(self) -> list[RunningRequest]:
        """Requests that could run now: those whose beginning somebody is about to compute wait for it."""
        with_variant = self._open_variants()
        found: list[RunningRequest] = []
        for request in self._queue:
            has_variant = request.request.variant is None or request.request.id in with_variant
            if has_variant and not self._should_wait_for_prefix(request, found):
                found.append(request)
        return found

    @property
    def _queue(self) -> list[RunningRequest]:
        """Those that wait, the most urgent first."""
        return sorted(self._waiting.values(), key=lambda r: r.urgency)

    def _open_variants(self) -> Collection[int]:
        """Open what those that wait ask for; returns those whose variant is open and whose turn it is."""
        while True:
            turns = self._turns(self._queue)
            has_changed = [self._open(wish) for wish in turns.to_open]
            if not any(has_changed):
                return turns.may_begin

    def _turns(self, queue: Iterable[RunningRequest]) -> Turns:
        variants, wishes = self._variants, []
        for request in queue:
            wish = request.request.variant
            if wish is None:
                continue
            if wish in variants.without_room and request.n_overtaken is None:
                request.n_overtaken = 0
            wishes.append(Wish(request.request.id, wish, request.n_overtaken))
        return take_turns(wishes, variants.users, variants.without_room, variants.default)

    def _open(self, wish: Wish) -> bool:
        """Whether anything has come of it; a request whose variant cannot be opened is refused."""
        try:
            return self._variants.open_for(wish.variant)
        except LamellaError as error:
            self._refuse(self._waiting[wish.id], error)
            return True

    def _should_wait_for_prefix(self, request: RunningRequest, earlier: Iterable[RunningRequest]) -> bool:
        if request.scores_prompt or not self._cache.table.can_share_parts:
            return False
        wish = request.request.variant
        readers = [r for r in (*self._running.values(), *earlier) if r.is_reading and r.request.variant == wish]
        if not readers:
            return False
        now = self._cache.shared_with_kept(request.tokens, wish)
        return any(r.shares_prompt_with(request) >= now + steps.WORTH_WAITING_FOR for r in readers)

    def _with_room(self, ready: Sequence[RunningRequest]) -> Sequence[RunningRequest]:
        """The first of them, as long as there are cells for them beside those who do not give way to them.

        One that began all the same would give way at once, and what was computed of it would be copied to and fro, or
        computed again.
        """
        if not self._cache.has_shared_cells:
            return ready
        n_wanted = 0
        for i, request in enumerate(ready):
            beside = list(self._running.values())
            if not request.parked:  # what was saved needs all its cells at once, before anybody gives way
                beside = [r for r in beside if r.request.priority >= request.request.priority]
            n_ahead = CELLS_AHEAD if request.was_parked else 0
            n_wanted += self._new_cells(request, n_ahead)
            n_free = self._cache.free_beside([r.slot for r in beside if r.slot])
            if (beside or i) and n_wanted + sum(r.n_cells(n_ahead) - r.n_computed for r in beside) > n_free:
                return ready[:i]
        return ready

    def _new_cells(self, request: RunningRequest, n_ahead: int) -> int:
        """Cells that a request takes when it begins; what was saved of it is put back into cells of its own."""
        if request.parked or request.scores_prompt:
            return request.n_cells(n_ahead)
        n_shared = self._cache.table.shared_with_owned(request.tokens, request.request.variant)
        return request.n_cells(n_ahead) - n_shared

    def _start(self, request: RunningRequest) -> None:
        """Give a request a slot: the one that still holds its state, or a place that shares its beginning."""
        number = request.request.id
        del self._waiting[number]
        self._running[number] = request
        if request.request.variant is not None:
            self._variants.hold(request.request.variant)
            self._count_overtaken(request)
        tokens = request.tokens[:1] if request.scores_prompt else request.tokens
        slot = self._cache.place(tokens, request.request.variant, number, self.counters.n_steps)
        if request.parked is not None and len(request.parked.tokens) > len(slot.tokens):
            self._cache.restore(slot, request.parked, self.counters.n_steps)
        request.parked = None
        request.start(slot)
        if not request.was_parked:
            self.counters.n_cached_tokens += len(slot.tokens)

    def _count_overtaken(self, by: RunningRequest) -> None:
        """Requests whose variant has no room stand back behind one that begins, unless it takes none itself."""
        if by.request.variant == self._variants.default:
            return
        for request in self._waiting.values():
            is_open = request.request.variant in self._variants.users
            if request.n_overtaken is not None and request.urgency < by.urgency and not is_open:
                request.n_overtaken += 1

    def _park(self, request: RunningRequest) -> None:
        """Push a request aside: its state goes to memory of our own, and its cells to others."""
        assert request.slot is not None  # it runs
        request.parked, request.slot = self._cache.park(request.slot), None
        request.was_parked = True
        del self._running[request.request.id]
        if request.request.variant is not None:
            self._variants.release(request.request.variant)
        self._waiting[request.request.id] = request

    # --- steps -------------------------------------------------------------------------------------------------------

    def _plan(self) -> StepPlan | None:
        candidates = [r.candidate(self._variants.default) for r in self._running.values()]
        if not candidates:
            return None
        quantum = steps.quantum(self._variants.mean_flip_seconds, self._speeds.step_seconds)
        variant = steps.choose_variant(candidates, self._variants.pointed_at, self._steps_since_flip, quantum)
        self._steps_since_flip = self._steps_since_flip + 1 if variant == self._variants.pointed_at else 1
        return self._fit(steps.compose(candidates, variant, self._n_batch, self._pace))

    @property
    def _pace(self) -> Pace:
        return self._speeds.pace(self._longest_step_seconds, self._cache.copy_seconds - self._copied_before)

    def _fit(self, plan: StepPlan) -> StepPlan | None:
        """Make room for a step in the cache; where there is none, requests give way, the least urgent first."""
        while not self._cache.make_room(sum(n for _, n in plan.parts)):
            if not self._give_way():
                return None
            plan = StepPlan(plan.variant, tuple((i, n) for i, n in plan.parts if i in self._running))
        return plan if plan.parts else None

    def _give_way(self) -> bool:
        """Park the least urgent request; the last one is ended, because the whole cache is not enough for it."""
        last = max(self._running.values(), key=lambda r: r.urgency)
        if len(self._running) == 1:
            self._end(last, "length")
            return False
        self._park(last)
        return True

    def _run(self, plan: StepPlan) -> None:
        """Compute a step, and tell what came of it."""
        parts = sorted(((self._running[number], n) for number, n in plan.parts), key=lambda part: part[0].n_slot)
        n_prompt = sum(n for r, n in parts if n > 1 or not r.n_generated)
        batch = [self._part(r, n) for r, n in parts]
        fillers = [] if n_prompt else self._fillers(plan.variant, batch)
        began = self._clock()
        try:
            self._variants.point_at(plan.variant, reads_prompt=n_prompt >= LONG_PROMPT_TOKENS)
            first = self._compute(batch, fillers)
        except CacheFull:  # the books are wrong for this kind of cache (sliding windows pad): let somebody give way
            self._give_way()
            return
        seconds = self._clock() - began
        self._count(n_prompt, seconds)
        if self._filling and n_prompt:
            self._filling.saw_other()
        elif self._filling:
            self._filling.saw(plan.variant, len(batch), len(batch) + len(fillers), seconds)
        self._tell(plan.variant, parts, batch, first, began)

    def _tell(
        self,
        variant: str,
        parts: Sequence[tuple[RunningRequest, int]],
        batch: Sequence[BatchPart],
        first: Sequence[int],
        began: float,
    ) -> None:
        """Tell what came of a step: tokens, and ends.

        Args:
            parts, batch: requests with the number of their tokens in it, and the same as they were computed.
            first: where the logits of each begin.
            began: when the step did.
        """
        for (request, n), part in zip(parts, batch, strict=True):
            assert request.slot is not None  # it runs
            self._cache.table.extend(request.slot, part.tokens[:n], variant, self.counters.n_steps)
        tokens = [e for (r, n), i in zip(parts, first, strict=True) for e in self._outcome(r, n, i)]
        self.counters.n_generated_tokens += len(tokens)
        if tokens:
            self._send(Step(self._variants.name_of(variant), tokens))
        for request, _ in parts:
            if request.request.id not in self._running:  # its grammar led nowhere
                continue
            reason = request.end_reason(began)
            if reason is not None:
                self._end(request, reason)

    def _fillers(self, variant: str, batch: Sequence[BatchPart]) -> list[BatchPart]:
        """Rows of free slots with which a step that only writes takes less time; computed, and forgotten.

        Their logits are computed too: the product of the head is the largest, and of as many rows.
        """
        if self._filling is None or len(batch) < LEAST_ROWS:
            return []
        running = [self._cache.table.slots[part.sequence] for part in batch]
        n_rows = self._filling.rows(variant, len(batch) + len(self._cache.between(running)))
        slots = self._cache.to_fill(running, n_rows - len(batch)) if n_rows > len(batch) else []
        return [BatchPart(slot.id, len(slot.tokens), batch[0].tokens, 1) for slot in slots]

    def _compute(self, batch: Sequence[BatchPart], fillers: Sequence[BatchPart]) -> tuple[int, ...]:
        """Run a pass; returns where the logits of each part of ``batch`` begin."""
        if not fillers:
            return self._context.decode_parts(batch)
        together = sorted((*batch, *fillers), key=lambda part: part.sequence)
        try:
            first = dict(zip((p.sequence for p in together), self._context.decode_parts(together), strict=True))
        except CacheFull:  # for the fillers, perhaps
            return self._context.decode_parts(batch)
        for filler in fillers:
            self._context.forget(filler.sequence, filler.start)
        return tuple(first[part.sequence] for part in batch)

    def _part(self, request: RunningRequest, n: int) -> BatchPart:
        assert request.slot is not None  # it runs
        start = len(request.slot.tokens)
        reaches_end = start + n == len(request.tokens)
        n_outputs = n if request.scores_prompt else int(reaches_end)
        return BatchPart(request.slot.id, start, request.tokens[start : start + n], n_outputs)

    def _outcome(self, request: RunningRequest, n: int, index: int) -> Iterable[TokenEvent]:
        """The token that a request drew in this step, if it has come so far."""
        assert request.slot is not None  # it runs
        if request.scores_prompt:
            start = len(request.slot.tokens) - n
            scored = request.score_prompt((self._context.logits(index + i) for i in range(n)), start)
            if scored is not None:
                self._send(scored)
        if not request.wants_token:
            return
        try:
            event = request.draw(self._context, index + n - 1)
        except LamellaError as error:  # its grammar allows no token, or takes too long
            self._refuse(request, error)
            return
        if event is not None:
            yield event

    def _count(self, n_prompt: int, seconds: float) -> None:
        self.counters.n_steps += 1
        self.counters.n_prompt_tokens += n_prompt
        self._speeds.saw(n_prompt, seconds)

    # --- when there is nothing else to do ----------------------------------------------------------------------------

    def recompute_some(self) -> bool:
        """Compute a piece of a kept beginning again by the variant that runs now; whether anything is left to do."""
        variant = self._variants.default
        if self._again is None or not self._again.is_valid(variant):
            stale = self._cache.table.stale(variant)
            if not stale:
                return False
            slot = stale[-1]  # the most recently used: the likeliest to be asked for
            self._again = Again(slot, tuple(slot.tokens), variant)
            self._cache.clear(slot)
        if not self._recompute_piece(self._again):
            self._again = None
        return True

    def _recompute_piece(self, again: Again) -> bool:
        """One pass; whether more is to come.  What finds no room, beside others whose cells it shared, is left out."""
        slot = again.slot
        start = len(slot.tokens)
        piece = again.tokens[start : start + self._n_batch]
        if self._cache.free_cells < len(piece):
            return False
        self._variants.point_at(again.variant, reads_prompt=True)
        try:
            self._context.decode_parts([BatchPart(slot.id, start, piece, 0)])
        except CacheFull:  # as in a step
            return False
        self._cache.table.extend(slot, piece, again.variant, self.counters.n_steps)
        return start + len(piece) < len(again.tokens)
