"""Loading a model: whatever fails on the way, nothing of it stays open."""

from __future__ import annotations

import pytest

from lamella.core.errors import EngineFailed, InvalidRequest, StoreError
from lamella.llama.context import Context
from lamella.llama.model import LayerRange, Model
from lamella.run.loading import load
from lamella.run.shards import ShardPool
from lamella.run.variants import LiveVariants
from lamella.store.store import Store
from tests.run.conftest import OPTIONS


@pytest.mark.parametrize("n_placed", [2, 4])
def test_every_layer_has_a_place(store: Store, n_placed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known from the headers, before the model is loaded."""
    monkeypatch.setattr(Model, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    ranges = (LayerRange(None, 0, 1), LayerRange(None, 1, n_placed))
    with pytest.raises(InvalidRequest, match=f"the model has 3 layers, and {n_placed} have a place"):
        load(store, "large", {}, lambda _: OPTIONS.context, n_warm=1, check=False, layers=ranges)


def test_what_fails_last_closes_all_that_was_opened_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[type] = []
    for kind in (LiveVariants, Context, Model):

        def close(self: object, kind: type = kind, plain: object = kind.close) -> None:
            if kind not in closed:  # later calls do nothing
                closed.append(kind)
            plain(self)  # type: ignore[operator]

        monkeypatch.setattr(kind, "close", close)

    def fails(self: LiveVariants, name: str) -> None:
        raise EngineFailed(f"no {name}")

    monkeypatch.setattr(LiveVariants, "change_to", fails)
    with pytest.raises(EngineFailed, match="no large"):
        load(store, "large", {}, lambda _: OPTIONS.context, n_warm=1, check=False)
    assert closed == [LiveVariants, Context, Model]
    assert store.leased_ids() == set()


def test_a_variant_that_lacks_weights_is_not_switched_to(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pointers of what it lacks would go on pointing into shards that are closed."""
    with load(store, "large", {}, lambda _: OPTIONS.context, n_warm=1, check=False) as loaded:
        stored = ShardPool.stored

        def without_one(pool: ShardPool, *arguments: object) -> object:
            found = dict(stored(pool, *arguments))  # type: ignore[arg-type]
            found.pop("blk.1.ffn_up.weight", None)
            return found

        monkeypatch.setattr(ShardPool, "stored", without_one)
        with pytest.raises(StoreError, match=r"variant small has no blk\.1\.ffn_up\.weight: it is of another model"):
            loaded.live.change_to("small")
        assert loaded.live.name == "large"
