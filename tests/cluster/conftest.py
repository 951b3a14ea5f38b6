"""A cluster in one process: a coordinator's folder, and nodes that listen on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lamella import api
from lamella.cluster.certificates import new_request
from lamella.cluster.dialling import Dialler
from lamella.cluster.folder import ClusterFolder
from lamella.cluster.node import NodeAgent, NodeOptions
from lamella.cluster.node_folder import NodeFolder
from lamella.store.store import Store
from tests.fakes.tiny_model import write_tiny_model

T = TypeVar("T")


@dataclass
class TestBed:
    """What a test talks to.

    Attributes:
        agents: by name.
        said: what the agents told.
    """

    __test__ = False
    folder: ClusterFolder
    dialler: Dialler
    path: Path
    agents: dict[str, NodeAgent] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def node(self, name: str, options: NodeOptions | None = None) -> AsyncIterator[NodeAgent]:
        """A node that has joined and listens."""
        stop, listening = asyncio.Event(), asyncio.get_running_loop().create_future()
        folder = admit(self.folder, name, self.path / name)
        agent = self.agents[name] = NodeAgent(folder, options or NodeOptions(n_threads=1), self.said.append)
        serving = asyncio.create_task(agent.serve("127.0.0.1", 0, on_listening=listening.set_result, stop=stop))
        try:
            move(self.folder, name, await listening)
            yield agent
        finally:
            stop.set()
            await serving


def admit(folder: ClusterFolder, name: str, path: Path) -> NodeFolder:
    """A member without the network."""
    key, request = new_request()
    identity, certificate = folder.admit(folder.invite(name, "127.0.0.1:1", 60).secret, request, "127.0.0.1:1")
    found = NodeFolder(path)
    found.keep(identity, (folder.path / "authority.crt").read_bytes(), certificate, key)
    return found


def move(folder: ClusterFolder, name: str, address: str) -> None:
    """Have the coordinator dial a member elsewhere."""
    path = folder.path / "nodes" / f"{name}.json"
    path.write_text(path.read_text().replace(folder.needed_node(name).address, address))


@pytest.fixture
def folder(tmp_path: Path) -> ClusterFolder:
    return ClusterFolder.create(tmp_path / "cluster")


@pytest.fixture
def run(folder: ClusterFolder, tmp_path: Path) -> Callable[[Callable[[TestBed], Coroutine[Any, Any, T]]], T]:
    """Runs a test's coroutine beside a dialler of ``folder``'s cluster."""

    def with_bed(test: Callable[[TestBed], Coroutine[Any, Any, T]]) -> T:
        async def main() -> T:
            async with Dialler(folder) as dialler:
                return await test(TestBed(folder, dialler, tmp_path / "nodes"))

        return asyncio.run(main())

    return with_bed


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the variants large (Q8_0), middle (Q5_K) and small (Q4_K)."""
    folder = tmp_path_factory.mktemp("cluster")
    model = write_tiny_model(folder / "tiny.gguf", n_embd=256, n_ff=512)
    for name, precision in (("large", "int8"), ("middle", "int5"), ("small", "int4")):
        api.build(model, folder / "store", api.plan(model, "uniform", precision=precision), name)
    return folder / "store"


@pytest.fixture
def store(store_folder: Path) -> Store:
    return Store.open(store_folder)
