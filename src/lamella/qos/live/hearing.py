"""What requests do, heard from the messages between a server's front and its engine.

    hearing = RequestHearing(objectives)
    supervised_engine.watch(hearing)
    hearing.watch.classes(now), hearing.n_open, hearing.streams(now), hearing.take_observed()

Latencies are the engine's: a client that reads its answer slowly does not make the engine look slow.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lamella.batching.messages import Accepted, EngineMessage, Finished, Generate, Step
from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.sample import Stream
from lamella.qos.profiles.refresh import ObservedPrompt, ObservedStep
from lamella.qos.traces.arrivals import DEFAULT_CLASS
from lamella.qos.watching import LoadWatch

MOST_OBSERVED = 4096
"""Observations that wait to be taken; older ones are forgotten."""


@dataclass(slots=True)
class _Heard:
    """One open request.

    Attributes:
        n_prompt: tokens; 0 before the engine has said so.
        has_variant: it is computed by a variant of its own wish.
        is_alone: nothing else was open from its submission to its first token.
        first_by: the variant that wrote its first token.
    """

    class_name: str
    submitted_at: float
    has_variant: bool
    is_alone: bool
    n_prompt: int = 0
    n_tokens: int = 0
    first_at: float = 0.0
    first_by: str = ""
    last_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Observed:
    """Something that tells how fast a variant is."""

    variant: str
    what: ObservedStep | ObservedPrompt


class RequestHearing:
    """Hears submissions and messages, and knows from them what the load is and how fast the engine is.

    Attributes:
        objectives: by which requests are judged; may be exchanged.
        watch: the load, by class.
    """

    def __init__(self, objectives: Objectives | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is open."""
        self.objectives = objectives or Objectives()
        self._clock = clock
        self.watch = LoadWatch(clock())
        self._open: dict[int, _Heard] = {}
        self._step: tuple[float, str, frozenset[int]] | None = None
        self._observed: deque[Observed] = deque(maxlen=MOST_OBSERVED)

    @property
    def n_open(self) -> int:
        return len(self._open)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of requests that have no token yet."""
        return sum(r.n_prompt for r in self._open.values() if not r.n_tokens)

    def streams(self, now: float) -> tuple[Stream, ...]:
        """Requests that write and leave the variant to the server."""
        writing = (r for r in self._open.values() if r.n_tokens and not r.has_variant)
        return tuple(Stream(r.class_name, r.n_tokens, now - r.first_at) for r in writing)

    def take_observed(self) -> list[Observed]:
        """What was observed since it was last asked."""
        found = list(self._observed)
        self._observed.clear()
        return found

    # --- what is heard -----------------------------------------------------------------------------------------------

    def submitted(self, request: Generate) -> None:
        """A request came."""
        for other in self._open.values():
            other.is_alone = other.is_alone and other.n_tokens > 0
        self._open[request.id] = _Heard(
            class_name=request.class_name or DEFAULT_CLASS,
            submitted_at=self._clock(),
            has_variant=request.variant is not None,
            is_alone=not self._open,
        )
        self._step = None

    def heard(self, message: EngineMessage) -> None:
        """The engine says something."""
        if isinstance(message, Step):
            self._on_step(message)
        elif isinstance(message, Accepted):
            self._on_accepted(message)
        elif isinstance(message, Finished):
            self._on_finished(message)

    def gone(self, number: int) -> None:
        """A request is over, whichever way."""
        if self._open.pop(number, None) is not None:
            self._step = None

    def _on_accepted(self, message: Accepted) -> None:
        request = self._open.get(message.id)
        if request is not None and not request.n_prompt:  # another engine may say it again
            request.n_prompt = message.prompt_tokens
            self.watch.arrived(self._clock(), request.class_name, message.prompt_tokens)

    def _on_step(self, step: Step) -> None:
        now = self._clock()
        ids = frozenset(event.id for event in step.tokens)
        self._observe_step(now, step.variant, ids)
        for number in ids & self._open.keys():
            self._on_token(self._open[number], now, step.variant)
        self._step = (now, step.variant, ids)

    def _observe_step(self, now: float, variant: str, ids: frozenset[int]) -> None:
        """Two steps that follow each other, of the same requests, with nothing else to do in between."""
        last = self._step
        if last is None or last[1:] != (variant, ids) or ids != self._open.keys():
            return
        requests = list(self._open.values())
        if any(r.has_variant for r in requests):
            return
        depth = sum(r.n_prompt + r.n_tokens for r in requests) / len(requests)
        self._observed.append(Observed(variant, ObservedStep(len(requests), depth, now - last[0])))

    def _on_token(self, request: _Heard, now: float, variant: str) -> None:
        request.n_tokens += 1
        request.last_at = now
        if request.n_tokens == 1:
            request.first_at, request.first_by = now, variant
            self.watch.began(now, request.class_name, now - request.submitted_at)

    def _on_finished(self, message: Finished) -> None:
        request = self._open.get(message.id)
        if request is None or message.reason == "cancelled" or not request.n_tokens:
            return
        ttft = request.first_at - request.submitted_at
        n_further = request.n_tokens - 1
        tpot = (request.last_at - request.first_at) / n_further if n_further else None
        wanted = self.objectives.classes.get(request.class_name, ClassObjectives())
        kept = message.reason != "deadline" and wanted.is_met_by(ttft, tpot or 0.0)
        self.watch.ended(self._clock(), request.class_name, request.n_tokens, tpot, kept=kept)
        if request.is_alone and not request.has_variant and not message.cached_tokens:
            self._observed.append(Observed(request.first_by, ObservedPrompt(message.prompt_tokens, ttft)))
