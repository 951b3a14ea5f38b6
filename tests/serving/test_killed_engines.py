"""An engine process that dies or hangs under its requests: each is answered whole, but those that kill."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest
import uvloop

from lamella.batching.messages import Accepted, Finished, Generate, Hello, Scored, Switched, TokenEvent
from lamella.core.errors import RequestRefused
from lamella.serving.engine_client import StreamEvent
from lamella.serving.supervision import EngineDied, EngineEvent
from tests.fakes.engine_process import expected_tokens
from tests.serving.supervised import LIMIT_SECONDS, check_whole, children, engine_of, kill, pid_of, read, run, until


def test_killed_twenty_times_under_sixteen_streams_every_stream_is_whole() -> None:
    n_streams, n_tokens, n_kills = 16, 300, 20
    choose = random.Random(5)

    async def talk() -> None:
        n_seen, killed = 0, {0}
        # in the first half: a front that is held up reads many tokens at once, and some must come after its last kill
        kill_at = sorted(choose.sample(range(10, n_streams * n_tokens // 2), n_kills))

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

        async with engine_of(n_sequences=8, step_seconds=0.003) as engine:
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
        async with engine_of(variant="large", step_seconds=0.002) as engine:
            engine.listen(seen.append)
            await until(lambda: engine.status is not None)
            switched = await engine.switch("small")
            assert (switched.before, switched.after) == ("large", "small")
            assert engine.status is not None
            assert engine.status.variant == "small"  # at once, not with the next heartbeat
            await read(engine.generate(Generate(id=0, prompt="p", max_tokens=3)))
            stream = engine.generate(Generate(id=0, prompt="q", max_tokens=500))
            events = [await anext(aiter(stream))]
            kill(engine)
            check_whole(events + await read(stream), "q", 500, "small")
            await until(lambda: engine.n_restarts == 1 and engine.is_ready)
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
            assert engine.n_restarts == 1

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
            assert engine.n_restarts == 1  # a step without end would have cost another one

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
