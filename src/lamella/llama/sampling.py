"""Drawing the next token from logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lamella.core.errors import InvalidRequest
from lamella.llama import library
from lamella.llama.context import Context
from lamella.llama.handle import Handle
from lamella.llama.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k, top_p, min_p: llama.cpp's filters; 0, 1 and 0 switch them off.
        repeat_penalty: for the last 64 tokens; 1 switches it off.
        seed: equal seeds give equal draws.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InvalidRequest(f"temperature must be at least 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InvalidRequest(f"top_p must be in (0, 1], not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise InvalidRequest(f"min_p must be in [0, 1], not {self.min_p}")
        if not self.repeat_penalty > 0:
            raise InvalidRequest(f"repeat_penalty must be above 0, not {self.repeat_penalty}")
        if self.top_k < 0:
            raise InvalidRequest(f"top_k must be at least 0, not {self.top_k}")


class Sampler(Handle):
    """A chain of llama.cpp samplers with its random state."""

    def __init__(self, options: SamplingOptions, vocabulary: Vocabulary) -> None:
        llama = library.load().llama
        super().__init__(
            llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params()), llama.llama_sampler_free
        )
        self._llama = llama
        self._is_argmax = options.temperature == 0 and options.repeat_penalty == 1
        for sampler in _chain(llama, options, vocabulary):
            llama.llama_sampler_chain_add(self.address, sampler)

    def sample(self, context: Context, index: int = -1) -> int:
        """Draw a token from the logits at ``index`` of the last batch, and remember it for penalties."""
        if self._is_argmax:  # a sampler chain would first copy the whole vocabulary into a list of candidates
            return int(context.logits(index).argmax())
        return int(self._llama.llama_sampler_sample(self.address, context.address, index))


def _chain(llama: Any, options: SamplingOptions, vocabulary: Vocabulary) -> list[Any]:
    chain = []
    if options.repeat_penalty != 1:
        chain.append(llama.llama_sampler_init_penalties(vocabulary.n_tokens, 64, options.repeat_penalty, 0.0, 0.0))
    if options.temperature == 0:
        return [*chain, llama.llama_sampler_init_greedy()]
    if options.top_k:
        chain.append(llama.llama_sampler_init_top_k(options.top_k))
    if options.top_p < 1:
        chain.append(llama.llama_sampler_init_top_p(options.top_p, 1))
    if options.min_p > 0:
        chain.append(llama.llama_sampler_init_min_p(options.min_p, 1))
    chain.append(llama.llama_sampler_init_temp(options.temperature))
    chain.append(llama.llama_sampler_init_dist(options.seed))
    return chain
