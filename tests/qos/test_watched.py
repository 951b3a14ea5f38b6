"""What ``benchmarks.qos`` finds of a machine by the requests that it served (``qos_pace.py``, ``qos_virtual.py``)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks import qos
from benchmarks.qos_kept import Way
from benchmarks.qos_load import Contest
from benchmarks.qos_pace import course
from benchmarks.qos_virtual import Bench, Host, host_of, replayed
from benchmarks.replayed import Timeline
from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.setting import Setting
from lamella.qos.policies.static import Static
from lamella.qos.simulator.outcome import Served
from lamella.qos.simulator.slowdown import Slowdown
from lamella.qos.traces.arrivals import DEFAULT_CLASS
from lamella.qos.traces.generators import Load, poisson
from tests.qos.profiles import ladder


def bench() -> Bench:
    trace = poisson(Load(rate=0.5, seconds=600), seed=1)
    promised = Objectives({DEFAULT_CLASS: ClassObjectives()})
    no_store: Any = None
    return Bench(no_store, Path(), Path(), Setting.of(ladder(), promised), Contest(trace, promised, "v0", "v3"), [])


def test_a_machine_is_found_by_what_its_requests_took() -> None:
    truth = Host(1.2, ((60.0, 0.9), (540.0, 1.15)))
    way = Way(tuple(replayed(bench(), Static("v0"), truth).served), Timeline("v0", []))
    found = host_of(way, bench())
    was, is_said = (Slowdown(host.pace, course=host.course) for host in (truth, found))
    for at in (90.0, 200.0, 300.0, 400.0, 510.0):
        assert is_said.at(at) == pytest.approx(was.at(at), rel=0.01)


def test_changes_before_the_trace_begins_are_where_it_starts() -> None:
    live = tuple(replayed(bench(), Static("v1")).served)
    way = Way(live, Timeline("v0", [(-2.0, "v3"), (-1.0, "v1")]))
    assert host_of(way, bench()).pace == pytest.approx(1.0)


def test_minutes_of_few_requests_say_nothing() -> None:
    def served(times: float) -> list[Served]:
        arrived = [*(10.0 * i for i in range(6)), 180.0, 185.0, *(320.0 + i for i in range(6))]
        slow = [0.01 * (times if at >= 300 else 1.0) for at in arrived]
        return [Served(DEFAULT_CLASS, at, 0.0, tpot, {"v0": 10}) for at, tpot in zip(arrived, slow, strict=True)]

    seconds, times = zip(*course((served(1.5), served(1.0))), strict=True)
    assert seconds == (30.0, 330.0)
    assert times == pytest.approx((1.0, 1.5))


def test_what_is_missing_is_not_measured_under_the_name_of_another_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qos, "commit", lambda: "new")
    with pytest.raises(SystemExit, match="'lowest' of old is not kept"):
        asyncio.run(qos._measured_now("lowest", bench(), {}, "old"))
    monkeypatch.setattr("sys.argv", ["qos", "--measured-at", "old", "--profile-again"])
    with pytest.raises(SystemExit):
        qos._arguments()
