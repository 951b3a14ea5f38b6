"""DILEMMA's truncation: what is stored reads back as the top bits of the 8-bit code, for every precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from lamella.core.errors import InvalidWeights
from lamella.core.precision import GGML_TYPES, MENU
from lamella.llama.quantize import decode_rows
from lamella.llama.rounding import quantize_rows, truncate_rows
from lamella.quantize.channel import encode_rows
from tests.quantize.test_channel import Rows, every_container, weights


def cut(row: Rows, bits: int) -> Rows:
    """The definition for one row: in steps of the 8-bit scale, magnitudes lose what is below a wider step."""
    s = np.float32(np.float16(np.float32(np.abs(row).max()) / np.float32(127)))
    if s == 0:
        return np.zeros_like(row)
    wider = 2 ** (8 - bits)
    codes = [min(max(np.rint(w / s), -127), 127) for w in row]
    return np.array([np.sign(q) * (abs(q) // wider) * wider * s for q in codes], np.float32)


@every_container
@given(rows=weights())
@settings(max_examples=30, deadline=None)
def test_stored_rows_read_back_as_the_top_bits(precision: str, container: str, rows: Rows) -> None:
    ggml_type = GGML_TYPES[container]
    decoded = decode_rows(encode_rows(rows, precision, ggml_type, truncated=True), ggml_type, rows.shape[1])
    expected = np.stack([cut(row, MENU[precision].bits) for row in rows])
    np.testing.assert_array_equal(decoded, expected)


def test_at_eight_bits_nothing_is_cut() -> None:
    rows = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)
    for one, other in zip(truncate_rows(rows, 8), quantize_rows(rows, 8), strict=True):
        np.testing.assert_array_equal(one, other)


def test_truncation_loses_more_than_rounding_to_as_many_bits() -> None:
    rows = np.random.default_rng(2).standard_normal((4, 256)).astype(np.float32)
    for bits in (4, 5, 6):
        lost = [
            float(np.square(rows - levels * scales.astype(np.float32)[:, None]).sum())
            for levels, scales in (quantize_rows(rows, bits), truncate_rows(rows, bits))
        ]
        assert lost[0] < lost[1] < 8 * lost[0]


def test_a_scale_beyond_fp16_is_refused() -> None:
    rows = np.full((1, 256), 6e4 * 40, np.float32)
    truncate_rows(rows, 8)
    with pytest.raises(InvalidWeights, match="int2 scale"):
        truncate_rows(rows, 2)
