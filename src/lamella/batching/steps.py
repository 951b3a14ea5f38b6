"""What goes into the next step of the model: pure decisions.

Each step serves requests of one variant.  Every request that writes gets its token, and what is left of the step's
token budget reads prompts, the most urgent first.  While streams run, a step reads only so much of a prompt that it
stays short (``prompt_tokens_for``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEP_SECONDS = 0.2
"""Longest step, about, while somebody waits for the next token of a stream..."""
LONGEST_STEP_SECONDS = 1.0
"""...and while more wait for their first token than for their next."""
LEAST_PROMPT_TOKENS = 64
"""Fewer tokens of a prompt at a time cost more by reading the weights than they save in waiting..."""
SHORTEST_PIECE = 8
"""...and are read only where steps shall be shorter than ``STEP_SECONDS`` by a setting; 16 at a time cost 17 % more for
each than 64, 8 cost 50 % more (docs/log.md)."""
FLIP_SHARE = 0.04
"""Share of the time that may go into alternating between variants; the promise is 5 %."""
WORTH_WAITING_FOR = 32
"""A prompt waits for another that is being read when it can take over at least this many more tokens from it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that could take part in a step.

    Attributes:
        id: of the request.
        variant: that must compute it.
        n_remaining: tokens to run through the model before the next can be drawn; 1 for one that writes.
        is_writing: whether it has drawn a token already.
        priority: higher goes first.
        order: of arrival.
        most_scored: logits of all its tokens are wanted, of so many in one step; 0 for the last token's alone.
    """

    id: int
    variant: str
    n_remaining: int
    is_writing: bool
    priority: int
    order: int
    most_scored: int = 0

    @property
    def urgency(self) -> tuple[int, int]:
        """Sorts the most urgent first: by priority, then by arrival."""
        return -self.priority, self.order


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast steps go, and how long they may take.

    Attributes:
        prompt_tokens_per_second: measured speed of reading prompts; 0 while nothing is known.
        step_seconds: of a step that only writes; 0 while nothing is known.
        longest_seconds: about the longest that a stream may wait for its next token.
        copy_seconds: for which streams have waited since their last token, while sequences were copied.
    """

    prompt_tokens_per_second: float
    step_seconds: float = 0.0
    longest_seconds: float = LONGEST_STEP_SECONDS
    copy_seconds: float = 0.0

    @property
    def least_tokens(self) -> int:
        """The smallest piece of a prompt that is worth a pass."""
        return LEAST_PROMPT_TOKENS if self.longest_seconds >= STEP_SECONDS else SHORTEST_PIECE

    @property
    def streams_go_first(self) -> bool:
        """Whether streams have waited for copies so long that nothing else is begun before their next token.

        That is a quarter of a step.  Copies are finite, since each belongs to a request that begins, gives way or
        moves: nobody starves.
        """
        return 0 < self.step_seconds <= 4 * self.copy_seconds


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: the variant, and how many tokens of which request it runs through the model."""

    variant: str
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """Which requests get a slot now, and which must give theirs up for them."""

    start: tuple[int, ...]
    park: tuple[int, ...]


def admit(running: Sequence[Candidate], waiting: Sequence[Candidate], n_sequences: int) -> Admission:
    """Fill free places with the most urgent requests; where none is free, lower priorities give way to higher ones.

    Equal priorities never push each other aside, so nothing is parked back and forth.
    """
    start: list[int] = []
    park: list[int] = []
    n_free = n_sequences - len(running)
    victims = sorted(running, key=lambda c: (c.priority, -c.order))
    for candidate in sorted(waiting, key=lambda c: c.urgency):
        if n_free > 0:
            n_free -= 1
        elif victims and victims[0].priority < candidate.priority:
            park.append(victims.pop(0).id)
        else:
            break
        start.append(candidate.id)
    return Admission(tuple(start), tuple(park))


def choose_variant(candidates: Sequence[Candidate], current: str, steps_since_flip: int, quantum: int) -> str:
    """Whose turn it is: the variant that computes now until its quantum of steps is over, then the next by name."""
    present = sorted({c.variant for c in candidates})
    if current in present and (len(present) == 1 or steps_since_flip < quantum):
        return current
    later = [v for v in present if v > current]
    return later[0] if later else present[0]


def quantum(flip_seconds: float, step_seconds: float) -> int:
    """Steps at one variant before the next has its turn, so that flips stay below ``FLIP_SHARE`` of the time."""
    if step_seconds <= 0 or flip_seconds <= 0:
        return 1
    return max(1, math.ceil(flip_seconds * (1 - FLIP_SHARE) / (FLIP_SHARE * step_seconds)))


def prompt_tokens_for(pace: Pace, *, n_streams: int, n_prompts: int, n_batch: int) -> int:
    """Most prompt tokens of a step: all that fit, or while streams run so many that the step stays short.

    A step makes all streams wait, and shortens the wait of all prompts: the more prompts for each stream, the longer
    it may be.

    Args:
        pace: measured speeds, and the longest step.
        n_streams: requests that write.
        n_prompts: requests whose prompts are to be read.
    """
    if not n_streams or pace.prompt_tokens_per_second <= 0:
        return n_batch
    left = pace.longest_seconds - pace.step_seconds - pace.copy_seconds
    seconds = min(STEP_SECONDS * max(1.0, n_prompts / n_streams), left)
    return max(pace.least_tokens, min(n_batch, int(pace.prompt_tokens_per_second * seconds)))


def compose(candidates: Sequence[Candidate], variant: str, n_batch: int, pace: Pace) -> StepPlan:
    """The step of one variant; at most one request has its prompt scored in it.

    Where streams go first, each prompt has one token in the pass that is made for them: more take another pass, and
    sequences that stand between others and have none part these into two.

    Args:
        candidates: requests with a slot; those of other variants are passed over.
        n_batch: most tokens of the step.
        pace: measured speeds, and the longest step.
    """
    mine = sorted((c for c in candidates if c.variant == variant), key=lambda c: c.urgency)
    writing = [c for c in mine if c.is_writing][:n_batch]
    parts = [(c.id, 1) for c in writing]
    n_prompts = sum(not c.is_writing for c in mine)
    budget = prompt_tokens_for(pace, n_streams=len(writing), n_prompts=n_prompts, n_batch=n_batch)
    room = n_batch - len(parts)
    budget = min(budget, room)
    only_rides = bool(writing) and pace.streams_go_first
    has_scored = False
    for candidate in mine:
        if candidate.is_writing or (candidate.most_scored and has_scored):
            continue
        is_first = len(parts) == len(writing)
        n = min(
            1 if only_rides else _piece(candidate.n_remaining, budget, room, 0 if is_first else pace.least_tokens),
            candidate.most_scored or n_batch,
            room,
        )
        if n <= 0:
            continue
        has_scored = has_scored or bool(candidate.most_scored)
        parts.append((candidate.id, n))
        budget, room = budget - n, room - n
    return StepPlan(variant, tuple(parts))


def _piece(n_remaining: int, budget: int, room: int, at_least: int) -> int:
    """How much of a prompt is read in a step that has ``budget`` tokens left for prompts, and space for ``room``.

    Small pieces cost a pass through the weights of their own: none is cut off at a prompt's end, and none is begun of
    another prompt.
    """
    if n_remaining <= budget:
        return n_remaining
    if budget < at_least:
        return 0
    return min(room, n_remaining if n_remaining < 1.3 * budget else budget)
