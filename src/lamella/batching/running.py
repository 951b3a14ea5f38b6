"""A request inside the engine: its tokens, where it stands, and what it has told the front."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lamella.batching.messages import Finished, FinishReason, Generate, Logprob, Scored, TokenEvent, TokenScore
from lamella.batching.shelf import ParkedState
from lamella.batching.slots import Slot
from lamella.batching.steps import Candidate
from lamella.llama.context import Context
from lamella.llama.logits import top_logprobs
from lamella.llama.sampling import Sampler
from lamella.llama.vocabulary import Vocabulary
from lamella.run.prefix import shared_prefix
from lamella.run.text import TextStream

SCORED_AT_ONCE = 32
"""Prompt tokens of a step whose logits are kept; more would cost memory of the size of the vocabulary each."""

CELLS_AHEAD = 32
"""Tokens that all shall at least be able to write before one that gave way for want of cells has to do so again.

Copying a sequence out and in again takes about as long as computing a 30th of it (``slots.COPIES_FOR_ONE``)."""


class RunningRequest:
    """One ``Generate`` from its arrival to its end.  Owned by the loop's thread.

    Attributes:
        request: as it came.
        order: of arrival.
        n_prompt: tokens of the prompt.
        tokens: prompt and all that was written; all but the last are, or will be, in the cache.
        slot: where it is computed; None while it waits.
        parked: its state while it is parked.
        was_parked: whether it was ever pushed aside.
        n_overtaken: see ``turns.Wish``.
        is_cancelled: the front wants no more of it.
        n_cached: tokens of the prompt that were found in the cache.
    """

    def __init__(
        self,
        request: Generate,
        prompt: Sequence[int],
        order: int,
        vocabulary: Vocabulary,
        sampler: Sampler,
        n_ctx: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take a request in; what an earlier engine wrote of it counts as written and told.

        Args:
            sampler: becomes this request's.
            n_ctx: most tokens of prompt and answer.
        """
        self.request, self.order = request, order
        self.n_prompt = len(prompt)
        written = self._before_the_end(request, vocabulary)
        self.tokens = [*prompt, *written]
        self.slot: Slot | None = None
        self.parked: ParkedState | None = None
        self.was_parked = self.is_cancelled = False
        self.n_cached = 0
        self.n_overtaken: int | None = None
        self._sampler, self._vocabulary, self._clock = sampler, vocabulary, clock
        self._arrived = self._began_reading = self._began_writing = clock()
        self._has_begun = False
        self._deadline = None if request.deadline_seconds is None else self._arrived + request.deadline_seconds
        room = n_ctx - self.n_prompt
        self._max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
        self._scores: list[TokenScore] = []
        self._is_scored = not (request.echo and request.n_logprobs is not None) or bool(request.generated)
        self._text = TextStream(request.stop)
        for token in written:
            self._text.feed(vocabulary.piece(token))
        sampler.replay(written)
        has_ended = len(written) < len(request.generated)
        self._end: FinishReason | None = "stop" if self._text.stopped or has_ended else None

    @staticmethod
    def _before_the_end(request: Generate, vocabulary: Vocabulary) -> list[int]:
        """What an earlier engine wrote, without the end of the text, which it may have told as a token (``draw``)."""
        if request.ignore_end:
            return request.generated
        return list(itertools.takewhile(lambda token: not vocabulary.ends_generation(token), request.generated))

    @property
    def urgency(self) -> tuple[int, int]:
        """As that of a candidate."""
        return self.candidate("").urgency

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def n_computed(self) -> int:
        """Tokens that the cache holds."""
        return len(self.slot.tokens) if self.slot else 0

    def n_cells(self, n_ahead: int) -> int:
        """Cells that it takes until it has written so many tokens more, or has ended."""
        return min(len(self.tokens) + n_ahead, self.n_prompt + self._max_tokens)

    @property
    def n_slot(self) -> int:
        """Sequence id of its slot: llama.cpp takes sequences of a pass in the order of their ids."""
        assert self.slot is not None  # it runs
        return self.slot.id

    @property
    def scores_prompt(self) -> bool:
        """Whether every token of the prompt has to be computed for its logits, so that none may come from the cache."""
        return not self._is_scored

    @property
    def wants_token(self) -> bool:
        """Whether another token may be drawn when all its tokens are computed."""
        return self.n_computed == len(self.tokens) and self.n_generated < self._max_tokens

    @property
    def is_reading(self) -> bool:
        """Whether a part of its prompt is still to be computed."""
        return self.n_computed < self.n_prompt

    @property
    def writes_on(self) -> bool:
        """Whether a token that it drew is all that is to be computed."""
        return self.n_generated > 0 and len(self.tokens) - self.n_computed == 1

    def candidate(self, variant: str) -> Candidate:
        """How the step planner sees it.

        Args:
            variant: that computes requests without a wish of their own.
        """
        return Candidate(
            id=self.request.id,
            variant=self.request.variant or variant,
            n_remaining=len(self.tokens) - self.n_computed,
            is_writing=self.writes_on,
            priority=self.request.priority,
            order=self.order,
            most_scored=0 if self._is_scored else SCORED_AT_ONCE,
        )

    def shares_prompt_with(self, other: RunningRequest) -> int:
        """How many tokens both begin with."""
        return shared_prefix(self.tokens, other.tokens)

    def start(self, slot: Slot) -> None:
        """It has a slot, for the first time or again, with a part of its tokens in it."""
        self.slot = slot
        if not self._has_begun:
            self._has_begun = True
            self._began_reading = self._clock()
            self.n_cached = min(len(slot.tokens), self.n_prompt)

    def end_reason(self, now: float) -> FinishReason | None:
        """Why it ends now, if it does."""
        if self._end is None:
            if self.is_cancelled:
                self._end = "cancelled"
            elif self._deadline is not None and now >= self._deadline:
                self._end = "deadline"
            elif self._is_scored and self.n_generated >= self._max_tokens:
                self._end = "length"
        return self._end

    def score_prompt(self, logits: Iterable[NDArray[np.float32]], start: int) -> Scored | None:
        """Take the logits of prompt tokens ``start``, ``start + 1``, ...; returns the scores when all are there."""
        if not self._scores:  # nothing comes before the first token, so nothing predicts it
            first = self.tokens[0]
            self._scores.append(TokenScore(Logprob(first, self._vocabulary.piece(first), 0.0), True, []))
        del self._scores[start + 1 :]  # pushed aside without its state, it is computed, and scored, again
        for i, row in enumerate(logits, start + 1):
            if i < self.n_prompt:
                self._scores.append(self._score(row, self.tokens[i]))
        if len(self._scores) < self.n_prompt:
            return None
        self._is_scored = True
        return Scored(id=self.request.id, text=self.prompt_text(), scores=self._scores)

    def prompt_text(self) -> str:
        """The prompt as the model sees it."""
        return self._vocabulary.text(self.tokens[: self.n_prompt])

    def draw(self, context: Context, index: int) -> TokenEvent | None:
        """Draw the next token from the logits at ``index`` of the last batch; None where it ends the text.

        With the scores of a prompt the end is told too, as a token without text: evaluation harnesses take the last
        entry for the token that was written, and would leave out one of the prompt's.
        """
        token = self._sampler.sample(context, index)
        if not self.n_generated:
            self._began_writing = self._clock()
        if self._vocabulary.ends_generation(token) and not self.request.ignore_end:
            self._end = "stop"
            return (
                TokenEvent(self.request.id, token, "", self._drawn(context, index, token)) if self._tells_end else None
            )
        score = self._drawn(context, index, token)
        self.tokens.append(token)
        text = self._text.feed(self._vocabulary.piece(token))
        if self._text.stopped:
            self._end = "stop"
        return TokenEvent(self.request.id, token, text, score)

    @property
    def _tells_end(self) -> bool:
        return self.request.echo and self.request.n_logprobs is not None

    def _drawn(self, context: Context, index: int, token: int) -> TokenScore | None:
        return None if self.request.n_logprobs is None else self._score(context.logits(index), token)

    def _score(self, logits: NDArray[np.float32], token: int) -> TokenScore:
        own, top = top_logprobs(logits, token, self.request.n_logprobs or 0)
        piece = self._vocabulary.piece
        return TokenScore(Logprob(token, piece(token), own), False, [Logprob(t, piece(t), value) for t, value in top])

    def finished(self, reason: FinishReason) -> Finished:
        """Its last message."""
        now = self._clock()
        began_writing = self._began_writing if self.n_generated else now
        return Finished(
            id=self.request.id,
            reason=reason,
            text=self._text.finish(),
            prompt_tokens=self.n_prompt,
            cached_tokens=self.n_cached,
            generated_tokens=self.n_generated,
            queue_seconds=(self._began_reading if self._has_begun else now) - self._arrived,
            prompt_seconds=began_writing - self._began_reading if self._has_begun else 0.0,
            token_seconds=now - began_writing,
        )

    def close(self) -> None:
        """Free its sampler."""
        self._sampler.close()
