"""Embeddings in the engine loop: between the steps of streams, ended early, and by the variant that runs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lamella.batching.messages import (
    Cancel,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Refused,
    Step,
    Tokenize,
    Tokenized,
)
from tests.batching.conftest import FakeFront, OpenFront

MANY: list[str | list[int]] = [f"text number {i} of many" for i in range(600)]


def vectors_of(front: FakeFront, number: int) -> NDArray[np.float64]:
    answer = front.wait(lambda m: isinstance(m, Embedded | Refused) and m.id == number)
    assert isinstance(answer, Embedded), answer
    return np.array(answer.vectors)


def test_a_stream_goes_on_while_many_texts_are_embedded(open_front: OpenFront) -> None:
    with open_front(pooling="mean") as front:
        with front.at_once():
            front.tell(Embed(id=900, inputs=MANY))
            number = front.start("once upon a time", max_tokens=20)
        together = vectors_of(front, 900)
        front.end_of(number)
        answered = next(i for i, m in enumerate(front.told) if isinstance(m, Embedded))
        n_steps_before = sum(isinstance(m, Step) for m in front.told[:answered])
        assert n_steps_before == 20
        front.tell(Embed(id=901, inputs=[MANY[-1]]))
        np.testing.assert_allclose(
            vectors_of(front, 901)[0], together[-1], atol=0.01
        )  # a pass of another size rounds otherwise
        assert together.shape[0] == len(MANY)


def test_what_nobody_waits_for_is_not_embedded(open_front: OpenFront) -> None:
    with open_front(pooling="mean") as front:
        front.tell(Embed(id=900, inputs=MANY * 20))
        front.tell(Cancel(id=900))
        front.tell(Embed(id=901, inputs=MANY[:1]))
        vectors_of(front, 901)
        assert not any(isinstance(m, Embedded) and m.id == 900 for m in front.told)


def test_embeddings_are_of_the_variant_that_runs_whatever_others_ask_for(open_front: OpenFront) -> None:
    expected = {}
    for variant in ("int8", "int4"):
        with open_front(variant=variant, pooling="mean") as pinned:
            pinned.tell(Embed(id=900, inputs=MANY[:3]))
            expected[variant] = vectors_of(pinned, 900)
    assert not np.allclose(expected["int8"], expected["int4"], atol=1e-3)
    with open_front(pooling="mean") as front:
        front.write("a b", variant="int4")
        front.tell(Embed(id=900, inputs=MANY[:3]))
        np.testing.assert_allclose(vectors_of(front, 900), expected["int8"], atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "inputs", "why"),
    [
        ("mean", ["a" * 500], "context_length"),
        ("mean", [[]], "invalid"),
        ("mean", [[10**6]], "invalid"),
        ("off", ["a"], "no_embeddings"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    open_front: OpenFront, pooling: str, inputs: list[str | list[int]], why: str
) -> None:
    with open_front(pooling=pooling) as front:
        front.tell(Embed(id=900, inputs=inputs))
        refused = front.wait(lambda m: isinstance(m, Embedded | Refused))
        assert (refused.id, refused.why) == (900, why)


def test_an_input_may_be_as_long_as_the_server_takes(open_front: OpenFront) -> None:
    with open_front(pooling="mean") as front:
        front.tell(Embed(id=900, inputs=["a", [5] * 20], most_tokens=20))
        assert vectors_of(front, 900).shape[0] == 2
        front.tell(Embed(id=901, inputs=["a", [5] * 21], most_tokens=20))
        refused = front.wait(lambda m: isinstance(m, Refused))
        assert (refused.id, refused.why) == (901, "context_length")
        assert "Input 1 is longer than the 20 tokens" in refused.message


@pytest.mark.parametrize(("asked", "most"), [(None, 128), (20, 20), (1280, 128)])
def test_a_text_may_be_longer_than_a_prompt_but_not_endless(front: FakeFront, asked: int | None, most: int) -> None:
    front.tell(Tokenize(id=900, text="a" * (512 * most + 511), most_tokens=asked))
    assert len(front.wait(lambda m: isinstance(m, Tokenized)).tokens) > most
    front.tell(Tokenize(id=901, text="a" * (512 * most + 512), most_tokens=asked))
    refused = front.wait(lambda m: isinstance(m, Refused))
    assert (refused.id, refused.why) == (901, "context_length")
    assert refused.message == f"The text has at least {most + 1} tokens, and this server takes at most {most} of one."


def test_texts_become_tokens_and_back(front: FakeFront) -> None:
    front.tell(Tokenize(id=900, text="Hello there"))
    tokens = front.wait(lambda m: isinstance(m, Tokenized)).tokens
    front.tell(Tokenize(id=901, text="Hello there", add_special=False))
    assert tokens == [1, *front.wait(lambda m: isinstance(m, Tokenized) and m.id == 901).tokens]
    front.tell(Detokenize(id=902, tokens=tokens))
    assert front.wait(lambda m: isinstance(m, Detokenized)).text == "<s> Hello there"
    front.tell(Detokenize(id=903, tokens=[10**6]))
    assert front.wait(lambda m: isinstance(m, Refused)).why == "invalid"
    assert (front.loop.hello().bos_token, front.loop.hello().eos_token) == ("<s>", "</s>")
