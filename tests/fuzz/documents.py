"""Harnesses of documents: measurements, plans, profiles, placements, objectives, traces, tasks, keys, and stores."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from lamella.api.placed import parse_layers, read_placed_layers
from lamella.batching.saved import SLOTS, read_slots, write_slots
from lamella.batching.slots import Extent, Slot
from lamella.core import artifacts
from lamella.core.artifacts import LayerScore, Measurement, Plan, ShardRef, TensorLoss, Variant
from lamella.core.errors import LamellaError
from lamella.core.model import ModelIdentity
from lamella.core.units import parse_bytes, parse_seconds
from lamella.evaluating.tasks import read_tasks
from lamella.llama.gguf import ModelFile, read_model
from lamella.measuring.journal import journal_file
from lamella.planning.placement.document import CLUSTER_FORMAT, read_cluster
from lamella.planning.placement.several.document import TENANTS_FORMAT, read_tenants
from lamella.qos.objectives.files import objectives_of, read_objectives, stated_objectives
from lamella.qos.profiles import documents as profiles
from lamella.qos.profiles.documents import (
    EngineShape,
    Machine,
    Profile,
    PromptPoint,
    StepPoint,
    VariantProfile,
)
from lamella.qos.traces.files import read_trace
from lamella.run.kernel_table import KernelTable
from lamella.serving.keys import KeyRing
from lamella.store import leases
from lamella.store.files import create_owned
from lamella.store.founding import store_document
from lamella.store.layout import Layout
from lamella.store.store import Store
from lamella.store.verify import Sample
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model
from tests.fuzz.harness import Harness
from tests.fuzz.mutating import JSON, MSGPACK

NAME = "v"
HASH = "ab" * 32


@functools.cache
def tiny() -> tuple[bytes, ModelFile]:
    """A small model: its file, and what is read of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny_model(Path(folder) / "tiny.gguf", n_layers=2, n_embd=32, n_ff=32)
        return path.read_bytes(), read_model(path)


def _measurement() -> Measurement:
    identity = tiny()[1].spec.identity
    losses = [TensorLoss("blk.0.attn_q.weight", "Q4_0", 0.1, 0.01, {"Q4_0": 0.1, "Q8_0": 0.001}, {"Q8_0": 0.002})]
    scores = [LayerScore(0, 0.5, 0.1), LayerScore(1, 0.25)]
    return Measurement("sensitivity", identity, {"k": 8}, [], scores, {"text": scores}, {}, losses)


def _plan() -> Plan:
    return make_plan(tiny()[1].spec, "int8")


def variant() -> Variant:
    """A variant of that model, whose shards are nowhere."""
    labels = ("meta", "layer 0", "layer 1", "embedding", "head")
    shards = [ShardRef(f"{number:064x}", label, 1000 + number) for number, label in enumerate(labels)]
    return Variant(NAME, _plan(), shards)


def _profile() -> Profile:
    one = VariantProfile(
        NAME, "0" * 16, 1000, 8.5, 1.0, 0.5, 0.001, 2000,
        (PromptPoint(16, 0.1),), (StepPoint(1, 10.0, 0.01), StepPoint(4, 10.0, 0.02)),
    )  # fmt: skip
    return Profile(
        tiny()[1].spec.identity, Machine("cpu", 2, "0.3.36"), EngineShape(4, 512, 256, "F16", "auto"), (one,)
    )


def _document(kind: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"format": kind, "format_version": 1, "tool_version": "0", **fields})


def _in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """A reader of paths as one of bytes."""

    def reads(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return reads


def _text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _read_measurement(data: bytes, _: Path) -> object:
    read = artifacts.from_json(Measurement, data, "fuzz")
    return read.importance(), artifacts.to_json(read)


def _read_plan(data: bytes, _: Path) -> object:
    read = artifacts.from_json(Plan, data, "fuzz")
    return read.fits, artifacts.to_json(read)


def _read_units(data: bytes, _: Path) -> None:
    for read in (parse_bytes, parse_seconds):
        with contextlib.suppress(LamellaError):
            read(_text_of(data))


def _read_journal(path: Path) -> None:
    with journal_file(path) as open_journal:
        open_journal({"model": "tiny"})


def _saved_slots() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_slots(Path(folder), [Slot(1, [5, 6, 7], variants={NAME}, extents=[Extent(0, 3)])])
        return [(Path(folder) / SLOTS).read_bytes()]


def _clusters() -> list[bytes]:
    speeds = {"int8": {"prompt_seconds": 0.001, "token_seconds": 0.01}}
    nodes = [{"name": name, "memory_bytes": 1 << 30, "speeds": speeds} for name in ("here", "there")]
    links = [{"between": ["here", "there"], "bytes_per_second": 1e8, "round_trip_seconds": 0.001}]
    more = {"pass_seconds": 0.001, "buffer_bytes": 1000, "tier": "cloud", "watts": 5.0, "price_per_hour": 0.1,
            "seconds_limit": 2.0, "cell_seconds": 1e-9, "prompt_cell_seconds": 1e-9}  # fmt: skip
    full = [{**node, **more} for node in nodes]
    return [
        _document(CLUSTER_FORMAT, coordinator="here", nodes=nodes, links=links),
        _document(CLUSTER_FORMAT, coordinator="here", nodes=full, links=links, transfer="mesh"),
    ]


def _tenants() -> list[bytes]:
    tenant = {"name": "a", "model": "spec:llama-2-7b", "measurement": "m.json", "delta": 1.0}
    return [_document(TENANTS_FORMAT, tenants=[tenant], busy_limit=0.9)]


def _placements() -> list[bytes]:
    segments = [{"node": "here", "first": 0, "precisions": ["int8", "int4"]}]
    return [_document("lamella.placement", coordinator="here", segments=segments)]


_TOML = b'memory = "2GiB"\npower_watts = 25\n[class.interactive]\npriority = 10\nttft_p95_ms = 1500\nmax_kl = 0.1\n'
_TRACES = (
    b'{"seconds": 0.25, "n_prompt": 120, "n_generated": 40, "class": "interactive"}\n{"seconds": 1, "n_prompt": 1, '
    b'"n_generated": 4}\n',
    b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04,3,0\n",
)
_TASKS = (
    b'{"context": "a", "choices": ["b", "c"], "label": 1}\n',
    b'{"contexts": ["a", "b"], "continuation": "c", "label": 0}\n',
    b'{"title": "a", "context": "b", "question": "c", "answers": ["d"]}\n',
)

# --- stores ----------------------------------------------------------------------------------------------------------


def _use_store(folder: Path) -> None:
    """Everything that reads a store's documents; refusals of one do not hide those of another."""
    with contextlib.suppress(LamellaError):
        Store.open(folder).variant(NAME)
    store = Store.open(folder)
    reads: tuple[Callable[[], object], ...] = (
        store.readable_variants,
        lambda: store.verify(sample=Sample(within_seconds=0)),
        store.usage,
        store.leftovers,
        store.state.quota_bytes,
        store.state.pinned,
        store.state.dropped,
        store.state.unreadable,
        store.sources.unreadable,
        store.origins.unreadable,
        lambda: store.sources.find(HASH),
        lambda: store.origins.find(HASH),
        lambda: store.recall(HASH),
        store.collect_garbage,
    )
    for read in reads:
        with contextlib.suppress(LamellaError):
            read()


def _found(folder: Path) -> Layout:
    layout = Layout(folder)
    layout.document.write_bytes(store_document(tiny()[1].spec.identity))
    return layout


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _read_store_document(data: bytes, folder: Path) -> None:
    (folder / "store.json").write_bytes(data)
    _use_store(folder)


def _read_variant(data: bytes, folder: Path) -> None:
    _put(_found(folder).variant_document(NAME), data)
    _use_store(folder)


def _read_notes(data: bytes, folder: Path) -> None:
    """The same bytes as every note that a store can have."""
    layout = _found(folder)
    places = (
        layout.quota, layout.pin(NAME), layout.dropped(HASH), layout.origin(HASH), layout.source(HASH),
        layout.recipe(HASH),
    )  # fmt: skip
    for place in places:
        _put(place, data)
    _use_store(folder)


def _notes() -> list[bytes]:
    tiny()  # what reading needs is made before reading is watched
    shard = asdict(ShardRef(HASH, "meta", 10))
    model = asdict(ModelIdentity("llama", "tiny", HASH, HASH))
    return [
        _document("lamella.quota", quota_bytes=1000),
        _document("lamella.pin", variant=NAME),
        _document("lamella.dropped", shard=shard),
        _document("lamella.origin", shard=HASH, url="http://host:8090/store"),
        _document(
            "lamella.source", model=model, tensors=[["a", "F16"]], files=[{"path": "/m", "n_bytes": 1, "mtime_ns": 1}]
        ),
        _document("lamella.recipe", recipe={}, shard=shard),
    ]


def _leases() -> list[bytes]:
    tiny()  # as for notes
    return [f"{leases.HEADER}\n{HASH}\n".encode()]


def _read_lease(data: bytes, folder: Path) -> None:
    path = _found(folder).leases / ("0" * 32)
    path.parent.mkdir()
    descriptor = create_owned(path)
    with open(descriptor, "wb") as file:  # noqa: PTH123 (a descriptor; the lock on it makes the lease a living one)
        file.write(data)
        file.flush()
        leases.leased_ids(Layout(folder))


def _harness(
    name: str,
    modules: str,
    seeds: Callable[[], Any],
    read: Callable[[bytes, Path], object],
    *,
    is_json: bool = True,
    spoken: str = "",
) -> Harness:
    return Harness(name, tuple(modules.split()), seeds, read, JSON if is_json else None, tuple(spoken.split()))


HARNESSES = (
    _harness("measurement", "core.artifacts", lambda: [artifacts.to_json(_measurement())], _read_measurement),
    _harness("plan", "core.artifacts", lambda: [artifacts.to_json(_plan())], _read_plan),
    _harness(
        "profile", "qos.profiles.documents", lambda: [profiles.to_json(_profile())],
        lambda data, _: profiles.from_json(data, "fuzz"),
    ),
    _harness("cluster-document", "planning.placement.document planning.placement.cluster", _clusters,
             lambda data, _: read_cluster(data, "fuzz")),
    _harness("tenants", "planning.placement.several.document", _tenants, lambda data, _: read_tenants(data, "fuzz")),
    _harness("placement", "api.placed", _placements, _in_file("p.json", read_placed_layers)),
    _harness("layers-flag", "api.placed", lambda: [b"laptop=0-11,server=12-23", b"a=5"],
             lambda data, _: parse_layers(_text_of(data)), is_json=False),
    Harness("saved-slots", ("batching.saved",), _saved_slots,
            _in_file(SLOTS, lambda path: read_slots(path.parent, 4)), MSGPACK),
    _harness("objectives-file", "qos.objectives.files", lambda: [_TOML],
             _in_file("o.toml", read_objectives), is_json=False),
    _harness("objectives-json", "qos.objectives.files",
             lambda: [b'{"class": {"a": {"ttft_p95_ms": 5, "max_kl": 0.1}}, "memory": "2GiB"}'],
             lambda data, _: _json_or_nothing(data, objectives_of)),
    _harness("objectives-flag", "qos.objectives.files",
             lambda: [b"interactive:ttft_p95_ms=1500,max_kl=0.1,priority=10"],
             lambda data, _: stated_objectives([_text_of(data)]), is_json=False),
    _harness("trace", "qos.traces.files", lambda: _TRACES, _in_file("t", read_trace)),
    _harness("journal", "measuring.journal",
             lambda: [b'{"model":"tiny"}\n{"probe":"a","losses":{"Q8_0":[0.1,0.2]}}\n'], _in_file("j", _read_journal)),
    _harness("tasks", "evaluating.tasks", lambda: _TASKS, _in_file("t.jsonl", read_tasks)),
    _harness("kernel-table", "run.kernel_table", lambda: [b'{"m": {"Q8_0": {"plain": [1, 2], "repacked": null}}}'],
             _in_file("k.json", lambda path: KernelTable(path, 1)._read())),
    _harness("keys", "serving.keys", lambda: [b"admin:0123456789\nuser:abcdefghi, # no key\n"],
             _in_file("keys", KeyRing.read), is_json=False),
    _harness("units", "core.units", lambda: [b"6GiB", b"500ms"], _read_units, is_json=False),
    _harness("store-document", "store.documents store.founding",
             lambda: [store_document(tiny()[1].spec.identity)], _read_store_document),
    _harness("store-variant", "store.variants store.documents", lambda: [artifacts.to_json(variant())], _read_variant,
             spoken="core.artifacts core.model"),
    _harness("store-notes", "store.state store.sources store.origins store.recipes", _notes, _read_notes),
    _harness("lease", "store.leases", _leases, _read_lease, is_json=False),
)  # fmt: skip


def _json_or_nothing(data: bytes, read: Callable[[object], object]) -> None:
    """For readers of what a JSON body has become already."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        read(msgspec.json.decode(data))
