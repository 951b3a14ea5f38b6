"""Handles own what they hold, refuse what llama.cpp would abort on, and pass errors on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model
from lamella.llama.sampling import Sampler, SamplingOptions

SMALL = ContextOptions(n_ctx=64, n_batch=32, n_threads=1)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Iterator[Model]:
    with Model.load([tiny]) as loaded:
        yield loaded


def test_a_thousand_contexts_leave_nothing_behind(model: Model) -> None:
    def cycle(n: int) -> int:
        for _ in range(n):
            with Context(model, SMALL) as context:
                context.decode([1, 2, 3], 0)
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    cycle(100)  # warm up allocator and thread pools
    before = cycle(1)
    assert cycle(1000) - before < 4 << 20  # a context of this size takes more than 1 MiB


def test_closing_twice_is_harmless(tiny: Path) -> None:
    model = Model.load([tiny])
    context = Context(model, SMALL)
    for _ in range(2):
        context.close()
        model.close()


def test_a_file_that_llama_cpp_refuses_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineFailed, match=r"bad\.gguf"):
        Model.load([path])


def test_a_full_cache_says_how_large_it_is(model: Model) -> None:
    with Context(model, SMALL) as context:
        n_cells = 256  # llama.cpp rounds the cache up to this
        with pytest.raises(EngineFailed, match="64"):
            context.decode([1] * (n_cells + 32), 0)


def test_more_outputs_than_asked_for_are_refused(model: Model) -> None:
    with Context(model, SMALL) as context, pytest.raises(InvalidRequest, match="4 tokens asked, the context keeps 1"):
        context.decode([1, 2, 3, 4], 0, n_outputs=4)


@pytest.mark.parametrize("wrong", [{"n_ctx": 0}, {"n_batch": 0}, {"n_sequences": 0}, {"kv_type": "Q3_K"}])
def test_context_options_have_ranges(wrong: dict[str, int | str]) -> None:
    with pytest.raises(InvalidRequest):
        ContextOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"min_p": 1.5}, {"top_k": -1},
     {"repeat_penalty": 0.0}],
)  # fmt: skip
def test_sampling_options_have_ranges(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        SamplingOptions(**wrong)  # type: ignore[arg-type]


def test_batches_give_what_one_pass_gives(model: Model) -> None:
    tokens = [1, *range(10, 50)]
    wide = ContextOptions(n_ctx=64, n_batch=64, n_threads=1)
    narrow = ContextOptions(n_ctx=64, n_batch=7, n_threads=1)
    logits = []
    for options in (wide, narrow):
        with Context(model, options) as context:
            context.decode(tokens, 0)
            logits.append(context.logits().copy())
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-2)
    assert logits[0].argmax() == logits[1].argmax()


def test_forgetting_brings_back_the_state_before(model: Model) -> None:
    with Context(model, SMALL) as context:
        context.decode([1, 20, 30], 0)
        context.decode([40], 3)
        expected = context.logits().copy()
        context.decode([41, 42], 4)
        context.forget(start=3)
        context.decode([40], 3)
        assert np.array_equal(context.logits(), expected)


def test_temperature_zero_takes_the_most_likely(model: Model) -> None:
    with Context(model, SMALL) as context, Sampler(SamplingOptions(temperature=0), model.vocabulary) as sampler:
        context.decode([1, 20, 30], 0)
        assert sampler.sample(context) == context.logits().argmax()


def test_equal_seeds_draw_equal_tokens(model: Model) -> None:
    def draw(seed: int) -> list[int]:
        with Context(model, SMALL) as context:
            context.decode([1, 20, 30], 0)
            with Sampler(SamplingOptions(temperature=2.0, top_k=0, top_p=1, min_p=0, seed=seed), model.vocabulary) as s:
                return [s.sample(context) for _ in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_tokens_make_their_text_again(model: Model) -> None:
    vocabulary = model.vocabulary
    text = "hello wörld 🙂"
    assert vocabulary.text(vocabulary.tokenize(text, add_special=False)).strip() == text


def test_an_observer_sees_the_nodes_it_wants(model: Model) -> None:
    seen: dict[str, NDArray[np.float32]] = {}
    options = ContextOptions(n_ctx=64, n_batch=32, n_outputs=32, n_threads=1)
    with Context(model, options, wants=lambda n: n.startswith("l_out-"), observe=seen.__setitem__) as context:
        context.decode([1, 2, 3, 4], 0, n_outputs=4)
    assert sorted(seen) == ["l_out-0", "l_out-1", "l_out-2"]
    assert all(values.shape == (4, 256) for values in seen.values())
    assert not np.array_equal(seen["l_out-0"], seen["l_out-1"])


def test_an_observers_error_comes_out_of_decode(model: Model) -> None:
    def fail(name: str, _: NDArray[np.float32]) -> None:
        raise RuntimeError(f"no {name} please")

    context = Context(model, SMALL, wants=lambda n: n == "l_out-1", observe=fail)
    with context, pytest.raises(RuntimeError, match="no l_out-1 please"):
        context.decode([1, 2], 0)
