"""A supervised engine in a real process, to which nothing happens: requests, refusals, a queue that is full."""

from __future__ import annotations

import asyncio

import pytest

from lamella.batching.frames import FRAME_LIMIT_BYTES
from lamella.batching.messages import Generate
from lamella.core.errors import InvalidRequest, QueueFull, RequestRefused
from lamella.serving.engine_client import EngineClient
from lamella.serving.supervision import SupervisorOptions
from tests.serving.supervised import check_whole, engine_of, read, run, until


def test_it_is_what_the_routes_ask_for() -> None:
    client: EngineClient = engine_of()
    assert not client.is_ready


def test_a_request_gets_its_tokens() -> None:
    async def talk() -> None:
        async with engine_of() as engine:
            assert engine.is_ready
            check_whole(await read(engine.generate(Generate(id=77, prompt="p", max_tokens=5))), "p", 5)
            assert engine.n_open == 0

    run(talk())


def test_what_the_engine_refuses_is_refused() -> None:
    async def talk() -> None:
        async with engine_of() as engine:
            with pytest.raises(RequestRefused, match="the fake refuses") as refused:
                await read(engine.generate(Generate(id=0, prompt="refuse")))
            assert refused.value.why == "invalid"
            with pytest.raises(RequestRefused, match="no such variant"):
                await engine.switch("missing")
            assert (await engine.prepare("small")).variant == "small"
            assert engine.n_restarts == 0

    run(talk())


def test_a_message_too_long_to_send_is_refused() -> None:
    async def talk() -> None:
        async with engine_of() as engine:
            with pytest.raises(RequestRefused, match="too long") as refused:
                await read(engine.generate(Generate(id=0, prompt="x" * (FRAME_LIMIT_BYTES + 1))))
            assert refused.value.why == "invalid"
            check_whole(await read(engine.generate(Generate(id=0, prompt="p", max_tokens=2))), "p", 2)

    run(talk())


def test_embeddings_that_nobody_waits_for_end_in_the_engine_too() -> None:
    async def talk() -> None:
        async with engine_of() as engine:
            asked = asyncio.create_task(engine.embed(["never"]))
            await until(lambda: engine.status is not None and engine.status.n_waiting == 1)
            asked.cancel()
            await until(lambda: engine.status is not None and engine.status.n_waiting == 0)
            assert engine.n_open == 0

    run(talk())


def test_texts_become_tokens_and_back() -> None:
    async def talk() -> None:
        async with engine_of() as engine:
            assert await engine.detokenize(await engine.tokenize("a b")) == "a b"

    run(talk())


def test_a_full_queue_says_when_to_come_again() -> None:
    async def talk() -> None:
        async with engine_of(n_sequences=2, max_queue=3, step_seconds=0.01) as engine:
            streams = [engine.generate(Generate(id=0, prompt="p", max_tokens=1000)) for _ in range(5)]
            with pytest.raises(QueueFull, match="2 run at once and 3 may wait") as full:
                engine.generate(Generate(id=0, prompt="p"))
            assert full.value.retry_after_seconds >= 1
            with pytest.raises(QueueFull):
                await engine.embed(["p"])
            with pytest.raises(InvalidRequest, match=r"6 choices at once; .* at most 5"):
                engine.check_room(6)
            streams[0].cancel()
            assert engine.n_open == 4
            engine.check_room(1)
            with pytest.raises(QueueFull):
                engine.check_room(2)
            engine.generate(Generate(id=0, prompt="p"))
            for stream in streams[1:]:
                stream.cancel()

    run(talk())


def test_a_cancelled_request_ends_here_and_in_the_engine() -> None:
    async def talk() -> None:
        async with engine_of(step_seconds=0.001) as engine:
            stream = engine.generate(Generate(id=0, prompt="p", max_tokens=1_000_000))
            for _ in range(2):  # the second is a token
                await anext(aiter(stream))
            stream.cancel()
            assert await read(stream) == []
            assert engine.n_open == 0
            await until(lambda: engine.status is not None and engine.status.n_steps > 0)
            await until(lambda: engine.status is not None and engine.status.n_running == 0)
            stream.cancel()

    run(talk())


def test_options_outside_their_range_have_no_meaning() -> None:
    with pytest.raises(InvalidRequest, match="max_queue"):
        SupervisorOptions(max_queue=-1)
    with pytest.raises(InvalidRequest, match="poison_limit"):
        SupervisorOptions(poison_limit=0)
