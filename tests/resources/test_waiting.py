"""Waiting tries again until a plan fits or the time is up."""

from collections.abc import Iterator

import pytest

from lamella.core.artifacts import Plan
from lamella.core.errors import DoesNotFit, InvalidRequest
from lamella.core.units import GIB
from lamella.planning.policies import make_plan
from lamella.planning.request import PlanRequest
from lamella.planning.specs import builtin_spec
from lamella.resources.waiting import Waiting, wait_until_fits


class Time:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def try_plan(budget: int) -> Plan:
    return make_plan("lsaq", PlanRequest(builtin_spec("llama-2-7b"), budget_bytes=budget))


def wait(budgets: Iterator[int], time: Time, seen: list[Waiting], timeout: float | None = None) -> Plan:
    return wait_until_fits(
        try_plan,
        lambda: next(budgets),
        timeout_seconds=timeout,
        on_wait=seen.append,
        sleep=time.sleep,
        clock=time.clock,
    )


def test_a_plan_that_fits_at_once_does_not_wait() -> None:
    time = Time()
    assert wait(iter([8 * GIB]), time, []).fits
    assert time.slept == []


def test_waits_until_memory_is_free() -> None:
    time, seen = Time(), list[Waiting]()
    plan = wait(iter([0, 3 * GIB, 4 * GIB]), time, seen)
    assert plan.average_bits == 4.125  # LSAQ Table IV at 4 GB
    assert time.slept == [2.0, 2.0]
    assert [w.elapsed_seconds for w in seen] == [0.0, 2.0]
    assert [w.reason.budget_bytes for w in seen] == [1, 3 * GIB]


def test_gives_up_when_the_time_is_up() -> None:
    time, seen = Time(), list[Waiting]()
    with pytest.raises(DoesNotFit):
        wait(iter([GIB] * 9), time, seen, timeout=5)
    assert time.slept == [2.0, 2.0, 1.0]


def test_other_errors_are_not_waited_for() -> None:
    def refuse(_: int) -> Plan:
        raise InvalidRequest("no")

    with pytest.raises(InvalidRequest):
        wait_until_fits(refuse, lambda: 1, sleep=Time().sleep)
