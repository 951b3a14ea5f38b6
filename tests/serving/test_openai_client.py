"""The ``openai`` package against the server: what people write, works."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from collections.abc import Callable, Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from lamella.batching.messages import Chat, Generate
from lamella.core.errors import EngineUnavailable, QueueFull, RequestRefused
from lamella.serving.keys import KeyRing
from tests.fakes.engine import FakeEngine, Script
from tests.serving.conftest import Running

KEY = "user-key-5f1c"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello"}]
TOOLS: list[ChatCompletionToolParam] = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
]
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def script(request: Generate) -> Script:
    """What the engine does is asked for in the prompt."""
    said = request.prompt.messages[-1]["content"] if isinstance(request.prompt, Chat) else request.prompt
    scripts = {
        "call": Script(pieces=["Well. ", *CALL]),
        "full": Script(submit_error=QueueFull("Full.", retry_after_seconds=1)),
        "long": Script(refusal=RequestRefused("Too long.", why="context_length")),
        "die": Script(break_after=1, break_with=EngineUnavailable("No engine.")),
        "wait": Script(gate=asyncio.Event(), gate_at=1),
        "json": Script(pieces=['{"a":', " 1}"]),
    }
    return scripts.get(str(said), Script())


@pytest.fixture
def server(run_server: Callable[..., Running]) -> Running:
    return run_server(lambda: FakeEngine(choose=script), keys=KeyRing([(KEY, "user")]))


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


def message(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny@large", "tiny@small"]
    assert client.models.retrieve("tiny@small").id == "tiny@small"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, n=2, logprobs=True, top_logprobs=1)
    assert [choice.message.content for choice in answer.choices] == ["Hello world"] * 2
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[1].top_logprobs[0].token == " world"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None


def test_chat_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello world"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage is not None
    assert last.usage.completion_tokens == 2


def test_the_clients_own_accumulation_of_a_stream_of_tool_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=message("call"), tools=TOOLS) as stream:
        answer = stream.get_final_completion()
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Well."
    assert choice.message.tool_calls is not None
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"a": 1}


def test_tool_calls(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=message("call"), tools=TOOLS, tool_choice="auto")
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("add", '{"a": 1}')


def test_json_schema(server: Running, client: openai.OpenAI) -> None:
    schema: dict[str, object] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    answer = client.chat.completions.create(
        model="tiny",
        messages=message("json"),
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
    )
    assert json.loads(answer.choices[0].message.content or "") == {"a": 1}
    assert json.loads(server.engine.requests[-1].sampling.json_schema or "") == schema


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["a b", "c"], echo=True, logprobs=2, max_tokens=1)
    assert [choice.text for choice in answer.choices] == ["a bHello", "cHello"]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.token_logprobs == [None, -0.25, 0.0]
    stream = client.completions.create(model="tiny", prompt="a", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello world"


def test_embeddings(client: openai.OpenAI) -> None:
    for encoding in ("float", "base64"):
        answer = client.embeddings.create(model="tiny", input=["a b"], encoding_format=encoding)
        embedding = answer.data[0].embedding
        if isinstance(embedding, str):  # the client hands out what it was asked for
            embedding = list(struct.unpack("<3f", base64.b64decode(embedding)))
        assert embedding == [2.0, 0.5, -1.25]
    assert list(client.embeddings.create(model="tiny", input="a").data[0].embedding) == [1.0, 0.5, -1.25]


def test_errors_have_the_clients_own_types(server: Running, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="tiny", messages=message("long"))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=9)
    assert (hot.value.param, hot.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.RateLimitError) as full:
        client.chat.completions.create(model="tiny", messages=message("full"))
    assert full.value.response.headers["retry-after"] == "1"
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="tiny", messages=message("die"))
    with pytest.raises(openai.APIError, match="No engine"):
        list(client.chat.completions.create(model="tiny", messages=message("die"), stream=True))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()


def test_a_client_that_gives_up_ends_its_request(server: Running, client: openai.OpenAI) -> None:
    client.models.list()  # so that the server has met this client, and is not kept waiting by its first import
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=2.0).chat.completions.create(model="tiny", messages=message("wait"))
    ended(server)


def test_a_stream_that_is_closed_ends_its_request(server: Running, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="tiny", messages=message("wait"), stream=True)
    next(stream)
    assert not server.engine.streams[0].is_cancelled
    stream.close()
    ended(server)


def test_the_asynchronous_client(server: Running) -> None:
    async def talk() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
            create = client.chat.completions.create
            answers = await asyncio.gather(*(create(model="tiny", messages=HELLO) for _ in range(8)))
            assert {answer.choices[0].message.content for answer in answers} == {"Hello world"}
            stream = await create(model="tiny", messages=HELLO, stream=True)
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(texts) == "Hello world"
            waiting = asyncio.ensure_future(create(model="tiny", messages=message("wait"), stream=True))
            async with await waiting as stream:
                await anext(aiter(stream))

    asyncio.run(talk())
    ended(server)


def ended(server: Running) -> None:
    """The last request was cancelled, and nothing is open."""
    end = time.monotonic() + 30
    while not (server.engine.n_open == 0 and server.engine.streams and server.engine.streams[-1].is_over):
        assert time.monotonic() < end
        time.sleep(0.005)
    assert server.engine.streams[-1].is_cancelled
