"""Engine processes that cannot start, or cannot be started again: who says so, and when one is given up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lamella.batching.frames import FrameTooLong
from lamella.batching.messages import PROTOCOL_VERSION, Generate
from lamella.batching.settings import EngineSettings
from lamella.core.errors import EngineUnavailable
from lamella.serving.restarts import RestartLimits
from lamella.serving.supervision import SupervisorOptions
from lamella.serving.supervisor import SupervisedEngine
from tests.fakes.front_process import FAKE_COMMAND
from tests.serving.supervised import SOON, check_whole, children, engine_of, kill, read, run, until


@pytest.mark.parametrize(
    ("store", "complaint"),
    [
        ("refuse", r"cannot start: the fake store has no model$"),
        ("raise", r"cannot start: ValueError: a fault in loading$"),
        ("abort", r"cannot start: signal SIGABRT; its last lines:\nfake engine: abort was asked for"),
        ("exit", r"cannot start: exit code 7; its last lines:\nfake engine"),
        ("old", rf"it speaks protocol {PROTOCOL_VERSION + 1} and this server {PROTOCOL_VERSION}"),
        ("slow", r"it has not loaded the model within 1 s"),
    ],
)
def test_an_engine_that_cannot_be_loaded_is_not_tried_again(store: str, complaint: str) -> None:
    async def talk() -> None:
        engine = engine_of(store, load_seconds=1 if store == "slow" else 30, hang_seconds=0.4)
        with pytest.raises(EngineUnavailable, match=complaint):
            await engine.start()
        assert engine.n_restarts == 0
        with pytest.raises(EngineUnavailable):
            engine.generate(Generate(id=0, prompt="p"))

    run(talk())


def test_a_command_that_is_none_cannot_be_started() -> None:
    async def talk() -> None:
        engine = SupervisedEngine(EngineSettings(store="fake"), SupervisorOptions(command=("/nowhere/lamella",)))
        with pytest.raises(EngineUnavailable, match=r"no process can be started.*/nowhere/lamella"):
            await engine.start()

    run(talk())


def test_an_engine_that_cannot_be_replaced_is_given_up_and_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "broken"

    async def talk() -> None:
        async with engine_of(str(broken)) as engine:
            stream = engine.generate(Generate(id=0, prompt="hang@1"))
            for _ in range(2):  # the second is a token: this engine was fruitful
                await anext(aiter(stream))
            broken.touch()
            kill(engine)
            with pytest.raises(EngineUnavailable, match=r"engines in a row.*SIGABRT$"):
                await read(stream)
            assert engine.n_restarts == SOON.n_fruitless + 1  # the first had done some work
            assert not engine.is_ready
            with pytest.raises(EngineUnavailable, match="engines in a row"):
                engine.generate(Generate(id=0, prompt="p"))
            with pytest.raises(EngineUnavailable, match="engines in a row"):
                await engine.switch("small")

    run(talk())


def test_an_engine_that_can_be_loaded_again_later_is_back(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    patient = RestartLimits(n_fruitless=1000, n_restarts=1000, first_pause_seconds=0.01, longest_pause_seconds=0.05)

    async def talk() -> None:
        async with engine_of(str(broken), restarts=patient) as engine:
            stream = engine.generate(Generate(id=0, prompt="p", max_tokens=2000))
            first = await anext(aiter(stream))
            broken.touch()
            kill(engine)
            await until(lambda: engine.n_restarts >= 3)
            broken.unlink()
            check_whole([first, *await read(stream)], "p", 2000)

    run(talk())


def test_a_start_that_is_interrupted_leaves_nothing() -> None:
    async def talk() -> None:
        others = children()
        starting = asyncio.create_task(engine_of("slow").start())
        await until(lambda: bool(children() - others))
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    run(talk())


def test_a_start_that_fails_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk() -> None:
        monkeypatch.setattr("lamella.batching.frames.FRAME_LIMIT_BYTES", 10)
        with pytest.raises(FrameTooLong, match="EngineSettings"):
            await engine_of().start()
        await asyncio.sleep(0)  # the connection is closed in the next turn

    run(talk())


def test_the_output_of_an_engine_goes_where_it_is_wanted() -> None:
    async def talk() -> None:
        lines: list[str] = []
        options = SupervisorOptions(command=FAKE_COMMAND)
        engine = SupervisedEngine(EngineSettings(store="abort"), options, on_line=lines.append)
        with pytest.raises(EngineUnavailable):
            await engine.start()
        assert lines[0] == "fake engine: abort was asked for"

    run(talk())
