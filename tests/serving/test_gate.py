"""What is under way when a server shuts down."""

from __future__ import annotations

import asyncio
import time

import pytest

from lamella.core.errors import Draining
from lamella.serving.gate import Gate


def test_a_closed_gate_lets_nothing_begin() -> None:
    gate = Gate()
    gate.check()
    assert not gate.is_draining
    gate.close()
    assert gate.is_draining
    with pytest.raises(Draining):
        gate.check()


def test_the_last_request_that_ends_is_waited_for() -> None:
    async def waited() -> None:
        gate = Gate()
        for _ in range(2):
            gate.request_begins()
        waiting = asyncio.create_task(gate.idle(60))
        gate.request_ends()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        gate.request_ends()
        await asyncio.wait_for(waiting, 10)
        gate.request_begins()  # one more, and idle no longer
        begun = time.monotonic()
        await gate.idle(0.05)
        assert time.monotonic() - begun >= 0.05

    asyncio.run(waited())


def test_a_server_without_requests_is_idle_at_once() -> None:
    begun = time.monotonic()
    asyncio.run(Gate().idle(60))
    assert time.monotonic() - begun < 30


def test_what_runs_is_cancelled_and_what_has_ended_is_not() -> None:
    class Stream:
        def __init__(self) -> None:
            self.n_cancelled = 0

        def cancel(self) -> None:
            self.n_cancelled += 1
            gate.forget(self)  # type: ignore[arg-type]  # while the gate goes through its streams

    gate, running, ended = Gate(), [Stream(), Stream()], Stream()
    for stream in (*running, ended):
        gate.keep(stream)  # type: ignore[arg-type]
    gate.forget(ended)  # type: ignore[arg-type]
    gate.cancel_streams()
    gate.cancel_streams()
    assert [stream.n_cancelled for stream in (*running, ended)] == [1, 1, 0]
