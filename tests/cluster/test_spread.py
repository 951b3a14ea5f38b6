"""Layers over several nodes and this machine: what the engine of a served cluster computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lamella.batching.engine_parts import EngineParts
from lamella.batching.settings import EngineSettings, LayersAt
from lamella.batching.spread import check_ranges
from lamella.cluster.forwarding import Forwarder
from lamella.core.errors import InvalidRequest
from lamella.llama import library, saving
from tests.cluster.conftest import TestBed
from tests.cluster.test_node import Run
from tests.cluster.test_tunnel import TOKENS, apart

needs_rpc = pytest.mark.skipif(
    not library.supports_rpc(), reason="llama.cpp was built without its RPC backend (CMAKE_ARGS=-DGGML_RPC=ON)"
)
VARIANTS = ("large", "small", "middle", "large")
Places = Callable[[str, str], list[LayersAt]]


def _computed(folder: str, layers: list[LayersAt]) -> list[tuple[list[int], int]]:
    """Greedy tokens at each variant, on a cache that goes on through the switches; and bytes of devices."""
    settings = EngineSettings(store=folder, variant="large", n_ctx=128, n_sequences=1, layers=layers, layout="mapped")
    parts = EngineParts.open(settings)
    found = []
    with contextlib.closing(parts):
        parts.context.decode(TOKENS, 0)
        position = len(TOKENS)
        for variant in VARIANTS:
            parts.live.change_to(variant)
            tokens = []
            for _ in range(6):
                tokens.append(int(parts.context.logits().argmax()))
                parts.context.decode(tokens[-1:], position)
                position += 1
            found.append((tokens, parts.live.memory.device_bytes))
    return found


@needs_rpc
@pytest.mark.parametrize(
    "places",
    [
        lambda one, two: [LayersAt(one, 0, 1), LayersAt(two, 1, 3)],
        lambda one, two: [LayersAt("", 0, 1), LayersAt(one, 1, 2), LayersAt(two, 2, 3)],
        lambda one, two: [LayersAt(one, 0, 1), LayersAt("", 1, 2), LayersAt(two, 2, 3)],
        lambda one, _: [LayersAt(one, 0, 2), LayersAt("", 2, 3)],
    ],
    ids=["two nodes", "here first", "here between", "here last"],
)
def test_tokens_equal_those_of_one_machine_through_switches(run: Run, store_folder: Path, places: Places) -> None:
    async def test(bed: TestBed) -> Any:
        async with (
            bed.node("one"),
            bed.node("two"),
            Forwarder(bed.dialler, "one") as one,
            Forwarder(bed.dialler, "two") as two,
        ):
            return await apart(_computed, str(store_folder), places(one.endpoint, two.endpoint))

    spread = run(test)
    local = _computed(str(store_folder), [])
    assert [tokens for tokens, _ in spread] == [tokens for tokens, _ in local]
    sizes = dict(zip(VARIANTS, (n_bytes for _, n_bytes in spread), strict=True))
    assert sizes["small"] > 0


@needs_rpc
def test_layers_that_are_not_the_models_are_refused(run: Run, store_folder: Path) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("one"), Forwarder(bed.dialler, "one") as one:
            with pytest.raises(InvalidRequest, match="has 3 layers, and 2 have a place"):
                await apart(_computed, str(store_folder), [LayersAt(one.endpoint, 0, 2)])

    run(test)


def test_ranges_have_no_gaps_and_do_not_meet() -> None:
    check_ranges([LayersAt("", 0, 2), LayersAt("x", 2, 3)])
    for layers in ([LayersAt("", 1, 2)], [LayersAt("", 0, 2), LayersAt("x", 1, 3)], [LayersAt("", 0, 0)]):
        with pytest.raises(InvalidRequest, match="is expected"):
            check_ranges(layers)


def test_a_model_that_is_here_needs_no_rpc(store_folder: Path) -> None:
    tokens = [t for t, _ in _computed(str(store_folder), [LayersAt("", 0, 3)])]
    assert tokens == [t for t, _ in _computed(str(store_folder), [])]


def _continued(folder: str, before: list[LayersAt], after: list[LayersAt], path: str) -> list[int]:
    """Greedy tokens of one layout after a text that another has read."""
    settings = EngineSettings(store=folder, variant="large", n_ctx=128, n_sequences=2, layout="mapped")
    with contextlib.closing(EngineParts.open(msgspec.structs.replace(settings, layers=before))) as parts:
        parts.context.decode(TOKENS[:-1], 0)
        saving.save_cache(parts.context, Path(path))
    tokens = []
    with contextlib.closing(EngineParts.open(msgspec.structs.replace(settings, layers=after))) as parts:
        saving.load_cache(parts.context, Path(path))
        assert saving.length(parts.context, 0) == len(TOKENS) - 1
        last = TOKENS[-1]
        for position in range(len(TOKENS) - 1, len(TOKENS) + 11):
            parts.context.decode([last], position)
            last = int(parts.context.logits().argmax())
            tokens.append(last)
    return tokens


@needs_rpc
def test_a_kv_cache_goes_from_any_layout_to_any_other(run: Run, store_folder: Path, tmp_path: Path) -> None:
    here = [LayersAt("", 0, 3)]

    async def test(bed: TestBed) -> Any:
        found = []
        async with (
            bed.node("one"),
            bed.node("two"),
            Forwarder(bed.dialler, "one") as one,
            Forwarder(bed.dialler, "two") as two,
        ):
            there = [LayersAt("", 0, 1), LayersAt(one.endpoint, 1, 3)]
            elsewhere = [LayersAt(two.endpoint, 0, 2), LayersAt("", 2, 3)]
            for before, after in ((here, there), (there, elsewhere), (elsewhere, here)):
                found.append(await apart(_continued, str(store_folder), before, after, str(tmp_path / "cells")))
        return found

    expected = _continued(str(store_folder), here, here, str(tmp_path / "cells"))
    assert run(test) == [expected] * 3
