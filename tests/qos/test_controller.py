"""The controller: decisions become changes, failures are logged and tried again, hands come before policies."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.batching.messages import Switched
from lamella.core.errors import StoreError, UnknownVariant
from lamella.qos.controller import (
    HOLD_SECONDS,
    PRESSED_RETRY_SECONDS,
    RETRY_SECONDS,
    SAMPLE_SECONDS,
    Controller,
    LoggedChange,
)
from lamella.qos.policies.decision import Decision, PolicyState
from lamella.qos.policies.sample import Sample
from lamella.qos.readers.machine import MachineReader
from lamella.qos.readers.memory import Memory
from lamella.qos.sampling import sample_of
from lamella.qos.watching import LoadWatch
from lamella.resources.cgroup import GroupMemory
from tests.qos.test_readers import LAPTOP, SERVER, no_nvidia


class Wish:
    """Wants what it is told to."""

    name = "wish"

    def __init__(self) -> None:
        self.variant, self.is_short, self.unknown = "large", False, ""
        self.seen: list[PolicyState] = []

    def decide(self, state: PolicyState, sample: Sample) -> Decision:
        self.seen.append(state)
        if state.variant == self.unknown:
            raise UnknownVariant(f"no variant '{self.unknown}' to choose")
        if self.is_short:
            state = replace(state, pressed_at=sample.time)
        if self.variant == state.variant:
            return Decision(state.variant, "all is well", state)
        return Decision(self.variant, "it is wished", state.goes_down(self.variant, sample.time))


class World:
    """A clock, an engine that may fail, and a controller between them."""

    def __init__(self) -> None:
        self.now, self.running, self.fails, self.is_short = 100.0, "large", False, False
        self.saved_memory = False
        self.told: list[LoggedChange] = []
        self.wish = Wish()
        self.controller = Controller(
            self.wish,
            lambda: self.running,
            self.sample,
            self.switch,
            on_change=self.told.append,
            clock=lambda: self.now,
            unix_time=lambda: 1000 + self.now,
            sleep=self.sleep,
        )

    async def sample(self) -> Sample:
        return Sample(self.now)

    async def switch(self, variant: str, *, recompute_cache: bool = False, saves_memory: bool = False) -> Switched:
        if self.fails:
            raise StoreError("a shard is missing")
        self.saved_memory = saves_memory
        before, self.running = self.running, variant
        return Switched(id=0, before=before, after=variant, n_weights=1, n_shards=1, stall_seconds=0, prepare_seconds=0)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    def tick(self) -> None:
        asyncio.run(self.controller.tick())

    def by_hand(self, variant: str) -> Switched:
        return asyncio.run(self.controller.change_by_hand(variant))


@pytest.fixture
def world() -> World:
    return World()


def test_a_decision_changes_the_engine_and_is_logged_with_its_reason(world: World) -> None:
    world.tick()
    assert (world.running, world.told, world.controller.last_reason) == ("large", [], "all is well")
    world.wish.variant = "small"
    world.tick()
    assert world.running == "small"
    assert world.told == list(world.controller.log) == [LoggedChange(1100.0, "large", "small", "it is wished")]
    world.tick()
    assert len(world.told) == 1
    assert world.controller.n_changes == {"policy": 1}


def test_a_change_that_fails_is_logged_and_tried_again_later(world: World) -> None:
    world.fails, world.wish.variant = True, "small"
    world.tick()
    assert (world.running, world.told[0].failure) == ("large", "a shard is missing")
    assert not world.controller.n_changes
    world.fails = False
    world.now += RETRY_SECONDS - 1
    world.tick()
    assert world.running == "large"
    world.now += 2
    world.tick()
    assert world.running == "small"


def test_a_choice_by_hand_holds_for_a_while(world: World) -> None:
    assert world.by_hand("tiny").after == "tiny"
    assert world.told[-1].by == "hand"
    assert world.controller.held_until == pytest.approx(1100 + HOLD_SECONDS)
    world.now += HOLD_SECONDS - 1
    world.tick()
    assert world.running == "tiny"
    world.now += 1
    world.tick()
    assert (world.running, world.controller.held_until) == ("large", None)


def test_a_hold_can_be_released(world: World) -> None:
    world.by_hand("tiny")
    world.controller.release()
    world.tick()
    assert world.running == "large"


def test_a_choice_by_hand_that_fails_holds_nothing_and_says_why(world: World) -> None:
    world.fails = True
    with pytest.raises(StoreError, match="a shard is missing"):
        world.by_hand("tiny")
    assert (world.told[0].failure, world.controller.held_until) == ("a shard is missing", None)


def test_memory_is_not_held_by_hands_and_ends_their_hold(world: World) -> None:
    world.by_hand("tiny")
    world.wish.is_short, world.wish.variant = True, "small"
    world.tick()
    assert (world.running, world.told[-1].by, world.saved_memory) == ("small", "memory", True)
    assert not world.controller.is_held
    world.wish.is_short, world.wish.variant = False, "large"
    world.tick()
    assert world.running == "large"


def test_a_choice_by_hand_holds_for_ever_where_that_is_said(world: World) -> None:
    world.controller.hold_seconds = math.inf
    world.by_hand("tiny")
    assert (world.controller.is_held, world.controller.held_until) == (True, None)
    world.now += 1e9
    world.tick()
    assert world.running == "tiny"
    world.controller.release()
    world.tick()
    assert (world.running, world.controller.is_held) == ("large", False)


def test_a_policy_that_is_stopped_while_it_looks_changes_nothing(world: World) -> None:
    world.wish.variant = "small"
    take = world.controller._take_sample

    async def stopped_meanwhile() -> Sample:
        world.controller.is_on = False
        return await take()

    world.controller._take_sample = stopped_meanwhile
    world.tick()
    assert world.running == "large"


def test_a_choice_that_stands_stays_no_longer_than_is_said_later(world: World) -> None:
    world.controller.hold_for(math.inf)
    world.by_hand("tiny")
    world.now += 1000
    world.controller.hold_for(20.0)
    assert world.controller.is_held
    world.now += 19
    world.controller.hold_for(math.inf)  # and what is said then is of choices to come
    assert world.controller.is_held
    world.now += 2
    assert not world.controller.is_held


def test_a_variant_that_the_policy_does_not_know_stays_until_somebody_chooses_another(world: World) -> None:
    world.wish.unknown = "new"
    world.by_hand("new")
    world.now += HOLD_SECONDS
    world.tick()
    assert (world.running, world.controller.last_reason) == ("new", "no variant 'new' to choose")
    world.by_hand("tiny")
    world.now += HOLD_SECONDS
    world.tick()
    assert world.running == "large"


def test_memory_is_tried_again_soon(world: World) -> None:
    world.fails, world.wish.variant, world.wish.is_short = True, "small", True
    world.tick()
    world.tick()
    assert len(world.told) == 1
    world.fails = False
    world.now += PRESSED_RETRY_SECONDS
    world.tick()
    assert world.running == "small"


def test_nothing_is_decided_while_it_is_off_or_there_is_no_policy(world: World) -> None:
    world.wish.variant, world.controller.is_on = "small", False
    world.tick()
    assert world.running == "large"
    world.controller.is_on, world.controller.policy = True, None
    world.tick()
    assert world.running == "large"


def test_a_choice_by_hand_waits_for_a_change_that_is_being_made(world: World) -> None:
    world.wish.variant = "small"
    at_once = world.switch

    async def both() -> None:
        await asyncio.gather(world.controller.tick(), world.controller.change_by_hand("tiny"))

    async def slow_switch(variant: str, *, recompute_cache: bool = False, saves_memory: bool = False) -> Switched:
        await asyncio.sleep(0.01 if variant == "small" else 0)
        return await at_once(variant)

    world.controller._switch = slow_switch
    asyncio.run(both())
    assert world.running == "tiny"


def test_an_engine_that_came_back_at_another_variant_is_believed(world: World) -> None:
    world.tick()
    world.running = "small"
    world.tick()
    assert world.wish.seen[-1].variant == "small"


def test_it_runs_until_it_is_stopped_and_outlives_a_fault(world: World) -> None:
    decide, faults = world.wish.decide, list[int]()

    def faulty(state: PolicyState, sample: Sample) -> Decision:
        if not faults:
            faults.append(1)
            raise ValueError("nobody foresaw it")
        return decide(state, sample)

    world.wish.decide = faulty  # type: ignore[method-assign]

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
    assert sample_of(2.0, watch, None) == Sample(2.0, watch.classes(2.0))
    with MachineReader(SERVER, LAPTOP, no_nvidia) as reader:
        full = sample_of(2.0, watch, reader.read(2.0), n_running=3, n_waiting=2, waiting_tokens=70)
    assert (full.n_running, full.n_waiting, full.waiting_tokens) == (3, 2, 70)
    assert (full.available_bytes, full.memory_stall, full.is_own_stall) == (2_000_000_000, 0.0125, True)
    assert full.on_battery


def test_mapped_weights_are_not_available_and_no_more_than_the_groups_cache_is_counted() -> None:
    watch, gib = LoadWatch(), 1 << 30
    with MachineReader(SERVER, LAPTOP, no_nvidia) as reader:
        machine = reader.read(2.0)
    group = GroupMemory("/group", 4 * gib, 3 * gib, gib // 2, Path("none"))
    for limited_by, expected in (("machine", gib), ("/group", 3 * gib // 2)):
        memory = Memory(4 * gib, 2 * gib, limited_by, (group,))
        sample = sample_of(2.0, watch, replace(machine, memory=memory), mapped_bytes=gib)
        assert sample.available_bytes == expected
