"""Who goes first in a process that somebody waits for."""

from __future__ import annotations

import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lamella.core.collector import keep_what_is_there
from lamella.core.giving_way import LESS_URGENT, MOST_REST_SECONDS, REST_FACTOR, Rests, give_way


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
def test_the_thread_that_gives_way_does_so_alone() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    with ThreadPoolExecutor(1, initializer=give_way) as background:
        assert background.submit(niceness).result() == min(19, before + LESS_URGENT)
    assert niceness() == before


def test_collections_leave_alone_what_was_there() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    before = Cycle()
    keep_what_is_there()
    try:
        assert not any(found is before for found in gc.get_objects())
        assert gc.get_freeze_count() > 0
        after = Cycle()
        assert any(found is after for found in gc.get_objects())
    finally:
        gc.unfreeze()


class Pieces:
    """Work and rests on a clock of their own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.are_due = True
        self.rests = Rests(lambda: self.are_due, clock=lambda: self.now, sleep=self.slept.append)

    def work(self, seconds: float) -> None:
        with self.rests.after():
            self.now += seconds


def test_rests_are_in_proportion_to_the_work_and_end_when_it_has_waited_enough() -> None:
    pieces = Pieces()
    pieces.work(0.01)
    pieces.work(0.02)
    assert pieces.slept == pytest.approx([REST_FACTOR * 0.01, REST_FACTOR * 0.02])
    for _ in range(3):
        pieces.work(0.1)
    assert sum(pieces.slept) == pytest.approx(MOST_REST_SECONDS)
    assert len(pieces.slept) == 4  # the last piece was followed by none


def test_nobody_rests_where_nobody_waits() -> None:
    pieces = Pieces()
    pieces.are_due = False
    pieces.work(0.1)
    assert pieces.slept == []
    pieces.are_due = True
    pieces.work(0.1)
    assert pieces.slept == pytest.approx([REST_FACTOR * 0.1])


def test_nobody_rests_after_work_that_failed() -> None:
    def fail(after_seconds: float) -> None:
        pieces.now += after_seconds
        raise OSError("disk")

    pieces = Pieces()
    with pytest.raises(OSError, match="disk"), pieces.rests.after():
        fail(0.1)
    assert pieces.slept == []
