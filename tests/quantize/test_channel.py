"""LSAQ eq. 4: what is stored reads back as round(W / s) * s, for every precision in every container."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lamella.core.errors import InvalidWeights, UnsupportedTensor
from lamella.core.precision import GGML_TYPES, MENU
from lamella.llama.quantize import decode_rows
from lamella.llama.rounding import quantize_rows
from lamella.quantize.channel import encode_rows

CONTAINERS = [(p.name, c) for p in MENU.values() if p.name != "fp16" for c in p.channel]
every_container = pytest.mark.parametrize(("precision", "container"), CONTAINERS)

Rows = NDArray[np.float32]


def test_every_integer_precision_of_the_menu_has_a_container() -> None:
    assert {p for p, _ in CONTAINERS} == {"int2", "int3", "int4", "int5", "int6", "int8"}


@st.composite
def weights(draw: st.DrawFn) -> Rows:
    """Rows of 256 or 512: dense random ones of any magnitude, or sparse ones with single outliers."""
    shape = (draw(st.integers(1, 5)), draw(st.sampled_from([256, 512])))
    if draw(st.booleans()):
        magnitude = 10.0 ** draw(st.floats(-12, 4))
        seed = draw(st.integers(0, 2**32 - 1))
        dense: Rows = (np.random.default_rng(seed).standard_normal(shape) * magnitude).astype(np.float32)
        return dense
    elements = st.floats(-(2.0**15), 2.0**15, width=32)
    sparse: Rows = draw(hnp.arrays(np.float32, shape, elements=elements, fill=st.just(0.0)))
    return sparse


def eq4(row: Rows, bits: int) -> Rows:
    """The formula, spelled out for one row."""
    largest = 2 ** (bits - 1) - 1
    s = np.float32(np.float16(np.float32(np.abs(row).max()) / np.float32(largest)))
    if s == 0:
        return np.zeros_like(row)
    return np.array([min(max(np.rint(w / s), -largest), largest) * s for w in row], np.float32)


@every_container
@given(rows=weights())
@settings(max_examples=40, deadline=None)
def test_stored_rows_read_back_exactly_as_eq4(precision: str, container: str, rows: Rows) -> None:
    ggml_type = GGML_TYPES[container]
    decoded = decode_rows(encode_rows(rows, precision, ggml_type), ggml_type, rows.shape[1])
    expected = np.stack([eq4(row, MENU[precision].bits) for row in rows])
    np.testing.assert_array_equal(decoded, expected)


@every_container
@given(rows=weights())
@settings(max_examples=20, deadline=None)
def test_the_error_is_at_most_half_a_step(precision: str, container: str, rows: Rows) -> None:
    ggml_type = GGML_TYPES[container]
    decoded = decode_rows(encode_rows(rows, precision, ggml_type), ggml_type, rows.shape[1])
    _, scales = quantize_rows(rows, MENU[precision].bits)
    normal = scales >= np.finfo(np.float16).smallest_normal
    steps = scales[normal, None].astype(np.float32)
    assert (np.abs(decoded - rows)[normal] <= 0.5001 * steps).all()


@every_container
def test_a_second_reader_agrees(precision: str, container: str) -> None:
    """The gguf package reads the bytes as ggml does."""
    rows = np.random.default_rng(7).standard_normal((3, 512)).astype(np.float32)
    ggml_type = GGML_TYPES[container]
    stored = encode_rows(rows, precision, ggml_type)
    theirs = gguf.quants.dequantize(stored.reshape(3, -1), gguf.GGMLQuantizationType[container])
    np.testing.assert_array_equal(theirs, decode_rows(stored, ggml_type, 512))


@every_container
def test_a_row_does_not_depend_on_its_neighbours(precision: str, container: str) -> None:
    magnitudes = np.array([[1], [100], [0], [1e-3]], np.float32)
    rows = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32) * magnitudes
    together = encode_rows(rows, precision, GGML_TYPES[container])
    alone = np.concatenate([encode_rows(row[None], precision, GGML_TYPES[container]) for row in rows])
    np.testing.assert_array_equal(together, alone)


@every_container
def test_zero_rows_stay_zero(precision: str, container: str) -> None:
    stored = encode_rows(np.zeros((2, 256), np.float32), precision, GGML_TYPES[container])
    assert not decode_rows(stored, GGML_TYPES[container], 256).any()


@every_container
@pytest.mark.parametrize("sign", [1, -1])
def test_one_outlier_takes_the_whole_range(precision: str, container: str, sign: int) -> None:
    rows = np.full((1, 256), 0.001, np.float32)
    rows[0, 77] = 100 * sign
    decoded = decode_rows(encode_rows(rows, precision, GGML_TYPES[container]), GGML_TYPES[container], 256)
    assert decoded[0, 77] == pytest.approx(100 * sign, rel=2**-11)
    assert np.count_nonzero(decoded) == 1


@every_container
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_weights_are_refused(precision: str, container: str, bad: float) -> None:
    rows = np.ones((3, 256), np.float32)
    rows[1, 200] = bad
    with pytest.raises(InvalidWeights, match="NaN or infinity"):
        encode_rows(rows, precision, GGML_TYPES[container])


@every_container
def test_weights_beyond_the_scales_range_are_refused(precision: str, container: str) -> None:
    largest = 2 ** (MENU[precision].bits - 1) - 1
    rows = np.zeros((1, 256), np.float32)
    rows[0, 0] = 65504.0 * largest
    encode_rows(rows, precision, GGML_TYPES[container])
    rows[0, 0] = 65536.0 * largest
    with pytest.raises(InvalidWeights, match=f"int{MENU[precision].bits} scale"):
        encode_rows(rows, precision, GGML_TYPES[container])


@every_container
def test_rows_too_small_for_any_scale_become_zero(precision: str, container: str) -> None:
    rows = np.full((1, 256), 1e-12, np.float32)
    assert not decode_rows(encode_rows(rows, precision, GGML_TYPES[container]), GGML_TYPES[container], 256).any()


def test_a_container_too_small_for_the_precision_is_refused() -> None:
    for precision, container in (("int8", "Q4_0"), ("fp16", "F16"), ("int1", "Q8_0")):
        with pytest.raises(UnsupportedTensor, match=container):
            encode_rows(np.ones((1, 256), np.float32), precision, GGML_TYPES[container])
