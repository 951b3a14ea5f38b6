"""Channels: messages, bounds, silence, and two that are joined."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

from lamella.cluster import channel as module
from lamella.cluster.channel import Channel, join
from lamella.cluster.messages import Describe, Ping, Probe, Purpose
from lamella.core.errors import RemoteFailed, RemoteInvalid


async def pair() -> tuple[Channel, Channel, asyncio.Server]:
    """Two ends of a connection."""
    theirs: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
    server = await asyncio.get_running_loop().create_server(lambda: Channel(theirs.set_result), "127.0.0.1", 0)
    _, ours = await asyncio.get_running_loop().create_connection(Channel, *server.sockets[0].getsockname())
    found = ours, await theirs, server
    OPEN.append(found)
    return found


OPEN: list[tuple[Channel, Channel, asyncio.Server]] = []


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test, and close what it has opened."""

    async def main() -> None:
        try:
            await test
        finally:
            for one, other, server in OPEN:
                one.abort()
                other.abort()
                server.close()
            OPEN.clear()
            await asyncio.sleep(0.01)

    asyncio.run(main())


def test_messages_arrive_in_order_and_as_what_they_are() -> None:
    async def main() -> None:
        one, other, _ = await pair()
        one.send(Ping(7))
        one.send(Describe(["Q8_0"]))
        assert await other.receive(Ping) == Ping(7)
        assert await other.receive(Purpose) == Describe(["Q8_0"])
        one.send(Probe())
        with pytest.raises(RemoteInvalid, match="not understood"):
            await other.receive(Ping)

    run(main())


def test_the_end_of_a_connection_is_an_error_to_who_waits() -> None:
    async def main() -> None:
        one, other, _ = await pair()
        waiting: asyncio.Task[Ping] = asyncio.create_task(other.receive(Ping))
        await asyncio.sleep(0)
        one.close()
        with pytest.raises(RemoteFailed, match="closed"):
            await waiting

    run(main())


def test_who_waits_can_be_cancelled_when_the_answer_comes_in_the_same_moment() -> None:
    async def main() -> None:
        channel = Channel()
        waiting: asyncio.Task[Ping] = asyncio.create_task(channel.receive(Ping, 60))
        await asyncio.sleep(0)  # it waits
        body = msgspec.json.encode(Ping(1))
        channel.data_received(len(body).to_bytes(4, "big") + body)  # as the event loop calls it
        waiting.cancel()
        await asyncio.wait((waiting,), timeout=60)
        assert waiting.cancelled()

    run(main())


def test_silence_is_an_error_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_SECONDS", 0.01)

    async def main() -> None:
        one, other, _ = await pair()
        with pytest.raises(RemoteFailed, match=r"no answer for 0\.05 s"):
            await other.receive(Ping, 0.05)
        one.send(Ping(1))
        assert await other.receive(Ping, 10) == Ping(1)

    run(main())


def test_time_in_which_this_process_stood_still_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_SECONDS", 0.05)

    async def main() -> None:
        one, other, _ = await pair()
        waiting: asyncio.Task[Ping] = asyncio.create_task(other.receive(Ping, 0.5))
        await asyncio.sleep(0.01)
        one.send(Ping(1))
        time.sleep(1)  # the whole process, longer than it would wait
        assert await waiting == Ping(1)

    run(main())


def test_who_sends_without_being_asked_is_slowed_and_not_kept_in_memory() -> None:
    async def main() -> None:
        one, other, _ = await pair()
        n_bytes = 16 * module.MOST_WAITING_BYTES
        one.write(bytes(n_bytes))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.drain(), 0.5)  # most of it has not left
        assert await other.read(n_bytes, 60) == bytes(n_bytes)  # and goes on when it is asked for
        await asyncio.wait_for(one.drain(), 60)

    run(main())


def test_joined_channels_pass_what_waited_and_what_comes_and_end_together() -> None:
    async def main() -> None:
        left, left_inner, _ = await pair()
        right, right_inner, _ = await pair()
        left.write(b"before ")
        await asyncio.sleep(0.05)
        joined = asyncio.create_task(join(left_inner, right_inner))
        left.write(b"after")
        assert await right.read(12) == b"before after"
        data = bytes(range(256)) * (20 << 12)  # more than all buffers hold
        right.write(data)
        await asyncio.sleep(0.1)
        assert await left.read(len(data)) == data
        left.close()
        await joined
        await right.closed.wait()

    run(main())


def test_a_filter_is_asked_for_no_more_than_the_other_side_takes() -> None:
    made = 0

    def endless(data: bytes) -> Any:
        nonlocal made
        for _ in range(1000):
            made += 1
            yield bytes(1 << 20)

    async def main() -> None:
        left, left_inner, _ = await pair()
        right, right_inner, _ = await pair()
        right.pause()
        joined = asyncio.create_task(join(left_inner, right_inner, endless))
        left.write(b"x")
        while not made:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert made < 50
        right.resume()
        await right.read(30 << 20)
        left.close()
        right.abort()
        await joined

    run(main())
