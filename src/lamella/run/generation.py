"""One running generation: an iterator of tokens, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal, Self

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        id: in the model's vocabulary; -1 for text that was held back until the end.
        text: what became certain with it; empty inside a character or a possible stop string.
        variant: the variant that computed it.
        seconds: from asking for it to having it, its pass through the model included.
    """

    id: int
    text: str
    variant: str
    seconds: float


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """What a generation cost.

    Attributes:
        n_prompt: tokens of the prompt.
        n_reused: of those, found in the KV cache of the generation before.
        prompt_seconds: until the first token: the rest of the prompt, and drawing the token from its logits.
        n_generated: tokens written.
        token_seconds: for all tokens after the first, the caller's own time excluded.
        finish_reason: ``stop`` (end of text or a stop string), ``length``, or None while it runs or was abandoned.
    """

    n_prompt: int
    n_reused: int
    prompt_seconds: float
    n_generated: int
    token_seconds: float
    finish_reason: FinishReason | None

    @property
    def prompt_tokens_per_second(self) -> float:
        return (self.n_prompt - self.n_reused) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, each of which took a pass through the model."""
        return (self.n_generated - 1) / self.token_seconds if self.token_seconds else 0.0


@dataclass(slots=True)
class Progress:
    """The counters of a running generation; the engine writes them."""

    n_prompt: int
    n_reused: int = 0
    prompt_seconds: float = 0.0
    n_generated: int = 0
    token_seconds: float = 0.0
    finish_reason: FinishReason | None = None


class Generation:
    """Iterate over it to get tokens; between two of them the engine may switch."""

    def __init__(self, tokens: Iterator[Token], progress: Progress) -> None:
        """Made by ``Engine.generate``."""
        self._tokens = tokens
        self._progress = progress

    @property
    def stats(self) -> GenerationStats:
        """So far, or of the whole when it has ended."""
        return GenerationStats(**asdict(self._progress))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        return next(self._tokens)

    def text(self) -> str:
        """Run to the end and return all of the text."""
        return "".join(token.text for token in self)
