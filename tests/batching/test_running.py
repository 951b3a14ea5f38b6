"""A request inside the engine, without a model."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lamella.batching.messages import Generate, Scored
from lamella.batching.running import RunningRequest

PROMPT = [(7 * i) % 50 for i in range(40)]


class FakeVocabulary:
    """Tokens are their own pieces."""

    def piece(self, token: int) -> bytes:
        return b"%d," % token

    def text(self, tokens: list[int]) -> str:
        return "".join(f"{token}," for token in tokens)

    def ends_generation(self, token: int) -> bool:
        return False


class FakeSampler:
    """Draws nothing."""

    def replay(self, tokens: list[int]) -> None:
        assert not tokens


def scoring() -> RunningRequest:
    asked = Generate(id=1, prompt=PROMPT, max_tokens=0, echo=True, n_logprobs=2)
    return RunningRequest(asked, PROMPT, 1, cast(Any, FakeVocabulary()), cast(Any, FakeSampler()), n_ctx=100)


def logits(first: int, n: int) -> list[NDArray[np.float32]]:
    """Of the prompt's tokens ``first``, ``first + 1``...: each row is another."""
    return [np.random.default_rng(i).standard_normal(50).astype(np.float32) for i in range(first, first + n)]


def test_a_prompt_that_is_scored_in_pieces_from_its_beginning_again_has_the_scores_of_its_tokens() -> None:
    undisturbed, disturbed = scoring(), scoring()
    expected = undisturbed.score_prompt(logits(0, 40), 0)
    assert isinstance(expected, Scored)
    assert [score.chosen.token for score in expected.scores] == PROMPT
    assert disturbed.score_prompt(logits(0, 32), 0) is None
    assert disturbed.score_prompt(logits(0, 16), 0) is None
    assert disturbed.score_prompt(logits(16, 20), 16) is None
    assert disturbed.score_prompt(logits(36, 4), 36) == expected
