"""Tokens are drawn as asked, and again the same from a state that was replayed."""

from __future__ import annotations

import ctypes as ct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest
from lamella.llama import guide, library
from lamella.llama.adjusting import Adjustments
from lamella.llama.candidates import Candidates
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model
from lamella.llama.sampling import Sampler, SamplingOptions

UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

SMALL = ContextOptions(n_ctx=64, n_batch=32, n_threads=1)
EVEN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
WORDS = 'root ::= ("ab" | "ac" | [x-z]+ ".")+'


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    """Has the logits of a few tokens."""
    with Context(model, SMALL) as made:
        made.decode([1, 20, 30], 0)
        yield made


def draw(context: Context, n: int, options: SamplingOptions) -> list[int]:
    with Sampler(options, context.model.vocabulary) as sampler:
        return [sampler.sample(context) for _ in range(n)]


def text_of(context: Context, tokens: list[int]) -> str:
    return context.model.vocabulary.text(tokens)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 0.0},
     {"min_p": 1.5}, {"top_k": -1}, {"repeat_penalty": 0.0}, {"frequency_penalty": 2.1}, {"presence_penalty": -2.1},
     {"logit_bias": {3: float("nan")}}, {"logit_bias": {3: float("inf")}}],
)  # fmt: skip
def test_sampling_options_have_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        SamplingOptions(**wrong)


def test_sampling_options_are_values() -> None:
    bias = {3: 1.0}
    options = SamplingOptions(logit_bias=bias)
    bias[3] = 2.0
    assert options == SamplingOptions(logit_bias={3: 1.0})
    assert hash(options) == hash(SamplingOptions(logit_bias={3: 1.0}))


def test_temperature_zero_takes_the_most_likely(context: Context) -> None:
    assert draw(context, 1, SamplingOptions(temperature=0)) == [context.logits().argmax()]


@pytest.mark.parametrize("seed", [7, -1, 0xFFFFFFFF, 1 << 63])
def test_equal_seeds_draw_equal_tokens(context: Context, seed: int) -> None:
    def drawn(seed: int) -> list[int]:
        return draw(context, 20, SamplingOptions(temperature=2.0, seed=seed, **EVEN))  # type: ignore[arg-type]

    assert drawn(seed) == drawn(seed)
    assert drawn(seed) != drawn(seed + 1)


def test_bias_forbids_and_forces(context: Context) -> None:
    best = int(context.logits().argmax())
    for temperature in (0.0, 1.0):
        assert draw(context, 5, SamplingOptions(temperature=temperature, logit_bias={9: 99.0})) == [9] * 5
        forbidden = SamplingOptions(temperature=temperature, logit_bias={best: -100.0})
        assert best not in draw(context, 50, forbidden)
    with pytest.raises(InvalidRequest, match="logit bias for token 99999"):
        Sampler(SamplingOptions(logit_bias={99999: 1.0}), context.model.vocabulary)
    with pytest.raises(InvalidRequest, match="logit bias for token -1"):
        Sampler(SamplingOptions(logit_bias={-1: 1.0}), context.model.vocabulary)


def test_logits_are_the_models_own_after_a_draw(context: Context) -> None:
    before = context.logits().copy()
    options = SamplingOptions(logit_bias={9: 5.0, 20: -100}, repeat_penalty=1.5, frequency_penalty=1.0)
    draw(context, 10, options)
    np.testing.assert_array_equal(context.logits(), before)


def test_penalties_keep_from_saying_it_again(context: Context) -> None:
    logits = {9: 30.0, 10: 29.0, 11: 27.5}
    bias = {token: float(logit - context.logits()[token]) for token, logit in logits.items()}
    base = {"temperature": 0.0, "logit_bias": bias, **EVEN}

    def most(**penalty: float) -> Counter[int]:
        return Counter(draw(context, 30, SamplingOptions(**base, **penalty)))  # type: ignore[arg-type]

    assert most()[9] > most(presence_penalty=2.0)[9]
    assert len(most(frequency_penalty=2.0)) >= 3
    assert max(most(frequency_penalty=2.0).values()) < 20


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 40), max_size=100),
    repeat=st.floats(0.5, 2),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
    seed=st.integers(0, 99),
)
def test_penalties_are_those_of_llama_cpp(
    tokens: list[int], repeat: float, frequency: float, presence: float, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, 5, 41).astype(np.float32)
    llama = library.load().llama
    candidates = Candidates(np.arange(41), logits)
    for window, penalties in ((64, (repeat, 0.0, 0.0)), (1000, (1.0, frequency, presence))):
        sampler = llama.llama_sampler_init_penalties(41, window, *penalties)
        for token in tokens:
            llama.llama_sampler_accept(sampler, token)
        llama.llama_sampler_apply(sampler, ct.byref(candidates.struct))
        llama.llama_sampler_free(sampler)
    wishes = SamplingOptions(repeat_penalty=repeat, frequency_penalty=frequency, presence_penalty=presence)
    adjustments = Adjustments(wishes, 41)
    for token in tokens:
        adjustments.note(token)
    with adjustments.applied(logits):
        np.testing.assert_allclose(logits, candidates.logits, rtol=1e-5, atol=1e-5)


def test_a_grammar_is_followed_to_its_end(context: Context) -> None:
    vocabulary = context.model.vocabulary
    for temperature in (0.0, 5.0):
        tokens = draw(context, 8, SamplingOptions(temperature=temperature, grammar='root ::= "yes" | "no"', **EVEN))  # type: ignore[arg-type]
        end = next(i for i, token in enumerate(tokens) if vocabulary.ends_generation(token))
        assert text_of(context, tokens[:end]) in ("yes", "no")
        assert all(map(vocabulary.ends_generation, tokens[end:]))  # nothing else may follow


def test_a_grammar_leaves_the_choice_to_the_model(context: Context) -> None:
    """Among what the grammar allows, tokens come as often as their probabilities say."""
    vocabulary = context.model.vocabulary
    a, b = (next(t for t in range(vocabulary.n_tokens) if vocabulary.piece(t) == p and t > 258) for p in (b"a", b"b"))
    logits = context.logits()
    bias = {a: float(5 - logits[a]), b: float(4 - logits[b])}  # odds e to 1
    options = SamplingOptions(temperature=1.0, logit_bias=bias, grammar="root ::= [ab]*", seed=3, **EVEN)  # type: ignore[arg-type]
    drawn = [t for t in draw(context, 2000, options) if t in (a, b)]
    assert len(drawn) > 500
    assert drawn.count(a) / len(drawn) == pytest.approx(np.e / (1 + np.e), abs=0.05)


def test_a_grammar_without_a_fitting_token_is_refused_where_it_happens(context: Context) -> None:
    vocabulary = context.model.vocabulary
    nothing = dict.fromkeys(range(vocabulary.n_tokens), -100.0)
    options = SamplingOptions(grammar='root ::= "a"', logit_bias=nothing)
    with Sampler(options, vocabulary) as sampler, pytest.raises(InvalidRequest, match="allows no token"):
        sampler.sample(context)


def test_a_grammar_that_gets_slow_is_given_up(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "MOST_SECONDS", -1.0)
    sampler = Sampler(SamplingOptions(grammar=WORDS), context.model.vocabulary)
    with sampler, pytest.raises(InvalidRequest, match="too ambiguous to follow"):
        sampler.sample(context)


OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    top_k=st.sampled_from([0, 5, 40]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.05]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    presence_penalty=st.sampled_from([0.0, -0.5]),
    seed=st.integers(0, 1 << 40),
    logit_bias=st.dictionaries(st.integers(259, 300), st.floats(-3, 3), max_size=3),
    grammar=st.sampled_from([None, WORDS]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=UNCHECKED)
@given(options=OPTIONS, n_before=st.integers(0, 90))
def test_a_replayed_sampler_goes_on_as_the_one_that_drew(
    context: Context, options: SamplingOptions, n_before: int
) -> None:
    vocabulary = context.model.vocabulary
    with Sampler(options, vocabulary) as first, Sampler(options, vocabulary) as second:
        second.replay([first.sample(context) for _ in range(n_before)])
        assert [first.sample(context) for _ in range(12)] == [second.sample(context) for _ in range(12)]


def test_a_replay_against_the_grammar_is_refused(context: Context) -> None:
    vocabulary = context.model.vocabulary
    for tokens in (vocabulary.tokenize("q", add_special=False), [vocabulary.eos], [99999], [-1]):
        with Sampler(SamplingOptions(grammar=WORDS), vocabulary) as sampler, pytest.raises(InvalidRequest):
            sampler.replay(tokens)
