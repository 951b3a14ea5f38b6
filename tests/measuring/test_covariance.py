"""Covariances: those of the inputs that another observer sees; inputs that are one are gathered once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lamella.core.errors import InvalidRequest
from lamella.llama.context import Context, ContextOptions
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.model import Model
from lamella.measuring import ImportanceSettings, covariance_text, gather_covariances, gather_importance
from lamella.measuring import parse_calibration as parse
from tests.fakes.tiny_model import write_tiny_model

TEXT = "The quick brown fox jumps over the lazy dog, and 12 more (or 13?) follow; then nothing happens. " * 8
SETTINGS = ImportanceSettings(window_tokens=96, windows=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return read_model(write_tiny_model(tmp_path_factory.mktemp("covariance") / "tiny.gguf"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def test_covariances_are_those_of_the_normed_states(model: ModelFile, text: Path) -> None:
    found = gather_covariances(model, covariance_text([parse(str(text))], SETTINGS), [1])
    seen: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]] = {}
    wanted = {"attn_norm-1": "attn_q", "ffn_norm-1": "ffn_up", "ffn_swiglu-1": "ffn_down"}
    options = ContextOptions(96, n_batch=96, n_outputs=96)
    with (
        Model.load(model.paths) as loaded,
        Context(
            loaded,
            options,
            wants=wanted.__contains__,
            observe=lambda name, values: seen.setdefault(wanted[name], []).append(values),
        ) as context,
    ):
        tokens, bos = loaded.vocabulary.tokenize(TEXT, parse_special=False), loaded.vocabulary.bos
        for window in (tokens[:96], [bos, *tokens[97:192]]):
            context.forget()
            context.decode(window, 0, n_outputs=96)
    for part, values in seen.items():
        inputs = np.concatenate(values).astype(np.float64)
        np.testing.assert_allclose(found[f"blk.1.{part}.weight"], inputs.T @ inputs / 192, rtol=1e-3, atol=1e-5)


def test_every_matrix_of_the_layers_is_there_and_equal_inputs_share_an_array(model: ModelFile, text: Path) -> None:
    found = gather_covariances(model, covariance_text([parse(str(text))], SETTINGS), [0, 2])
    assert set(found) == {t.name for i in (0, 2) for t in model.spec.layers[i].matrices}
    for i in (0, 2):
        q, k, v, o, gate, up, down = (
            found[f"blk.{i}.{part}.weight"]
            for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        )
        assert q is k
        assert k is v
        assert gate is up
        assert len({id(x) for x in (q, o, gate, down)}) == 4


def test_the_diagonal_is_the_importance_matrix(model: ModelFile, text: Path) -> None:
    found = gather_covariances(model, covariance_text([parse(str(text))], SETTINGS), range(3))
    importance = gather_importance(model, [parse(str(text))], SETTINGS)
    for name, covariance in found.items():
        values = importance.values(name)
        assert values is not None
        np.testing.assert_allclose(covariance.diagonal(), values[0], rtol=1e-4)


def test_the_identity_is_of_contents_and_windows(text: Path, tmp_path: Path) -> None:
    def identity(path: Path, settings: ImportanceSettings = SETTINGS) -> str:
        return covariance_text([parse(str(path))], settings).identity

    copy, other = tmp_path / "copy.txt", tmp_path / "other.txt"
    copy.write_text(TEXT)
    other.write_text(TEXT + "!")
    assert identity(copy) == identity(text)
    assert len({identity(text), identity(other), identity(text, ImportanceSettings(96, 1))}) == 3


def test_text_that_is_missing_or_too_short_is_refused(model: ModelFile, text: Path) -> None:
    with pytest.raises(InvalidRequest, match="tuned on text"):
        covariance_text([])
    with pytest.raises(InvalidRequest, match="too short: 32 windows of 256 tokens"):
        gather_covariances(model, covariance_text([parse(str(text))], ImportanceSettings(512, 32)), [0])
