"""What was pulled may go and comes back from where it was, as the very same bytes; where that is away, it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella import api
from lamella.cli import main
from lamella.core.errors import InvalidRequest, ShardDamaged, StoreFormatError
from lamella.llama.gguf import ModelFile
from lamella.quantize.build import build_variant
from lamella.quantize.making import BuildStopped
from lamella.quantize.rebuild import restore_variant
from lamella.store.layout import Layout
from lamella.store.origins import Origins
from lamella.store.store import Store
from tests.fakes.plans import make_plan
from tests.fakes.web import Ranged, Site, Static, serving, serving_store


def pulled(site: Site, local: Path, quota_bytes: int | None = None) -> Store:
    """A store with the variant eight, pulled from a site."""
    api.pull(f"{site.url}@eight", local)
    store = Store.open(local)
    store.state.set_quota(quota_bytes)
    return store


def present(store: Store, name: str = "eight") -> list[str]:
    return [shard.label for shard in store.variant(name).shards if store.has_shard(shard)]


def test_pulled_shards_are_dropped_and_come_back_when_the_variant_is_used(origin: Store, local: Path) -> None:
    with serving(origin.path, Ranged) as site:
        store = pulled(site, local, 1)
        assert len(api.trim(local).dropped) == 5
        assert present(store) == ["meta"]
        assert store.verify().ok
        site.asked.clear()
        opened = api.open_store(local)
        assert len(opened.ready_paths(opened.variant("eight"))) == 6
        assert sum(method == "GET" for method, _, _ in site.asked) == 5
    assert len(present(store)) == 6
    assert store.verify().ok
    assert not store.verify().dropped


def test_nothing_is_dropped_that_its_origin_does_not_have_at_this_moment(origin: Store, local: Path) -> None:
    """Of three servers: one that is gone, one that lost the shards, one that has other files in their places."""

    class Empty(Static):
        def head(self) -> None:
            self.say(404)

    class Short(Static):
        def head(self) -> None:
            self.say(200, **{"Content-Length": "7"})

    class Closed(Static):
        def head(self) -> None:
            self.say(401)

    reasons = {Empty: "has no shard", Short: "has 7 bytes instead of", Closed: "401"}
    for number, (handler, reason) in enumerate(reasons.items()):
        with serving(origin.path, handler) as site:
            store = pulled(site, local.with_name(str(number)), 1)
            report = api.trim(store.path)
        assert report.dropped == ()
        assert any(reason in why for why in report.kept_bytes)
        report = api.trim(store.path)
        assert report.dropped == ()
        assert any("refused" in why for why in report.kept_bytes)
        assert len(present(store)) == 6


def test_where_the_origin_is_away_the_error_says_so_and_what_helps(origin: Store, local: Path) -> None:
    with serving(origin.path, Ranged) as site:
        store = pulled(site, local, 1)
        api.trim(local)
    opened = api.open_store(local)
    with pytest.raises(ShardDamaged) as caught:
        opened.ready_paths(opened.variant("eight"))
    said = str(caught.value)
    for fact in ("was dropped to keep the quota", site.url, "refused", f"repair {local} --from STORE"):
        assert fact in said
    assert present(store) == ["meta"]
    with serving(origin.path, Ranged) as other:
        assert main(["store", "restore", str(local), "eight", "--from", other.url]) == 0
    assert len(present(store)) == 6


def test_an_origin_that_sends_other_bytes_is_not_believed(origin: Store, local: Path) -> None:
    class Lying(Ranged):
        lies = False

        def answer(self, data: bytes) -> None:
            super().answer(bytes(len(data)) if Lying.lies and self.path.startswith("/shards/") else data)

    with serving(origin.path, Lying) as site:
        store = pulled(site, local, 1)
        api.trim(local)
        Lying.lies = True
        with pytest.raises(ShardDamaged, match="nothing was stored"):
            api.restore(local, "eight")
        assert present(store) == ["meta"]
        Lying.lies = False
        assert set(api.restore(local, "eight").values()) == {site.url}
    assert store.verify().ok


def test_repair_fetches_what_is_damaged_and_clears_notes_that_cannot_be_read(origin: Store, local: Path) -> None:
    with serving(origin.path, Ranged) as site:
        store = pulled(site, local)
        first, second = store.variant("eight").shards[:2]
        for path, data in ((store.shard_path(first.id), b"x"), (Layout(local).origin(second.id), b"{")):
            path.chmod(0o644)
            path.write_bytes(data)
        assert any("lamella store repair" in note for note in store.verify().unreadable_notes)
        report = api.repair(local)
    assert report.ok
    assert [(found.id, found.origin) for found in report.repaired] == [(first.id, site.url)]
    assert store.verify().ok


def test_a_token_is_neither_stored_nor_sent_to_an_origin(origin: Store, local: Path) -> None:
    """So what needs one cannot be fetched on demand, and is not dropped."""
    with serving_store(origin.path, token="a-long-secret") as server:
        api.pull(f"{server.url}@eight", local, token="a-long-secret")
        store = Store.open(local)
        store.state.set_quota(1)
        report = api.trim(local)
    assert report.dropped == ()
    assert any("401" in why for why in report.kept_bytes)
    texts = [path.read_bytes() for path in local.rglob("*") if path.is_file()]
    assert not any(b"a-long-secret" in text for text in texts)
    assert any(server.url.encode() in text for text in texts)


@pytest.mark.parametrize("url", ["http://u:p@host/s", "http://u@host/s", "http://host/s?token=x", "file:///etc", "x"])
def test_a_url_with_a_secret_is_no_origin(local: Path, url: str) -> None:
    origins, shard_id = Origins(Layout(local)), "a" * 64
    with pytest.raises(InvalidRequest):
        origins.note(shard_id, url)
    local.mkdir()
    origins.note(shard_id, "http://host/s")
    path = Layout(local).origin(shard_id)
    text = path.read_text()
    path.chmod(0o644)
    path.write_text(text.replace("http://host/s", url))
    with pytest.raises(StoreFormatError, match=f"lamella store repair {local}"):
        origins.find(shard_id)


def test_what_was_built_here_has_no_origin_even_if_a_pull_found_it(
    origin: Store, source: ModelFile, local: Path
) -> None:
    """A store pulled from itself must not take itself for a second copy."""
    store = Store.create(local, source.spec.identity)
    build_variant(source, make_plan(source.spec, "int8"), store, "built")
    with serving(local, Ranged) as site:
        api.pull(f"{site.url}@built", local)
    assert not (local / "origins").exists()
    with serving(origin.path, Ranged) as site:
        api.pull(f"{site.url}@mixed", local)
        own = store.variant("mixed").shards[2].id
        assert [path.stem for path in (local / "origins").rglob("*.json")] == [own]
        assert store.origins.find(own) == site.url


def test_notes_go_with_their_shards(origin: Store, local: Path) -> None:
    with serving(origin.path, Ranged) as site:
        store = pulled(site, local)
        api.pull(f"{site.url}@mixed", local)
    store.remove("eight")
    store.collect_garbage()
    needed = {shard.id for shard in store.variant("mixed").shards}
    assert {path.stem for path in (local / "origins").rglob("*.json")} == needed


def test_what_can_be_made_again_for_certain_is_not_fetched(origin: Store, source: ModelFile, local: Path) -> None:
    with serving(origin.path, Ranged) as site:
        store = pulled(site, local)
        lost = store.variant("eight").shards[1]
        store.shard_path(lost.id).unlink()
        build_variant(source, make_plan(source.spec, "int8"), store, "eight")  # now the recipe is on record
        store.shard_path(lost.id).unlink()
        site.asked.clear()
        assert api.restore(local, "eight") == {lost.label: "made again"}
        assert site.asked == []


def test_a_shard_that_may_come_out_otherwise_is_fetched(origin: Store, source: ModelFile, local: Path) -> None:
    """Without a recipe on record nobody knows that this version makes the very same bytes."""
    with serving(origin.path, Ranged) as site:
        store = pulled(site, local)
        build_variant(source, make_plan(source.spec, "int4"), store, "other")  # notes the source
        lost = store.variant("eight").shards[1]
        store.shard_path(lost.id).unlink()
        assert api.restore(local, "eight") == {lost.label: site.url}


def test_fetching_on_demand_can_be_stopped(origin: Store, local: Path) -> None:
    with serving(origin.path, Ranged) as site:
        store = pulled(site, local, 1)
        api.trim(local)
        with pytest.raises(BuildStopped):
            restore_variant(store, store.variant("eight"), lambda: True, reach=api.reach)
    assert present(store) == ["meta"]
    assert list((local / "incoming").iterdir()) == []


def test_a_pull_above_the_quota_keeps_it_by_what_it_can_fetch_again(origin: Store, local: Path) -> None:
    with serving(origin.path, Ranged) as site:
        store = pulled(site, local, origin.variant("eight").n_bytes)
        report = api.pull(f"{site.url}@mixed", local)
        assert report.trimmed is not None
        assert report.trimmed.short_bytes == 0
        assert report.trimmed.dropped
        for name in ("eight", "mixed"):
            api.restore(local, name)
    assert store.verify().ok
    assert not store.verify().dropped
