"""What is remembered of the past."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import msgspec
import pytest

from lamella.dashboard import recorder
from lamella.dashboard.recorder import LATELY_SECONDS, N_POINTS, Recorder, all_changes
from lamella.dashboard.state import Change, Machine
from tests.dashboard.conftest import PanelEngine
from tests.fakes.engine import STATUS


@dataclass
class Clock:
    """Stands still until it is moved."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def recorded(engine: PanelEngine, clock: Clock, seconds: int = 1, **options: object) -> Recorder:
    recorder = Recorder(engine, clock=clock, **options)  # type: ignore[arg-type]
    for _ in range(seconds):
        clock.now += 1
        recorder.tick()
    return recorder


def test_a_point_says_what_the_engine_said() -> None:
    (point,) = recorded(PanelEngine(), Clock()).points()
    assert (point.at, point.variant, point.n_running, point.n_waiting) == (1001.0, "large", 1, 2)
    assert point.engine_bytes == 3000 + 4000
    assert (point.tokens_per_second, point.watts, point.latencies) == (None, None, ())


def test_tokens_are_counted_between_points_and_a_new_engine_says_nothing() -> None:
    engine, clock = PanelEngine(), Clock()
    recorder = Recorder(engine, clock=clock)
    for n_tokens in (100, 150, 150, 20, 30):
        engine.status = msgspec.structs.replace(STATUS, n_generated_tokens=n_tokens)
        clock.now += 2
        recorder.tick()
    assert [point.tokens_per_second for point in recorder.points()] == [None, 25.0, 0.0, None, 5.0]


def test_before_an_engine_is_up_nothing_is_known() -> None:
    engine = PanelEngine(facts=None, status=None)
    recorder = recorded(engine, Clock())
    (point,) = recorder.points()
    assert (point.variant, point.engine_bytes, point.tokens_per_second) == (None, None, None)
    assert recorder.changes == ()


def test_latencies_are_of_the_requests_of_lately_by_class() -> None:
    clock = Clock()
    recorder = Recorder(PanelEngine(), clock=clock)
    for n in range(1, 101):
        recorder.finished("normal", n / 100, None)
    recorder.finished("high", 0.5, 0.02)
    recorder.finished("high", None, None)
    recorder.tick()
    high, normal = recorder.points()[0].latencies
    assert (normal.class_name, normal.ttft_p95_seconds, normal.tpot_p95_seconds) == ("normal", 0.95, None)
    assert (high.class_name, high.ttft_p95_seconds, high.tpot_p95_seconds) == ("high", 0.5, 0.02)
    clock.now += LATELY_SECONDS + 1
    recorder.finished("low", 1.0, None)
    recorder.tick()
    assert [latency.class_name for latency in recorder.points()[1].latencies] == ["low"]


def test_the_oldest_points_go_and_new_ones_can_be_asked_for() -> None:
    clock = Clock()
    recorder = recorded(PanelEngine(), clock, N_POINTS + 10)
    assert len(recorder.points()) == N_POINTS
    assert recorder.points()[-1].at == clock.now
    assert [point.at for point in recorder.points(clock.now - 2)] == [clock.now - 1, clock.now]
    assert recorder.points(clock.now) == ()


def test_every_change_is_noticed_with_what_can_be_known_of_it() -> None:
    engine, clock = PanelEngine(), Clock()
    recorder = recorded(engine, clock)
    engine.run_at("small")
    recorder.look()
    recorder.look()
    engine.run_at("middle")
    engine.n_restarts += 1
    recorder.tick()
    changes = [(change.before, change.after, change.by) for change in recorder.changes]
    assert changes == [(None, "large", "engine"), ("large", "small", "hand"), ("small", "middle", "engine")]
    assert "new engine" in recorder.changes[-1].reason


def test_a_decision_explains_what_was_noticed_and_nothing_else() -> None:
    noticed = [Change(10.0, "a", "b", "seen", "hand"), Change(50.0, "b", "a", "seen", "engine")]
    decided = [Change(9.5, "a", "b", "slow", "policy"), Change(20.0, "b", "c", "no", "policy", failure="no room")]
    assert [(c.at, c.reason) for c in all_changes(noticed, decided)] == [(9.5, "slow"), (20.0, "no"), (50.0, "seen")]
    failed = [Change(9.5, "a", "b", "slow", "policy", failure="no room")]
    assert len(all_changes(noticed[:1], failed)) == 2


def test_a_long_log_is_looked_through_only_where_a_change_was_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    explains = recorder._explains

    def counted(decision: Change, noticed: Change) -> bool:
        asked.append(decision.at)
        return explains(decision, noticed)

    monkeypatch.setattr(recorder, "_explains", counted)
    decided = [Change(10.0 * i, "a", "b", "slow", "policy") for i in range(1000)]
    noticed = [Change(one.at + 0.5, "a", "b", "seen", "hand") for one in decided[-200:]]
    assert all_changes(noticed, decided) == tuple(decided)
    assert len(asked) <= 400


def test_it_runs_until_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.dashboard.recorder.TICK_SECONDS", 0.001)
    readings = iter([Machine(available_bytes=1), Machine(available_bytes=2, watts=9.0)])

    async def read() -> Machine:
        return next(readings, Machine(available_bytes=3))

    async def run() -> Recorder:
        recorder = Recorder(PanelEngine(), read_machine=read)
        task = asyncio.create_task(recorder.run())
        while len(recorder.points()) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return recorder

    points = asyncio.run(run()).points()
    assert [(point.available_bytes, point.watts) for point in points[:3]] == [(1, None), (2, 9.0), (3, None)]


def test_a_fault_of_a_reader_ends_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.dashboard.recorder.TICK_SECONDS", 0.001)
    n_reads = 0

    async def read() -> Machine:
        nonlocal n_reads
        n_reads += 1
        if n_reads == 1:
            raise OSError("the sensor is gone")
        return Machine()

    async def run() -> list[str]:
        recorder = Recorder(PanelEngine(), read_machine=read)
        task, said = asyncio.create_task(recorder.run()), [""]
        while len(recorder.points()) < 2 and not task.done():
            await asyncio.sleep(0.001)
            said.append(recorder.machine.why_no_watts)
        task.cancel()
        return said

    assert "reading it fails: the sensor is gone" in asyncio.run(run())
