"""The folder in which an engine leaves its KV cache: what it holds can be read by nobody else, and by one engine."""

from __future__ import annotations

import stat
from pathlib import Path

from lamella.serving.left_cache import LeftCache


def test_only_what_is_whole_is_taken_and_only_once() -> None:
    left = LeftCache()
    assert left.take() == ""
    folder = left.begin()
    assert left.take() == ""  # an engine that died while it wrote
    left.complete()
    assert left.take() == folder
    assert left.take() == ""
    left.drop()


def test_nobody_else_may_look_into_it() -> None:
    left = LeftCache()
    assert stat.S_IMODE(Path(left.begin()).stat().st_mode) == 0o700
    left.drop()


def test_nothing_stays_of_what_was_left_before() -> None:
    left = LeftCache()
    first = Path(left.begin())
    (first / "cache").write_text("what prompts were about")
    left.complete()
    second = Path(left.begin())
    assert not first.exists()
    assert left.take() == ""  # the new one is not whole, though the one before was
    left.drop()
    assert not second.exists()
    left.complete()
    assert left.take() == ""
    left.drop()
