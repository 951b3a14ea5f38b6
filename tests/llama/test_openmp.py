"""Threads that a thread has computed with go when they are let go, and come back when it computes again."""

from __future__ import annotations

import time

import psutil
import pytest

from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model
from lamella.llama.openmp import release_team

N_THREADS = 3


def threads() -> int:
    return int(psutil.Process().num_threads())


def test_a_team_is_let_go_and_made_again(model: Model) -> None:
    if not release_team():
        pytest.skip("llama.cpp was built without OpenMP 5.0")
    with Context(model, ContextOptions(n_ctx=64, n_batch=32, n_threads=N_THREADS)) as context:
        before = threads()
        for start in (0, 3):
            context.decode([1, 2, 3], start)
            assert threads() == before + N_THREADS - 1
            assert release_team()
            deadline = time.monotonic() + 10  # threads end a little later
            while threads() > before and time.monotonic() < deadline:
                time.sleep(0.01)
            assert threads() == before
