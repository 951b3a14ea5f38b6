"""``lamella cluster serve``: a model over several machines, which stays placed when they come, go, and change."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from lamella.api.placed import shards_of
from lamella.api.serving import Listening, serve
from lamella.api.variants import open_store
from lamella.cluster.layers import LayersOf, nodes_of
from lamella.core.artifacts import ShardRef, Variant
from lamella.core.errors import LamellaError, NoPlacement, RemoteFailed, UnknownVariant
from lamella.core.model import ModelSpec
from lamella.llama.gguf import read_model
from lamella.store.store import Store

if TYPE_CHECKING:  # cryptography is an extra, and TLS takes a while to import
    from lamella.batching.settings import EngineSettings
    from lamella.cluster.dialling import Dialler
    from lamella.cluster.folder import ClusterFolder
    from lamella.cluster.forwarding import Forwarder
    from lamella.cluster.messages import NodeReport
    from lamella.cluster.moving import Mover
    from lamella.cluster.placing import ServedModel
    from lamella.cluster.site import Site
    from lamella.serving.nodes import ClusterState, NodeFigures
    from lamella.serving.settings import FrontSettings
    from lamella.serving.supervision import EngineEvent
    from lamella.serving.supervisor import SupervisedEngine

T = TypeVar("T")

READY_SECONDS = 60.0
"""How long the first start of a served cluster waits for nodes that were named."""
GATHER_SECONDS = 15.0
"""And where none was named, for all there are."""


@dataclass(frozen=True, slots=True)
class Replanning:
    """Whether and how layers move to other machines; fields as ``cluster.replanning.ReplanLimits``.

    Attributes:
        is_fixed: they never do: what is lost is waited for.
        memory_here: of this machine, for the model; 0 for what is available.
        link_seconds: how often links are measured.
    """

    is_fixed: bool = False
    memory_here: int = 0
    gain: float = 0.25
    hold_seconds: float = 30.0
    n_moves: int = 12
    link_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class ServedCluster:
    """What is served, and how.

    Attributes:
        layers: which machine has which, whenever that is possible; None for where they run fastest.
        kernel_file: this machine's speeds, measured before or now.
    """

    engine: EngineSettings
    front: FrontSettings
    layers: Sequence[LayersOf] | None
    kernel_file: Path
    replanning: Replanning = field(default_factory=Replanning)
    max_queue: int = 64


async def serve_cluster(
    cluster: ClusterFolder,
    served: ServedCluster,
    *,
    on_listening: Callable[[Listening], None] = lambda _: None,
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """``serve``, with layers on nodes: each node is given the shards that it lacks, and then computes them.

    Raises:
        UnknownVariant: there is none of that name.
        ShardDamaged: no variant is there as a whole, and the one to begin with cannot be got back.
        InvalidRequest: an unknown node, or layers that are not all of the model's, once each.
        NoPlacement: nothing was said of layers, and they fit nowhere.
        RemoteFailed: a node that was named does not answer, and layers may not go elsewhere.
    """
    from lamella.cluster.dialling import Dialler
    from lamella.cluster.replanning import ReplanLimits

    how = served.replanning
    ReplanLimits(how.gain, how.hold_seconds, n_moves=how.n_moves)  # what is wrong with them is said now
    store = open_store(served.engine.store, served.engine.n_threads)
    named = nodes_of(served.layers or ())
    for name in named:
        cluster.needed_node(name)
    models = await _in_thread(partial(models_of, store, served.engine))
    wanted, known = served.engine.variant, [model.name for model in models]
    if wanted is not None and wanted not in known:
        raise UnknownVariant(f"no variant '{wanted}' is served; there are: {', '.join(known)}")
    async with Dialler(cluster) as dialler:
        serving = _Serving(cluster, served, store, models, dialler, on_line)
        await serving.run(named, on_listening)


class _Serving:
    """One server, from its nodes' first session to its end."""

    def __init__(
        self,
        cluster: ClusterFolder,
        served: ServedCluster,
        store: Store,
        models: Sequence[ServedModel],
        dialler: Dialler,
        on_line: Callable[[str], None],
    ) -> None:
        self._cluster, self._served, self._store, self._models = cluster, served, store, models
        self._dialler, self._on_line = dialler, on_line
        self._mover: Mover | None = None
        self._layers: tuple[LayersOf, ...] = ()

    async def run(self, named: Sequence[str], on_listening: Callable[[Listening], None]) -> None:
        from lamella.cluster.moving import layers_at
        from lamella.cluster.site import Site

        served, is_fixed = self._served, self._served.replanning.is_fixed and self._served.layers is not None
        members = named if is_fixed else [record.name for record in self._cluster.nodes()]
        home = tuple(served.layers) if served.layers is not None else None
        shards = {name: self._shards([at for at in home or () if at.node == name]) for name in members}
        types = set[str]() if is_fixed else {kind for model in self._models for kind in model.types}
        here = await self._here(types)
        how = served.replanning
        async with Site(
            self._dialler, shards, types, here, refresh_seconds=how.link_seconds, on_line=self._on_line
        ) as site:
            self._layers, variant = await self._begin(site, home, shards, is_fixed=is_fixed)
            engine = msgspec.structs.replace(served.engine, layers=layers_at(self._layers, site.nodes), variant=variant)
            front = replace(
                served.front, nodes=lambda: [figures_of(node) for node in site.nodes.values()],
                cluster=lambda: self._state(site),
            )  # fmt: skip
            await serve(
                engine, front, max_queue=served.max_queue, on_listening=on_listening, on_line=self._on_line,
                excuse=lambda: site.has_just_lost(at.node for at in self._now()),
                beside=None if is_fixed else partial(self._keep_placed, site, engine, home),
            )  # fmt: skip

    async def _here(self, types: set[str]) -> NodeReport:
        from lamella.cluster.reporting import report_apart

        found = await report_apart(self._served.kernel_file, self._served.engine.n_threads, sorted(types))
        limit = self._served.replanning.memory_here
        return msgspec.structs.replace(found, available_bytes=limit) if limit else found

    async def _begin(
        self, site: Site, home: tuple[LayersOf, ...] | None, shards: dict[str, list[ShardRef]], *, is_fixed: bool
    ) -> tuple[tuple[LayersOf, ...], str | None]:
        """Where layers are at first, and the variant: at home, else where they run fastest on what is there."""
        if home is not None:
            try:
                await self._fill_all(site, shards, nodes_of(home))
            except RemoteFailed as error:
                if is_fixed:
                    raise
                self._on_line(f"layers begin elsewhere than they were told to: {error}")
            else:
                return home, self._served.engine.variant
        for _ in site.nodes:  # each may be lost while it is given its layers
            try:
                return await self._first(site)
            except RemoteFailed as error:
                self._on_line(f"layers are placed once more: {error}")
        return await self._first(site)

    async def _fill_all(self, site: Site, shards: dict[str, list[ShardRef]], named: Sequence[str]) -> None:
        for name in named:
            await site.nodes[name].ready(READY_SECONDS)
            await self._fill(name, shards[name])
            site.nodes[name].begin_again()  # what it has got now need not be sent
        await site.known(named, READY_SECONDS)

    async def _first(self, site: Site) -> tuple[tuple[LayersOf, ...], str]:
        """Where layers run fastest, of the variant that was asked for or the largest that fits."""
        from lamella.cluster.placing import place_served, what_is_missing

        await self._gather(site)
        wanted = [m for m in self._models if self._served.engine.variant in (None, m.name)]
        machines = site.machines()
        found = await asyncio.to_thread(place_served, wanted, machines)
        if found is None:
            raise NoPlacement(f"{what_is_missing(wanted, machines)}; away: {', '.join(site.away()) or 'none'}")
        for name in nodes_of(found.layers):
            needed = self._shards([at for at in found.layers if at.node == name])
            await self._fill(name, needed)
            site.nodes[name].renew(needed)
            await site.nodes[name].ready(READY_SECONDS)
        return found.layers, found.variant

    async def _gather(self, site: Site) -> None:
        """Wait for all members, but not for long: who comes later is used later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_SECONDS):
                while len(site.machines()) < len(site.nodes) + 1:
                    await asyncio.sleep(0.1)

    async def _keep_placed(
        self, site: Site, engine: EngineSettings, home: tuple[LayersOf, ...] | None, client: SupervisedEngine
    ) -> None:
        from lamella.cluster.moving import Mover, MoverOptions
        from lamella.cluster.replanning import ReplanLimits

        how = self._served.replanning
        limits = ReplanLimits(how.gain, how.hold_seconds, n_moves=how.n_moves)
        options = MoverOptions(self._shards, self._fill, home, limits, self._on_line)
        self._mover = Mover(
            site, client, engine, self._models, self._layers, options,
            running=lambda: client.facts.variant if client.is_ready and client.facts else None,
        )  # fmt: skip
        client.listen(self._heard)
        await self._mover.run()

    def _heard(self, event: EngineEvent) -> None:
        from lamella.batching.messages import Hello

        if isinstance(event, Hello) and event.n_taken_over:
            self._on_line(f"the engine begins with the KV cache of {event.n_taken_over} tokens")

    def _now(self) -> tuple[LayersOf, ...]:
        return self._mover.layers if self._mover else self._layers

    def _state(self, site: Site) -> ClusterState:
        from lamella.serving.nodes import ClusterState, LayersOn

        layers = tuple(LayersOn(at.node, at.first, at.end - 1) for at in self._now())
        if self._mover is None:
            return ClusterState("placed", "", layers, site.away())
        return ClusterState(self._mover.state, self._mover.why, layers, site.away(), self._mover.n_moves)

    def _shards(self, layers: Sequence[LayersOf]) -> list[ShardRef]:
        return shards_of(self._store, self._served.engine.variants, layers)

    async def _fill(self, node: str, shards: Sequence[ShardRef]) -> None:
        from lamella.cluster.bringing import bring
        from lamella.core.units import format_bytes

        with self._store.lease(reading=True) as lease:
            lease.hold_everything()
            reasons = await _in_thread(partial(get_shards_back, self._store, shards))
            for name, reason in reasons.items():  # the others can be served
                self._on_line(f"node '{node}' gets not all of variant {name}: {reason}")
            there = [shard for shard in shards if self._store.has_shard(shard)]
            brought = await bring(self._dialler, node, self._store, there)
        if brought.n_fetched:
            moved = format_bytes(brought.moved_bytes)
            self._on_line(f"node '{node}' fetched {brought.n_fetched} shards, {moved}")


def models_of(
    store: Store, engine: EngineSettings, should_stop: Callable[[], bool] = lambda: False
) -> list[ServedModel]:
    """The variants that may be served, largest first.

    Raises:
        ShardDamaged: none is there as a whole, and the one to begin with cannot be got back; says why.
    """
    from lamella.cluster.placing import ServedModel

    found = [v for v in store.readable_variants()[0] if engine.variants is None or v.name in engine.variants]
    if not found:
        return []
    found.sort(key=lambda v: -v.n_bytes)
    spec = _spec_of(store, found, engine.variant, should_stop)
    n_copies = max(1, min(engine.n_warm, len(found)))
    return [ServedModel.of(spec, v, engine.cells, engine.kv_type, n_copies) for v in found]


def _spec_of(
    store: Store, variants: Sequence[Variant], wanted: str | None, should_stop: Callable[[], bool]
) -> ModelSpec:
    """The model's shape, which is that of any variant: of one that is there, else of the one that will be got back."""
    first = min(variants, key=lambda v: (_lacks_shards(store, v), v.name != wanted))
    with store.lease(reading=True) as lease:
        lease.hold(first.name)
        if _lacks_shards(store, first):
            store.ready_paths(first, should_stop)
        return read_model(store.first_link(first.name)).spec


def _lacks_shards(store: Store, variant: Variant) -> bool:
    return any(map(store.quick_damage, variant.shards))


def get_shards_back(
    store: Store, shards: Sequence[ShardRef], should_stop: Callable[[], bool] = lambda: False
) -> Mapping[str, str]:
    """Have shards that were dropped or are missing made or fetched again; of variants where that fails: name -> why.

    The caller holds a lease on them.
    """
    missing = {shard.id for shard in shards if not store.has_shard(shard)}
    reasons = {}
    for variant in store.readable_variants()[0] if missing else ():
        if not missing.isdisjoint(shard.id for shard in variant.shards):
            try:
                store.ready_paths(variant, should_stop)
            except LamellaError as error:
                reasons[variant.name] = str(error)
    return reasons


async def _in_thread(work: Callable[[Callable[[], bool]], T]) -> T:
    """Something that takes long, in a thread, and gives up once nobody waits for it any more."""
    is_over = threading.Event()
    try:
        return await asyncio.to_thread(work, is_over.is_set)
    finally:
        is_over.set()


def figures_of(forwarder: Forwarder) -> NodeFigures:
    """What the server's metrics say of a node."""
    from lamella.serving.nodes import NodeFigures

    traffic = forwarder.traffic
    return NodeFigures(
        forwarder.node,
        forwarder.is_up,
        forwarder.round_trip_seconds,
        traffic.sent_bytes,
        traffic.received_bytes,
        traffic.saved_bytes,
    )
