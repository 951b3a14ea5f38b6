"""What is asked of a model about a piece of text: how likely a continuation is after a context."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.core.errors import InvalidRequest
from lamella.llama.handles import Vocabulary


@dataclass(frozen=True, slots=True)
class Request:
    """Tokens of a context and of the continuation to be scored; neither is empty.

    Attributes:
        n_cut: tokens that the context lost at its start because the model's context is shorter.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    n_cut: int = 0

    @property
    def fed(self) -> tuple[int, ...]:
        """What the model reads: everything but the last token, which nothing follows."""
        return self.context + self.continuation[:-1]


def make_request(vocabulary: Vocabulary, context: str, continuation: str, most_tokens: int) -> Request:
    """Tokenize a pair as lm-evaluation-harness does (``TemplateLM._encode_pair``).

    Spaces at the end of the context belong to the continuation, whose tokens are those that the whole text has beyond
    the context's own.  An empty context is the token that starts a text.

    Args:
        most_tokens: that the model may read; a longer context loses its start.

    Raises:
        InvalidRequest: the continuation alone is longer.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    whole = vocabulary.tokenize(stripped + continuation, parse_special=False)
    before = vocabulary.tokenize(stripped, parse_special=False) if stripped else []
    if not before:
        starts = vocabulary.tokenize("") or [vocabulary.bos if vocabulary.bos >= 0 else vocabulary.eos]
        before, whole = starts, [*starts, *vocabulary.tokenize(continuation, add_special=False, parse_special=False)]
    after = whole[len(before) :] or vocabulary.tokenize(continuation, add_special=False, parse_special=False)
    room = most_tokens - (len(after) - 1)
    if room < 1:
        raise InvalidRequest(f"a continuation of {len(after)} tokens; the model reads {most_tokens} at once")
    return Request(tuple(before[-room:]), tuple(after), max(0, len(before) - room))
