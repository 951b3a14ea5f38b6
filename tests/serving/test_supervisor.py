"""A supervised engine, with a real process behind it that dies, hangs and fails."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from lamella.batching.frames import FRAME_LIMIT_BYTES, FrameTooLong
from lamella.batching.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Finished,
    Generate,
    Hello,
    Scored,
    Switched,
    TokenEvent,
)
from lamella.batching.settings import EngineSettings
from lamella.core.errors import Draining, EngineUnavailable, InvalidRequest, QueueFull, RequestRefused
from lamella.serving.engine_client import EngineClient, EngineStream, StreamEvent
from lamella.serving.restarts import RestartLimits
from lamella.serving.supervision import EngineDied, EngineEvent, SupervisorOptions
from lamella.serving.supervisor import SupervisedEngine
from lamella.serving.watch import Patience
from tests.fakes.engine_process import expected_tokens
from tests.fakes.front_process import FAKE_COMMAND

LIMIT_SECONDS = 60
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
    assert psutil.Process().num_fds() == n_files


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


def has_ended(process: psutil.Process) -> bool:
    """Whether nothing but perhaps a zombie is left, which is for its new parent to take away."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


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


def test_killed_twenty_times_under_sixteen_streams_every_stream_is_whole() -> None:
    n_streams, n_tokens, n_kills = 16, 300, 20
    choose = random.Random(5)

    async def talk() -> None:
        n_seen, killed = 0, {0}
        kill_at = sorted(choose.sample(range(10, n_streams * n_tokens * 9 // 10), n_kills))

        async def follow(prompt: str) -> list[StreamEvent]:
            nonlocal n_seen
            events = []
            async for event in engine.generate(Generate(id=0, prompt=prompt, max_tokens=n_tokens)):
                events.append(event)
                n_seen += isinstance(event, TokenEvent)
                if kill_at and n_seen >= kill_at[0] and engine.is_ready and pid_of(engine) not in killed:
                    kill_at.pop(0)
                    killed.add(pid_of(engine))
                    kill(engine)
            return events

        async with engine_of(n_sequences=8, step_seconds=0.001) as engine:
            prompts = [f"prompt {i}" for i in range(n_streams)]
            streams = await asyncio.gather(*map(follow, prompts))
            for prompt, events in zip(prompts, streams, strict=True):
                check_whole(events, prompt, n_tokens)
            assert not kill_at
            assert engine.n_restarts == n_kills
            assert engine.last_failure == "signal SIGKILL"

    run(talk())


def test_under_uvloop_too_a_killed_engine_is_replaced() -> None:
    async def talk() -> None:
        async with engine_of(step_seconds=0.001) as engine:
            stream = engine.generate(Generate(id=0, prompt="p", max_tokens=50))
            events = [await anext(aiter(stream)), await anext(aiter(stream))]
            kill(engine)
            check_whole(events + await read(stream), "p", 50)

    others = children()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(talk(), LIMIT_SECONDS))
    assert children() <= others


def test_the_scores_of_a_prompt_come_once() -> None:
    async def talk() -> None:
        async with engine_of() as engine:
            stream = engine.generate(Generate(id=0, prompt="p", max_tokens=2000, echo=True))
            events = [await anext(aiter(stream)) for _ in range(5)]
            kill(engine)
            events += await read(stream)
            assert [type(e) for e in events[:3]] == [Accepted, Scored, TokenEvent]
            assert sum(isinstance(e, (Accepted, Scored)) for e in events) == 2

    run(talk())


def test_a_stopped_process_is_found_and_replaced() -> None:
    async def talk() -> None:
        async with engine_of(step_seconds=0.001, hang_seconds=1.5) as engine:
            stream = engine.generate(Generate(id=0, prompt="p", max_tokens=30))
            first = await anext(aiter(stream))
            kill(engine, signal.SIGSTOP)
            check_whole([first, *await read(stream)], "p", 30)
            assert "no sign of life" in engine.last_failure

    run(talk())


def test_a_step_without_end_is_found_although_the_process_has_a_pulse() -> None:
    async def talk() -> None:
        async with engine_of(step_limit_seconds=0.5, step_seconds=0.001, hang_seconds=20) as engine:
            healthy = engine.generate(Generate(id=0, prompt="healthy", max_tokens=40))
            events = [await anext(aiter(healthy)), await anext(aiter(healthy))]
            hung = engine.generate(Generate(id=0, prompt="hang@0"))
            with pytest.raises(RequestRefused, match="a step of the model has run for"):
                await read(hung)
            check_whole(events + await read(healthy), "healthy", 40)

    run(talk())


@pytest.mark.parametrize("how", ["abort", "exit"])
def test_a_request_that_kills_the_engine_costs_no_other_request(how: str) -> None:
    async def talk() -> None:
        async with engine_of(step_seconds=0.001) as engine:
            prompts = [f"healthy {i}" for i in range(10)]
            healthy = [engine.generate(Generate(id=0, prompt=prompt, max_tokens=30)) for prompt in prompts[:5]]
            poison = engine.generate(Generate(id=0, prompt=f"{how}@0"))
            healthy += [engine.generate(Generate(id=0, prompt=prompt, max_tokens=30)) for prompt in prompts[5:]]
            with pytest.raises(RequestRefused, match="over this request") as refused:
                await read(poison)
            assert refused.value.why == "failed"
            for prompt, events in zip(prompts, await asyncio.gather(*map(read, healthy)), strict=True):
                check_whole(events, prompt, 30)
            assert engine.n_restarts <= 4
            assert engine.is_ready

    run(talk())


def test_one_that_kills_after_some_tokens_is_refused_too() -> None:
    async def talk() -> None:
        async with engine_of() as engine:
            stream = aiter(engine.generate(Generate(id=0, prompt="abort@2")))
            assert isinstance(await anext(stream), Accepted)
            for token in expected_tokens("abort@2", 2):
                event = await anext(stream)
                assert isinstance(event, TokenEvent)
                assert event.token == token
            with pytest.raises(RequestRefused, match="over this request"):
                await anext(stream)

    run(talk())


def test_a_switch_that_kills_fails_and_streams_go_on_at_the_variant_before() -> None:
    async def talk() -> None:
        async with engine_of(variant="large", step_seconds=0.001) as engine:
            stream = engine.generate(Generate(id=0, prompt="p", max_tokens=30))
            first = await anext(aiter(stream))
            with pytest.raises(RequestRefused, match="the engine died during this switch: signal SIGABRT") as refused:
                await engine.switch("bad")
            assert refused.value.why == "failed"
            check_whole([first, *await read(stream)], "p", 30)
            assert engine.facts is not None
            assert engine.facts.variant == "large"
            assert "fake engine: abort was asked for" in engine.last_failure  # what it wrote last

    run(talk())


def test_a_variant_that_kills_in_its_first_step_is_left() -> None:
    async def talk() -> None:
        async with engine_of(variant="large") as engine:
            assert (await engine.switch("later")).after == "later"
            check_whole(await read(engine.generate(Generate(id=0, prompt="p", max_tokens=3))), "p", 3)
            assert engine.facts is not None
            assert engine.facts.variant == "large"
            assert engine.n_restarts == 1

    run(talk())


def test_a_restart_keeps_the_variant_that_was_switched_to() -> None:
    async def talk() -> None:
        seen: list[EngineEvent] = []
        async with engine_of(variant="large") as engine:
            engine.listen(seen.append)
            await until(lambda: engine.status is not None)
            switched = await engine.switch("small")
            assert (switched.before, switched.after) == ("large", "small")
            assert engine.status is not None
            assert engine.status.variant == "small"  # at once, not with the next heartbeat
            await read(engine.generate(Generate(id=0, prompt="p", max_tokens=3)))
            stream = engine.generate(Generate(id=0, prompt="q", max_tokens=2000))
            events = [await anext(aiter(stream))]
            kill(engine)
            check_whole(events + await read(stream), "q", 2000, "small")
            kinds = [type(e) for e in seen if isinstance(e, (Hello, Switched, EngineDied))]
            assert kinds == [Switched, EngineDied, Hello]

    run(talk())


def test_a_request_that_holds_a_variant_does_not_change_what_others_get_after_a_restart() -> None:
    async def talk() -> None:
        async with engine_of(variant="large") as engine:
            held = Generate(id=0, prompt="p", max_tokens=3, variant="small")
            check_whole(await read(engine.generate(held)), "p", 3, "small")
            kill(engine)
            check_whole(await read(engine.generate(Generate(id=0, prompt="p", max_tokens=3))), "p", 3, "large")

    run(talk())


def test_embeddings_are_tried_twice() -> None:
    async def talk() -> None:
        async with engine_of() as engine:
            assert (await engine.embed(["ab", [1, 2, 3]])).vectors == [[2.0], [3.0]]
            with pytest.raises(RequestRefused, match="the engine died during this embed"):
                await engine.embed(["abort"])
            await until(lambda: engine.is_ready)
            assert engine.n_restarts == 2
            asked = asyncio.create_task(engine.embed(["abc"]))
            await asyncio.sleep(0)  # it has been sent, and
            kill(engine)  # is answered by this engine or the next
            assert (await asked).vectors == [[3.0]]

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


def test_a_cancelled_request_is_not_given_to_the_next_engine() -> None:
    async def talk() -> None:
        async with engine_of(step_seconds=0.001) as engine:
            stream = engine.generate(Generate(id=0, prompt="hang@1"))
            await anext(aiter(stream))
            kill(engine)
            await until(lambda: not engine.is_ready)
            stream.cancel()
            await until(lambda: engine.is_ready)
            check_whole(await read(engine.generate(Generate(id=0, prompt="p", max_tokens=2))), "p", 2)
            await until(lambda: engine.status is not None and engine.status.n_running == 0)

    run(talk())


def test_what_is_submitted_between_two_engines_waits_for_the_second() -> None:
    async def talk() -> None:
        async with engine_of() as engine:
            kill(engine)
            await until(lambda: not engine.is_ready)
            stream = engine.generate(Generate(id=0, prompt="p", max_tokens=3))
            assert (await engine.switch("large")).after == "large"
            check_whole(await read(stream), "p", 3)

    run(talk())


def test_a_deadline_counts_from_the_submission_also_over_a_restart() -> None:
    async def talk() -> None:
        async with engine_of(step_seconds=0.01) as engine:
            stream = engine.generate(Generate(id=0, prompt="p", max_tokens=1_000_000, deadline_seconds=1.0))
            await anext(aiter(stream))
            kill(engine)
            end = (await read(stream))[-1]
            assert isinstance(end, Finished)
            assert end.reason == "deadline"

    run(talk())


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


def test_draining_ends_what_is_open_and_takes_nothing_new() -> None:
    async def talk() -> None:
        async with engine_of(step_seconds=0.002) as engine:
            stream = engine.generate(Generate(id=0, prompt="p", max_tokens=50))
            drained = asyncio.create_task(engine.drain(LIMIT_SECONDS))
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                engine.generate(Generate(id=0, prompt="p"))
            with pytest.raises(Draining):
                await engine.embed(["p"])
            assert await drained
            check_whole(await read(stream), "p", 50)

    run(talk())


def test_draining_has_a_limit_and_closing_ends_the_rest() -> None:
    async def talk() -> None:
        engine = engine_of(step_seconds=0.01)
        await engine.start()
        stream = engine.generate(Generate(id=0, prompt="p", max_tokens=1_000_000))
        assert not await engine.drain(0.1)
        await engine.close()
        with pytest.raises(EngineUnavailable, match="closed"):
            await read(stream)
        await engine.close()

    run(talk())


def test_closing_kills_an_engine_that_does_not_stop() -> None:
    async def talk() -> None:
        options = SupervisorOptions(command=FAKE_COMMAND, stop_seconds=0.2)
        async with SupervisedEngine(EngineSettings(store="fake"), options) as engine:
            stream = engine.generate(Generate(id=0, prompt="hang@0"))
            await anext(aiter(stream))

    run(talk())


def test_closing_while_the_engine_is_being_replaced_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    slow = RestartLimits(first_pause_seconds=100, longest_pause_seconds=100)

    async def talk() -> None:
        async with engine_of(str(broken), restarts=slow) as engine:
            broken.touch()
            kill(engine)
            await until(lambda: not engine.is_ready)

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


def test_the_output_of_an_engine_goes_where_it_is_wanted() -> None:
    async def talk() -> None:
        lines: list[str] = []
        options = SupervisorOptions(command=FAKE_COMMAND)
        engine = SupervisedEngine(EngineSettings(store="abort"), options, on_line=lines.append)
        with pytest.raises(EngineUnavailable):
            await engine.start()
        assert lines[0] == "fake engine: abort was asked for"

    run(talk())


@pytest.mark.parametrize("prompt", ["p", "hang@1"])
def test_the_death_of_the_front_ends_the_engine(prompt: str) -> None:
    command = [sys.executable, "-m", "tests.fakes.front_process", prompt]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as front:
        assert front.stdout is not None
        engine = psutil.Process(int(front.stdout.readline()))
        front.kill()
    asyncio.run(asyncio.wait_for(until(lambda: has_ended(engine)), LIMIT_SECONDS))


def test_options_outside_their_range_have_no_meaning() -> None:
    with pytest.raises(InvalidRequest, match="max_queue"):
        SupervisorOptions(max_queue=-1)
    with pytest.raises(InvalidRequest, match="poison_limit"):
        SupervisorOptions(poison_limit=0)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)
def test_the_front_keeps_off_the_engines_core_and_the_next_engine_gets_all_cores() -> None:
    usable = os.sched_getaffinity(0)

    async def talk() -> None:
        engine = engine_of(hang_seconds=0.2 * 4)  # what looks at the engine looks every 0.2 s
        async with engine:
            while len(os.sched_getaffinity(0)) == len(usable):
                await asyncio.sleep(0.01)
            before = pid_of(engine)
            kill(engine)
            while pid_of(engine) == before or not engine.is_ready:
                await asyncio.sleep(0.01)
            assert os.sched_getaffinity(pid_of(engine)) == usable
        assert os.sched_getaffinity(0) == usable

    run(talk())
