"""A grammar that is followed token by token, with llama.cpp's grammar sampler.

llama.cpp aborts the process when it is made to accept a token that its grammar does not allow; here every token is
tested first.  Time is watched: with some grammars each character doubles what llama.cpp has to keep in mind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from lamella.core.errors import InvalidRequest
from lamella.llama import library, log
from lamella.llama.ambiguity import check_bounds
from lamella.llama.candidates import Candidates
from lamella.llama.handle import Handle
from lamella.llama.logits import Logits
from lamella.llama.vocabulary import Vocabulary

MOST_SECONDS = 2.0  # of one look at the vocabulary; a JSON schema takes 0.02
FIRST_GUESSES = 64  # most likely tokens, one of which the grammar mostly allows


class Guide(Handle):
    """Where a text stands in its grammar."""

    def __init__(self, grammar: str, vocabulary: Vocabulary) -> None:
        """Stand at the start.

        Raises:
            InvalidRequest: the grammar is broken, or too large or too ambiguous to follow; says what is wrong with it.
        """
        check_bounds(grammar)
        llama = library.load().llama
        log.forget_complaints()
        address = llama.llama_sampler_init_grammar(vocabulary.address, grammar.encode(), b"root")
        if not address:
            raise InvalidRequest(f"llama.cpp refuses the grammar: {log.complaints()}")
        super().__init__(address, llama.llama_sampler_free)
        self._llama = llama
        self._n_tokens = vocabulary.n_tokens

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next.

        Raises:
            InvalidRequest: there is no such token, or the grammar has become too slow to follow.
        """
        if not 0 <= token < self._n_tokens:
            raise InvalidRequest(f"there is no token {token}; the vocabulary has {self._n_tokens}")
        candidates = Candidates.single(token)
        self._keep_allowed(candidates)
        return bool(np.isfinite(candidates.logits[0]))

    def accept(self, token: int) -> None:
        """Go on by a token, which must be allowed: else llama.cpp ends the process."""
        with _in_time():
            self._llama.llama_sampler_accept(self.address, token)

    def allowed(self, logits: Logits) -> Candidates:
        """All tokens, those that may not come next with a logit of minus infinity.

        Raises:
            InvalidRequest: none may, or the grammar has become too slow to follow.
        """
        candidates = Candidates(np.arange(len(logits)), logits)
        self._keep_allowed(candidates)
        if not np.isfinite(candidates.logits).any():
            raise InvalidRequest("the grammar allows no token of this vocabulary here")
        return candidates

    def best(self, logits: Logits) -> int:
        """The most likely token that may come next.

        Raises:
            InvalidRequest: as ``allowed``.
        """
        if len(logits) > FIRST_GUESSES:
            likely = np.argpartition(logits, -FIRST_GUESSES)[-FIRST_GUESSES:]
            guesses = Candidates(np.sort(likely), logits[np.sort(likely)])
            self._keep_allowed(guesses)
            if np.isfinite(guesses.logits).any():
                return int(guesses.tokens[guesses.logits.argmax()])
        candidates = self.allowed(logits)
        return int(candidates.tokens[candidates.logits.argmax()])

    def _keep_allowed(self, candidates: Candidates) -> None:
        with _in_time():
            candidates.apply(self.address)


@contextmanager
def _in_time() -> Iterator[None]:
    start = time.thread_time()
    yield
    seconds = time.thread_time() - start
    if seconds > MOST_SECONDS:
        raise InvalidRequest(f"the grammar is too ambiguous to follow: one token took {seconds:.1f} s")
