"""The loop that moves layers, between machines that are told and an engine that notes what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from lamella.api import serving
from lamella.api.served_cluster import models_of
from lamella.batching.messages import CacheSaved
from lamella.batching.settings import EngineSettings
from lamella.cluster import moving
from lamella.cluster.layers import LayersOf
from lamella.cluster.messages import Speed
from lamella.cluster.moving import Mover, MoverOptions, pause_seconds
from lamella.cluster.placing import BUFFER_BYTES, MachineNow, ServedModel, place_served
from lamella.cluster.replanning import ReplanLimits
from lamella.core.artifacts import ShardRef
from lamella.core.errors import EngineUnavailable, RemoteFailed
from lamella.planning.placement import Link
from lamella.store.store import Store

HOME: tuple[LayersOf, ...] = (LayersOf("coordinator", 0, 1), LayersOf("one", 1, 3))
HERE: tuple[LayersOf, ...] = (LayersOf("coordinator", 0, 3),)
LIMITS = ReplanLimits(hold_seconds=10.0, grace_seconds=1.0, n_moves=9)
PLENTY = 1 << 40


@dataclass
class Node:
    """A forwarder."""

    endpoint: str = "127.0.0.1:1"
    is_up: bool = True
    renewed: list[Sequence[ShardRef]] = field(default_factory=list)

    def renew(self, shards: Sequence[ShardRef]) -> None:
        self.renewed.append(shards)

    async def ready(self, seconds: float) -> None:
        if not self.is_up:
            raise RemoteFailed("away")


def shards_for(layers: Sequence[LayersOf]) -> list[ShardRef]:
    """One for each layer."""
    return [ShardRef(f"{n:064x}", f"layer {n}", 1) for at in layers for n in range(at.first, at.end)]


class World:
    """Machines, clock, engine.

    Attributes:
        said: what the engine was told, in order.
        lines: what people were told.
        variant: that runs; None while no engine answers.
    """

    def __init__(
        self,
        models: list[ServedModel],
        home: tuple[LayersOf, ...] | None = HOME,
        limits: ReplanLimits = LIMITS,
        *,
        is_one_late: bool = False,
    ) -> None:
        speeds = {kind: Speed(0.1, 0.05) for m in models for kind in m.types}
        self.there = {"coordinator": MachineNow(PLENTY, speeds), "one": MachineNow(PLENTY, speeds, Link(1e9, 1e-5))}
        self.nodes: Any = {"one": Node()}
        self.said: list[Any] = []
        self.variant: str | None = models[0].name
        self.now = 0.0
        self.fill_fails = self.fill_hangs = self.save_fails = False
        self.is_ready, self.n_cells_used = True, 0
        self.lines: list[str] = []
        options = MoverOptions(shards_for, self._fill, home, limits, self.lines.append)
        settings = EngineSettings(store="store")
        one = self.there.pop("one") if is_one_late else self.there["one"]
        self.mover = Mover(
            self, self, settings, models, HOME, options, running=lambda: self.variant, clock=lambda: self.now
        )
        self.there["one"] = one

    def machines(self) -> dict[str, MachineNow]:
        return dict(self.there)

    async def _fill(self, node: str, shards: Sequence[ShardRef]) -> None:
        if self.fill_fails:
            raise RemoteFailed("the node has no room")
        while self.fill_hangs:
            await asyncio.sleep(0.01)

    async def save_cache(self, limit_seconds: float) -> CacheSaved:
        if self.save_fails:
            raise EngineUnavailable("it died")
        self.said.append("save")
        return CacheSaved(id=1, n_cells=self.n_cells_used, n_bytes=9, seconds=0.1)

    def hold(self, why: str, *, refuses: bool) -> None:
        self.said.append("refuse" if refuses else "hold")

    def use(self, settings: EngineSettings, variant: str | None = None) -> None:
        self.said.append(([(at.endpoint, at.first, at.end) for at in settings.layers], variant))
        self.variant = variant or self.variant

    def look(self, *pauses: float) -> None:
        """Look after each pause."""
        for pause in pauses:
            self.now += pause
            asyncio.run(self.mover.look())


@pytest.fixture
def models(store: Store) -> list[ServedModel]:
    return models_of(store, EngineSettings(store=str(store.path), n_ctx=128, n_sequences=1, n_warm=1))


def test_layers_leave_a_lost_node_after_the_grace_and_return_after_the_hold(models: list[ServedModel]) -> None:
    world = World(models)
    world.look(1.0)
    one = world.there.pop("one")
    world.look(1.0, 0.5)
    assert (world.mover.state, world.said) == ("moving", ["hold"])  # no engine is started that could not compute
    world.look(0.6)
    assert world.said == ["hold", ([("", 0, 3)], None)]
    assert (world.mover.layers, world.mover.n_moves, world.mover.state) == (HERE, 1, "placed")
    world.there["one"] = one
    world.look(1.0, 5.0)
    assert world.mover.layers == HERE
    world.look(6.0)
    assert world.mover.layers == HOME
    assert world.said[-1] == ([("", 0, 1), ("127.0.0.1:1", 1, 3)], None)


def test_where_nothing_fits_new_requests_are_refused_once_and_all_goes_on_at_once(models: list[ServedModel]) -> None:
    world = World(models)
    small = replace(world.there["coordinator"], memory_bytes=1000)
    world.there["coordinator"] = small
    one = world.there.pop("one")
    world.look(1.0, 2.0, 1.0, 1.0)
    assert world.said == ["hold", "refuse"]
    assert str(world.mover.state) == "nothing fits"
    assert "missing" in world.mover.why
    world.there["one"] = one
    world.look(0.25)
    assert str(world.mover.state) == "placed"
    assert world.said[2:] == [([("", 0, 1), ("127.0.0.1:1", 1, 3)], None)]


def test_a_node_that_is_back_within_the_grace_gets_its_engine_again(models: list[ServedModel]) -> None:
    world = World(models)
    one = world.there.pop("one")
    world.look(1.0, 0.5)
    world.there["one"] = one
    world.look(0.3, 0.3)
    assert world.said == ["hold", ([], None)]  # the settings that it had
    assert world.mover.n_moves == 0


def test_a_machine_that_is_lost_before_the_first_engine_is_up_is_planned_without(models: list[ServedModel]) -> None:
    world = World(models)
    world.variant = None
    del world.there["one"]
    world.look(1.0, 2.0)
    assert world.said == ["hold", ([("", 0, 3)], None)]


def test_a_smaller_variant_runs_where_only_that_fits_and_the_wanted_one_comes_back(models: list[ServedModel]) -> None:
    world = World(models, home=None)
    small, plenty = models[-1], world.there["coordinator"]
    one = world.there.pop("one")
    needed = small.layer_bytes + small.outside_bytes + BUFFER_BYTES
    world.there["coordinator"] = replace(plenty, memory_bytes=needed)
    world.look(1.0, 2.0)
    assert world.said[-1] == ([("", 0, 3)], "small")
    world.there |= {"coordinator": plenty, "one": one}
    world.look(1.0, 11.0)
    assert world.said[-1][1] == "large"


def test_a_switch_by_hand_is_no_reason_to_move(models: list[ServedModel]) -> None:
    world = World(list(reversed(models)))  # it began at the smallest
    world.look(1.0)
    world.variant = "large"
    world.look(*[5.0] * 20)
    assert world.said == []


def test_layers_move_also_under_a_variant_that_came_into_the_store_later(models: list[ServedModel]) -> None:
    world = World(models)
    world.variant = "newer"
    world.look(1.0)
    del world.there["one"]
    world.look(1.0, 1.0)
    assert world.said == ["hold", ([("", 0, 3)], None)]


def test_a_home_that_has_become_slow_is_left_and_a_failed_move_is_tried_again(models: list[ServedModel]) -> None:
    world = World(models)
    world.look(1.0)
    world.there["one"] = replace(world.there["one"], slowdown=4.0)
    world.look(1.0, 11.0)
    assert world.mover.layers == HERE
    world.there["one"] = replace(world.there["one"], slowdown=1.0)
    world.fill_fails = True
    world.look(1.0)
    with pytest.raises(RemoteFailed, match="no room"):
        world.look(11.0)
    assert world.mover.layers == HERE  # and its engine was left alone
    assert world.said.count("hold") == 1
    world.fill_fails = False
    world.look(1.0, 11.0)
    assert world.mover.layers == HOME


def test_home_is_kept_while_it_is_as_fast_as_it_was_however_little_gain_is_enough(models: list[ServedModel]) -> None:
    world = World(models, limits=replace(LIMITS, gain=0.0))
    world.look(*[5.0] * 5)
    assert (world.said, world.mover.layers) == ([], HOME)


def test_layers_that_are_where_they_run_fastest_do_not_move_to_where_they_are(models: list[ServedModel]) -> None:
    world = World(models, home=None, limits=replace(LIMITS, gain=0.0))
    world.look(1.0, *[11.0] * 5)
    assert (world.mover.layers, world.mover.n_moves) == (HERE, 1)


def test_the_kv_cache_goes_along_where_all_machines_are_there(models: list[ServedModel]) -> None:
    world = World(models)
    world.n_cells_used = 100
    world.look(1.0)
    world.there["one"] = replace(world.there["one"], slowdown=4.0)
    world.look(1.0, 11.0)
    assert world.said == ["save", "hold", ([("", 0, 3)], None)]
    world.there["one"] = replace(world.there["one"], slowdown=1.0)
    world.save_fails = True
    world.look(1.0, 11.0)
    assert world.said[3:] == ["hold", ([("", 0, 1), ("127.0.0.1:1", 1, 3)], None)]
    assert world.mover.state == "placed"


@pytest.mark.parametrize("lacks", ["a node", "an engine", "tokens", "bandwidth"])
def test_the_kv_cache_stays_behind_where_it_cannot_or_need_not_go(models: list[ServedModel], lacks: str) -> None:
    world = World(models)
    world.n_cells_used = 0 if lacks == "tokens" else 100
    world.look(1.0)
    if lacks == "a node":
        del world.there["one"]
    else:
        world.there["one"] = replace(world.there["one"], slowdown=4.0)
    if lacks == "bandwidth":
        world.there["one"] = replace(world.there["one"], link=Link(1e3, 1e-5))
    world.is_ready = lacks != "an engine"
    world.look(1.0, 11.0)
    assert world.said == ["hold", ([("", 0, 3)], None)]


def test_a_fault_that_stays_is_told_once_and_again_when_it_comes_back(
    models: list[ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "TICK_SECONDS", 0.0)
    world = World(models)
    unknown, known = MachineNow(PLENTY, {}), world.there["coordinator"]

    async def looks(n: int) -> None:
        """Let the mover look so many times."""
        count = 0

        def machines() -> dict[str, MachineNow]:
            nonlocal count
            count += 1
            return dict(world.there)

        monkeypatch.setattr(world, "machines", machines)
        while count < n:
            await asyncio.sleep(0)

    async def main() -> None:
        running = asyncio.create_task(world.mover.run())
        for there in (unknown, known, unknown):
            world.there["coordinator"] = there
            await looks(5)
        running.cancel()

    asyncio.run(main())
    assert len(world.lines) == 2
    assert all("layers cannot move now: machine 'coordinator' does not know its speed" in line for line in world.lines)


def test_looks_that_fail_one_after_the_other_are_further_and_further_apart() -> None:
    assert [pause_seconds(n) for n in range(8)] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert pause_seconds(5000) == 8.0  # hours of them


def test_what_ends_beside_the_server_by_a_fault_is_told() -> None:
    lines: list[str] = []

    async def faulty() -> None:
        raise OverflowError("too large")

    async def main() -> None:
        async with serving._beside(faulty(), lines.append):
            await asyncio.sleep(0.05)
            assert lines == ["what goes on beside the server has ended, by a fault: OverflowError: too large"]
        async with serving._beside(asyncio.sleep(60), lines.append):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(lines) == 1  # what is ended with the server is no fault

    asyncio.run(main())


def test_a_home_that_is_slower_by_more_than_the_gain_is_left_and_by_less_kept(models: list[ServedModel]) -> None:
    """By what it was at first: nearly all of these requests' time is what passes over the node cost."""
    for slowdown, layers in ((1.2, HOME), (1.4, HERE)):
        world = World(models)
        world.there["one"] = replace(world.there["one"], slowdown=slowdown)
        world.look(1.0, 11.0)
        assert world.mover.layers == layers


def test_a_node_that_comes_for_the_first_time_gets_the_layers_that_it_was_named_for(models: list[ServedModel]) -> None:
    world = World(models, is_one_late=True)
    one = world.there.pop("one")
    world.look(1.0, 2.0)
    assert world.mover.layers == HERE
    world.there["one"] = one
    world.look(1.0, 11.0)
    assert world.mover.layers == HOME
    assert world.nodes["one"].renewed == [shards_for([LayersOf("one", 1, 3)])]


def test_layers_that_were_let_go_of_move_at_once_when_their_node_was_not_ready(models: list[ServedModel]) -> None:
    world = World(models)
    one = world.there.pop("one")
    world.look(1.0, 2.0)
    world.there["one"], world.nodes["one"].is_up = one, False
    world.look(1.0)
    with pytest.raises(RemoteFailed, match="away"):
        world.look(11.0)
    world.nodes["one"].is_up = True
    world.look(0.25)  # no engine runs: there is nothing to hold on to
    assert world.mover.layers == HOME


def test_a_node_that_goes_while_it_is_given_its_layers_is_not_waited_for(
    models: list[ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "TICK_SECONDS", 0.01)
    world = World(models)
    one = world.there.pop("one")
    world.look(1.0, 2.0)
    world.there["one"], world.nodes["one"].is_up, world.fill_hangs = one, False, True
    world.look(1.0)
    with pytest.raises(RemoteFailed, match="gone away while it was given its layers"):
        asyncio.run(asyncio.wait_for(looked(world, 11.0), 60))


async def looked(world: World, pause: float) -> None:
    world.now += pause
    await world.mover.look()


def test_who_has_switched_to_a_smaller_variant_gets_no_larger_one_by_a_move(models: list[ServedModel]) -> None:
    world = World(models, home=None)
    world.look(1.0)
    world.variant = "small"
    del world.there["one"]
    world.look(1.0, 2.0)
    assert world.said[-1] == ([("", 0, 3)], None)
    assert world.variant == "small"


def test_who_has_switched_to_a_slower_variant_keeps_it(models: list[ServedModel]) -> None:
    world = World(list(reversed(models)), home=None, limits=replace(LIMITS, gain=0.0))
    slow = {kind: Speed(1000.0, 1000.0) for kind in models[0].types - models[-1].types}
    for name, machine in world.there.items():
        world.there[name] = replace(machine, speeds={**machine.speeds, **slow})
    world.look(1.0, 11.0)
    world.variant = "large"
    world.look(*[11.0] * 3)
    assert world.variant == "large"


def test_a_variant_that_nobody_wants_does_not_move_for_a_little_speed(models: list[ServedModel]) -> None:
    """It runs because the wanted one fits nowhere, and would run elsewhere for the same reason."""
    models = [models[0], models[-1]]
    world, small = World(models, home=None), models[-1]
    speeds, faster = ({kind: Speed(n, n) for m in models for kind in m.types} for n in (1000.0, 900.0))
    needed = small.layer_bytes + small.outside_bytes + BUFFER_BYTES
    world.there["coordinator"] = replace(world.there["coordinator"], memory_bytes=needed, speeds=speeds)
    one = replace(world.there.pop("one"), memory_bytes=BUFFER_BYTES + small.layer_bytes // 2, speeds=faster)
    world.look(1.0, 2.0)
    assert world.said[-1] == ([("", 0, 3)], "small")
    world.there["one"] = one
    placed = place_served(models, world.there)
    assert placed is not None
    assert (placed.variant, len(placed.layers)) == ("small", 2)  # a little faster
    world.look(1.0, *[11.0] * 3)
    assert world.mover.layers == HERE
