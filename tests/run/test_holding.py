"""Variants that requests hold open besides the one that runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lamella.llama import gguf
from lamella.llama.model import Model
from lamella.run.prepared import PreparedVariant
from lamella.run.variants import LiveVariants
from lamella.store.store import Store


@pytest.fixture
def live(store: Store) -> Iterator[LiveVariants]:
    """Two may stay open; small runs, and large ran before it."""
    paths = store.shard_paths(store.variant("large"))
    tensors = {n: t.spec for path in paths for n, t in gguf.read_tensors(path).items()}
    with Model.load(paths) as model:
        live = LiveVariants(store, model, tensors, {}, n_warm=2, check=False)
        live.change_to("large")
        live.change_to("small")
        yield live
        live.close()


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
