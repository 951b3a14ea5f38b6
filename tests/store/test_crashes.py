"""Processes that die, disks that fill up, and everybody at once: nothing is lost, and nothing is left after gc.

``LAMELLA_CRASHES=200 LAMELLA_STRESS_SECONDS=120 scripts/test tests/store/test_crashes.py`` is the long run.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from lamella.core.artifacts import ShardRef, Variant
from lamella.core.errors import StorageFailed
from lamella.llama.gguf import ModelFile, read_model
from lamella.quantize import build
from lamella.quantize.build import BuildReport, build_variant
from lamella.quantize.rebuild import restore_variant
from lamella.store.leftovers import Leftovers
from lamella.store.store import Store
from tests.fakes.crashes import run_and_kill, seconds_of, start, worker
from tests.fakes.disks import resize_disk, small_disk
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model
from tests.store.conftest import IDENTITY, PLAN, add_shard

N_CRASHES = int(os.environ.get("LAMELLA_CRASHES", "8"))
STRESS_SECONDS = float(os.environ.get("LAMELLA_STRESS_SECONDS", "3"))
N_LAYERS, N_GARBAGE, MANY = 6, 400, 50
MOST_ROUNDS = 10
NOTHING_LEFT = Leftovers(0, 0, 0, 0, 0)

pytestmark = pytest.mark.timeout(600 + 10 * N_CRASHES + 3 * STRESS_SECONDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    return read_model(write_tiny_model(path, n_layers=N_LAYERS, n_embd=64, n_ff=128))


@pytest.fixture(scope="module")
def undisturbed(model: ModelFile, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """What a build comes to that nobody disturbs."""
    return create_and_build(model, tmp_path_factory.mktemp("undisturbed") / "store").variant


def create_and_build(model: ModelFile, folder: Path) -> BuildReport:
    store = Store.create(folder, model.spec.identity)
    return build_variant(model, make_plan(model.spec, "int4"), store, "v")


def finish(model: ModelFile, folder: Path, undisturbed: Variant) -> int:
    """Build to the end what a crash interrupted, compare, and clean up; how many shards were there already."""
    report, store = create_and_build(model, folder), Store.open(folder)
    assert report.variant == undisturbed
    assert store.verify().ok
    assert store.collect_garbage().n_shards == 0  # what the crash left was of use
    assert store.leftovers() == NOTHING_LEFT
    assert list((folder / "incoming").iterdir()) == []
    assert list((folder / "leases").iterdir()) == []
    return report.n_reused


def test_a_builder_killed_at_any_moment_can_be_finished(model: ModelFile, undisturbed: Variant, tmp_path: Path) -> None:
    moments, n_reused = random.Random(1), []
    for n in range(MOST_ROUNDS * N_CRASHES):
        if n % N_CRASHES == 0:  # again where all kills came too early, or too late: the machine was busier, or less so
            work_s = seconds_of(worker("build", tmp_path / f"timed-{n}", model.paths[0], "v"))
        folder = tmp_path / str(n)
        ended = run_and_kill(worker("build", folder, model.paths[0], "v"), moments.uniform(0, work_s))
        if (folder / "store.json").exists():
            store = Store.open(folder)
            assert store.verify().ok
            assert len(store.variants()) >= ended
            assert store.leftovers().is_interrupted or ended or not store.leftovers().n_shards
        n_reused.append(finish(model, folder, undisturbed))
        shutil.rmtree(folder)
        if n + 1 >= N_CRASHES and len(set(n_reused)) > 2:
            return
    raise AssertionError(f"the moments were few: {n_reused}")


def test_a_collector_killed_at_any_moment_can_be_finished(tmp_path: Path) -> None:
    moments, states = random.Random(2), set()
    folder = tmp_path / "full"
    store = Store.create(folder, IDENTITY)
    kept = store.add_variant("kept", PLAN, [add_shard(store, f"layer {i}", b"%d" % i) for i in range(3)])
    for i in range(N_GARBAGE):
        _add_garbage(store, i)
    work_s = seconds_of(worker("collect", _copy(folder, tmp_path / "timed")))
    for n in range(N_CRASHES):
        copy = Store.open(_copy(folder, tmp_path / str(n)))
        run_and_kill(worker("collect", copy.path), moments.uniform(0, work_s))
        report = copy.verify()
        assert report.ok
        states.add((report.n_shards, len(list(copy.path.glob("recipes/*/*.json")))))
        copy.check(copy.variant("kept"))
        copy.collect_garbage()
        assert copy.leftovers() == NOTHING_LEFT
        assert {path.stem for path in copy.path.glob("shards/*/*.gguf")} == {s.id for s in kept.shards}
        assert list(copy.path.glob("recipes/*/*.json")) == []
        shutil.rmtree(copy.path)
    if N_CRASHES >= MANY:
        assert len(states) > 5, states  # some in the middle of deleting, which takes milliseconds


def test_a_disk_that_fills_up_at_any_moment_leaves_a_store_that_can_be_finished(
    model: ModelFile, undisturbed: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "free_bytes", lambda _: 1 << 60)  # as if somebody else filled it meanwhile
    moments, n_reused = random.Random(3), []
    for n in range(N_CRASHES):
        with small_disk(tmp_path / str(n), moments.randrange(4096, undisturbed.n_bytes, 4096)) as disk:
            with pytest.raises(StorageFailed, match="No space left on device"):
                create_and_build(model, disk / "store")
            if (disk / "store/store.json").exists():
                assert Store.open(disk / "store").verify().ok
                assert list((disk / "store/incoming").iterdir()) == []
                assert list((disk / "store/leases").iterdir()) == []
            resize_disk(disk, 4 * undisturbed.n_bytes)
            n_reused.append(finish(model, disk / "store", undisturbed))
    assert len(set(n_reused)) > 2, n_reused


def test_nothing_is_left_of_an_abandoned_build_after_gc(
    model: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "free_bytes", lambda _: 1 << 60)
    with small_disk(tmp_path / "disk", 200 << 10) as disk:
        store = Store.create(disk / "store", model.spec.identity)
        build.note_source(store, model)  # what stays: where the model stands
        empty = _bytes_used(disk)
        with pytest.raises(StorageFailed):
            build_variant(model, make_plan(model.spec, "int8"), store, "v")
        assert _bytes_used(disk) > empty
        store.collect_garbage()
        assert _bytes_used(disk) == empty


def test_builders_loaders_and_a_collector_at_once_lose_nothing_and_do_nothing_twice(
    model: ModelFile, tmp_path: Path
) -> None:
    store, seconds = Store.create(tmp_path / "store", model.spec.identity), STRESS_SECONDS
    commands = [
        *[worker("build-on", store.path, model.paths[0], seconds) for _ in range(2)],
        *[worker("load-on", store.path, seconds, seed) for seed in (1, 2)],
        *[worker("run-on", store.path, seconds, seed) for seed in (3, 4)],
        worker("collect-on", store.path, seconds, 5),
    ]
    did = _work_together(commands)
    report = store.verify()
    assert report.ok
    assert store.leftovers().n_files == store.leftovers().n_leases == 0
    assert did["made"] == did["removed"] + report.n_shards, did  # each shard that came was made once
    for what in ("variants", "removed", "collections", "loads", "tokens"):
        assert did[what] > 0, did
    print(dict(did), report.n_shards)  # noqa: T201  # the figures of the long run: pytest -s


def test_what_is_dropped_is_nothing_that_somebody_uses_and_comes_back(model: ModelFile, tmp_path: Path) -> None:
    store, seconds = Store.create(tmp_path / "store", model.spec.identity), STRESS_SECONDS
    for name, precision in (("large", "int8"), ("small", "int4")):
        build_variant(model, make_plan(model.spec, precision), store, name)
    store.state.set_quota(1)
    did = _work_together(
        [
            worker("build-on", store.path, model.paths[0], seconds),
            *[worker("load-on", store.path, seconds, seed) for seed in (1, 2)],
            worker("run-on", store.path, seconds, 3),
            *[worker("trim-on", store.path, seconds, seed) for seed in (4, 5)],
        ]
    )
    for what in ("variants", "dropped", "loads", "tokens"):
        assert did[what] > 0, did
    assert store.verify().ok
    assert store.leftovers().n_files == store.leftovers().n_leases == 0
    for variant in store.variants():
        restore_variant(store, variant)
    report = store.verify()
    assert report.ok
    assert not report.dropped
    print(dict(did), report.n_shards)  # noqa: T201  # the figures of the long run: pytest -s


def _work_together(commands: Sequence[Sequence[str]]) -> collections.Counter[str]:
    """What workers did together; a failure of one fails the test."""
    did: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as on_failure:
        children = start(*commands)
        for child in children:
            on_failure.callback(child.kill)
        for child in children:
            out, errors = child.communicate()
            assert child.returncode == 0, errors
            did.update(json.loads(out))
        on_failure.pop_all()
    return did


def _add_garbage(store: Store, number: int) -> None:
    """A shard of no variant, its recipe, and now and then a folder of a dead builder."""
    data = b"garbage %d" % number
    shard = ShardRef(hashlib.sha256(data).hexdigest(), "layer 0", len(data))
    path = store.shard_path(shard.id)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    store.remember(f"{number:064x}", {}, shard)
    if number % 50 == 0:
        dead = store.path / "incoming" / f"{number:032x}"
        dead.mkdir()
        (dead / "variant.json").write_bytes(b"{")


def _copy(folder: Path, target: Path) -> Path:
    """A copy of a store whose files are never written to."""
    return Path(shutil.copytree(folder, target, symlinks=True, copy_function=os.link))


def _bytes_used(disk: Path) -> int:
    """Of files; folders take none on a tmpfs."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize
