"""Log-probabilities in OpenAI's two dialects."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from lamella.batching.messages import Logprob, TokenScore

LOWEST = -9999.0
"""What OpenAI says for minus infinity, which JSON has not."""


def chat_entry(score: TokenScore) -> dict[str, Any]:
    """One element of ``logprobs.content``."""
    return {**_entry(score.chosen), "top_logprobs": [_entry(likely) for likely in score.top]}


def chat_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """``logprobs`` of a choice or a delta."""
    return {"content": [chat_entry(score) for score in scores], "refusal": None}


class CompletionLogprobs:
    """``logprobs`` of completions: four lists beside each other, with offsets into the whole text."""

    def __init__(self) -> None:
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def document(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """Of some tokens; offsets go on from those before."""
        return {
            "tokens": [_text(score.chosen.piece) for score in scores],
            "token_logprobs": [None if score.is_first else _finite(score.chosen.logprob) for score in scores],
            "top_logprobs": [_top(score) for score in scores],
            "text_offset": [self._advance(score.chosen.piece) for score in scores],
        }

    def _advance(self, piece: bytes) -> int:
        """Where a piece begins, in characters; a character in several pieces begins where its last one does."""
        offset = self._offset
        self._offset += len(self._decoder.decode(piece))
        return offset


def _top(score: TokenScore) -> dict[str, float] | None:
    """The likeliest tokens and the one that was taken; where two look alike, the likelier counts."""
    if score.is_first:
        return None
    top: dict[str, float] = {}
    for likely in (*score.top, score.chosen):
        top.setdefault(_text(likely.piece), _finite(likely.logprob))
    return top


def _entry(likely: Logprob) -> dict[str, Any]:
    token = likely.piece.decode("utf-8", "replace")
    return {"token": token, "logprob": _finite(likely.logprob), "bytes": list(likely.piece)}


def _text(piece: bytes) -> str:
    """A piece as OpenAI's completions show it: parts of a character as ``bytes:\\xe2\\x82``."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
