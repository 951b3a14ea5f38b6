"""Completions, as evaluation harnesses and the ``openai`` client ask for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lamella.batching.messages import Logprob, TokenScore
from lamella.serving.openai.logprobs import CompletionLogprobs
from tests.fakes.engine import FakeEngine, Script
from tests.serving.conftest import InProcess
from tests.serving.test_chat import events

PATH = "/v1/completions"
Make = Callable[..., InProcess]


def ask(front: InProcess, **fields: Any) -> dict[str, Any]:
    answer = front.post(PATH, fields)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a b", ["a b"]),
        ([1, 2], [[1, 2]]),
        (["a b", ""], ["a b", ""]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_every_form_of_prompt(front: Make, prompt: object, prompts: list[object]) -> None:
    one = front()
    answer = ask(one, prompt=prompt)
    assert [request.prompt for request in one.engine.requests] == prompts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(prompts)))
    assert all(request.max_tokens == 16 for request in one.engine.requests)


def test_choices_of_several_prompts_stand_prompt_by_prompt(front: Make) -> None:
    one = front()
    answer = ask(one, prompt=["a", "b c"], n=2, best_of=2, seed=1)
    assert [request.prompt for request in one.engine.requests] == ["a", "a", "b c", "b c"]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 8


def test_a_stream_has_texts_and_an_end(front: Make) -> None:
    answer = front().post(PATH, {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}})
    chunks = events(answer.text)
    assert [chunk["choices"][0]["text"] for chunk in chunks[:-1]] == ["Hello", " world", ""]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 2


def test_echo_scores_the_prompt_as_harnesses_read_it(front: Make) -> None:
    logprobs = ask(front(), prompt="a b c", echo=True, logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", " b", " c", "Hello"]
    assert logprobs["token_logprobs"] == [None, -0.25, -0.5, 0.0]
    assert logprobs["top_logprobs"] == [None, {" b": -0.25}, {" c": -0.5}, {"Hello": 0.0}]
    assert logprobs["text_offset"] == [0, 1, 3, 5]


def test_a_streamed_echo_says_the_same(front: Make) -> None:
    one = front()
    whole = ask(one, prompt="a b", echo=True, logprobs=2)["choices"][0]
    answer = one.post(PATH, {"prompt": "a b", "echo": True, "logprobs": 2, "stream": True})
    choices = [chunk["choices"][0] for chunk in events(answer.text)]
    assert "".join(choice["text"] for choice in choices) == whole["text"] == "a bHello world"
    parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    for field, values in whole["logprobs"].items():
        assert [value for part in parts for value in part[field]] == values


def test_a_prompt_may_only_be_scored(front: Make) -> None:
    answer = ask(front(FakeEngine(Script(pieces=[]))), prompt="a b", echo=True, logprobs=0, max_tokens=0)
    assert answer["choices"][0]["logprobs"]["tokens"] == ["a", " b"]
    assert front().post(PATH, {"prompt": "a", "max_tokens": 0}).json()["error"]["param"] == "max_tokens"


def test_parts_of_characters_have_names_and_offsets_of_their_own() -> None:
    euro = "€".encode()
    scores = [TokenScore(Logprob(0, piece, -math.inf), False, []) for piece in (b"a", euro[:1], euro[1:], b"b")]
    document = CompletionLogprobs().document(scores)
    assert document["tokens"] == ["a", "bytes:\\xe2", "bytes:\\x82\\xac", "b"]
    assert document["text_offset"] == [0, 1, 1, 2]
    assert document["token_logprobs"] == [-9999.0] * 4


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": ["a", 1]},
        {"prompt": [-1]},
        {"prompt": None},
        {"prompt": {}},
        {},
        {"prompt": "a", "suffix": "b"},
        {"prompt": "a", "best_of": 2},
        {"prompt": "a", "logprobs": 21},
        {"prompt": "a", "logprobs": True},
    ],
)
def test_what_makes_no_sense_is_400(front: Make, fields: dict[str, Any]) -> None:
    one = front()
    answer = one.post(PATH, fields)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert one.engine.requests == []
