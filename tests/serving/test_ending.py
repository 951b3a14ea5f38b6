"""How an engine process ends with its front: closed, killed, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import psutil
import pytest

from lamella.batching.messages import Generate
from lamella.batching.settings import EngineSettings
from lamella.core.errors import EngineUnavailable
from lamella.serving.restarts import RestartLimits
from lamella.serving.supervision import SupervisorOptions
from lamella.serving.supervisor import SupervisedEngine
from tests.fakes.front_process import FAKE_COMMAND
from tests.serving.supervised import LIMIT_SECONDS, engine_of, kill, pid_of, read, run, until


def test_closing_ends_what_is_open_and_takes_nothing_new() -> None:
    async def talk() -> None:
        engine = engine_of(step_seconds=0.01)
        await engine.start()
        stream = engine.generate(Generate(id=0, prompt="p", max_tokens=1_000_000))
        await anext(aiter(stream))
        await engine.close()
        with pytest.raises(EngineUnavailable, match="closed"):
            await read(stream)
        with pytest.raises(EngineUnavailable, match="closed"):
            engine.generate(Generate(id=0, prompt="p"))
        with pytest.raises(EngineUnavailable, match="closed"):
            await engine.embed(["p"])
        await engine.close()

    run(talk())


def test_closing_kills_an_engine_that_does_not_stop() -> None:
    async def talk() -> None:
        options = SupervisorOptions(command=FAKE_COMMAND, stop_seconds=0.2)
        async with SupervisedEngine(EngineSettings(store="fake"), options) as engine:
            stream = engine.generate(Generate(id=0, prompt="hang@0"))
            await anext(aiter(stream))
            process = psutil.Process(pid_of(engine))
        assert has_ended(process)

    run(talk())


def test_closing_while_the_engine_is_being_replaced_leaves_nothing() -> None:
    slow = RestartLimits(first_pause_seconds=100, longest_pause_seconds=100)

    async def talk() -> None:
        others = asyncio.all_tasks()
        async with engine_of(restarts=slow) as engine:
            kill(engine)
            await until(lambda: not engine.is_ready)
        assert asyncio.all_tasks() <= others  # or one of them would start an engine after the pause

    run(talk())


def test_a_process_that_the_engine_left_behind_neither_hides_its_death_nor_keeps_files_open() -> None:
    lines: list[str] = []

    async def talk() -> None:
        engine = SupervisedEngine(
            EngineSettings(store="fake"), SupervisorOptions(command=FAKE_COMMAND), on_line=lines.append
        )
        async with engine:
            stream = engine.generate(Generate(id=0, prompt="orphan@1"))
            for _ in range(2):
                await anext(aiter(stream))
            await until(lambda: engine.last_failure.startswith("exit code 7"))
            stream.cancel()

    try:
        run(talk())
    finally:
        for line in lines:
            if line.startswith("left "):
                os.kill(int(line.removeprefix("left ")), signal.SIGKILL)


def has_ended(process: psutil.Process) -> bool:
    """Whether nothing but perhaps a zombie is left, which is for its new parent to take away."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("prompt", ["p", "hang@1"])
def test_the_death_of_the_front_ends_the_engine(prompt: str) -> None:
    command = [sys.executable, "-m", "tests.fakes.front_process", prompt]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as front:
        assert front.stdout is not None
        engine = psutil.Process(int(front.stdout.readline()))
        front.kill()
    asyncio.run(asyncio.wait_for(until(lambda: has_ended(engine)), LIMIT_SECONDS))
