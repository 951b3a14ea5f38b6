"""The live switch, on a real (tiny) model in real llama.cpp."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from lamella.core.errors import UnknownVariant
from lamella.core.model import TensorSpec
from lamella.llama import gguf
from lamella.llama.context import Context, ContextOptions
from lamella.llama.kernels import KernelTimes
from lamella.llama.model import Model
from lamella.llama.weights import LiveWeight, WeightState, locate_weights, write_state
from lamella.run import pointers
from lamella.run.engine import LONG_PROMPT_TOKENS, Engine
from lamella.run.kernel_table import KernelTable
from lamella.run.layouts import Layout, LayoutPolicy
from lamella.run.variants import LiveVariants
from lamella.store.store import Store
from tests.run.conftest import GREEDY, OPTIONS, PROMPT, ids_of

CONTEXT = ContextOptions(n_ctx=128, n_batch=64, n_threads=1)


def _fresh_logits(paths: Sequence[Path], tokens: Sequence[int], *, repack: bool = False) -> NDArray[np.float32]:
    with Model.load(paths, repack=repack) as model, Context(model, CONTEXT) as context:
        context.decode(tokens, 0)
        return context.logits().copy()


def _tensors(store: Store) -> dict[str, TensorSpec]:
    paths = store.shard_paths(store.variant("large"))
    return {n: t.spec for p in paths for n, t in gguf.read_tensors(p).items()}


@pytest.mark.parametrize("repack", [False, True])
@pytest.mark.parametrize("folder", ["store_folder", "tied_folder"])
def test_logits_after_a_switch_equal_those_of_a_fresh_load(
    folder: str, repack: bool, request: pytest.FixtureRequest
) -> None:
    """Bit for bit, there and back, for mapped and repacked weights, a head of its own and a tied one.

    In a fresh context, and in the one that has lived through the switches.
    """
    store = Store.open(request.getfixturevalue(folder))
    paths = {name: store.shard_paths(store.variant(name)) for name in ("large", "small")}
    layouts = {t: Layout(repack=repack) for t in ("Q8_0", "Q4_K")}
    with Model.load(paths["large"]) as model, Context(model, CONTEXT) as old:
        tokens = model.vocabulary.tokenize(PROMPT)
        live = LiveVariants(store, model, _tensors(store), layouts, n_warm=2, check=False)
        for name in ("large", "small", "large", "small"):
            live.change_to(name)
            # stock llama.cpp repacks a tied head's second copy, which ours, being one tensor, cannot
            expected = _fresh_logits(paths[name], tokens, repack=repack and folder == "store_folder")
            old.forget()
            old.decode(tokens, 0)
            with Context(model, CONTEXT) as fresh:
                fresh.decode(tokens, 0)
                if repack and folder == "tied_folder":
                    np.testing.assert_allclose(fresh.logits(), expected, atol=0.2)
                else:
                    assert np.array_equal(fresh.logits(), expected), name
                assert np.array_equal(old.logits(), fresh.logits()), name
        old.close()
        live.close()


def test_a_switch_changes_every_layer_and_keeps_the_cache(engine: Engine) -> None:
    generation = engine.generate(PROMPT, max_tokens=12, sampling=GREEDY)
    for _ in range(5):
        next(generation)
    report = engine.switch("small")
    rest = list(generation)
    assert (report.before, report.after) == ("large", "small")
    assert report.n_shards == 3  # the layers; embedding and head are shared
    assert [t.variant for t in rest] == ["small"] * 7
    assert generation.stats.n_reused == 0
    assert generation.stats.n_generated == 12


def test_generation_after_a_switch_equals_a_fresh_engine(store: Store, engine: Engine) -> None:
    for name in ("small", "middle", "large"):
        engine.switch(name)
        engine.generate([5, 6], max_tokens=1).text()  # shares no beginning, so nothing of the old variant's cache stays
        with Engine.open(store, name, OPTIONS) as fresh:
            assert ids_of(engine) == ids_of(fresh)


@pytest.mark.parametrize(("layout", "n_warm"), [("mapped", 2), ("repacked", 1)])
def test_a_thousand_random_switches_leave_memory_as_it_was(store: Store, layout: LayoutPolicy, n_warm: int) -> None:
    """Resident memory stays as it is after the first hundred; with n_warm=1 each switch frees and makes copies."""
    choose = random.Random(0)
    with Engine.open(store, "large", replace(OPTIONS, layout=layout, n_warm=n_warm)) as engine:
        tokens = engine.tokenize(PROMPT)

        def switch(n: int) -> int:
            done = 0
            while done < n:
                for _ in engine.generate(tokens, max_tokens=50, sampling=GREEDY):
                    engine.switch(choose.choice(engine.variants))
                    done += 1
                    if done == n:
                        break
            for name in engine.variants:  # the same variants warm at each look
                engine.switch(name)
            return int(psutil.Process().memory_info().rss)

        before = switch(100)
        # a leak of one copy a switch would be a gigabyte; a huge page more or less is the allocator's business
        assert switch(1000) - before < 8 << 20


def test_prompts_may_be_read_with_mapped_and_tokens_written_with_repacked_weights(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layout auto, on a machine where each wins in one phase."""
    times = KernelTimes(1.0, 0.5, repacked_token=0.5, repacked_prompt=1.0, has_repacked=True)
    monkeypatch.setattr(KernelTable, "times", lambda _, names: dict.fromkeys(names, times))
    used: list[int] = []
    plain_use = LiveVariants.use

    def use(self: LiveVariants, states: Mapping[str, WeightState]) -> int:
        used.append(plain_use(self, states))
        return used[-1]

    monkeypatch.setattr(LiveVariants, "use", use)
    with Engine.open(store, "small", replace(OPTIONS, layout="auto")) as engine:
        assert engine.repacked_bytes > 0
        used.clear()
        list(engine.generate([5, 6], max_tokens=3, sampling=GREEDY))
        assert set(used) == {0}  # a short prompt is not worth two flips
        used.clear()
        list(engine.generate([7] * LONG_PROMPT_TOKENS, max_tokens=3, sampling=GREEDY))
        flips = [n for n in used if n]
        assert len(flips) == 2  # to the mapped weights for the prompt, and back
        assert flips[0] == flips[1] > 0


def test_a_warm_variant_costs_no_preparation(engine: Engine) -> None:
    assert engine.switch("small").prepare_seconds > 0
    assert engine.switch("large").prepare_seconds == 0


def test_the_least_recently_used_variant_is_closed(engine: Engine) -> None:
    """With n_warm=2, a third variant pushes the first out."""
    engine.switch("small")
    engine.switch("middle")
    assert engine.switch("small").prepare_seconds == 0
    assert engine.switch("large").prepare_seconds > 0


def test_an_unknown_variant_changes_nothing(engine: Engine) -> None:
    before = ids_of(engine)
    with pytest.raises(UnknownVariant, match=r"large.*middle.*small"):
        engine.switch("huge")
    assert engine.variant == "large"
    assert ids_of(engine) == before


def test_a_switch_from_another_thread_waits_for_the_token(store: Store, engine: Engine) -> None:
    stop = threading.Event()

    def flip() -> None:
        names = ["small", "large"]
        while not stop.is_set():
            engine.switch(names[0])
            names.reverse()

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        seen, n = set[str](), 0
        while n < 10 or (len(seen) < 2 and n < 1000):  # the other thread may be held up
            seen |= {t.variant for t in engine.generate(PROMPT, max_tokens=50, sampling=GREEDY)}
            n += 1
    finally:
        stop.set()
        thread.join()
    assert seen == {"small", "large"}
    engine.switch("middle")
    with Engine.open(store, "middle", OPTIONS) as fresh:
        assert np.array_equal(engine.logits(engine.tokenize(PROMPT)), fresh.logits(fresh.tokenize(PROMPT)))


def test_variants_prepared_and_never_used_do_not_pile_up(store: Store) -> None:
    with Engine.open(store, "large", replace(OPTIONS, n_warm=1)) as engine:
        engine.prepare("small").result()
        engine.prepare("middle").result()
        engine.switch("large")
        report = engine.switch("large")
        sizes = {n: sum(s.n_bytes for s in store.variant(n).shards) for n in ("large", "middle", "small")}
        assert report.mapped_bytes < sum(sizes.values()) - sizes["small"] / 2


def test_an_interrupt_during_a_switch_is_mended_by_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.open(store, "large", OPTIONS) as engine, Engine.open(store, "large", OPTIONS) as fresh:
        tokens = engine.tokenize(PROMPT)
        written = 0

        def interrupted(address: int, state: WeightState) -> None:
            nonlocal written
            written += 1
            if written == 10:
                raise KeyboardInterrupt
            write_state(address, state)

        monkeypatch.setattr(pointers, "write_state", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.switch("small")
        monkeypatch.setattr(pointers, "write_state", write_state)
        assert engine.variant == "large"
        assert np.array_equal(engine.logits(tokens), fresh.logits(tokens))


def test_switches_from_many_threads_never_use_closed_shards(store: Store) -> None:
    """With one warm variant each switch closes the shards of the one before, while others are waiting for them."""
    with Engine.open(store, "large", replace(OPTIONS, n_warm=1)) as engine:
        failures: list[BaseException] = []

        def flip(seed: int) -> None:
            choose = random.Random(seed)
            try:
                for _ in range(60):
                    engine.switch(choose.choice(engine.variants))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=flip, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        while any(t.is_alive() for t in threads):
            ids_of(engine, n=5)
        for thread in threads:
            thread.join()
        assert not failures
        engine.switch("small")
        engine.generate([5, 6], max_tokens=1).text()
        with Engine.open(store, "small", OPTIONS) as fresh:
            assert ids_of(engine) == ids_of(fresh)


@pytest.mark.parametrize("has_views", [False, True])
def test_a_graph_that_has_views_of_weights_is_built_anew_after_a_switch(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, has_views: bool
) -> None:
    """They keep addresses of shards that are closed some time (RWKV reshapes weights)."""
    rebuilt: list[Context] = []
    monkeypatch.setattr(Context, "rebuild_graph", lambda context: rebuilt.append(context))

    def with_views(model: Model) -> dict[str, LiveWeight]:
        found = locate_weights(model)
        name = min(found)
        return {**found, name: replace(found[name], operations=found[name].operations | {"RESHAPE"})}

    if has_views:
        monkeypatch.setattr(pointers, "locate_weights", with_views)
    with Engine.open(store, "large", OPTIONS) as engine:
        before = len(rebuilt)
        engine.switch("small")
        assert (len(rebuilt) > before) is has_views
        n_rebuilt = len(rebuilt)
        engine.switch("small")  # nothing moves
        assert len(rebuilt) == n_rebuilt
