"""Generation with one engine, on a real (tiny) model in real llama.cpp."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.core.errors import EngineFailed, InvalidRequest, StoreError
from lamella.llama.context import Context
from lamella.run.engine import Engine, EngineOptions
from lamella.run.generation import GenerationStats
from lamella.store.store import Store
from tests.run.conftest import GREEDY, OPTIONS, PROMPT, ids_of


def test_there_are_no_logits_after_nothing(engine: Engine) -> None:
    engine.logits([1, 2, 3])  # whose logits would stand there still
    with pytest.raises(InvalidRequest, match="none was given"):
        engine.logits([])


def test_a_shared_beginning_is_not_computed_again(engine: Engine) -> None:
    first = engine.tokenize(PROMPT)
    expected = ids_of(engine, [*first, 30, 31])
    engine.generate("something else entirely", max_tokens=1).text()
    ids_of(engine, first)
    generation = engine.generate([*first, 30, 31], max_tokens=24, sampling=GREEDY)
    assert [t.id for t in generation] == expected
    assert generation.stats.n_reused >= len(first)


@pytest.mark.parametrize("error", [EngineFailed, KeyboardInterrupt])
def test_a_prompt_that_was_broken_off_leaves_nothing_half_read(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    first = engine.tokenize(PROMPT)
    longer = [*first, *range(30, 60)]
    expected = ids_of(engine, longer)
    engine.logits(first)
    decode = Context.decode

    def broken_off(context: Context, tokens: Sequence[int], position: int) -> None:
        decode(context, tokens[: len(tokens) // 2], position)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Context, "decode", broken_off)
        with pytest.raises(error):
            ids_of(engine, longer)
    again = engine.generate(longer, max_tokens=24, sampling=GREEDY)
    assert [t.id for t in again] == expected
    assert again.stats.n_reused == len(first)  # and what was whole before is there still


def test_what_is_prepared_beside_gives_way_while_tokens_are_computed_only(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, meanwhile = Context.decode, list[bool]()

    def noted(context: Context, tokens: Sequence[int], start: int) -> None:
        meanwhile.append(engine._live.is_computing)
        decode(context, tokens, start)

    monkeypatch.setattr(Context, "decode", noted)
    between = [engine._live.is_computing for _ in engine.generate(PROMPT, max_tokens=3, sampling=GREEDY)]
    assert (set(meanwhile), set(between)) == ({True}, {False})


def test_speeds_are_of_what_was_computed() -> None:
    """Not of what the cache held, and the first token is drawn from the prompt's logits."""
    stats = GenerationStats(30, n_reused=10, prompt_seconds=2, n_generated=9, token_seconds=4, finish_reason=None)
    assert (stats.prompt_tokens_per_second, stats.tokens_per_second) == (10, 2)
    nothing = GenerationStats(30, n_reused=0, prompt_seconds=0, n_generated=0, token_seconds=0, finish_reason=None)
    assert (nothing.prompt_tokens_per_second, nothing.tokens_per_second) == (0, 0)


def test_generation_ends_at_its_limits(engine: Engine) -> None:
    generation = engine.generate(PROMPT, max_tokens=3, sampling=GREEDY)
    assert len(list(generation)) == 3
    assert generation.stats.finish_reason == "length"
    full = engine.generate([1] * 120, max_tokens=500, sampling=GREEDY)
    made = [t for t in full if t.id >= 0]
    assert full.stats.finish_reason == "length"
    assert len(made) == 128 - 120 + 1  # nothing follows the last, so it needs no place in the context


def test_a_stop_string_ends_the_text(engine: Engine) -> None:
    text = engine.generate(PROMPT, max_tokens=40, sampling=GREEDY).text()
    stop = text[3:6]
    generation = engine.generate(PROMPT, max_tokens=40, sampling=GREEDY, stop=[stop])
    assert generation.text() == text[: text.index(stop)]
    assert generation.stats.finish_reason == "stop"


@pytest.mark.parametrize(("prompt", "max_tokens"), [([], 5), ([1] * 128, 5), ([1], 0)])
def test_impossible_generations_are_refused(engine: Engine, prompt: list[int], max_tokens: int) -> None:
    with pytest.raises(InvalidRequest):
        engine.generate(prompt, max_tokens=max_tokens)


def test_the_largest_variant_is_the_default(store: Store) -> None:
    with Engine.open(store, None, OPTIONS) as engine:
        assert engine.variant == "large"


def test_an_empty_store_says_how_to_fill_it(store: Store, tmp_path: Path) -> None:
    empty = Store.create(tmp_path / "empty", store.identity)
    with pytest.raises(StoreError, match="lamella build"):
        Engine.open(empty, None, OPTIONS)


def test_options_have_ranges() -> None:
    with pytest.raises(InvalidRequest):
        EngineOptions(n_warm=0)


def test_a_closed_engine_refuses_instead_of_reading_freed_memory(store: Store) -> None:
    engine = Engine.open(store, "large", OPTIONS)
    generation = engine.generate(PROMPT, max_tokens=5, sampling=GREEDY)
    next(generation)
    engine.close()
    engine.close()
    with pytest.raises(EngineFailed, match="closed"):
        next(generation)
    for use in (
        lambda: engine.switch("small"),
        lambda: engine.prepare("small"),
        lambda: engine.tokenize("x"),
        lambda: engine.generate("x"),
        lambda: engine.logits([1]),
    ):
        with pytest.raises(EngineFailed, match="closed"):
            use()


def test_closing_while_others_switch_ends_in_our_own_error(store: Store) -> None:
    engine = Engine.open(store, "large", replace(OPTIONS, n_warm=1, check=True))
    errors: list[BaseException] = []

    def flip() -> None:
        try:
            while True:
                for name in ("small", "middle"):
                    engine.switch(name)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=flip) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    engine.close()
    for thread in threads:
        thread.join(timeout=30)
    assert [type(e) for e in errors] == [EngineFailed, EngineFailed]


def test_a_new_generation_ends_the_old_one(engine: Engine) -> None:
    old = engine.generate(PROMPT, max_tokens=5, sampling=GREEDY)
    next(old)
    expected = ids_of(engine, "another prompt")
    with pytest.raises(InvalidRequest, match="another generation"):
        next(old)
    assert ids_of(engine, "another prompt") == expected
