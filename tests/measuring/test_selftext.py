"""Text that the model writes itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lamella.llama.gguf import read_model
from lamella.llama.model import Model
from lamella.llama.vocabulary import Vocabulary
from lamella.measuring.selftext import MAX_RESTARTS, SIDE_BY_SIDE, draw, hash_samples, write_samples
from tests.fakes.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    with Model.load(read_model(path).paths) as model:
        yield model


def test_draw_takes_each_token_as_often_as_its_probability_says() -> None:
    logits = np.log(np.array([0.1, 0.0, 0.6, 0.3], np.float32) + np.float32(1e-30))
    drawn = [draw(logits, (i + 0.5) / 1000) for i in range(1000)]
    assert [drawn.count(token) for token in range(4)] == [100, 0, 600, 300]


@pytest.mark.parametrize("chance", [0.0, 1 - 2**-53])
def test_draw_stays_inside_the_vocabulary(chance: float) -> None:
    assert draw(np.zeros(5, np.float32), chance) in (0, 4)


def test_samples_have_the_asked_length_and_start_with_the_first_token(model: Model) -> None:
    n_samples = SIDE_BY_SIDE + 3
    counted: list[int] = []
    samples = write_samples(model, n_samples, 8, 0, on_tokens=counted.append)
    assert [len(s) for s in samples] == [8] * n_samples
    assert {s[0] for s in samples} == {model.vocabulary.bos}
    assert len(set(samples)) == n_samples  # no two alike
    assert counted == sorted(counted)
    assert counted[-1] == n_samples * 8


def test_equal_seeds_write_equal_text_and_other_seeds_other_text(model: Model) -> None:
    first, again, other = (write_samples(model, 3, 12, seed) for seed in (5, 5, 6))
    assert first == again
    assert hash_samples(first) == hash_samples(again)
    assert first != other
    assert hash_samples(first) != hash_samples(other)


def test_samples_written_side_by_side_equal_samples_written_alone(model: Model) -> None:
    """Neighbours in a batch must not see each other's tokens."""
    assert write_samples(model, 4, 10, 1)[0] == write_samples(model, 2, 10, 1)[0]


def test_an_ended_text_starts_anew_but_not_for_ever(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def always(_: Vocabulary, token: int) -> bool:
        calls.append(token)
        return True

    monkeypatch.setattr(Vocabulary, "ends_generation", always)
    (sample, _) = write_samples(model, 2, 6, 0)
    assert len(sample) == 6
    assert len(calls) == 2 * (MAX_RESTARTS + 5)
