"""Pullers that are killed: the store stays what it was, and the next pull goes on.

``LAMELLA_CRASHES=200 scripts/test tests/remote/test_kills.py -s`` is the long run; it prints what the kills left.
"""

from __future__ import annotations

import collections
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from lamella.store.store import Store
from tests.fakes.crashes import run_and_kill, seconds_of, start, worker
from tests.fakes.web import Ranged, Site, serving
from tests.remote.test_pull import assert_same, pull

N_CRASHES = int(os.environ.get("LAMELLA_CRASHES", "8"))
MANY = 50
PIECE_S = 0.007  # that the slow server takes for each 4 KiB

NOTHING, PARTS, EMPTY_STORE, SHARDS, WHOLE = "nothing", "parts", "a store without shards", "shards", "the variant"

pytestmark = pytest.mark.timeout(600 + 10 * N_CRASHES)


class Slow(Ranged):
    def send(self, code: int, body: bytes, headers: dict[str, str], n_before_cut: int | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        for start_byte in range(0, len(body), 4096):
            self.wfile.write(body[start_byte : start_byte + 4096])
            time.sleep(PIECE_S)


def found_in(folder: Path) -> str:
    """What a kill left; whatever it is, it is whole."""
    if not (folder / "store.json").exists():
        assert not (folder / "shards").exists()
        return PARTS if list(folder.glob("incoming/*.part")) else NOTHING
    store = Store.open(folder)
    assert store.verify().ok
    if store.variant_names():
        store.check(store.variant("eight"))
        return WHOLE
    return SHARDS if list(folder.glob("shards/*/*.gguf")) else EMPTY_STORE


def finish(folder: Path, copy: Path, site: Site, origin: Store) -> int:
    """Pull to the end, in a copy, what a kill interrupted; the bytes that it needed not fetch again."""
    if folder.exists():
        shutil.copytree(folder, copy, symlinks=True)
    moved_bytes = pull(site.url, "eight", copy).moved_bytes
    Store.open(copy).collect_garbage()  # a kill at the very end leaves a document or a folder half made
    assert_same(copy, origin, "eight")
    shutil.rmtree(copy)
    return origin.variant("eight").n_bytes - moved_bytes


def test_a_puller_killed_at_any_moment_can_be_finished(origin: Store, tmp_path: Path) -> None:
    """Killed over and over while it fetches from a slow server or puts shards in their places from a fast one."""
    moments, found, saved_bytes = random.Random(3), collections.Counter[str](), 0
    with serving(origin.path, Slow) as slow, serving(origin.path, Ranged) as fast:
        work_s = {s.url: seconds_of(worker("pull", tmp_path / s.url[-5:], s.url, "eight")) for s in (slow, fast)}
        folder = tmp_path / "local"
        for _ in range(N_CRASHES):
            url = moments.choice((slow, fast)).url
            run_and_kill(worker("pull", folder, url, "eight"), moments.uniform(0, work_s[url]))
            what = found_in(folder)
            saved_bytes += finish(folder, tmp_path / "copy", fast, origin)
            found[what] += 1
            if what == WHOLE:
                shutil.rmtree(folder)
    assert saved_bytes > 0
    if N_CRASHES >= MANY:
        assert {PARTS, SHARDS, WHOLE} <= set(found), found
    print(dict(found), f"{saved_bytes} bytes were not fetched again")  # noqa: T201  # the figures of the long run


def test_a_puller_killed_while_it_replaces_a_variant_leaves_the_old_one_or_the_new_one(
    origin: Store, tmp_path: Path
) -> None:
    moments, found = random.Random(4), collections.Counter[str]()
    shards = {"old": origin.variant("mixed").shards, "new": origin.variant("eight").shards}
    before = tmp_path / "before"
    with serving(origin.path, Ranged) as site:
        pull(site.url, "mixed", before, local_name="current")
        shutil.copytree(before, tmp_path / "timed", symlinks=True)
        work_s = seconds_of(worker("pull-over", tmp_path / "timed", site.url, "eight"))
        for _ in range(N_CRASHES):
            folder = Path(shutil.copytree(before, tmp_path / "local", symlinks=True))
            run_and_kill(worker("pull-over", folder, site.url, "eight"), work_s * moments.uniform(0.2, 1.1))
            store = Store.open(folder)
            what = next(name for name, wanted in shards.items() if wanted == store.variant("current").shards)
            store.check(store.variant("current"))
            assert not store.verify().damaged
            found[what] += 1
            pull(site.url, "eight", folder, local_name="current", replace=True)
            assert store.variant("current").shards == shards["new"]
            store.collect_garbage()
            assert store.verify().ok
            assert {path.stem for path in folder.glob("shards/*/*.gguf")} == {shard.id for shard in shards["new"]}
            shutil.rmtree(folder)
    if N_CRASHES >= MANY:
        assert set(found) == {"old", "new"}
    print(dict(found))  # noqa: T201  # the figures of the long run


def test_ctrl_c_leaves_what_it_has(origin: Store, local: Path) -> None:
    with serving(origin.path, Slow) as site:
        (puller,) = start(worker("pull", local, site.url, "eight"))
        while not any(path.stat().st_size for path in local.glob("incoming/*.part")):
            assert puller.poll() is None
            time.sleep(0.005)
        puller.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in puller.communicate()[1]
    assert not (local / "store.json").exists()
    with serving(origin.path, Ranged) as site:
        assert pull(site.url, "eight", local).resumed_bytes > 0
    assert_same(local, origin, "eight")
