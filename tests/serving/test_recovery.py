"""A real engine on a tiny model is killed under its streams: each goes on and writes what it would have written.

The engine computes reproducibly: the tiny model's distributions are so flat that another order of sums changes what is
drawn.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

from lamella.batching.messages import Finished, Generate, Sampling, TokenEvent
from lamella.batching.settings import EngineSettings
from lamella.serving.supervisor import SupervisedEngine
from tests.batching.conftest import served_store  # noqa: F401

N_STREAMS, N_KILLS, N_TOKENS = 8, 3, 60


def test_streams_survive_the_death_of_their_engine(served_store: Path) -> None:  # noqa: F811
    settings = EngineSettings(
        store=str(served_store), n_ctx=128, n_sequences=N_STREAMS, layout="mapped", n_threads=1, is_reproducible=True
    )
    asyncio.run(_kill_and_compare(settings))


async def _kill_and_compare(settings: EngineSettings) -> None:
    moments = random.Random(1)
    async with SupervisedEngine(settings) as engine:
        undisturbed = await asyncio.gather(*(_write(engine, i) for i in range(N_STREAMS)))
        written: list[int] = []
        streams = asyncio.gather(*(_write(engine, i, written.append) for i in range(N_STREAMS)))
        for _ in range(N_KILLS):
            await _kill_in_the_middle(engine, written, moments.uniform(0, 0.05))
        assert await streams == undisturbed
        for tokens, text, count in undisturbed:
            assert len(tokens) == count == N_TOKENS
            assert text
        assert engine.n_restarts == N_KILLS
        assert engine.n_open == 0


async def _write(
    engine: SupervisedEngine, number: int, on_token: Callable[[int], object] = lambda _: None
) -> tuple[list[int], str, int]:
    """All tokens, the text, and the engine's own count of one stream; half of them are sampled."""
    sampling = Sampling(temperature=0.0 if number % 2 else 1.5, seed=number)
    request = Generate(id=0, prompt=f"story {number}: ", max_tokens=N_TOKENS, sampling=sampling, ignore_end=True)
    tokens, text, count = [], "", -1
    async for event in engine.generate(request):
        if isinstance(event, TokenEvent):
            tokens.append(event.token)
            on_token(event.token)
            text += event.text
        elif isinstance(event, Finished):
            text += event.text
            count = event.generated_tokens
    return tokens, text, count


async def _kill_in_the_middle(engine: SupervisedEngine, written: list[int], later_seconds: float) -> None:
    """So long after its first token: requests over which engines die before they write any are refused."""
    while not engine.is_ready:
        await asyncio.sleep(0.01)
    before, n_written = engine.n_restarts, len(written)
    assert engine.facts is not None
    while len(written) == n_written < N_STREAMS * N_TOKENS:
        await asyncio.sleep(0.001)
    await asyncio.sleep(later_seconds)
    os.kill(engine.facts.pid, signal.SIGKILL)
    while engine.n_restarts == before:
        await asyncio.sleep(0.01)
