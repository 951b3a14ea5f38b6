"""Top-k token sets and their distance (LSAQ eq. 1-3)."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lamella.core.errors import InvalidRequest
from lamella.llama.gguf import read_model
from lamella.measuring import tokensets
from lamella.measuring.rows import read_rows
from lamella.measuring.tokensets import BestTokens, check_embedding, jaccard_distance, top_tokens
from tests.fakes.tiny_model import write_tiny_model


@given(st.data())
def test_best_tokens_over_pieces_equal_a_full_sort(data: st.DataObject) -> None:
    n_states, n_tokens = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 60))
    k = data.draw(st.integers(1, n_tokens))
    few_values = st.integers(-3, 3).map(float)  # many ties
    scores = data.draw(arrays(np.float32, (n_states, n_tokens), elements=few_values))
    cuts = sorted(data.draw(st.sets(st.integers(1, n_tokens), max_size=5)) | {0, n_tokens})

    best = BestTokens(n_states, k)
    for first, end in itertools.pairwise(cuts):
        best.add(scores[:, first:end], first)

    assert best.tokens.tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :k].tolist()


def test_distance_of_sets() -> None:
    before = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    after = np.array([[4, 3, 2, 1], [5, 6, 7, 8], [9, 8, 1, 2]])
    assert jaccard_distance(before, after).tolist() == pytest.approx([0, 1, 1 - 2 / 6])


@given(st.sets(st.integers(0, 30), min_size=6, max_size=6), st.sets(st.integers(0, 30), min_size=6, max_size=6))
def test_distance_is_one_minus_intersection_over_union(before: set[int], after: set[int]) -> None:
    found = jaccard_distance(np.array([list(before)]), np.array([list(after)]))
    assert found[0] == pytest.approx(1 - len(before & after) / len(before | after))


def test_projection_by_pieces_equals_one_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_file = read_model(write_tiny_model(tmp_path / "tiny.gguf"))
    embedding = check_embedding(model_file, 5)
    matrix = read_rows(embedding, 0, embedding.spec.n_rows)
    states = np.random.default_rng(0).standard_normal((7, matrix.shape[1]), np.float32)
    monkeypatch.setattr(tokensets, "PIECE_BYTES", 4 * matrix.shape[1] * 11)  # eleven rows at a time
    seen: list[int] = []
    found = top_tokens(states, embedding, 5, seen.append)
    assert found.tolist() == np.argsort(-(states @ matrix.T), axis=1)[:, :5].tolist()
    assert seen[0] == 11
    assert seen[-1] == embedding.spec.n_rows


@pytest.mark.parametrize("k", [0, 10**6])
def test_k_beyond_the_vocabulary_is_refused(tmp_path: Path, k: int) -> None:
    model_file = read_model(write_tiny_model(tmp_path / "tiny.gguf"))
    with pytest.raises(InvalidRequest, match="tokens of the vocabulary"):
        check_embedding(model_file, k)
