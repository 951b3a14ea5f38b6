"""Chats, in one piece and as streams."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lamella.batching.messages import Chat
from lamella.core.errors import EngineUnavailable, RequestRefused
from tests.fakes.engine import FakeEngine, Script
from tests.serving.conftest import InProcess

HELLO = [{"role": "user", "content": "Say hello"}]
CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'

Make = Callable[..., InProcess]


def ask(front: InProcess, **fields: Any) -> dict[str, Any]:
    answer = front.post(CHAT, {"messages": HELLO, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def events(text: str) -> list[dict[str, Any]]:
    """The documents of a stream that ended as it should."""
    lines = text.removesuffix("\n\n").split("\n\n")
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def stream(front: InProcess, **fields: Any) -> list[dict[str, Any]]:
    answer = front.post(CHAT, {"messages": HELLO, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events(answer.text)


def chat_of(front: InProcess) -> Chat:
    prompt = front.engine.requests[-1].prompt
    assert isinstance(prompt, Chat)
    return prompt


def test_an_answer_has_text_reason_and_usage(front: Make) -> None:
    answer = ask(front(FakeEngine(Script(held_back="!", cached_tokens=1))))
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello world!", "refusal": None}
    assert (choice["finish_reason"], answer["model"], answer["object"]) == ("stop", "tiny", "chat.completion")
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 2,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def test_a_stream_says_the_same_in_pieces(front: Make) -> None:
    chunks = stream(front(FakeEngine(Script(pieces=['a"\n', "", "é\u2028\x00"], held_back="."))))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": 'a"\n'},
        {"content": "é\u2028\x00"},
        {"content": "."},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, None, "stop"]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


def test_usage_comes_last_where_it_is_asked_for(front: Make) -> None:
    *chunks, last = stream(front(), stream_options={"include_usage": True})
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 4


def test_choices_have_indices_and_different_seeds(front: Make) -> None:
    one = front(FakeEngine(Script(cached_tokens=1)))
    answer = ask(one, n=3, seed=5)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [request.sampling.seed for request in one.engine.requests] == [5, 6, 7]
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    chunks = stream(one, n=2)
    for index in (0, 1):
        of_one = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in of_one) == "Hello world"
        assert of_one[-1]["finish_reason"] == "stop"


def test_without_a_seed_each_request_has_its_own(front: Make) -> None:
    one = front()
    for _ in range(2):
        ask(one)
    assert len({request.sampling.seed for request in one.engine.requests}) == 2


def test_all_fields_reach_the_engine(front: Make) -> None:
    one = front()
    ask(
        one,
        model="tiny@small",
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        repeat_penalty=1.2,
        frequency_penalty=-1,
        presence_penalty=2,
        logit_bias={"7": -100, "8": 1.5},
        stop=["a", "b"],
        max_tokens=1,
        max_completion_tokens=2,
        seed=-1,
        priority=-3,
        timeout=1.5,
        ignore_eos=True,
        user="somebody",
        logprobs=True,
        top_logprobs=3,
        unheard_of={"a": 1},
        chat_template_kwargs={"enable_thinking": False},
    )
    (request,) = one.engine.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 0, 0.1)
    assert (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1.2, -1, 2)
    assert sampling.logit_bias == {7: -100, 8: 1.5}
    assert 0 <= sampling.seed < 2**32 - 1
    assert (request.stop, request.max_tokens, request.variant, request.priority) == (["a", "b"], 2, "small", -3)
    assert (request.deadline_seconds, request.ignore_end, request.n_logprobs) == (1.5, True, 3)
    assert chat_of(one).template_options == {"enable_thinking": False}


def test_defaults_are_openais(front: Make) -> None:
    one = front()
    ask(one, temperature=None, stop=None)
    (request,) = one.engine.requests
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (1.0, 1.0, 0)
    assert (request.max_tokens, request.stop, request.variant, request.n_logprobs) == (None, [], None, None)
    assert (chat_of(one).tools, chat_of(one).tool_choice, chat_of(one).continue_last) == (None, "none", False)


def test_messages_become_plain_text(front: Make) -> None:
    one = front()
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}], "reasoning": "x"}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
        called,
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]
    ask(one, messages=messages)
    assert chat_of(one).messages == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "a\nb", "name": "me"},
        {**called, "content": ""},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]


def test_an_assistants_last_message_is_continued_unless_the_client_objects(front: Make) -> None:
    one = front()
    started = [*HELLO, {"role": "assistant", "content": "He"}]
    ask(one, messages=started)
    assert chat_of(one).continue_last
    ask(one, messages=started, continue_final_message=False)
    assert not chat_of(one).continue_last
    assert one.post(CHAT, {"messages": HELLO, "continue_final_message": True}).status_code == 400


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, '{"type":"object"}'),
        ({"type": "json_object", "schema": {"type": "array"}}, '{"type":"array"}'),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string"}}}, '{"type":"string"}'),
    ],
)
def test_response_formats_become_schemas(front: Make, response_format: object, schema: str | None) -> None:
    one = front()
    ask(one, response_format=response_format)
    assert one.engine.requests[0].sampling.json_schema == schema


def test_logprobs_stand_beside_their_tokens(front: Make) -> None:
    one = front()
    logprobs = ask(one, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]
    assert logprobs["content"][1] == {
        "token": " world",
        "logprob": -0.25,
        "bytes": list(b" world"),
        "top_logprobs": [
            {"token": " world", "logprob": -0.25, "bytes": list(b" world")},
            {"token": "alt1", "logprob": -2.0, "bytes": list(b"alt1")},
        ],
    }
    chunks = stream(one, logprobs=True, top_logprobs=2)
    streamed = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == logprobs["content"]


def test_calls_are_taken_out_of_the_text(front: Make) -> None:
    one = front(FakeEngine(Script(pieces=["Well.\n", CALL[:9], CALL[9:30], CALL[30:], CALL])))
    (choice,) = ask(one, tools=[TOOL])["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Well."
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    assert functions == [{"name": "add", "arguments": '{"a": 1}'}] * 2
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == 2
    assert chat_of(one).tools == [TOOL]
    assert chat_of(one).tool_choice == "auto"


def test_calls_are_streamed_and_text_that_may_be_one_is_not(front: Make) -> None:
    one = front(FakeEngine(Script(pieces=["Well.\n", CALL[:9], CALL[9:], CALL])))
    choices = [chunk["choices"][0] for chunk in stream(one, tools=[TOOL])]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Well."
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert [(call["index"], call["function"]["name"], call["type"]) for call in calls] == [
        (0, "add", "function"),
        (1, "add", "function"),
    ]
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_tokens_held_back_keep_their_logprobs_in_a_stream(front: Make) -> None:
    pieces = ["Well.\n", CALL[:9], CALL[9:], "x"]
    chunks = stream(front(FakeEngine(Script(pieces=pieces))), tools=[TOOL], logprobs=True)
    scored = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["token"] for entry in scored] == pieces


@pytest.mark.parametrize(("is_parallel", "n_calls"), [(False, 1), (True, 2)])
def test_an_answer_calls_one_function_where_several_are_not_wanted(
    front: Make, is_parallel: bool, n_calls: int
) -> None:
    one = front(FakeEngine(Script(pieces=["I add. ", CALL, CALL, " Done."])))
    (choice,) = ask(one, tools=[TOOL], parallel_tool_calls=is_parallel)["choices"]
    assert len(choice["message"]["tool_calls"]) == n_calls
    assert (choice["message"]["content"], choice["finish_reason"]) == ("I add.Done.", "tool_calls")
    choices = [chunk["choices"][0] for chunk in stream(one, tools=[TOOL], parallel_tool_calls=is_parallel)]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert [call["index"] for call in calls] == list(range(n_calls))


def test_without_tools_nothing_is_taken_out(front: Make) -> None:
    one = front(FakeEngine(Script(pieces=[CALL])))
    assert ask(one)["choices"][0]["message"]["content"] == CALL
    assert ask(one, tools=[TOOL], tool_choice="none")["choices"][0]["message"]["content"] == CALL


def test_a_call_that_must_be_made_is_the_whole_text(front: Make) -> None:
    script = Script(pieces=['{"name": "add", ', '"arguments": {}}'], calls_tools=True)
    one = front(FakeEngine(script))
    named = {"type": "function", "function": {"name": "add"}}
    (choice,) = ask(one, tools=[TOOL], tool_choice=named)["choices"]
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}
    assert chat_of(one).tool_choice == "add"
    last = stream(one, tools=[TOOL], tool_choice="required")[-1]
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_a_deadline_is_told_from_other_lengths(front: Make) -> None:
    (choice,) = ask(front(FakeEngine(Script(reason="deadline"))))["choices"]
    assert (choice["finish_reason"], choice["ended_by"]) == ("length", "deadline")
    (choice,) = ask(front(), max_tokens=1)["choices"]
    assert (choice["finish_reason"], "ended_by" in choice) == ("length", False)


def test_an_engine_that_fails_in_a_stream_ends_it_with_an_error_event(front: Make) -> None:
    for error, code in [
        (EngineUnavailable("No engine can be brought up."), "engine_unavailable"),
        (RequestRefused("It failed.", why="failed"), "engine_failed"),
        (ZeroDivisionError("secret"), "internal_error"),
    ]:
        one = front(FakeEngine(Script(break_after=1, break_with=error)))
        text = one.post(CHAT, {"messages": HELLO, "stream": True, "n": 2}).text
        assert "[DONE]" not in text
        assert "secret" not in text
        last = json.loads(text.strip().rsplit("data: ", 1)[1])
        assert last["error"]["code"] == code
        assert one.post(CHAT, {"messages": HELLO}).status_code in (500, 503)


def test_one_choice_that_is_refused_cancels_the_others(front: Make) -> None:
    engine = FakeEngine()
    engine.choose = lambda _: (
        Script(refusal=RequestRefused("no", why="invalid")) if len(engine.requests) == 1 else Script()
    )
    assert front(engine).post(CHAT, {"messages": HELLO, "n": 3}).status_code == 400
    assert [stream.is_cancelled for stream in engine.streams] == [True, True, True]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "nobody", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": 1}, "stream"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"timeout": 0}, "timeout"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= x"}, "grammar"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "required", "grammar": "root ::= x"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{**TOOL, "big": 10**30}]}, None),
        ({"model": 5}, "model"),
    ],
)
def test_what_makes_no_sense_is_400_and_says_where(front: Make, fields: dict[str, Any], param: str | None) -> None:
    one = front()
    answer = one.post(CHAT, {"messages": HELLO, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), error
    assert error["param"] == param or (param and error["param"].startswith(f"{param}."))
    assert one.engine.requests == []
