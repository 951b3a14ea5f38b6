"""Tokens are drawn as asked, and again the same from a state that was replayed."""

from __future__ import annotations

import pytest

from lamella.core.errors import InvalidRequest
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model
from lamella.llama.sampling import Sampler, SamplingOptions

SMALL = ContextOptions(n_ctx=64, n_batch=32, n_threads=1)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"min_p": 1.5}, {"top_k": -1},
     {"repeat_penalty": 0.0}],
)  # fmt: skip
def test_sampling_options_have_ranges(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        SamplingOptions(**wrong)  # type: ignore[arg-type]


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
