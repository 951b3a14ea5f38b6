"""Pushing: to a server that takes PUT, and to another folder; only what is missing travels, the variant last."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lamella import api
from lamella.core.errors import RemoteFailed, ShardDamaged, StoreError, VariantExists
from lamella.llama.gguf import ModelFile, read_model
from lamella.quantize.build import build_variant
from lamella.remote.push import PushReport, push_to_folder, push_to_web
from lamella.remote.web import Web
from lamella.store.keeping import KeptShard
from lamella.store.layout import Layout
from lamella.store.store import Store
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.web import Putting, Static, serving
from tests.remote.conftest import HASTY
from tests.remote.test_pull import assert_same, pull


@pytest.fixture
def site_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def push(store: Store, name: str, url: str) -> PushReport:
    with Web(url, options=HASTY) as web:
        return push_to_web(store, name, web)


def test_what_was_pushed_can_be_pulled(origin: Store, site_folder: Path, local: Path) -> None:
    with serving(site_folder, Putting) as site:
        first = push(origin, "eight", site.url)
        order = [path for method, path, _ in site.asked if method == "PUT"]
        second = push(origin, "mixed", site.url)
        again = push(origin, "mixed", site.url)
        pull(site.url, "mixed", local)
    assert order[0] == "/store.json"
    assert order[-1] == "/variants/eight/variant.json"
    assert (first.n_sent, first.sent_bytes) == (6, origin.variant("eight").n_bytes)
    assert (second.n_sent, second.sent_bytes) == (1, origin.variant("mixed").shards[2].n_bytes)
    assert (again.n_sent, again.sent_bytes) == (0, 0)
    assert_same(local, origin, "mixed")
    assert Store.open(site_folder).verify().damaged == ()


def test_a_shard_cut_short_is_sent_again(origin: Store, site_folder: Path) -> None:
    with serving(site_folder, Putting) as site:
        push(origin, "eight", site.url)
        shard = origin.variant("eight").shards[1]
        Store.open(site_folder).shard_path(shard.id).write_bytes(b"short")
        assert push(origin, "eight", site.url).n_sent == 1
    assert Store.open(site_folder).verify().damaged == ()


def test_a_store_of_another_model_is_left_alone(origin: Store, site_folder: Path, tmp_path: Path) -> None:
    other = read_model(write_tiny_model(tmp_path / "o.gguf", n_embd=128, n_ff=256, seed=3, name="other"))
    Store.create(site_folder / "s", other.spec.identity)
    before = (site_folder / "s" / "store.json").read_bytes()
    with serving(site_folder, Putting) as site, pytest.raises(StoreError, match=r"holds other .*, not tiny"):
        push(origin, "eight", f"{site.url}/s")
    assert [path for method, path, _ in site.asked if method in ("PUT", "MKCOL")] == []
    assert (site_folder / "s" / "store.json").read_bytes() == before


def test_a_taken_name_is_refused_before_anything_is_sent(
    origin: Store, source: ModelFile, site_folder: Path, tmp_path: Path
) -> None:
    mine = Store.create(tmp_path / "mine", source.spec.identity)
    build_variant(source, make_plan(source.spec, "int4"), mine, "eight")
    with serving(site_folder, Putting) as site:
        push(origin, "eight", site.url)
        site.asked.clear()
        with pytest.raises(VariantExists, match="variant 'eight' with other contents"):
            push(mine, "eight", site.url)
    assert [path for method, path, _ in site.asked if method == "PUT"] == []


@pytest.mark.parametrize("moment", ["/shards/", "/variants/"])
def test_a_name_that_is_taken_while_shards_are_sent_is_left_to_who_took_it(
    origin: Store, source: ModelFile, site_folder: Path, tmp_path: Path, moment: str
) -> None:
    other = Store.create(tmp_path / "other", source.spec.identity)
    build_variant(source, make_plan(source.spec, "int4"), other, "eight")
    theirs = Layout(other.path).variant_document("eight").read_bytes()
    document = Layout(site_folder).variant_document("eight")

    class TakenMeanwhile(Putting):
        def put(self, data: bytes) -> None:
            if self.path.startswith(moment) and not document.exists():
                document.parent.mkdir(parents=True, exist_ok=True)
                document.write_bytes(theirs)
            if self.headers.get("If-None-Match") == "*" and (site_folder / self.path.lstrip("/")).exists():
                self.say(412)
            else:
                super().put(data)

    with serving(site_folder, TakenMeanwhile) as site:
        with pytest.raises(VariantExists, match="variant 'eight' with other contents"):
            push(origin, "eight", site.url)
        assert document.read_bytes() == theirs
        assert push(other, "eight", site.url).n_sent > 0  # the same contents are no conflict


@pytest.mark.parametrize("to_web", [True, False])
def test_a_damaged_shard_is_not_sent(origin: Store, site_folder: Path, tmp_path: Path, to_web: bool) -> None:
    mine = Store.open(Path(shutil.copytree(origin.path, tmp_path / "mine", symlinks=True)))
    shard = mine.variant("eight").shards[1]
    mine.shard_path(shard.id).chmod(0o644)
    mine.shard_path(shard.id).write_bytes(bytes(shard.n_bytes))
    with serving(site_folder, Putting) as site:
        target = site.url if to_web else str(site_folder / "s")
        with pytest.raises(ShardDamaged, match=shard.id):
            api.push(mine.path, "eight", target)
    assert not list(site_folder.glob(f"**/{shard.id}.gguf"))
    assert not list(site_folder.glob("**/variant.json"))


def test_a_server_that_takes_nothing(origin: Store, site_folder: Path) -> None:
    with serving(site_folder, Static) as site, pytest.raises(RemoteFailed, match=r"PUT .*: 501"):
        push(origin, "eight", site.url)


def test_a_server_that_is_busy_when_folders_are_made_is_asked_again(origin: Store, site_folder: Path) -> None:
    busy = set[str]()

    class Busy(Putting):
        def make_folder(self) -> None:
            if self.path in busy:
                super().make_folder()
            else:
                busy.add(self.path)
                self.say(503)

    with serving(site_folder, Busy) as site:
        assert push(origin, "eight", site.url).n_sent == 6
    assert Store.open(site_folder).verify().damaged == ()


def test_a_redirected_put_is_refused(origin: Store, site_folder: Path) -> None:
    class Moved(Putting):
        def put(self, data: bytes) -> None:
            self.say(303, Location="/store.json")

    with serving(site_folder, Moved) as site, pytest.raises(RemoteFailed, match=r"PUT .*: 303"):
        push(origin, "eight", site.url)


def test_a_folder_gets_a_whole_store(origin: Store, tmp_path: Path) -> None:
    first = push_to_folder(origin, "eight", tmp_path / "disk")
    second = push_to_folder(origin, "mixed", tmp_path / "disk")
    assert (first.n_sent, second.n_sent) == (6, 1)
    assert_same(tmp_path / "disk", origin, "mixed")
    assert_same(tmp_path / "disk", origin, "eight")


def test_a_dropped_shard_is_made_again_to_be_sent(origin: Store, tmp_path: Path) -> None:
    mine = Store.open(Path(shutil.copytree(origin.path, tmp_path / "mine", symlinks=True)))
    shard = mine.variant("mixed").shards[2]
    assert mine.drop([KeptShard(shard, ("mixed",), last_used=0, work=0)]) == (shard,)
    api.push(mine.path, "mixed", tmp_path / "backup")
    assert not mine.is_dropped(shard.id)
    assert_same(tmp_path / "backup", origin, "mixed")
