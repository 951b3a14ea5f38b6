"""A damaged or lost shard comes back from a store behind a URL, and only as the very same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella import api
from lamella.cli import main
from lamella.core.errors import InvalidRequest, ShardDamaged
from lamella.llama.gguf import ModelFile
from lamella.quantize.build import build_variant
from lamella.remote.pull import pull_variant
from lamella.remote.remote_store import RemoteStore
from lamella.store.store import Store
from tests.fakes.plans import make_plan
from tests.fakes.web import Ranged, serving
from tests.remote.conftest import HASTY


class Headless(Ranged):
    def head(self) -> None:
        self.say(405)


@pytest.fixture
def damaged(origin: Store, local: Path) -> Store:
    """A pulled store, which has no model to make shards from, without one shard and with a bad one."""
    with serving(origin.path, Ranged) as site, RemoteStore(site.url, None, HASTY) as remote:
        pull_variant(remote, "mixed", local)
    store = Store.open(local)
    first, second = (store.shard_path(shard.id) for shard in store.variant("mixed").shards[1:3])
    first.unlink()
    second.chmod(0o644)
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    return store


def test_repair_takes_shards_from_a_url(origin: Store, damaged: Store) -> None:
    assert len(damaged.verify().damaged) == 2
    with serving(origin.path, Ranged) as site:
        assert main(["store", "repair", str(damaged.path), "--from", site.url]) == 0
    assert damaged.verify().ok


def test_restore_takes_what_is_missing_from_a_url(origin: Store, damaged: Store) -> None:
    with serving(origin.path, Ranged) as site, api.shard_source(site.url) as source:
        got = api.restore(damaged.path, "mixed", elsewhere=[source])
        assert got == {"layer 0": site.url}
    assert [d.label for d in damaged.verify().damaged] == ["layer 1"]


def test_urls_are_told_from_folders_whatever_their_case(origin: Store, damaged: Store) -> None:
    with serving(origin.path, Ranged) as site:
        url = site.url.replace("http://", "HTTP://")
        with api.shard_source(url) as source:
            assert api.restore(damaged.path, "mixed", elsewhere=[source]) == {"layer 0": url}
    with pytest.raises(InvalidRequest, match="no http or https URL"), api.shard_source("ftp://host/store"):
        pass


def test_a_url_that_sends_other_bytes_mends_nothing(origin: Store, damaged: Store, tmp_path: Path) -> None:
    lost = damaged.variant("mixed").shards[1]
    bad = tmp_path / "bad" / "shards" / lost.id[:2] / f"{lost.id}.gguf"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(bytes(lost.n_bytes))
    with serving(tmp_path / "bad", Ranged) as site, api.shard_source(site.url) as source, pytest.raises(ShardDamaged):
        api.restore(damaged.path, "mixed", elsewhere=[source])
    assert not damaged.shard_path(lost.id).exists()


def test_a_pull_keeps_the_quota_by_what_can_be_made_again(source: ModelFile, origin: Store, local: Path) -> None:
    """Shards that were built here go; the pulled ones stay where their server does not say that it has them."""
    store = Store.create(local, source.spec.identity)
    build_variant(source, make_plan(source.spec, "int4"), store, "built")
    store.state.set_quota(origin.variant("eight").n_bytes + 1)
    with serving(origin.path, Headless) as site:
        report = api.pull(f"{site.url}@eight", local)
    assert report.trimmed is not None
    assert report.trimmed.dropped
    built = {shard.id for shard in store.variant("built").shards}
    assert {shard.id for shard in report.trimmed.dropped} <= built
    assert all(store.shard_path(s.id).exists() for s in store.variant("eight").shards if s.id not in built)
    assert store.verify().ok
