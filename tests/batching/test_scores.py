"""Scores of prompts and tokens that the engine loop tells."""

from __future__ import annotations

import numpy as np
import pytest

from lamella.batching.messages import (
    Sampling,
    Scored,
    TokenEvent,
)
from tests.batching.conftest import FakeFront, events_of


def test_scores_of_a_prompt_are_those_of_its_tokens_one_by_one(front: FakeFront) -> None:
    tokens = [5, 9, 14, 20, 7, 30, 11] * 7  # longer than one scored piece
    number = front.start(tokens, max_tokens=0, echo=True, n_logprobs=3)
    assert front.end_of(number).generated_tokens == 0
    scored = front.wait(lambda m: isinstance(m, Scored))
    assert [s.chosen.token for s in scored.scores] == tokens
    assert scored.scores[0].is_first
    for n in (1, 6, 40):  # what the model would say of the next token, asked alone
        event = _first_event(front, front.start(tokens[:n], max_tokens=1, n_logprobs=3))
        assert event.score is not None
        assert [t.token for t in scored.scores[n].top] == [t.token for t in event.score.top]
        assert scored.scores[n].top[0].logprob == pytest.approx(event.score.top[0].logprob, abs=1e-3)


def _first_event(front: FakeFront, number: int) -> TokenEvent:
    return events_of(front, number)[0]


def test_the_end_of_a_scored_prompt_is_a_token_without_text(front: FakeFront) -> None:
    """lm-evaluation-harness cuts the last entry off, whatever it is."""
    ends = Sampling(temperature=0.0, logit_bias={2: 100.0})
    fields = {"sampling": ends, "ignore_end": False, "n_logprobs": 1, "max_tokens": 4}
    number = front.start("hello", echo=True, **fields)
    assert front.end_of(number).reason == "stop"
    assert front.tokens_of(number) == [2]
    assert front.text_of(number) == ""
    assert front.end_of(number).generated_tokens == 0
    assert front.tokens_of(front.start("hello", **fields)) == []
    again = front.start("hello", echo=True, **fields, generated=[2])  # an engine that died just after telling it
    assert (front.end_of(again).reason, front.tokens_of(again)) == ("stop", [])
    assert front.end_of(again).generated_tokens == 0


def test_logprobs_are_a_distribution(front: FakeFront) -> None:
    event = _first_event(front, front.start("a", max_tokens=1, n_logprobs=20))
    assert event.score is not None
    values = [t.logprob for t in event.score.top]
    assert values == sorted(values, reverse=True)
    assert np.exp(values).sum() <= 1 + 1e-6
    assert event.score.chosen == event.score.top[0]  # greedy
