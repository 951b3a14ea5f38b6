"""The start of a served cluster: what is not there is planned without, and said."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from lamella import api
from lamella.api import served_cluster
from lamella.batching.settings import EngineSettings
from lamella.cluster.layers import LayersOf
from lamella.cluster.node_folder import NodeFolder
from lamella.cluster.shard_cache import ShardCache
from lamella.core.errors import RemoteFailed, UnknownVariant
from lamella.llama import library
from lamella.quantize.trimming import trim
from lamella.serving.settings import FrontSettings
from lamella.store.store import Store
from tests.cluster.conftest import TestBed, admit
from tests.cluster.test_node import Run, layer_shards

needs_rpc = pytest.mark.skipif(not library.supports_rpc(), reason="llama.cpp was built without its RPC backend")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that do not come are not waited for."""
    monkeypatch.setattr(served_cluster, "READY_SECONDS", 0.3)
    monkeypatch.setattr(served_cluster, "GATHER_SECONDS", 0.3)


async def begin(bed: TestBed, store: Path, layers: Sequence[LayersOf], *, is_fixed: bool = False) -> list[str]:
    """Serve until connections are accepted; what was said."""
    said: list[str] = []
    listening = asyncio.Event()
    engine = EngineSettings(store=str(store), variant="small", n_ctx=64, n_sequences=1, layout="mapped")
    how = api.Replanning(is_fixed=is_fixed)
    served = api.ServedCluster(engine, FrontSettings(port=0), layers, bed.path / "kernels.json", how)
    serving = asyncio.create_task(
        api.serve_cluster(bed.folder, served, on_listening=lambda _: listening.set(), on_line=said.append)
    )
    waiting = asyncio.create_task(listening.wait())
    await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if serving.done():
        serving.result()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    return said


@needs_rpc
def test_a_node_that_does_not_come_is_planned_without(run: Run, store_folder: Path, impatient: None) -> None:
    async def test(bed: TestBed) -> list[str]:
        admit(bed.folder, "gone", bed.path / "gone")
        return await begin(bed, store_folder, [LayersOf("coordinator", 0, 1), LayersOf("gone", 1, 3)])

    said = run(test)
    assert any(line.startswith("layers begin elsewhere than they were told to: ") for line in said)


@needs_rpc
def test_layers_that_may_not_move_wait_in_vain(run: Run, store_folder: Path, impatient: None) -> None:
    async def test(bed: TestBed) -> None:
        admit(bed.folder, "gone", bed.path / "gone")
        with pytest.raises(RemoteFailed):
            await begin(bed, store_folder, [LayersOf("gone", 0, 3)], is_fixed=True)

    run(test)


def test_a_variant_that_is_not_served_is_refused_and_the_others_named(run: Run, store_folder: Path) -> None:
    async def test(bed: TestBed) -> None:
        engine = EngineSettings(store=str(store_folder), variant="huge")
        with pytest.raises(UnknownVariant, match="there are: large, middle, small"):
            await api.serve_cluster(
                bed.folder, api.ServedCluster(engine, FrontSettings(), None, bed.path / "kernels.json")
            )

    run(test)


@pytest.fixture
def trimmed(store_folder: Path, tmp_path: Path) -> Store:
    """A store whose layers were dropped, of all variants."""
    shutil.copytree(store_folder, tmp_path / "trimmed", symlinks=True)
    store = api.open_store(tmp_path / "trimmed")
    store.state.set_quota(1)
    trim(store)
    store.state.set_quota(None)
    assert not any(store.has_shard(shard) for shard in layer_shards(store, "large"))
    return store


def test_variants_whose_shards_were_dropped_are_served_as_the_others(store: Store, trimmed: Store) -> None:
    settings = EngineSettings(store=str(trimmed.path), variant="middle", n_ctx=64, n_sequences=1)
    assert served_cluster.models_of(trimmed, settings) == served_cluster.models_of(store, settings)
    assert all(trimmed.has_shard(shard) for shard in layer_shards(trimmed, "middle"))
    assert not any(trimmed.has_shard(shard) for shard in layer_shards(trimmed, "large"))  # not before it is used


def test_a_node_gets_the_layers_that_were_dropped(run: Run, trimmed: Store) -> None:
    shards = layer_shards(trimmed, "large")

    async def test(bed: TestBed) -> list[str]:
        said: list[str] = []
        served = api.ServedCluster(EngineSettings(store=str(trimmed.path)), FrontSettings(), None, bed.path / "kernels")
        async with bed.node("laptop"):
            serving = served_cluster._Serving(bed.folder, served, trimmed, [], bed.dialler, said.append)
            await serving._fill("laptop", shards)
            with ShardCache(NodeFolder(bed.path / "laptop").cache).hold(shards) as held:
                assert {at.path.stem for at in held.tensors.values()} == {shard.id for shard in shards}
            shutil.rmtree(trimmed.path / "sources")  # the rest cannot be made
            await serving._fill("laptop", [*shards, *layer_shards(trimmed, "small")])
        return said

    said = run(test)
    assert said[0].startswith("node 'laptop' fetched 3 shards")
    assert len(said) == 2
    assert said[1].startswith("node 'laptop' gets not all of variant small: ")
