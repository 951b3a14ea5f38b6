"""Contexts free what they hold, refuse what llama.cpp would abort on, and keep sequences apart."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from lamella.core.errors import CacheFull, EngineFailed, InvalidRequest
from lamella.llama.batch import BatchPart
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model

SMALL = ContextOptions(n_ctx=64, n_batch=32, n_threads=1)


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
        with pytest.raises(EngineFailed, match="this context was closed"):
            context.clear()
        with pytest.raises(EngineFailed, match="this model was closed"):
            Context(model, SMALL)


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


PROMPT = [1, *range(20, 50)]
MANY = ContextOptions(n_ctx=64, n_sequences=4, n_batch=64, n_threads=1)


def logits_alone(model: Model, tokens: list[int], n_first: int) -> NDArray[np.float32]:
    """Logits after ``tokens`` in a context of their own, read as a prompt of ``n_first`` and single tokens."""
    with Context(model, MANY) as context:
        context.decode(tokens[:n_first], 0)
        for position in range(n_first, len(tokens)):
            context.decode(tokens[position : position + 1], position)
        return context.logits().copy()


def test_parts_of_several_sequences_give_what_each_gives_alone(model: Model) -> None:
    with Context(model, MANY) as context:
        context.decode(PROMPT[:10], 0, sequence=2, n_outputs=0)
        first = context.decode_parts(
            [BatchPart(2, 10, PROMPT[10:11], 1), BatchPart(0, 0, PROMPT[:5], 2), BatchPart(3, 0, [7, 8, 9], 0)]
        )
        assert first == (0, 1, 6)
        found = [context.logits(i).copy() for i in (0, 4, 5)]
        with pytest.raises(EngineFailed, match="no logits at index 8"):
            context.logits(8)
        context.decode_parts([BatchPart(3, 3, [10], 1)])
        found.append(context.logits(0).copy())
    for logits, tokens in zip(found, (PROMPT[:11], PROMPT[:4], PROMPT[:5], [7, 8, 9, 10]), strict=True):
        np.testing.assert_allclose(logits, logits_alone(model, tokens, len(tokens)), atol=1e-2)


def test_a_pass_takes_no_more_than_the_context_was_made_for(model: Model) -> None:
    with Context(model, MANY) as context:
        with pytest.raises(InvalidRequest, match="65 tokens in one pass, the context takes 1 to 64"):
            context.decode_parts([BatchPart(0, 0, [1] * 33, 0), BatchPart(1, 0, [1] * 32, 0)])
        with pytest.raises(InvalidRequest, match="0 tokens"):
            context.decode_parts([])
        with pytest.raises(InvalidRequest, match="5 tokens asked, the context keeps 4"):
            context.decode_parts([BatchPart(0, 0, [1] * 9, 5)])


def test_a_full_cache_keeps_what_it_had(model: Model) -> None:
    options = ContextOptions(n_ctx=256, n_cells=256, n_sequences=4, n_batch=250, n_threads=1)
    with Context(model, options) as context:
        context.decode(PROMPT, 0)
        context.decode([50], len(PROMPT))
        before = context.logits().copy()
        with pytest.raises(CacheFull, match="256 tokens"):
            context.decode_parts([BatchPart(1, 0, [5] * 240, 0), BatchPart(2, 0, [5], 1)])
        assert np.array_equal(context.logits(0), before)
        context.forget(start=len(PROMPT))
        context.decode([50], len(PROMPT))
        assert np.array_equal(context.logits(), before)
        context.decode_parts([BatchPart(1, 0, [5] * 200, 1)])  # what was refused has left nothing behind


def test_cells_are_shared_by_sequences(model: Model) -> None:
    assert ContextOptions(n_ctx=64, n_sequences=4).cells == 256
    with pytest.raises(InvalidRequest, match="at least n_ctx"):
        ContextOptions(n_ctx=64, n_cells=32)
    with Context(model, ContextOptions(n_ctx=512, n_cells=512, n_sequences=8, n_batch=300, n_threads=1)) as context:
        context.decode([1] * 300, 0, sequence=0)
        context.decode([1] * 200, 0, sequence=1)
        with pytest.raises(CacheFull):
            context.decode([1] * 13, 0, sequence=2)
        context.forget(0)
        context.decode([1] * 300, 0, sequence=2)


def test_a_saved_sequence_comes_back_elsewhere_bit_for_bit(model: Model) -> None:
    with Context(model, MANY) as context:
        context.decode(PROMPT, 0, sequence=1)
        context.decode([60], len(PROMPT), sequence=1)
        expected = context.logits().copy()
        context.forget(1, len(PROMPT))
        state = context.save_sequence(1)
        context.forget(1)
        context.decode([1, 90, 91], 0, sequence=0)
        context.restore_sequence(3, state)
        context.decode([60], len(PROMPT), sequence=3)
        np.testing.assert_array_equal(context.logits(), expected)


def test_a_saved_sequence_goes_only_where_it_fits(model: Model) -> None:
    options = ContextOptions(n_ctx=256, n_cells=256, n_sequences=4, n_batch=240, n_threads=1)
    with Context(model, options) as context:
        context.decode(PROMPT, 0)
        state = context.save_sequence(0)
        context.decode([1] * 220, 0, sequence=1)
        with pytest.raises(CacheFull, match="256 tokens"):
            context.restore_sequence(2, state)
        context.decode([5] * 5, 0, sequence=2)  # empty, and nothing was lost to it
        context.forget(0)
        context.restore_sequence(2, state)


def test_a_saved_sequence_goes_only_into_its_own_kind_of_context(model: Model) -> None:
    with Context(model, SMALL) as context:
        context.decode(PROMPT, 0)
        state = context.save_sequence(0)
        context.decode([60], len(PROMPT))
        expected = context.logits().copy()
        for refused in (b"", b"junk", state[:40], state[:-1], state[1:], bytes(state) + b"x"):
            with pytest.raises(EngineFailed, match="not saved by a context of this model") as caught:
                context.restore_sequence(0, refused)
            assert not isinstance(caught.value, CacheFull)
        context.forget(start=len(PROMPT))
        context.decode([60], len(PROMPT))
        assert np.array_equal(context.logits(), expected)  # what was there has not been dropped
    with Context(model, ContextOptions(n_ctx=64, kv_type="Q8_0", n_threads=1)) as other, pytest.raises(EngineFailed):
        other.restore_sequence(0, state)


def test_a_copied_prefix_continues_as_its_own(model: Model) -> None:
    with Context(model, MANY) as context:
        context.decode(PROMPT, 0, sequence=0)
        context.decode([1] * 20, 0, sequence=1)
        context.copy_prefix(0, 1, 20)
        context.decode_parts([BatchPart(0, len(PROMPT), [70], 1), BatchPart(1, 20, [80], 1)])
        longer, shorter = context.logits(0).copy(), context.logits(1).copy()
        context.forget(0)
        context.decode([81], 21, sequence=1)
        after = context.logits().copy()
    np.testing.assert_allclose(longer, logits_alone(model, [*PROMPT, 70], len(PROMPT)), atol=1e-2)
    np.testing.assert_allclose(shorter, logits_alone(model, [*PROMPT[:20], 80], 20), atol=1e-2)
    np.testing.assert_allclose(after, logits_alone(model, [*PROMPT[:20], 80, 81], 20), atol=1e-2)


def test_a_copied_prefix_takes_no_room(model: Model) -> None:
    options = ContextOptions(n_ctx=256, n_cells=256, n_sequences=4, n_batch=200, n_threads=1)
    with Context(model, options) as context:
        context.decode([1] * 200, 0, sequence=0)
        for target in (1, 2, 3):
            context.copy_prefix(0, target, 200)
        context.decode_parts([BatchPart(i, 200, [5] * 14, 0) for i in range(4)])
        with pytest.raises(CacheFull):
            context.decode([5], 214)


def test_clear_forgets_every_sequence(model: Model) -> None:
    with Context(model, MANY) as context:
        for sequence in range(4):
            context.decode([1] * 64, 0, sequence=sequence)
        context.clear()
        context.decode(PROMPT, 0, sequence=2)
        np.testing.assert_array_equal(context.logits(), logits_alone(model, PROMPT, len(PROMPT)))
