"""Pulling: only what is missing travels, over any server of files, and goes on where it was cut."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from pathlib import Path

import pytest

from lamella.core.errors import InvalidRequest, RemoteFailed, StorageFailed, StoreError, UnknownVariant, VariantExists
from lamella.llama.gguf import ModelFile, read_model
from lamella.quantize.build import build_variant
from lamella.remote import pull as pull_module
from lamella.remote.pull import PullReport, TransferProgress, pull_variant
from lamella.remote.remote_store import RemoteStore
from lamella.store.parts import PartFile
from lamella.store.store import Store
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.web import Ranged, Static, serving, serving_store
from tests.remote.conftest import HASTY


def pull(url: str, name: str, target: Path, token: str | None = None, **options: object) -> PullReport:
    with RemoteStore(url, token, HASTY) as remote:
        return pull_variant(remote, name, target, **options)  # type: ignore[arg-type]


def assert_same(local: Path, origin: Store, name: str) -> None:
    """The variant is there, every byte of it, and nothing is left over."""
    store = Store.open(local)
    assert store.identity == origin.identity
    assert store.variant(name) == origin.variant(name)
    assert store.verify().ok
    assert list((local / "incoming").iterdir()) == []


def test_a_server_of_static_files_is_enough(origin: Store, local: Path) -> None:
    with serving(origin.path, Static) as site:
        report = pull(site.url, "eight", local)
        moved = site.sent_shard_bytes
    assert_same(local, origin, "eight")
    assert report.moved_bytes == moved == origin.variant("eight").n_bytes
    assert (report.n_fetched, report.reused_bytes, report.resumed_bytes) == (6, 0, 0)


def test_the_store_may_stand_below_a_path(origin: Store, local: Path) -> None:
    with serving(origin.path.parent, Static) as site:
        pull(f"{site.url}/{origin.path.name}/", "eight", local)
    assert_same(local, origin, "eight")


def test_an_update_moves_exactly_the_changed_shards(origin: Store, local: Path) -> None:
    with serving(origin.path, Ranged) as site:
        pull(site.url, "eight", local)
        site.sent.clear()
        report = pull(site.url, "mixed", local)
        changed = origin.variant("mixed").shards[2]
        shards = {path: n for path, n in site.sent.items() if path.startswith("/shards/")}
    assert shards == {f"/shards/{changed.id[:2]}/{changed.id}.gguf": changed.n_bytes}
    assert report.moved_bytes == changed.n_bytes
    assert report.reused_bytes == origin.variant("mixed").n_bytes - changed.n_bytes
    assert_same(local, origin, "mixed")


def test_pulling_again_moves_nothing(origin: Store, local: Path) -> None:
    with serving_store(origin.path) as server:
        pull(server.url, "eight", local)
        report = pull(server.url, "eight", local)
    assert (report.n_fetched, report.moved_bytes) == (0, 0)


def test_a_pulled_variant_may_have_another_name(origin: Store, local: Path) -> None:
    with serving_store(origin.path) as server:
        pull(server.url, "eight", local, local_name="other")
    assert Store.open(local).variant_names() == ["other"]


def test_progress_ends_at_the_total(origin: Store, local: Path) -> None:
    seen: list[TransferProgress] = []
    with serving_store(origin.path) as server:
        pull(server.url, "eight", local, on_progress=seen.append)
    n_bytes = origin.variant("eight").n_bytes
    assert seen[-1] == TransferProgress(n_bytes, n_bytes, 6, 6)
    assert [at.done_bytes for at in seen] == sorted(at.done_bytes for at in seen)


@pytest.mark.parametrize("with_ranges", [True, False])
def test_twenty_cuts_are_resumed(origin: Store, local: Path, with_ranges: bool) -> None:
    """Each shard's connection is cut three or four times, anywhere in what it still has to send."""
    cuts: list[str] = []
    lock = threading.Lock()

    class Cutting(Ranged):
        def answer(self, data: bytes) -> None:
            start, cut = self.start() if with_ranges else 0, None
            with lock:
                n_before = cuts.count(self.path)
                if self.path.startswith("/shards/") and n_before < 4 and len(cuts) < 20:
                    cut = random.Random(f"{self.path} {n_before}").randrange(len(data) - start)
                    cuts.append(self.path)
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
            self.send(206 if start else 200, data[start:], headers, cut)

    with serving(origin.path, Cutting) as site:
        report = pull(
            site.url,
            "eight",
            local,
        )
        moved = site.sent_shard_bytes
    assert len(cuts) == 20
    assert_same(local, origin, "eight")
    n_bytes = origin.variant("eight").n_bytes
    assert report.moved_bytes <= moved
    if with_ranges:
        assert report.moved_bytes == n_bytes  # not a byte twice
    else:
        assert report.moved_bytes > n_bytes


def test_a_server_that_always_cuts_is_given_up_and_resumed_later(origin: Store, local: Path) -> None:
    class Dead(Ranged):
        def answer(self, data: bytes) -> None:
            shard, start = self.path.startswith("/shards/"), self.start()
            half = max(0, len(data) // 2 - start)
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
            self.send(206 if start else 200, data[start:], headers, half if shard else None)

    with serving(origin.path, Dead) as site, pytest.raises(RemoteFailed, match="gave up after 6 attempts") as caught:
        pull(site.url, "eight", local, n_connections=1)
    assert caught.value.exit_code == 10
    assert not (local / "store.json").exists()
    assert not (local / "variants").exists()
    with serving_store(origin.path) as server:
        report = pull(server.url, "eight", local)
    assert report.resumed_bytes > 0
    assert report.moved_bytes + report.resumed_bytes == origin.variant("eight").n_bytes
    assert_same(local, origin, "eight")


def test_a_damaged_beginning_is_fetched_anew(origin: Store, local: Path) -> None:
    shard = origin.variant("eight").shards[1]
    (local / "incoming").mkdir(parents=True)
    (local / "incoming" / f"{shard.id}.part").write_bytes(b"x" * 1000)
    with serving_store(origin.path) as server:
        report = pull(server.url, "eight", local)
    assert_same(local, origin, "eight")
    assert report.resumed_bytes == 0
    assert report.moved_bytes == origin.variant("eight").n_bytes + shard.n_bytes - 1000


def test_a_beginning_that_is_longer_than_the_shard_is_thrown_away(origin: Store, local: Path) -> None:
    shard = origin.variant("eight").shards[1]
    (local / "incoming").mkdir(parents=True)
    (local / "incoming" / f"{shard.id}.part").write_bytes(b"x" * (shard.n_bytes + 1))
    with serving_store(origin.path) as server:
        assert pull(server.url, "eight", local).resumed_bytes == 0
    assert_same(local, origin, "eight")


def test_a_beginning_that_died_while_getting_its_place_is_no_obstacle(origin: Store, local: Path) -> None:
    shard = origin.variant("eight").shards[1]
    part = local / "incoming" / f"{shard.id}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(origin.shard_path(shard.id).read_bytes())
    part.chmod(0o444)
    with serving_store(origin.path) as server:
        report = pull(server.url, "eight", local)
    assert report.moved_bytes in (origin.variant("eight").n_bytes - shard.n_bytes, origin.variant("eight").n_bytes)
    assert_same(local, origin, "eight")


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changes_while_it_is_fetched_is_begun_anew(origin: Store, local: Path, honest: bool) -> None:
    """After the first cut every shard has another ETag; what came before was right (a server that restarted) or not."""
    seen: set[str] = set()

    class Changing(Ranged):
        def answer(self, data: bytes) -> None:
            if not self.path.startswith("/shards/"):
                super().answer(data)
            elif self.path not in seen:
                seen.add(self.path)
                self.send(200, data if honest else bytes(len(data)), {"ETag": '"old"'}, len(data) // 2)
            else:
                super().answer(data)

    with serving(origin.path, Changing) as site:
        pull(site.url, "eight", local)
        again = [headers for _, path, headers in site.asked if path in seen and "If-Range" in headers]
    assert {headers["If-Range"] for headers in again} == {'"old"'}
    assert_same(local, origin, "eight")


def test_busy_servers_are_asked_again(origin: Store, local: Path) -> None:
    refused: set[str] = set()

    class Busy(Ranged):
        def answer(self, data: bytes) -> None:
            if self.path in refused:
                super().answer(data)
            else:
                refused.add(self.path)
                self.send(503, b"", {"ETag": '"x"'})

    with serving(origin.path, Busy) as site:
        pull(site.url, "eight", local)
    assert len(refused) == 8
    assert_same(local, origin, "eight")


def test_nobody_there(local: Path) -> None:
    with serving(local.parent, Static) as site:
        url = site.url
    with pytest.raises(RemoteFailed, match="refused"):
        pull(url, "eight", local)
    assert not local.exists()


def test_two_pulls_at_once_both_succeed(origin: Store, local: Path) -> None:
    failures: list[BaseException] = []

    def one(name: str) -> None:
        try:
            pull(server.url, name, local)
        except BaseException as error:
            failures.append(error)

    with serving_store(origin.path) as server:
        threads = [threading.Thread(target=one, args=[name]) for name in ("eight", "mixed", "eight")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert_same(local, origin, "eight")
    assert_same(local, origin, "mixed")


def test_garbage_collection_leaves_living_parts_and_takes_dead_ones(origin: Store, local: Path) -> None:
    shards = origin.variant("mixed").shards
    with serving_store(origin.path) as server:
        pull(server.url, "eight", local)
        store = Store.open(local)
        dead = local / "incoming" / f"{shards[2].id}.part"
        dead.write_bytes(b"dead")
        with PartFile(local / "incoming", shards[1].id) as living:
            living.write(b"living")
            assert store.collect_garbage().n_incoming == 1
            assert not dead.exists()
            assert living.path.read_bytes() == b"living"


def test_another_model_is_refused_and_nothing_moved(origin: Store, local: Path, tmp_path: Path) -> None:
    other = read_model(write_tiny_model(tmp_path / "other.gguf", n_embd=128, n_ff=256, seed=1, name="other"))
    store = Store.create(local, other.spec.identity)
    build_variant(other, make_plan(other.spec, "int8"), store, "eight")
    with serving(origin.path, Static) as site, pytest.raises(StoreError, match=r"holds other .* not tiny"):
        pull(site.url, "mixed", local)
    assert site.sent_shard_bytes == 0
    assert store.variant_names() == ["eight"]


def test_a_taken_name_is_refused_and_nothing_moved(origin: Store, source: ModelFile, local: Path) -> None:
    store = Store.create(local, source.spec.identity)
    build_variant(source, make_plan(source.spec, "int4"), store, "eight")
    with serving(origin.path, Static) as site, pytest.raises(VariantExists):
        pull(site.url, "eight", local)
    assert site.sent_shard_bytes == 0


def test_a_taken_name_is_replaced_if_asked_for_and_only_what_changed_moves(origin: Store, local: Path) -> None:
    with serving(origin.path, Ranged) as site:
        pull(site.url, "eight", local, local_name="current")
        report = pull(site.url, "mixed", local, local_name="current", replace=True)
        again = pull(site.url, "mixed", local, local_name="current", replace=True)
    store = Store.open(local)
    assert store.variant_names() == ["current"]
    assert store.variant("current").shards == origin.variant("mixed").shards
    assert (report.n_fetched, again.n_fetched) == (1, 0)
    assert store.verify().ok
    assert store.collect_garbage().n_shards == 1


def test_a_replacement_that_cannot_be_had_replaces_nothing(origin: Store, local: Path) -> None:
    class Lying(Ranged):
        def answer(self, data: bytes) -> None:
            changed = origin.variant("mixed").shards[2].id
            super().answer(bytes(len(data)) if changed in self.path else data)

    with serving(origin.path, Lying) as site:
        pull(site.url, "eight", local, local_name="current")
        with pytest.raises(RemoteFailed, match="wrong bytes"):
            pull(site.url, "mixed", local, local_name="current", replace=True)
    assert Store.open(local).variant("current").shards == origin.variant("eight").shards
    assert Store.open(local).verify().ok


def test_a_folder_with_other_things_is_refused_and_nothing_moved(origin: Store, local: Path) -> None:
    local.mkdir()
    (local / "thesis.txt").write_text("dear to me")
    with serving(origin.path, Static) as site, pytest.raises(StoreError, match=r"not empty: thesis\.txt"):
        pull(site.url, "eight", local)
    assert [path.name for path in local.iterdir()] == ["thesis.txt"]


def test_an_unknown_variant_and_what_there_is(origin: Store, local: Path) -> None:
    with serving_store(origin.path) as server, pytest.raises(UnknownVariant, match="there are: eight, mixed"):
        pull(server.url, "nine", local)
    with serving(origin.path, Static) as site, pytest.raises(UnknownVariant, match=r"no variant 'nine'$"):
        pull(site.url, "nine", local)
    assert not local.exists()


def test_no_store_at_that_url(local: Path, tmp_path: Path) -> None:
    with serving(tmp_path, Static) as site, pytest.raises(StoreError, match="is no store"):
        pull(site.url, "eight", local)


def test_a_full_disk_is_seen_before_anything_moves(origin: Store, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_module, "free_bytes", lambda _: 1000)
    with serving(origin.path, Static) as site, pytest.raises(StorageFailed, match=r"6 shards need .* are free"):
        pull(site.url, "eight", local)
    assert site.sent_shard_bytes == 0


@pytest.mark.parametrize(
    "url", ["ftp://host/store", "http://", "file:///etc", "http://u:p@host/s", "http://host/s?x=1"]
)
def test_what_is_no_url_of_a_store(url: str) -> None:
    with pytest.raises(InvalidRequest):
        RemoteStore(url)


LONG_SECONDS = 120.0
"""That a silent server is borne, and twice what anything else takes on a busy machine."""


def test_ctrl_c_ends_a_silent_connection_at_once(origin: Store, local: Path) -> None:
    """The first progress raises as Ctrl-C would; a sibling that waits for a silent server must not keep it."""
    begun, release, interrupted = threading.Event(), threading.Event(), list[float]()

    class Silent(Ranged):
        def answer(self, data: bytes) -> None:
            last = self.path.endswith(f"{origin.variant('eight').shards[-1].id}.gguf")
            if last:
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[:10])
                begun.set()
                release.wait(LONG_SECONDS)
            else:
                super().answer(data)

    def interrupt(at: TransferProgress) -> None:
        if at.n_done == 5:
            assert begun.wait(LONG_SECONDS)
            time.sleep(0.1)  # and its bytes have come
            interrupted.append(time.monotonic())
            raise KeyboardInterrupt

    with serving(origin.path, Silent) as site:
        with (
            pytest.raises(KeyboardInterrupt),
            RemoteStore(site.url, options=dataclasses.replace(HASTY, silence_s=LONG_SECONDS)) as r,
        ):
            pull_variant(r, "eight", local, n_connections=6, on_progress=interrupt)
        assert time.monotonic() - interrupted[0] < LONG_SECONDS / 2
        release.set()
    assert not (local / "store.json").exists()
    with serving_store(origin.path) as server:
        assert pull(server.url, "eight", local).resumed_bytes > 0
    assert_same(local, origin, "eight")
