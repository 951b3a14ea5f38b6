"""Who goes first in a process that somebody waits for."""

from __future__ import annotations

import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lamella.core.collector import keep_what_is_there
from lamella.core.giving_way import LESS_URGENT, give_way


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
