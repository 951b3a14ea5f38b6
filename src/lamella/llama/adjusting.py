"""What is added to logits before a token is drawn: bias and penalties.

llama.cpp's own samplers for these look every token of the vocabulary up in a table.  Here the few logits that change
are changed where llama.cpp keeps them, and put back after the draw; so the fastest way to draw stays open.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InvalidRequest
from lamella.llama.logits import Logits

REPEAT_WINDOW = 64
FORBIDDEN_BIAS = -100.0  # and below, as OpenAI's documentation has it


class Wishes(Protocol):
    """What of ``SamplingOptions`` is meant here."""

    @property
    def repeat_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...
    @property
    def presence_penalty(self) -> float: ...
    @property
    def logit_bias(self) -> Mapping[int, float]: ...


class Adjustments:
    """The bias and penalties of one generation.

    Attributes:
        any: whether logits change at all.
    """

    def __init__(self, wishes: Wishes, n_tokens: int) -> None:
        """Nothing was drawn yet.

        Raises:
            InvalidRequest: the bias of a token that the vocabulary of ``n_tokens`` has not.
        """
        for token in wishes.logit_bias:
            if not 0 <= token < n_tokens:
                raise InvalidRequest(f"logit bias for token {token}; the vocabulary has tokens 0 to {n_tokens - 1}")
        self._biased = np.array(list(wishes.logit_bias), np.intp)
        self._bias = np.array([_bias(b) for b in wishes.logit_bias.values()], np.float32)
        self._repeat = np.float32(wishes.repeat_penalty)
        self._frequency, self._presence = np.float32(wishes.frequency_penalty), np.float32(wishes.presence_penalty)
        self._recent: deque[int] = deque(maxlen=REPEAT_WINDOW)
        self._drawn = _Counts()
        self._repeats = wishes.repeat_penalty != 1
        self._counts = wishes.frequency_penalty != 0 or wishes.presence_penalty != 0
        self.any = bool(len(self._biased)) or self._repeats or self._counts

    def note(self, token: int) -> None:
        """Remember a token that was drawn."""
        if self._repeats:
            self._recent.append(token)
        if self._counts:
            self._drawn.add(token)

    @contextlib.contextmanager
    def applied(self, logits: Logits) -> Iterator[None]:
        """Change ``logits`` in place; they are what they were after the block."""
        before: list[tuple[NDArray[np.intp], Logits]] = []
        try:
            if len(self._biased):
                before.append((self._biased, logits[self._biased]))
                logits[self._biased] += self._bias
            if self._recent:
                recent = np.array(list(Counter(self._recent)), np.intp)
                before.append((recent, logits[recent]))
                values = logits[recent]
                logits[recent] = np.where(values > 0, values / self._repeat, values * self._repeat)
            if self._counts:
                drawn, counts = self._drawn.tokens, self._drawn.counts
                before.append((drawn, logits[drawn]))
                logits[drawn] -= counts * self._frequency + self._presence
            yield
        finally:
            for tokens, values in reversed(before):
                logits[tokens] = values


def _bias(bias: float) -> float:
    return -np.inf if bias <= FORBIDDEN_BIAS else bias


class _Counts:
    """How often each token was drawn, in arrays that grow by doubling."""

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._tokens = np.zeros(16, np.intp)
        self._counts = np.zeros(16, np.float32)

    @property
    def tokens(self) -> NDArray[np.intp]:
        return self._tokens[: len(self._place)]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: len(self._place)]

    def add(self, token: int) -> None:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._tokens):
            self._tokens, self._counts = np.resize(self._tokens, 2 * place), np.resize(self._counts, 2 * place)
            self._counts[place:] = 0
        self._tokens[place] = token
        self._counts[place] += 1
