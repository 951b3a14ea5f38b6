"""Drawing the next token from logits.

A token costs one random number and, with a grammar, two, whatever happens to it: so a sampler that is told which tokens
were drawn (``replay``) goes on exactly as the one that drew them, though it never saw their logits.
"""

from __future__ import annotations

import ctypes as ct
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lamella.core.errors import InvalidRequest
from lamella.llama import library
from lamella.llama.adjusting import Adjustments
from lamella.llama.candidates import Candidates
from lamella.llama.context import Context
from lamella.llama.guide import Guide
from lamella.llama.handle import Handle
from lamella.llama.logits import Logits
from lamella.llama.vocabulary import Vocabulary

RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp takes another seed each time
SECOND_SEED = 0x9E3779B9  # apart from the first; any constant would do


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k, top_p, min_p: llama.cpp's filters; 0, 1 and 0 switch them off.
        repeat_penalty: for the last 64 tokens; 1 switches it off.
        frequency_penalty, presence_penalty: OpenAI's, from -2 to 2, over all tokens drawn; 0 switches them off.
        seed: equal seeds give equal draws.
        logit_bias: token -> added to its logit; -100 and less forbid it.
        grammar: GBNF that the text must follow, or None.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    grammar: str | None = None

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InvalidRequest(f"temperature must be at least 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InvalidRequest(f"top_p must be in (0, 1], not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise InvalidRequest(f"min_p must be in [0, 1], not {self.min_p}")
        if not (self.repeat_penalty > 0 and math.isfinite(self.repeat_penalty)):
            raise InvalidRequest(f"repeat_penalty must be above 0, not {self.repeat_penalty}")
        if self.top_k < 0:
            raise InvalidRequest(f"top_k must be at least 0, not {self.top_k}")
        for name in ("frequency_penalty", "presence_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise InvalidRequest(f"{name} must be from -2 to 2, not {getattr(self, name)}")
        for token, bias in self.logit_bias.items():
            if math.isnan(bias) or bias == math.inf:
                raise InvalidRequest(f"the logit bias of token {token} must be a number, not {bias}")
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))  # the caller's may change


class Sampler(Handle):
    """Draws tokens for one generation; keeps what it drew for penalties and grammar, and its random state."""

    def __init__(self, options: SamplingOptions, vocabulary: Vocabulary) -> None:
        """Get ready to draw the first token.

        Raises:
            InvalidRequest: a token of ``logit_bias`` is unknown, or the grammar is refused.
        """
        self._llama = library.load().llama
        self._adjustments = Adjustments(options, vocabulary.n_tokens)
        self._guide = Guide(options.grammar, vocabulary) if options.grammar is not None else None
        self._is_greedy = options.temperature == 0
        seed = options.seed % RANDOM_SEED
        self._chain = _Chain(options, seed)
        self._second_chain = _Chain(options, (seed + SECOND_SEED) % RANDOM_SEED) if self._guide else None
        super().__init__(self._chain.address, lambda _: self._free_all())

    def sample(self, context: Context, index: int = -1) -> int:
        """Draw a token from the logits at ``index`` of the last batch, and take note of it.

        Raises:
            InvalidRequest: the grammar allows no token here, or has become too slow to follow.
        """
        logits = context.logits(index)
        if not self._adjustments.any:
            token = self._draw(context, index, logits)
        else:
            with self._adjustments.applied(logits):
                token = self._draw(context, index, logits)
        self._note(token)
        return token

    def replay(self, tokens: Iterable[int]) -> None:
        """Come to the state of a sampler of the same options that drew these tokens.

        Raises:
            InvalidRequest: the grammar does not allow them.
        """
        for token in tokens:
            if self._guide and not self._guide.allows(token):
                raise InvalidRequest(f"token {token} does not follow the grammar")
            self._chain.skip()
            if self._second_chain:
                self._second_chain.skip()
            self._note(token)

    def _draw(self, context: Context, index: int, logits: Logits) -> int:
        token = self._draw_freely(context, index, logits)
        if self._guide is None or self._second_chain is None:
            return token
        if self._guide.allows(token):  # most tokens; testing one is far cheaper than testing the vocabulary
            self._second_chain.skip()
            return token
        if self._is_greedy:
            return self._guide.best(logits)
        return self._second_chain.draw(self._guide.allowed(logits))

    def _draw_freely(self, context: Context, index: int, logits: Logits) -> int:
        if self._is_greedy:  # a sampler chain would first copy the whole vocabulary into a list of candidates
            return int(logits.argmax())
        return int(self._llama.llama_sampler_sample(self.address, context.address, index))

    def _note(self, token: int) -> None:
        self._adjustments.note(token)
        if self._guide:
            self._guide.accept(token)

    def _free_all(self) -> None:
        for part in (self._chain, self._second_chain, self._guide):
            if part is not None:
                part.close()


class _Chain(Handle):
    """llama.cpp's filters, and one random number for each token."""

    def __init__(self, options: SamplingOptions, seed: int) -> None:
        llama = library.load().llama
        super().__init__(
            llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params()), llama.llama_sampler_free
        )
        self._llama = llama
        self._random = llama.llama_sampler_init_dist(seed)
        for sampler in (*_filters(llama, options), self._random):
            llama.llama_sampler_chain_add(self.address, sampler)

    def draw(self, candidates: Candidates) -> int:
        self._llama.llama_sampler_apply(self.address, ct.byref(candidates.struct))
        return candidates.selected

    def skip(self) -> None:
        """Use up the random number of one token: ``llama_sampler_dist`` takes one whatever it is given."""
        self._llama.llama_sampler_apply(self._random, ct.byref(Candidates.single(0).struct))


def _filters(llama: Any, options: SamplingOptions) -> list[Any]:
    filters = []
    if options.top_k:
        filters.append(llama.llama_sampler_init_top_k(options.top_k))
    if options.top_p < 1:
        filters.append(llama.llama_sampler_init_top_p(options.top_p, 1))
    if options.min_p > 0:
        filters.append(llama.llama_sampler_init_min_p(options.min_p, 1))
    if options.temperature > 0:
        filters.append(llama.llama_sampler_init_temp(options.temperature))
    return filters
