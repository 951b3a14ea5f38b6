"""Variants that requests hold open besides the one that runs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.core.errors import ModelError, TruncatedModel
from lamella.core.giving_way import Rests
from lamella.llama import gguf
from lamella.llama.model import Model
from lamella.llama.weights import MappedShard
from lamella.run import preparing
from lamella.run.prepared import PreparedVariant
from lamella.run.variants import LiveVariants
from lamella.store.store import Store


@contextmanager
def opened(store: Store, n_warm: int) -> Iterator[LiveVariants]:
    """Small runs, and large ran before it."""
    paths = store.shard_paths(store.variant("large"))
    tensors = {n: t.spec for path in paths for n, t in gguf.read_tensors(path).items()}
    with Model.load(paths) as model:
        live = LiveVariants(store, model, tensors, {}, n_warm=n_warm, check=False)
        live.change_to("large")
        live.change_to("small")
        yield live
        live.close()


@pytest.fixture
def live(store: Store) -> Iterator[LiveVariants]:
    """Two may stay open."""
    with opened(store, n_warm=2) as live:
        yield live


def _hold(live: LiveVariants, name: str) -> None:
    prepared = live.prepare(name).result()
    assert isinstance(prepared, PreparedVariant)
    assert live.hold(prepared)


def test_holding_one_closes_what_is_only_warm(live: LiveVariants) -> None:
    _hold(live, "middle")
    assert set(live.warm) == {"small", "middle"}


def test_what_is_held_stays_open_beyond_the_number_and_goes_with_its_last_request(live: LiveVariants) -> None:
    for name in ("middle", "large", "large"):
        _hold(live, name)
    assert set(live.warm) == {"small", "middle", "large"}
    live.release("large")
    assert set(live.warm) == {"small", "middle", "large"}
    live.release("large")
    assert set(live.warm) == {"small", "middle"}


def test_a_shard_that_is_opened_again_has_its_header_read_once(
    live: LiveVariants, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    read_tensors = gguf.read_tensors

    def counted(path: Path) -> dict[str, gguf.TensorData]:
        read.append(path)
        return read_tensors(path)

    monkeypatch.setattr(gguf, "read_tensors", counted)
    live.change_to("middle")
    assert len(read) == len(set(read)) > 0
    live.change_to("small")
    assert "large" not in live.warm
    read.clear()
    live.change_to("large")
    assert read == []


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
def test_what_prepares_variants_gives_way_to_what_computes(live: LiveVariants) -> None:
    (thread,) = (t for t in threading.enumerate() if t.name.startswith("lamella-prepare"))
    assert thread.native_id is not None
    assert os.getpriority(os.PRIO_PROCESS, thread.native_id) > os.getpriority(os.PRIO_PROCESS, 0)


class NotedRests:
    """In place of rests: whether one was due after each shard; nothing is opened before ``may_open``."""

    def __init__(self) -> None:
        self.due: list[bool] = []
        self.may_open = threading.Event()
        self.may_open.set()

    def __call__(self, are_due: Callable[[], bool]) -> Rests:
        assert self.may_open.wait(60)

        def noted() -> bool:
            self.due.append(are_due())
            return False

        return Rests(noted)

    def taken(self) -> list[bool]:
        due, self.due = self.due, []
        return due


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> NotedRests:
    noted = NotedRests()
    monkeypatch.setattr(preparing, "Rests", noted)
    return noted


def test_preparing_rests_after_every_shard_beside_steps_only(live: LiveVariants, rests: NotedRests) -> None:
    live.change_to("middle")
    n_shards = len(live.prepare("middle").result().variant.shards)
    assert rests.taken() == [False] * n_shards
    live.is_computing = True
    live.change_to("large")
    assert rests.taken() == [True] * n_shards


def test_preparing_does_not_rest_where_another_preparation_waits_for_it(store: Store, rests: NotedRests) -> None:
    with opened(store, n_warm=1) as live:
        rests.taken()
        live.is_computing = True
        rests.may_open.clear()
        first, second = live.prepare("large"), live.prepare("middle")
        rests.may_open.set()
        n_first, n_second = (len(one.result().variant.shards) for one in (first, second))
    assert rests.taken() == [False] * n_first + [True] * n_second


def test_preparing_does_not_rest_where_memory_is_short(live: LiveVariants, rests: NotedRests) -> None:
    live.is_computing = True
    live.memory.save(is_on=True)
    live.prepare("middle").result()
    assert not any(rests.taken())
    live.memory.save(is_on=False)
    live.change_to("middle")
    live.change_to("large")
    assert any(rests.taken())


def test_a_shard_that_was_cut_off_since_its_header_was_read_is_not_mapped(store: Store, tmp_path: Path) -> None:
    whole = store.shard_paths(store.variant("large"))[-1]
    tensors = gguf.read_tensors(whole).values()
    short = tmp_path / "short.gguf"
    end = max(t.offset + t.n_bytes for t in tensors)
    short.write_bytes(whole.read_bytes()[: end - 1])
    with pytest.raises(TruncatedModel, match="cut off"):
        MappedShard(short, tensors)
    short.unlink()
    with pytest.raises(ModelError, match=r"short\.gguf"):
        MappedShard(short, tensors)
