"""Embeddings are pooled states of the model, the same alone and in company."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from lamella.core.errors import InvalidRequest
from lamella.llama.context import Context, ContextOptions
from lamella.llama.embeddings import Embedder, Pooling
from lamella.llama.model import Model
from tests.fakes.tiny_model import write_tiny_model

TEXTS = [[1, *range(20, 30)], [1, 40], [1, *range(50, 62)], [1]]


def states(model: Model, tokens: list[int]) -> NDArray[np.float32]:
    """The last states of all tokens."""
    seen: dict[str, NDArray[np.float32]] = {}
    options = ContextOptions(n_ctx=64, n_outputs=64, n_threads=1)
    with Context(model, options, wants=lambda n: n == "result_norm", observe=seen.__setitem__) as context:
        context.decode(tokens, 0, n_outputs=len(tokens))
    return seen["result_norm"]


@pytest.mark.parametrize(("pooling", "rows"), [("mean", slice(None)), ("cls", slice(1)), ("last", slice(-1, None))])
def test_a_vector_is_made_of_the_states_as_asked(model: Model, pooling: Pooling, rows: slice) -> None:
    with Embedder(model, pooling, n_ctx=64, n_threads=1) as embedder:
        vectors = embedder.embed(TEXTS)
    assert vectors.shape == (4, 256)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    for vector, tokens in zip(vectors, TEXTS, strict=True):
        expected = states(model, tokens)[rows].mean(axis=0)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-3)


def test_company_does_not_matter(model: Model) -> None:
    many = [TEXTS[i % 4] for i in range(40)]  # more than go together, by number and by tokens
    with Embedder(model, "mean", n_ctx=16, n_threads=1) as embedder:
        together = embedder.embed(many)
        alone = np.concatenate([embedder.embed([tokens]) for tokens in many[:4]])
        assert embedder.embed([]).shape == (0, 256)
    np.testing.assert_allclose(together, np.tile(alone, (10, 1)), atol=2e-3)


def test_a_context_for_single_tokens_works(model: Model) -> None:
    with Embedder(model, "last", n_ctx=1, n_threads=1) as embedder:
        assert embedder.embed([[5]] * 20).shape == (20, 256)


def test_the_model_file_may_say_how(model: Model, tmp_path: Path) -> None:
    with Model.load([write_tiny_model(tmp_path / "mean.gguf", pooling=gguf.PoolingType.MEAN)]) as pooled:
        assert pooled.has_pooling
        with Embedder(pooled, "auto", n_threads=1) as own, Embedder(pooled, "mean", n_threads=1) as mean:
            np.testing.assert_array_equal(own.embed(TEXTS), mean.embed(TEXTS))
        with Embedder(pooled, "last", n_threads=1) as last:
            assert not np.allclose(last.embed(TEXTS[:1]), own_vectors(pooled), atol=1e-2)
    with Model.load([write_tiny_model(tmp_path / "none.gguf", pooling=gguf.PoolingType.NONE)]) as none:
        assert not none.has_pooling
    assert not model.has_pooling
    with pytest.raises(InvalidRequest, match="this model has none; start with pooling mean, cls or last"):
        Embedder(model, "auto")


def own_vectors(model: Model) -> NDArray[np.float32]:
    with Embedder(model, "auto", n_threads=1) as embedder:
        return embedder.embed(TEXTS[:1])


def test_inputs_have_bounds(model: Model) -> None:
    with pytest.raises(InvalidRequest, match="'max' is no pooling"):
        Embedder(model, "max")  # type: ignore[arg-type]
    with Embedder(model, "mean", n_ctx=8, n_threads=1) as embedder:
        for wrong, message in (
            ([], "0 tokens"),
            ([1] * 9, "9 tokens; 1 to 8"),
            ([1, 99999], "outside"),
            ([-1], "outside"),
        ):
            with pytest.raises(InvalidRequest, match=f"input 1 .*{message}"):
                embedder.embed([[1], wrong])
