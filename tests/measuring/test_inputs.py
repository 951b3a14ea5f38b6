"""Inputs of weights: their size, and what ggml's rounding of them costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.precision import GGML_TYPES
from lamella.llama.context import Context, ContextOptions
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.model import Model
from lamella.llama.observing import ProductObserver
from lamella.llama.quantize import decode_rows, encode_rows
from lamella.measuring.columns import sum_columns
from lamella.measuring.inputs import InputStatistics, gather_inputs, rounding_change
from lamella.measuring.rounding_errors import SAMPLED_ROWS, errors_by_type, offered_types
from lamella.measuring.rows import read_rows
from tests.fakes.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return read_model(
        write_tiny_model(tmp_path_factory.mktemp("inputs") / "tiny.gguf", n_embd=256, n_ff=512, tied=True)
    )


def some_inputs(seed: int, n_rows: int = 3, length: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_rows, length)).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.sampled_from([32, 256]), st.floats(1e-3, 1e3))
def test_no_input_changes_by_more_than_half_a_step(seed: int, block: int, scale: float) -> None:
    inputs = some_inputs(seed) * np.float32(scale)
    change = rounding_change(inputs, block)
    steps = np.abs(inputs.reshape(3, -1, block)).max(axis=2, keepdims=True) / 127
    assert (np.abs(change.reshape(3, -1, block)) <= steps * 0.50001).all()


def test_inputs_are_rounded_as_ggml_does() -> None:
    inputs = some_inputs(1)
    q8 = GGML_TYPES["Q8_0"]
    stored = decode_rows(encode_rows(inputs, q8), q8, 256)
    # ggml keeps the step of a block in 16 bits; its own rounding differs by that
    np.testing.assert_allclose(inputs - rounding_change(inputs, 32), stored, rtol=2e-3, atol=2e-5)


def test_zeros_stay_zeros_and_one_large_input_makes_its_block_coarse() -> None:
    inputs = np.zeros((1, 256), np.float32)
    assert not rounding_change(inputs, 32).any()
    inputs[0, :] = 0.3
    inputs[0, 0] = 127.0
    assert np.abs(rounding_change(inputs, 32)[0, 1:32]) == pytest.approx(0.3)
    assert np.abs(rounding_change(inputs, 32)[0, 32:]).max() < 0.01
    assert np.abs(rounding_change(inputs, 256)[0, 1:]) == pytest.approx(0.3)


def test_mean_squares_are_those_of_the_importance_matrix_and_the_tied_head_is_there(model: ModelFile) -> None:
    window = tuple(range(3, 35))
    with Model.load(model.paths) as loaded:
        found = gather_inputs(loaded, model.tensors, window)
        sums = sum_columns(loaded, model.spec, [window])
    for name, columns in sums.items():
        np.testing.assert_allclose(found[name].mean_squares, columns.means()[0], rtol=1e-4)
        assert set(found[name].rounding) == {32, 256}
    assert set(found) == set(sums) | {"token_embd.weight"}


def test_products_of_computed_tensors_are_not_looked_at(tmp_path: Path) -> None:
    grok = read_model(write_tiny_model(tmp_path / "grok.gguf", grok=True, tied=True))
    window = tuple(range(3, 35))
    multiplied: set[str] = set()
    products = ProductObserver(lambda _: True, lambda product: multiplied.add(product.weight))
    with Model.load(grok.paths) as loaded:
        with Context(loaded, ContextOptions(32, n_batch=32, n_outputs=32), products=products) as context:
            context.decode(window, 0, n_outputs=32)
        found = gather_inputs(loaded, grok.tensors, window)
        sums = sum_columns(loaded, grok.spec, [window], head=True)
    assert any(weight.startswith("cache_k_l0") for weight in multiplied)
    assert set(found) == set(sums) == multiplied & set(grok.tensors) != multiplied


def test_an_error_is_the_mean_change_of_a_product(model: ModelFile) -> None:
    """Against products really computed: rounded weights with rounded inputs, inputs with random signs."""
    data = model.tensors["blk.0.ffn_up.weight"]
    rows = read_rows(data, 0, SAMPLED_ROWS)
    first_rows = dataclasses.replace(data.spec, shape=(256, SAMPLED_ROWS))
    data = dataclasses.replace(data, spec=first_rows, n_bytes=first_rows.n_bytes)
    inputs = some_inputs(5, n_rows=4000)
    changes = {block: np.square(rounding_change(inputs, block)).mean(axis=0) for block in (32, 256)}
    statistics = InputStatistics(np.square(inputs).mean(axis=0), changes)
    for name, block in (("Q4_0", 32), ("Q8_0", 32), ("Q6_K", 256)):
        target = GGML_TYPES[name]
        rounded = decode_rows(encode_rows(rows, target), target, 256)
        change = inputs @ rows.T - (inputs - rounding_change(inputs, block)) @ rounded.T
        expected = np.square(change, dtype=np.float64).sum(axis=1).mean()
        found = errors_by_type(data, [target], None, statistics)[name]
        assert found == pytest.approx(expected, rel=0.1)


def test_inputs_count_only_where_they_are_rounded_otherwise(model: ModelFile, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    with Model.load(model.paths) as loaded:
        statistics = gather_inputs(loaded, [name], tuple(range(3, 35)))[name]
    plain = InputStatistics(statistics.mean_squares, {})
    types = [GGML_TYPES[n] for n in ("F16", "BF16", "Q8_0", "Q6_K")]
    data = model.tensors[name]
    alone, both = (errors_by_type(data, types, None, s) for s in (plain, statistics))
    assert both["F16"] == 0
    assert both["BF16"] == alone["BF16"]
    assert both["Q8_0"] > alone["Q8_0"]
    assert both["Q6_K"] - alone["Q6_K"] > both["Q8_0"] - alone["Q8_0"]  # one step for 256 inputs
    stored = read_model(write_tiny_model(tmp_path / "q8.gguf", n_embd=256, n_ff=512, dtype="Q8_0")).tensors[name]
    q5, q6 = GGML_TYPES["Q5_0"], GGML_TYPES["Q6_K"]
    assert errors_by_type(stored, [q5], None, statistics) == errors_by_type(stored, [q5], None, plain)
    assert errors_by_type(stored, [q6], None, statistics)["Q6_K"] > errors_by_type(stored, [q6], None, plain)["Q6_K"]


def test_types_that_need_a_matrix_are_offered_with_one_only(model: ModelFile) -> None:
    tensor = model.tensors["blk.0.attn_q.weight"].spec
    without, with_one = ({t.name for t in offered_types(tensor, has)} for has in (False, True))
    assert with_one - without == {"IQ2_XXS", "IQ2_XS"}
    assert {"F16", "Q8_0", "Q4_0", "IQ4_NL", "Q6_K", "IQ3_S"} <= without
