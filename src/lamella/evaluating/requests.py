"""What is asked of a model about a piece of text: how likely a continuation is after a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lamella.core.errors import InvalidRequest
from lamella.llama.vocabulary import Vocabulary


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


def make_request(
    vocabulary: Vocabulary, context: str, continuation: str, most_tokens: int, *, parse_special: bool = False
) -> Request:
    """Tokenize a pair as lm-evaluation-harness does (``TemplateLM._encode_pair``).

    Spaces at the end of the context belong to the continuation, whose tokens are those that the whole text has beyond
    the context's own.  An empty context is the token that starts a text.

    Args:
        most_tokens: that the model may read; a longer context loses its start.
        parse_special: as ``tokenize_prompt``.

    Raises:
        InvalidRequest: the continuation alone is longer.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    whole = tokenize_prompt(vocabulary, stripped + continuation, parse_special)
    before = tokenize_prompt(vocabulary, stripped, parse_special) if stripped else []
    after = whole[len(before) :] if before else []
    if not after:  # nothing before it, or its first characters ended a token of the context
        after = vocabulary.tokenize(continuation, add_special=False, parse_special=parse_special)
    return cut_request(before or start_tokens(vocabulary), after, most_tokens)


def cut_request(context: Sequence[int], continuation: Sequence[int], most_tokens: int) -> Request:
    """A request of tokens; the context loses its start where both together are too long.

    Raises:
        InvalidRequest: the continuation alone is longer than ``most_tokens``, or empty.
    """
    if not continuation:
        raise InvalidRequest("a continuation of no tokens")
    room = most_tokens - (len(continuation) - 1)
    if room < 1:
        raise InvalidRequest(f"a continuation of {len(continuation)} tokens; the model reads {most_tokens} at once")
    return Request(tuple(context[-room:]), tuple(continuation), max(0, len(context) - room))


def tokenize_prompt(vocabulary: Vocabulary, text: str, parse_special: bool) -> list[int]:
    """Tokens of a text that a model reads from its start and goes on with: no EOS at its end, whatever the model wants.

    Args:
        parse_special: control tokens written in the text count, as in what a chat template rendered; a BOS that is
            written there is not added once more.
    """
    tokens = vocabulary.prompt(text, parse_special=parse_special)
    return tokens[1:] if parse_special and tokens[:2] == [vocabulary.bos] * 2 else tokens


def start_tokens(vocabulary: Vocabulary) -> list[int]:
    """What stands for an empty context: BOS, or EOS where the model knows none."""
    return list(vocabulary.start) or [vocabulary.bos if vocabulary.bos >= 0 else vocabulary.eos]
