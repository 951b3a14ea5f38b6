"""``--reproducible`` on SmolLM2: the tokens of a request are those it gets alone, whatever happens beside it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import msgspec
import pytest

import lamella
from lamella.batching.messages import Generate, Sampling, TokenEvent
from lamella.batching.settings import EngineSettings
from lamella.core.errors import EngineUnavailable
from lamella.resources.catalogue import model_path
from lamella.serving.supervisor import SupervisedEngine

pytestmark = pytest.mark.slow
N_STREAMS, N_TOKENS = 6, 24
N_EACH = N_STREAMS // 2
TEXT = "the old keeper wrote in her log that the wind had turned and a ship without lights lay near the rocks "


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EngineSettings:
    folder = tmp_path_factory.mktemp("reproducible") / "store"
    source = model_path("smollm2")
    for name, precision in (("small", "int4"), ("large", "int8")):
        lamella.build(source, folder, lamella.plan(source, "uniform", precision=precision), name)
    return EngineSettings(store=str(folder), variant="small", n_ctx=512, n_sequences=N_STREAMS, is_reproducible=True)


def test_company_and_kills_change_no_token(settings: EngineSettings) -> None:
    asyncio.run(_compare(settings))


async def _compare(settings: EngineSettings) -> None:
    async with SupervisedEngine(settings) as engine:
        alone = [await _write(engine, i) for i in range(N_STREAMS)]
        written: list[int] = []
        together = asyncio.gather(*(_write(engine, i, written.append) for i in range(N_STREAMS)))
        while len(written) < N_TOKENS:  # somewhere among prompts and tokens
            await asyncio.sleep(0.005)
        assert engine.facts is not None
        os.kill(engine.facts.pid, signal.SIGKILL)
        assert await together == alone
        while not engine.n_restarts:  # all may have been written before the engine died
            await asyncio.sleep(0.005)
        assert engine.n_restarts == 1


def test_two_classes_at_two_variants_get_what_engines_of_one_variant_give(settings: EngineSettings) -> None:
    asyncio.run(_compare_classes(settings))


async def _compare_classes(settings: EngineSettings) -> None:
    pinned = {}
    for variant in ("small", "large"):
        async with SupervisedEngine(msgspec.structs.replace(settings, variant=variant)) as engine:
            pinned[variant] = await asyncio.gather(*(_write(engine, i) for i in range(N_EACH)))
    assert pinned["small"] != pinned["large"]
    async with SupervisedEngine(settings) as engine:
        both = await asyncio.gather(*(_write(engine, i, variant=v) for v in pinned for i in range(N_EACH)))
    assert both == [*pinned["small"], *pinned["large"]]


async def _write(
    engine: SupervisedEngine,
    number: int,
    on_token: Callable[[int], object] = lambda _: None,
    variant: str | None = None,
) -> list[int]:
    """Prompts of 20 to 170 words: read in one piece or in several, with and without others."""
    prompt = f"Day {number}. " + " ".join((TEXT * 10).split()[number : number + 20 + 30 * number])
    greedy = Sampling(temperature=0.0)
    request = Generate(id=0, prompt=prompt, max_tokens=N_TOKENS, ignore_end=True, sampling=greedy, variant=variant)
    tokens = []
    async for event in engine.generate(request):
        if isinstance(event, TokenEvent):
            tokens.append(event.token)
            on_token(event.token)
    return tokens


@pytest.mark.parametrize("change", [{"layout": "repacked"}, {"n_cells": 1024}, {"device": "CUDA0"}])
def test_what_does_not_go_with_it_is_refused(settings: EngineSettings, change: dict[str, object]) -> None:
    async def start() -> None:
        async with SupervisedEngine(_replaced(settings, change)):
            pass

    with pytest.raises(EngineUnavailable, match="--reproducible"):
        asyncio.run(start())


def _replaced(settings: EngineSettings, change: dict[str, object]) -> EngineSettings:
    return msgspec.structs.replace(settings, **change)
