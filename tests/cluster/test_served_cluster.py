"""The start of a served cluster: what is not there is planned without, and said."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from lamella import api
from lamella.api import served_cluster
from lamella.batching.settings import EngineSettings
from lamella.cluster.layers import LayersOf
from lamella.core.errors import RemoteFailed, UnknownVariant
from lamella.llama import library
from lamella.serving.settings import FrontSettings
from tests.cluster.conftest import TestBed, admit
from tests.cluster.test_node import Run

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
