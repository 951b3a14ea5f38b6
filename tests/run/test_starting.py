"""Which variant an engine starts at under a memory ceiling, and what is said where none does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.core.errors import ExceedsCeiling
from lamella.core.precision import GGML_TYPES
from lamella.llama import gguf
from lamella.llama.context import ContextOptions
from lamella.llama.memory import ContextMemory
from lamella.run import starting
from lamella.run.layouts import MAPPED, Layout, choices
from lamella.run.starting import CELL_STEP, Start, plan_start, weights_bytes
from lamella.store.store import Store

OPTIONS = ContextOptions(n_ctx=1024)
CELL_BYTES, BUFFER_BYTES, PROCESS_BYTES = 1000, 5300, 70_000
Plan = Callable[..., Start]
Layouts = Sequence[Mapping[str, Layout]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Path]]:
    """The files that llama.cpp would have been asked about; each cell takes as much as another, for exact sums."""
    paths: list[Sequence[Path]] = []

    def context_memory(files: Sequence[Path], options: ContextOptions) -> ContextMemory:
        paths.append(files)
        return ContextMemory(options.cells * CELL_BYTES, 5000, 300, {})

    monkeypatch.setattr(starting, "context_memory", context_memory)
    monkeypatch.setattr(starting, "private_bytes", lambda: PROCESS_BYTES)
    return paths


@pytest.fixture
def plan(store: Store, asked: list[Sequence[Path]]) -> Plan:
    def start(memory_bytes: int, named: str | None = None, options: ContextOptions = OPTIONS) -> Start:
        variants = sorted(store.variants(), key=lambda v: v.n_bytes, reverse=True)
        return plan_start(store, variants, named, options, [MAPPED], memory_bytes)

    return start


def needed(plan: Plan, name: str) -> int:
    """What a variant is said to need."""
    with pytest.raises(ExceedsCeiling) as caught:
        plan(1, name)
    return caught.value.needed_bytes


def test_without_a_ceiling_the_largest_starts_and_nothing_is_measured(plan: Plan, asked: list[Sequence[Path]]) -> None:
    assert plan(0) == Start("large", MAPPED)
    assert plan(0, "small") == Start("small", MAPPED)
    assert not asked


def test_the_largest_that_fits_to_the_byte(store: Store, plan: Plan) -> None:
    for name, next_smaller in (("large", "middle"), ("middle", "small")):
        assert plan(needed(plan, name)).variant == name
        assert plan(needed(plan, name) - 1).variant == next_smaller
    with pytest.raises(ExceedsCeiling, match="the smallest variant, 'small', needs"):
        plan(needed(plan, "small") - 1)


def test_the_ceiling_knows_what_the_engine_takes_besides_weights(store: Store, plan: Plan) -> None:
    start = plan(needed(plan, "middle"))
    assert start.ceiling is not None
    assert start.ceiling.n_bytes == needed(plan, "middle")
    n_tokens = gguf.read_specs(store.ready_paths(store.variant("large")))["token_embd.weight"].n_rows
    growth = starting.GROWTH_BYTES + n_tokens * starting.CANDIDATE_BYTES
    assert start.ceiling.planned_bytes == OPTIONS.n_ctx * CELL_BYTES + BUFFER_BYTES + PROCESS_BYTES + growth
    assert needed(plan, "middle") - start.ceiling.planned_bytes == store.variant("middle").n_bytes


def test_llama_cpp_is_asked_about_the_largest_that_may_fit(
    store: Store, plan: Plan, asked: list[Sequence[Path]]
) -> None:
    """So that shards of others are not fetched for nothing."""
    plan(needed(plan, "small"))
    middle = store.variant("middle")
    del asked[:]
    with pytest.raises(ExceedsCeiling):
        plan(PROCESS_BYTES + middle.n_bytes)
    with pytest.raises(ExceedsCeiling):
        plan(PROCESS_BYTES + middle.n_bytes - 1)
    with pytest.raises(ExceedsCeiling):
        plan(1)
    assert asked == [store.ready_paths(store.variant(name)) for name in ("middle", "small", "small")]


def test_a_variant_that_does_not_fit_is_refused_with_those_that_do(plan: Plan) -> None:
    with pytest.raises(ExceedsCeiling, match=r"variant 'large' needs .*; middle, small would fit"):
        plan(needed(plan, "middle"), "large")
    with pytest.raises(ExceedsCeiling) as caught:
        plan(needed(plan, "small") - 1, "large")
    assert "small would fit" not in str(caught.value)


def test_the_cells_that_are_advised_fit_and_no_more_would(plan: Plan) -> None:
    memory = needed(plan, "small") - 1
    with pytest.raises(ExceedsCeiling) as caught:
        plan(memory, "small")
    advised = re.search(r"\(--cells (\d+),", str(caught.value))
    assert advised is not None
    cells = int(advised[1])
    assert cells == OPTIONS.n_ctx - CELL_STEP
    assert plan(memory, "small", replace(OPTIONS, n_ctx=cells)).variant == "small"
    with pytest.raises(ExceedsCeiling):
        plan(memory, "small", replace(OPTIONS, n_ctx=cells + CELL_STEP))


def test_where_no_cells_are_left_a_smaller_variant_or_more_memory_is_advised(store: Store, plan: Plan) -> None:
    bare = needed(plan, "small") - store.variant("small").n_bytes - (OPTIONS.n_ctx - CELL_STEP) * CELL_BYTES
    with pytest.raises(ExceedsCeiling, match=r"a variant of at most 1\.00 KiB would fit with 256 tokens"):
        plan(bare + 1024)
    with pytest.raises(ExceedsCeiling, match=r"no variant fits, since .* go without any weight; give more memory"):
        plan(bare)


@pytest.mark.usefixtures("asked")
def test_copies_are_done_without_where_there_is_no_room_for_them(store: Store, plan: Plan) -> None:
    variants = sorted(store.variants(), key=lambda v: v.n_bytes, reverse=True)
    copied = {"Q8_0": Layout(repack=True)}
    may_have = choices("auto", copied)
    room = needed(plan, "large")

    def start(memory_bytes: int, named: str | None = None, layouts: Layouts = may_have) -> tuple[str, object]:
        found = plan_start(store, variants, named, OPTIONS, layouts, memory_bytes)
        return found.variant, found.layouts

    longest = max(shard.n_bytes for shard in variants[0].shards)
    assert start(0) == ("large", copied)
    assert start(room + longest) == ("large", copied)
    assert start(room + longest - 1) == start(room) == start(room, "large") == ("large", MAPPED)
    assert start(room - 1)[0] == "middle"
    only_copied = choices("repacked", copied)
    assert start(room, layouts=only_copied)[0] == "middle"
    with pytest.raises(ExceedsCeiling):
        start(room, "large", only_copied)


def test_only_auto_does_without_copies() -> None:
    copied = {"Q8_0": Layout(repack=True), "Q4_K": Layout()}
    assert choices("auto", copied) == (copied, MAPPED)
    assert choices("repacked", copied) == (copied,)
    assert choices("auto", {"Q8_0": Layout()}) == ({"Q8_0": Layout()},)


def test_copies_are_counted_beside_what_prompts_still_read(store: Store) -> None:
    large = store.variant("large")
    tensors = gguf.read_specs(store.ready_paths(large))
    whole, longest = large.n_bytes, max(shard.n_bytes for shard in large.shards)
    matrices = sum(tensors[n].bytes_as(GGML_TYPES[t]) for n, t in large.plan.tensors.items() if t == "Q8_0")
    assert matrices > 0
    assert weights_bytes(large, tensors, {"Q8_0": Layout()}) == whole
    assert weights_bytes(large, tensors, {"Q8_0": Layout(repack=True)}) == whole + longest
    both = {"Q8_0": Layout(repack=True, prompt_from_mapped=True)}
    assert weights_bytes(large, tensors, both) == whole + matrices + longest
