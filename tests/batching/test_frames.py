"""Frames: what is sent arrives, however the stream is cut, and nothing else does."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator

import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from lamella.batching.frames import (
    FRAME_LIMIT_BYTES,
    BrokenFrame,
    FrameProtocol,
    FrameSocket,
    FrameSplitter,
    FrameTooLong,
    FrameWriter,
    engine_decoder,
    front_decoder,
    settings_decoder,
)
from lamella.batching.messages import (
    Cancel,
    Chat,
    EngineMessage,
    FrontMessage,
    Generate,
    Logprob,
    Step,
    Stop,
    TokenEvent,
    TokenScore,
)
from lamella.batching.settings import EngineSettings

SCORE = TokenScore(Logprob(7, b"\xff", -0.5), False, [Logprob(7, b"\xff", -0.5)])
STEP = Step("small", [TokenEvent(1, 7, "ü", SCORE), TokenEvent(2, 8, "")])
GENERATE = Generate(id=3, prompt=Chat(messages=[{"role": "user", "content": "hi"}]), generated=[1, 2], stop=["x"])


def frame(message: object) -> bytes:
    data = bytearray()
    FrameWriter().write(message, data)
    return bytes(data)


@pytest.fixture
def ends() -> Iterator[tuple[FrameSocket, FrameSocket]]:
    ours, theirs = socket.socketpair()
    with FrameSocket(ours) as one, FrameSocket(theirs) as other:
        yield one, other


def test_a_message_arrives_as_it_was_sent(ends: tuple[FrameSocket, FrameSocket]) -> None:
    one, other = ends
    for message in (STEP, STEP):
        one.send(message)
        assert other.receive_one(engine_decoder()) == message
    other.send(GENERATE)
    assert one.receive_one(front_decoder()) == GENERATE


def test_one_message_is_read_without_those_after_it(ends: tuple[FrameSocket, FrameSocket]) -> None:
    one, other = ends
    settings = EngineSettings(store="store")
    one.send(settings)
    one.send(GENERATE)
    one.send(Stop())
    one.close()
    assert other.receive_one(settings_decoder()) == settings
    assert list(other.receive(front_decoder())) == [GENERATE, Stop()]


@given(sizes=st.lists(st.integers(0, 300), max_size=8), cuts=st.lists(st.integers(1, 200), min_size=1, max_size=30))
def test_however_the_stream_is_cut_the_messages_are_the_same(sizes: list[int], cuts: list[int]) -> None:
    messages: list[FrontMessage] = [Generate(id=i, prompt="x" * size) for i, size in enumerate(sizes)]
    stream = b"".join(frame(message) for message in messages)
    splitter, got, start = FrameSplitter(front_decoder()), [], 0
    for turn in range(len(stream) + 1):
        end = start + cuts[turn % len(cuts)]
        if start < len(stream):
            got += splitter.feed(stream[start:end])
        start = end
    splitter.finish()
    assert got == messages


def test_many_frames_of_one_read_come_together_and_the_beginning_of_the_next_is_kept() -> None:
    splitter = FrameSplitter(front_decoder())
    data = frame(Cancel(id=1)) + frame(Cancel(id=2)) + frame(Cancel(id=3))
    assert splitter.feed(data[:-1]) == [Cancel(id=1), Cancel(id=2)]
    assert splitter.feed(data[-1:]) == [Cancel(id=3)]


def test_frames_of_several_threads_do_not_mix(ends: tuple[FrameSocket, FrameSocket]) -> None:
    one, other = ends
    n_threads, n_each = 4, 50

    def send(number: int) -> None:
        for i in range(n_each):
            one.send(Generate(id=number * n_each + i, prompt="x" * 5000 * number))

    threads = [threading.Thread(target=send, args=(n,)) for n in range(n_threads)]
    for thread in threads:
        thread.start()
    received = other.receive(front_decoder())
    got = [next(received) for _ in range(n_threads * n_each)]
    for thread in threads:
        thread.join()
    assert all(isinstance(m, Generate) and m.prompt == "x" * 5000 * (m.id // n_each) for m in got)
    assert sorted(m.id for m in got if isinstance(m, Generate)) == list(range(n_threads * n_each))


def test_a_stream_that_ends_inside_a_frame_is_broken(ends: tuple[FrameSocket, FrameSocket]) -> None:
    one, other = ends
    one._socket.sendall(frame(GENERATE)[:-3])
    one.close()
    with pytest.raises(BrokenFrame, match="ended inside a frame"):
        list(other.receive(front_decoder()))


def test_a_first_frame_that_ends_early_is_broken(ends: tuple[FrameSocket, FrameSocket]) -> None:
    one, other = ends
    one._socket.sendall(frame(GENERATE)[:2])
    one.close()
    with pytest.raises(BrokenFrame, match="2 bytes of 4"):
        other.receive_one(front_decoder())


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (struct.pack("<I", FRAME_LIMIT_BYTES + 1), "at most"),
        (struct.pack("<I", 3) + b"\xc1\xc1\xc1", "no message that is known"),
        (struct.pack("<I", 0), "no message that is known"),
        (frame(EngineSettings(store="store")), "no message that is known"),
        (frame({"type": "Cancel", "id": "one"}), "no message that is known"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(BrokenFrame, match=complaint):
        FrameSplitter(front_decoder()).feed(data)


def test_a_message_longer_than_a_frame_is_refused_and_the_next_one_passes(
    ends: tuple[FrameSocket, FrameSocket],
) -> None:
    one, other = ends
    with pytest.raises(FrameTooLong, match=r"Generate of 64\.0 MiB"):
        one.send(Generate(id=1, prompt="x" * FRAME_LIMIT_BYTES))
    one.send(Cancel(id=1))
    assert other.receive_one(front_decoder()) == Cancel(id=1)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_front_receives_and_sends_without_waiting(new_loop: type[asyncio.AbstractEventLoop]) -> None:
    long = Generate(id=1, prompt="x" * (4 << 20))  # more than a socket holds

    async def talk() -> None:
        ours, theirs = socket.socketpair()
        got: list[EngineMessage] = []
        has_closed = asyncio.Event()
        protocol = FrameProtocol(engine_decoder(), got.append, has_closed.set)
        ours.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: protocol, sock=ours)
        protocol.send(long)
        with FrameSocket(theirs) as engine:
            assert await asyncio.to_thread(engine.receive_one, front_decoder()) == long
            engine.send(STEP)
            engine.send(STEP)
        await has_closed.wait()
        assert got == [STEP, STEP]
        assert not protocol.failure
        protocol.send(Stop())  # goes nowhere

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(talk())


def test_the_front_closes_on_what_is_no_frame_and_says_why() -> None:
    async def talk() -> None:
        ours, theirs = socket.socketpair()
        has_closed = asyncio.Event()
        protocol = FrameProtocol(engine_decoder(), lambda _: None, has_closed.set)
        ours.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: protocol, sock=ours)
        with theirs:
            theirs.sendall(b"Traceback (most recent call last)")
            await has_closed.wait()
        assert "at most" in protocol.failure

    asyncio.run(talk())


def test_the_writer_counts_what_msgspec_writes() -> None:
    data = frame(STEP)
    assert struct.unpack("<I", data[:4])[0] == len(data) - 4
    assert msgspec.msgpack.decode(data[4:], type=EngineMessage) == STEP
