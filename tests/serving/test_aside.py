"""The front keeps off the engine's core: which cores it uses, and that nothing else loses any."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.serving.aside import Aside, Cores, beside


@given(st.frozensets(st.integers(0, 7), min_size=1), st.none() | st.integers(0, 9))
def test_some_core_is_left_and_never_the_busy_one_where_there_are_others(usable: Cores, busy: int | None) -> None:
    chosen = beside(usable, busy)
    assert chosen
    assert chosen <= usable
    assert busy not in chosen or usable == {busy}
    assert usable - chosen <= {busy}


class Thread:
    """One whose cores are only written down.  ``writes`` are those that were set."""

    def __init__(self, cores: Cores | None) -> None:
        self.cores = cores
        self.busy: int | None = None
        self.writes: list[Cores] = []
        self.aside = Aside(cores=lambda: self.cores, use=self._use, core_of=lambda _: self.busy)

    def _use(self, cores: Cores) -> None:
        self.cores = cores
        self.writes.append(cores)

    def keep_off(self, busy: int | None) -> Cores | None:
        self.busy = busy
        self.aside.keep_off(1)
        return self.cores


def test_it_follows_a_loop_that_moves_and_gives_all_back() -> None:
    thread = Thread(frozenset({0, 1, 2}))
    assert thread.keep_off(1) == frozenset({0, 2})
    assert thread.keep_off(0) == frozenset({1, 2})
    assert thread.keep_off(None) == frozenset({0, 1, 2})
    thread.keep_off(2)
    thread.aside.lift()
    assert thread.cores == frozenset({0, 1, 2})


def test_nothing_is_set_that_is_so_already() -> None:
    thread = Thread(frozenset({0, 1}))
    for _ in range(3):
        thread.keep_off(0)
    assert thread.writes == [frozenset({1})]


def test_cores_that_somebody_else_sets_count_from_then_on() -> None:
    thread = Thread(frozenset({0, 1, 2}))
    thread.keep_off(0)
    thread.cores = frozenset({0, 1})
    assert thread.keep_off(0) == frozenset({1})
    thread.cores = frozenset({2})
    thread.aside.lift()
    assert thread.cores == frozenset({2})


def test_where_the_system_does_not_say_nothing_happens() -> None:
    thread = Thread(None)
    thread.keep_off(0)
    thread.aside.lift()
    assert not thread.writes


def in_a_thread(work: Callable[[], None]) -> None:
    """Run it where narrowed cores do no harm to other tests; what it raises is raised here."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)
def test_on_this_machine_a_running_process_is_avoided() -> None:
    def work() -> None:
        usable = os.sched_getaffinity(0)
        core = max(usable)
        spin = f"import os\nos.sched_setaffinity(0, {{{core}}})\nprint(flush=True)\nwhile True: pass"
        with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as busy:
            assert busy.stdout is not None
            busy.stdout.readline()
            aside = Aside()
            aside.keep_off(busy.pid)
            assert os.sched_getaffinity(0) == usable - {core}
            aside.lift()
            busy.kill()
        assert os.sched_getaffinity(0) == usable

    in_a_thread(work)
