"""``lamella serve`` on SmolLM2, as its users meet it: the command, the openai client, a switch while it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from openai import OpenAI

pytestmark = pytest.mark.slow
KILLED_AT = 5
"""Chunks of an answer after which its engine is killed."""
MOST_OF_A_TIE = 0.1
"""Between the log-probabilities of two tokens of which other kernels may choose the other one."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    program = [sys.executable, "-m", "lamella"]
    build = [*program, "build", "smollm2", str(folder / "store"), "--precision", "int8,int4"]
    subprocess.run(build, check=True, capture_output=True)
    options = ["--port", "0", "--context", "512", "--sequences", "4", "--layout", "mapped"]
    environment = {**os.environ, "LAMELLA_CACHE": str(folder / "cache")}
    with subprocess.Popen(
        [*program, "serve", f"{folder / 'store'}@uniform-int8", *options], stderr=subprocess.PIPE, env=environment
    ) as server:
        assert server.stderr is not None
        line = server.stderr.readline().decode()
        assert line.startswith("listening on "), line
        yield line.split()[2].removesuffix(";").removesuffix("/v1")
        server.terminate()
        assert server.wait(60) == 0


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def _switch(url: str, variant: str) -> dict[str, object]:
    body = json.dumps({"variant": variant}).encode()
    with urlopen(Request(f"{url}/admin/switch", body, {"Content-Type": "application/json"}), timeout=60) as answer:
        return dict(json.load(answer))


def test_a_switch_in_the_middle_of_a_stream(client: OpenAI, url: str) -> None:
    model = client.models.list().data[0].id
    stream = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=200, stream=True, temperature=0
    )
    pieces = []
    for i, chunk in enumerate(stream):
        pieces.append(chunk.choices[0].text if chunk.choices else "")
        if i == 10:
            report = _switch(url, "uniform-int4")
    assert (report["before"], report["after"]) == ("uniform-int8", "uniform-int4")
    assert len("".join(pieces)) > 50
    _switch(url, "uniform-int8")


def test_answers_follow_a_schema_and_call_tools(client: OpenAI) -> None:
    model = client.models.list().data[0].id
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 150}}, "required": ["age"]}
    answer = client.chat.completions.create(  # type: ignore[call-overload]
        model=model,
        messages=[{"role": "user", "content": "How old is the oldest tree?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "age", "schema": schema}},
        max_tokens=60,
        temperature=0,
    )
    assert isinstance(json.loads(answer.choices[0].message.content or "")["age"], int)
    called = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[{"type": "function", "function": {"name": "weather", "parameters": _CITY}}],
        tool_choice="required",
        max_tokens=80,
        temperature=0,
    )
    calls: list[Any] = list(called.choices[0].message.tool_calls or [])
    (call,) = calls
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}


_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


def test_requests_at_two_variants_side_by_side(client: OpenAI) -> None:
    model = client.models.list().data[0].id
    texts = {
        v: client.completions.create(
            model=f"{model}@{v}", prompt="The three laws of motion", max_tokens=24, temperature=0
        )
        .choices[0]
        .text
        for v in ("uniform-int8", "uniform-int4")
    }
    streams = {
        v: client.completions.create(
            model=f"{model}@{v}", prompt="The three laws of motion", max_tokens=24, temperature=0, stream=True
        )
        for v in texts
    }
    together = {v: "".join(c.choices[0].text for c in stream if c.choices) for v, stream in streams.items()}
    assert together == texts
    assert texts["uniform-int8"] != texts["uniform-int4"]


def test_prompt_scores_as_evaluation_harnesses_ask_for_them(client: OpenAI) -> None:
    model = client.models.list().data[0].id
    scored = client.completions.create(
        model=model, prompt="Paris is the capital of France", max_tokens=0, echo=True, logprobs=1
    ).choices[0]
    assert scored.text == "Paris is the capital of France"
    assert scored.logprobs is not None
    values = scored.logprobs.token_logprobs or []
    assert values[0] is None
    assert all(v is not None and v <= 0 for v in values[1:])


Written = list[tuple[str, dict[str, float]]]
"""Tokens in text, each with the likeliest in its place."""


def _written(choice: Any) -> Written:
    return list(zip(choice.logprobs.tokens, choice.logprobs.top_logprobs, strict=True))


def _assert_same_but_for_ties(expected: Written, found: Written) -> None:
    """Equal, or equal up to a token whose two likeliest are as good as equal.

    An engine that takes over reads in one pass what the one before wrote in many, and other sizes of a pass have other
    kernels, whose sums may choose the other one.
    """
    for (a, top), (b, _) in zip(expected, found, strict=False):
        if a != b:
            likeliest = sorted(top, key=lambda token: -top[token])[:2]
            assert {a, b} == set(likeliest)
            assert top[likeliest[0]] - top[likeliest[1]] < MOST_OF_A_TIE
            return
    assert len(found) == len(expected)


def test_a_killed_engine_is_not_noticed(client: OpenAI, url: str) -> None:
    model = client.models.list().data[0].id
    ask = {"model": model, "prompt": "A long list of animals:", "max_tokens": 60, "temperature": 0, "logprobs": 2}
    undisturbed = client.completions.create(**ask).choices[0]  # type: ignore[call-overload]
    stream = client.completions.create(**ask, stream=True)  # type: ignore[call-overload]
    text, written = "", []
    for i, chunk in enumerate(stream):
        text += chunk.choices[0].text if chunk.choices else ""
        written += _written(chunk.choices[0]) if chunk.choices and chunk.choices[0].logprobs else []
        if i == KILLED_AT:
            with urlopen(f"{url}/admin/status", timeout=30) as status:
                os.kill(json.load(status)["engine"]["pid"], 9)
    assert len(written) > KILLED_AT + 10  # much of it by the engine that took over
    assert text == "".join(token for token, _ in written)
    _assert_same_but_for_ties(_written(undisturbed), written)
    with urlopen(f"{url}/admin/status", timeout=30) as status:
        assert json.load(status)["engine_restarts"] == 1


@pytest.mark.parametrize("asked", ["nobody", "smollm2@int3"])
def test_unknown_models_are_404(client: OpenAI, asked: str) -> None:
    from openai import NotFoundError

    with pytest.raises(NotFoundError):
        client.completions.create(model=asked, prompt="a")


def test_a_store_that_is_none_is_said_at_once(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "lamella", "serve", str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == 6
    assert b"Traceback" not in done.stderr
