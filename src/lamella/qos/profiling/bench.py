"""A real engine loop, and a front that writes down when it hears of each step.

with Bench.open(settings) as bench:
    bench.prompt_seconds(256)
    bench.step_seconds(n_sequences=4, depth=64, n_steps=16)

Times are what a client of the engine sees: the step of the model, sampling and messages included.  Who asks sleeps
meanwhile: woken at every step, it would take the interpreter and a core from the next one, which a front in a process
of its own does not.  And the loop is opened in the thread that runs it: OpenMP keeps its threads for each thread that
ever computed, and where these are more than there are cores they sleep at every barrier instead of spinning, which
makes steps take up to twice as long (``llama.openmp``).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Self

from lamella.batching.loop import EngineLoop
from lamella.batching.messages import (
    Cancel,
    EngineMessage,
    Finished,
    Generate,
    Refused,
    Sampling,
    Step,
    Stop,
    Switch,
    Switched,
)
from lamella.batching.settings import EngineSettings
from lamella.core.closing import Closing
from lamella.core.errors import EngineFailed

GIVE_UP_SECONDS = 600.0
MOST_TRIES = 5


@dataclass(frozen=True, slots=True)
class HeardStep:
    """A step's tokens came: when, and of which requests."""

    time: float
    ids: frozenset[int]


class Bench(Closing):
    """Asks one thing at a time; between two questions the engine is idle."""

    def __init__(self, settings: EngineSettings, clock: Callable[[], float] = time.perf_counter) -> None:
        """Use ``Bench.open``."""
        self._clock, self._chance = clock, random.Random(0)
        self._heard: list[HeardStep] = []
        self._first: dict[int, float] = {}
        self._ends: dict[int, Finished | Refused | Switched] = {}
        self._news = threading.Condition()
        self._is_there: Callable[[], bool] | None = None  # what somebody waits for
        self._on_step: Callable[[HeardStep], None] = lambda _: None
        self._last_id = 0
        self.load_seconds = 0.0
        opened: Future[EngineLoop] = Future()
        self._thread = threading.Thread(target=self._run, args=(settings, opened), name="lamella-bench", daemon=True)
        self._thread.start()
        self._loop = opened.result()
        self._n_vocabulary = self._loop.hello().n_vocabulary

    @classmethod
    def open(cls, settings: EngineSettings) -> Self:
        """Load the model and start the loop.

        Raises:
            LamellaError: the store, the variant or llama.cpp says why not.
        """
        return cls(settings)

    def _run(self, settings: EngineSettings, opened: Future[EngineLoop]) -> None:
        """The loop's thread, from opening it to its end."""
        try:
            start = self._clock()
            loop = EngineLoop.open(settings, self._hear)
            self.load_seconds = self._clock() - start
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(loop)
        loop.run()

    def close(self) -> None:
        """End the loop and free the model; later calls do nothing."""
        if self._thread.is_alive():
            self._loop.receive(Stop())
            self._thread.join()
            self._loop.close()

    @property
    def memory_bytes(self) -> int:
        """Shards that are mapped, and private memory of this process."""
        status = self._loop.status()
        return status.mapped_bytes + status.private_bytes

    def prompt_seconds(self, n_tokens: int) -> float:
        """A prompt alone, from its arrival to its first token."""
        start = self._clock()
        number = self._submit(n_tokens, max_tokens=1)
        self._end_of(number)
        return self._first_token(number) - start

    def step_seconds(self, n_sequences: int, depth: int, n_steps: int) -> float:
        """Median step of so many streams, whose sequences have ``depth`` tokens in the mean.

        Raises:
            EngineFailed: again and again a stream had filled its context before all of them wrote together.
        """
        for _ in range(MOST_TRIES):
            times = self._steps_together(n_sequences, max(1, depth - n_steps // 2), n_steps)
            if len(times) > n_steps // 2:
                return median(after - before for before, after in pairwise(times))
        raise EngineFailed(f"{n_sequences} streams of {depth} tokens do not write {n_steps} steps together")

    def _steps_together(self, n_sequences: int, n_prompt: int, n_steps: int) -> list[float]:
        """Times of steps of all streams; fewer than asked for where one ended: on a busy machine they begin apart."""
        numbers = self._streams(n_sequences, n_prompt)
        try:
            began = max(self._first_token(n) for n in numbers)
            self._wait(lambda: len(self._steps_of(numbers, began)) > n_steps or any(n in self._ends for n in numbers))
            return self._steps_of(numbers, began)[: n_steps + 1]
        finally:
            self._cancel(numbers)

    def mixed_seconds(self, n_sequences: int, depth: int, n_prompt: int) -> tuple[float, int]:
        """A prompt read while streams write: seconds to its first token, and in how many steps.

        Raises:
            EngineFailed: again and again a stream had filled its context before the prompt was read; or it was refused.
        """
        for _ in range(MOST_TRIES):
            found = self._read_beside(n_sequences, depth, n_prompt)
            if found is not None:
                began, first = found
                return first - began, sum(began < step.time <= first for step in self._heard)
        raise EngineFailed(f"{n_sequences} streams of {depth} tokens do not write until {n_prompt} more are read")

    def _read_beside(self, n_sequences: int, depth: int, n_prompt: int) -> tuple[float, float] | None:
        """When a prompt was submitted, and when it had its first token; None where a stream ended before that.

        It is submitted in the loop's own thread, between two steps, as soon as all streams write: no part of a step is
        waited for, and streams do not come to their ends while who asks is held up.
        """
        late: list[int] = []
        times: list[float] = []  # of both

        def look(step: HeardStep) -> None:
            if not late and step.ids.issuperset(numbers):
                times.append(step.time)
                late.append(self._submit(n_prompt, max_tokens=1))
            elif step.ids.intersection(late) and not self._ends.keys() & set(numbers):
                times.append(step.time)

        with self._news:
            numbers = self._streams(n_sequences, depth)
            self._on_step = look
        try:
            self._wait(lambda: len(times) == 2 or bool(self._ends.keys() & {*numbers, *late}))
        finally:
            self._on_step = lambda _: None
            self._cancel([*numbers, *late])
        if late and isinstance(refused := self._ends[late[0]], Refused):
            raise EngineFailed(f"the engine did not write: {refused.message}")
        return (times[0], times[1]) if len(times) == 2 else None

    def switch_seconds(self, variant: str) -> tuple[float, float]:
        """Seconds to get a variant into memory, and in which no step could run.

        Raises:
            EngineFailed: it cannot be switched to.
        """
        number = self._next_id()
        self._loop.receive(Switch(id=number, variant=variant))
        end = self._end_of(number)
        if not isinstance(end, Switched):
            raise EngineFailed(f"'{variant}' cannot be switched to: {getattr(end, 'message', '')}")
        return end.prepare_seconds, end.stall_seconds

    # --- requests ----------------------------------------------------------------------------------------------------

    def _streams(self, n_sequences: int, n_prompt: int) -> list[int]:
        """Streams that write until they are cancelled, or their context is full; earlier steps are forgotten.

        They begin together, however long this thread is held up in between: the loop waits before it tells of a step.
        """
        with self._news:
            self._heard.clear()
            return [self._submit(n_prompt, max_tokens=None) for _ in range(n_sequences)]

    def _submit(self, n_prompt: int, max_tokens: int | None) -> int:
        number = self._next_id()
        # random tokens: no prompt begins like another one that is still in the cache
        prompt = [self._chance.randrange(self._n_vocabulary) for _ in range(n_prompt)]
        greedy = Sampling(temperature=0.0)
        self._loop.receive(Generate(id=number, prompt=prompt, max_tokens=max_tokens, sampling=greedy, ignore_end=True))
        return number

    def _cancel(self, numbers: list[int]) -> None:
        for number in numbers:
            self._loop.receive(Cancel(id=number))
        for number in numbers:
            self._end_of(number)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    # --- what is heard -----------------------------------------------------------------------------------------------

    def _hear(self, message: EngineMessage) -> None:
        with self._news:
            if isinstance(message, Step):
                step = HeardStep(self._clock(), frozenset(t.id for t in message.tokens))
                self._heard.append(step)
                for number in step.ids:
                    self._first.setdefault(number, step.time)
                self._on_step(step)
            elif isinstance(message, Finished | Refused | Switched):
                self._ends[message.id] = message
            if self._is_there is not None and self._is_there():
                self._is_there = None
                self._news.notify()

    def _wait(self, is_there: Callable[[], bool]) -> None:
        """Sleep until it is so; looked at in the loop's thread, after each message."""
        with self._news:
            if is_there():
                return
            self._is_there = is_there
            if not self._news.wait_for(lambda: self._is_there is None, GIVE_UP_SECONDS):
                raise EngineFailed(f"the engine did not answer for {GIVE_UP_SECONDS:.0f} s")

    def _end_of(self, number: int) -> Finished | Refused | Switched:
        self._wait(lambda: number in self._ends)
        return self._ends[number]

    def _first_token(self, number: int) -> float:
        """When a request had its first token.

        Raises:
            EngineFailed: it was refused, or ended without one.
        """
        self._wait(lambda: number in self._ends or number in self._first)
        if number not in self._first:
            raise EngineFailed(f"the engine did not write: {getattr(self._ends[number], 'message', '')}")
        return self._first[number]

    def _steps_of(self, numbers: list[int], since: float) -> list[float]:
        wanted = frozenset(numbers)
        return [s.time for s in self._heard if s.time >= since and s.ids == wanted]
