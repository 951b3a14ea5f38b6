"""The controller: decisions become changes, failures are logged and tried again, hands come before policies."""

from __future__ import annotations

import asyncio

import pytest

from lamella.batching.messages import Status
from lamella.core.errors import StoreError
from lamella.qos.controller import RETRY_SECONDS, SAMPLE_SECONDS, Controller, LoggedChange
from lamella.qos.policies.decision import Decision, PolicyState
from lamella.qos.policies.sample import Sample
from lamella.qos.readers.machine import MachineReader
from lamella.qos.sampling import sample_of
from lamella.qos.watching import LoadWatch
from tests.qos.test_readers import LAPTOP, SERVER, no_nvidia


class Wish:
    """Wants what it is told to."""

    name = "wish"

    def __init__(self) -> None:
        self.variant = "large"
        self.seen: list[PolicyState] = []

    def decide(self, state: PolicyState, sample: Sample) -> Decision:
        self.seen.append(state)
        if self.variant == state.variant:
            return Decision(state.variant, "all is well", state)
        return Decision(self.variant, "it is wished", state.goes_down(self.variant, sample.time))


class World:
    """A clock, an engine that may fail, and a controller between them."""

    def __init__(self) -> None:
        self.now, self.running, self.fails = 100.0, "large", False
        self.told: list[LoggedChange] = []
        self.wish = Wish()
        self.controller = Controller(
            self.wish,
            "large",
            lambda: Sample(self.now),
            self.switch,
            on_change=self.told.append,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    async def switch(self, variant: str) -> None:
        if self.fails:
            raise StoreError("a shard is missing")
        self.running = variant

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    def tick(self) -> None:
        asyncio.run(self.controller.tick())


@pytest.fixture
def world() -> World:
    return World()


def test_a_decision_changes_the_engine_and_is_logged_with_its_reason(world: World) -> None:
    world.tick()
    assert (world.running, world.told, world.controller.last_reason) == ("large", [], "all is well")
    world.wish.variant = "small"
    world.tick()
    assert world.running == world.controller.variant == "small"
    assert world.told == list(world.controller.log) == [LoggedChange(100.0, "large", "small", "it is wished")]
    world.tick()
    assert len(world.told) == 1


def test_a_change_that_fails_is_logged_and_tried_again_later(world: World) -> None:
    world.fails, world.wish.variant = True, "small"
    world.tick()
    assert (world.controller.variant, world.told[0].failure) == ("large", "a shard is missing")
    world.fails = False
    world.now += RETRY_SECONDS - 1
    world.tick()
    assert world.running == "large"
    world.now += 2
    world.tick()
    assert world.running == "small"


def test_a_choice_by_hand_holds_until_it_is_released(world: World) -> None:
    change = asyncio.run(world.controller.change_by_hand("tiny"))
    assert change.by_hand
    assert (world.running, world.controller.policy) == ("tiny", "by hand")
    world.tick()
    assert world.running == "tiny"
    world.controller.release()
    world.tick()
    assert (world.running, world.controller.policy) == ("large", "wish")


def test_a_choice_by_hand_that_fails_holds_nothing(world: World) -> None:
    world.fails = True
    change = asyncio.run(world.controller.change_by_hand("tiny"))
    assert change.failure
    assert (world.controller.variant, world.controller.policy) == ("large", "wish")


def test_a_choice_by_hand_waits_for_a_change_that_is_being_made(world: World) -> None:
    world.wish.variant = "small"

    async def both() -> None:
        await asyncio.gather(world.controller.tick(), world.controller.change_by_hand("tiny"))

    async def slow_switch(variant: str) -> None:
        await asyncio.sleep(0.01 if variant == "small" else 0)
        world.running = variant

    world.controller._switch = slow_switch
    asyncio.run(both())
    assert world.running == world.controller.variant == "tiny"


def test_an_engine_that_came_back_at_another_variant_is_believed(world: World) -> None:
    world.controller.found("small")
    assert world.controller.variant == "small"
    world.tick()
    assert world.wish.seen[-1].variant == "small"


def test_it_runs_until_it_is_stopped(world: World) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(world.controller.run(stop))
        while world.now < 105:
            await asyncio.sleep(0)
        stop.set()
        await task

    asyncio.run(run())
    assert len(world.wish.seen) == pytest.approx(5 / SAMPLE_SECONDS, abs=2)


def test_a_sample_is_made_of_what_is_known() -> None:
    watch = LoadWatch()
    watch.arrived(1.0, "interactive", 50)
    bare = sample_of(2.0, watch, None, None)
    assert bare == Sample(2.0, watch.classes(2.0))
    status = Status(
        variant="a", step_seconds_now=0, n_running=3, n_waiting=2, n_parked=0, cells_used=0, n_steps=0,
        n_prompt_tokens=0, n_cached_tokens=0, n_generated_tokens=0, n_switches=0, switch_seconds=0, flip_seconds=0,
        mapped_bytes=0, private_bytes=0, warm=[],
    )  # fmt: skip
    with MachineReader(SERVER, LAPTOP, no_nvidia) as reader:
        full = sample_of(2.0, watch, status, reader.read(2.0), waiting_tokens=70)
    assert (full.n_running, full.n_waiting, full.waiting_tokens) == (3, 2, 70)
    assert (full.available_bytes, full.memory_stall, full.on_battery) == (2_000_000_000, 0.0125, True)
