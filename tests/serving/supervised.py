"""Supervised engines over the fake engine process, and what tests ask of their streams."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import psutil

from lamella.batching.messages import Accepted, Finished, TokenEvent
from lamella.batching.settings import EngineSettings
from lamella.serving.engine_client import EngineStream, StreamEvent
from lamella.serving.restarts import RestartLimits
from lamella.serving.supervision import SupervisorOptions
from lamella.serving.supervisor import SupervisedEngine
from lamella.serving.watch import Patience
from tests.fakes.engine_process import expected_tokens
from tests.fakes.front_process import FAKE_COMMAND

LIMIT_SECONDS = 240
"""Nothing takes so long, also on a machine that has much else to do."""
SOON = RestartLimits(n_fruitless=4, first_pause_seconds=0.01, longest_pause_seconds=0.05)


def engine_of(
    store: str = "fake",
    *,
    variant: str | None = None,
    n_sequences: int = 8,
    step_seconds: float = 0.0,
    hang_seconds: float = 30.0,
    step_limit_seconds: float = 30.0,
    load_seconds: float = 30.0,
    restarts: RestartLimits = SOON,
    max_queue: int = 64,
) -> SupervisedEngine:
    settings = EngineSettings(store=store, variant=variant, n_sequences=n_sequences)
    options = SupervisorOptions(
        max_queue=max_queue,
        patience=Patience(hang_seconds=hang_seconds, step_seconds=step_limit_seconds, load_seconds=load_seconds),
        restarts=restarts,
        command=(*FAKE_COMMAND, str(step_seconds)),
    )
    return SupervisedEngine(settings, options)


def run(talk: Coroutine[Any, Any, None]) -> None:
    """Run a test; nothing of an engine process may be left after it."""
    n_files, others = psutil.Process().num_fds(), children()
    asyncio.run(asyncio.wait_for(talk, LIMIT_SECONDS))
    assert children() <= others
    assert psutil.Process().num_fds() <= n_files  # fewer where garbage of an earlier test was collected


def children() -> set[psutil.Process]:
    """All processes of this one: a server that other tests use may be among them."""
    return set(psutil.Process().children())


async def read(stream: EngineStream) -> list[StreamEvent]:
    return [event async for event in stream]


def tokens_of(events: list[StreamEvent]) -> list[int]:
    return [event.token for event in events if isinstance(event, TokenEvent)]


def check_whole(events: list[StreamEvent], prompt: str, n_tokens: int, variant: str = "large") -> None:
    """One ``Accepted``, the tokens of an undisturbed run, one ``Finished`` whose counts are of the whole."""
    first, *middle, last = events
    assert isinstance(first, Accepted)
    assert tokens_of(middle) == expected_tokens(prompt, n_tokens, variant)
    assert len(middle) == n_tokens
    assert isinstance(last, Finished)
    assert (last.reason, last.generated_tokens, last.prompt_tokens) == ("length", n_tokens, len(prompt))


def pid_of(engine: SupervisedEngine) -> int:
    assert engine.facts is not None
    return engine.facts.pid


def kill(engine: SupervisedEngine, how: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid_of(engine), how)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)
