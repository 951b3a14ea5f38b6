"""Weights on a second ggml device: an RPC server on loopback stands in for a GPU.

Separate memory, no host pointers, and graphs that are kept by the device.  Everything runs in a child process, since a
device stays registered until a process ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from lamella import api
from lamella.batching.engine_parts import EngineParts
from lamella.batching.settings import EngineSettings
from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama import gguf, library, log, rpc
from lamella.llama.sampling import SamplingOptions
from lamella.run.engine import Engine, EngineOptions
from lamella.run.loading import Loaded, load
from lamella.store.store import Store
from tests.fakes.rpc_server import rpc_server
from tests.fakes.tiny_model import EOS
from tests.run.conftest import OPTIONS

TOKENS = [1, 300, 301, 302, 303, 304]

pytestmark = pytest.mark.skipif(
    not library.supports_rpc(), reason="llama.cpp was built without its RPC backend (CMAKE_ARGS=-DGGML_RPC=ON)"
)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, psutil.Process]]:
    """Endpoint and process of an RPC server."""
    with rpc_server() as started:
        yield started


@pytest.fixture
def in_child(server: tuple[str, psutil.Process], store_folder: Path) -> Iterator[Callable[..., Any]]:
    """Runs a function of a store and engine options for the device in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *more: pool.submit(_with_device, function, server[0], store_folder, *more).result(300)


def _with_device(function: Callable[..., Any], endpoint: str, folder: Path, *more: Any) -> Any:
    (device,) = rpc.connect(endpoint)
    return function(Store.open(folder), replace(OPTIONS, device=device), *more)


def test_logits_after_a_switch_equal_those_of_a_fresh_load(in_child: Callable[..., Any]) -> None:
    in_child(_check_logits)


def _check_logits(store: Store, options: EngineOptions) -> None:
    """Bit for bit on the device, and near those of the CPU, which has other kernels for some shapes."""
    with Engine.open(store, "large", options) as engine:
        for name in ("small", "large", "middle", "large"):
            report = engine.switch(name)
            assert report.n_shards == 3
            with Engine.open(store, name, options) as fresh, Engine.open(store, name, OPTIONS) as cpu:
                expected = fresh.logits(TOKENS)
                np.testing.assert_array_equal(engine.logits(TOKENS), expected)
                np.testing.assert_allclose(expected, cpu.logits(TOKENS), atol=0.05)
                assert not np.array_equal(engine.logits(TOKENS[:-1]), expected)


def test_the_cache_is_the_devices_and_is_kept(in_child: Callable[..., Any]) -> None:
    in_child(_check_cache)


def _check_cache(store: Store, options: EngineOptions) -> None:
    """The last token on a cache that the variant before has computed: as on the CPU, and as nowhere without it."""
    assert options.device
    with log.listening() as lines, _loaded(store, options.device) as loaded:
        said = [line for line in lines if options.device in line]
        assert any("KV buffer size" in line for line in said)
        assert not any("model buffer size" in line for line in said)  # llama.cpp uploads none itself
        after = _logits_on_a_kept_cache(loaded)
    with Engine.open(store, "small", options) as engine:
        anew = engine.logits(TOKENS)
    with _loaded(store, None) as cpu:
        np.testing.assert_allclose(after, _logits_on_a_kept_cache(cpu), atol=0.05)
    assert np.abs(after - anew).max() > 0.05


def _loaded(store: Store, device: str | None) -> Loaded:
    """At the variant large, and small stays warm beside it."""
    return load(store, "large", {}, lambda _: OPTIONS.context, n_warm=2, check=False, device=device)


def _logits_on_a_kept_cache(loaded: Loaded) -> Any:
    loaded.context.decode(TOKENS[:-1], 0)
    loaded.live.change_to("small")
    loaded.context.decode(TOKENS[-1:], len(TOKENS) - 1)
    return loaded.context.logits().copy()


def test_a_graph_that_the_device_keeps_is_not_used_after_a_switch(in_child: Callable[..., Any]) -> None:
    in_child(_check_graph)


def _check_graph(store: Store, options: EngineOptions) -> None:
    """Token after token has the same graph; both variants stay in memory, so that an old graph would compute on."""
    with _loaded(store, options.device) as loaded, _loaded(store, None) as cpu:
        position = 0
        for name in ("large", "small", "large"):
            loaded.live.change_to(name)
            cpu.live.change_to(name)
            for token in (310, 311, 312):
                loaded.context.decode([token], position)
                cpu.context.decode([token], position)
                np.testing.assert_allclose(loaded.context.logits(), cpu.context.logits(), atol=0.05)
                position += 1


def test_only_changed_layers_are_copied(in_child: Callable[..., Any], store_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(store_folder, tmp_path / "store", symlinks=True)
    large, small = (Store.open(copy).variant(name).plan for name in ("large", "small"))
    types = {n: small.tensors[n] if n.startswith("blk.1.") else t for n, t in large.tensors.items()}
    api.build(store_folder.parent / "tiny.gguf", copy, replace(large, tensors=types), "one")
    in_child(_check_copies, copy)


def _check_copies(_: Store, options: EngineOptions, folder: Path) -> None:
    """Counted at the border to ggml: the bytes of the one layer that differs, and none where both are warm."""
    store = Store.open(folder)
    with Engine.open(store, "large", options) as engine, _counted() as copies:
        assert engine.switch("one").n_shards == 1
        paths = store.ready_paths(store.variant("one"))
        tensors = {n: t for path in paths for n, t in gguf.read_tensors(path).items()}
        assert sorted(copies) == sorted(t.n_bytes for n, t in tensors.items() if n.startswith("blk.1."))
        copies.clear()
        assert engine.switch("large").n_shards == 1
        assert copies == []


@contextlib.contextmanager
def _counted() -> Iterator[list[int]]:
    """Sizes of all tensors that are copied meanwhile."""
    base, sizes = library.load().base, list[int]()
    plain = base.ggml_backend_tensor_set

    def counts(tensor: int, data: int, offset: int, n_bytes: int) -> None:
        sizes.append(n_bytes)
        plain(tensor, data, offset, n_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "ggml_backend_tensor_set", counts)
        yield sizes


def test_memory_of_the_device_is_free_again_after_a_switch(
    in_child: Callable[..., Any], server: tuple[str, psutil.Process]
) -> None:
    before, after = in_child(_check_memory, server[1].pid)
    assert after - before < 4 << 20  # forty switches that each left a layer set behind would be 30 MiB


def _check_memory(store: Store, options: EngineOptions, pid: int) -> tuple[int, int]:
    server = psutil.Process(pid)
    sizes = {}
    for name in ("large", "small"):
        with Engine.open(store, name, options) as engine:
            sizes[name] = engine.device_bytes
    assert 0 < sizes["small"] < sizes["large"]
    with Engine.open(store, "large", replace(options, n_warm=1)) as engine:
        engine.switch("small")
        assert engine.device_bytes == sizes["small"]
        engine.switch("large")
        before = int(server.memory_info().rss)
        for _ in range(20):
            engine.switch("small")
            engine.logits(TOKENS)
            engine.switch("large")
        assert engine.device_bytes == sizes["large"]
        return before, int(server.memory_info().rss)


def test_a_serving_engine_runs_on_the_device(in_child: Callable[..., Any]) -> None:
    in_child(_check_serving)


def _check_serving(store: Store, options: EngineOptions) -> None:
    """Token after token, so that the graph could be kept, across switches there and back: as on the CPU."""
    logits: dict[str | None, list[Any]] = {}
    for device in (options.device, None):
        settings = EngineSettings(
            store=str(store.path), variant="large", n_ctx=128, n_sequences=2, device=device, layout="mapped"
        )
        parts = EngineParts.open(settings)
        with contextlib.closing(parts):
            logits[device] = []
            parts.context.decode(TOKENS, 0)
            for position, variant in enumerate(("large", "large", "small", "small", "large"), len(TOKENS)):
                parts.live.change_to(variant)
                parts.context.decode([310], position)
                logits[device].append(parts.context.logits().copy())
            assert (parts.live.memory.device_bytes > 0) == (device is not None)
    np.testing.assert_allclose(logits[options.device], logits[None], atol=0.05)


def test_a_generation_goes_on_across_a_switch(in_child: Callable[..., Any]) -> None:
    in_child(_check_generation)


def _check_generation(store: Store, options: EngineOptions) -> None:
    with Engine.open(store, "large", options) as engine:
        endless = SamplingOptions(logit_bias={EOS: -100.0})
        generation = engine.generate(TOKENS, max_tokens=12, sampling=endless)
        first = [next(generation).variant for _ in range(5)]
        engine.switch("small")
        assert first + [t.variant for t in generation if t.id >= 0] == ["large"] * 5 + ["small"] * 7
        assert generation.stats.n_reused == 0


def test_the_cpu_is_no_other_device(store: Store) -> None:
    with Engine.open(store, "large", replace(OPTIONS, device="CPU")) as engine:
        assert engine.device_bytes == 0


@pytest.mark.parametrize(
    "endpoint",
    ["10.0.0.1:50052", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:5_0", "localhost:50052", "[::1]:50052", "::1", ""],
)
def test_only_this_machines_servers_are_spoken_to(endpoint: str) -> None:
    for call in (rpc.connect, rpc.serve):
        with pytest.raises(InvalidRequest, match=r"no loopback address such as 127\.0\.0\.1:50052"):
            call(endpoint)


def test_where_no_server_answers_the_process_lives_on() -> None:
    with pytest.raises(EngineFailed, match=r"no RPC server answers at 127\.0\.0\.1:1: Connection refused"):
        rpc.connect("127.0.0.1:1")


def test_an_unknown_device_is_refused_and_the_known_named(store: Store) -> None:
    with pytest.raises(InvalidRequest, match="no device 'CUDA7'; there are: CPU"):
        Engine.open(store, "large", replace(OPTIONS, device="CUDA7"))


def test_a_ceiling_of_host_memory_is_not_kept_on_a_device() -> None:
    with pytest.raises(InvalidRequest, match="host memory"):
        replace(OPTIONS, device="RPC0", memory_bytes=1 << 30)
