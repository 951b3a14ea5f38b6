"""Bytes and durations, as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest
from lamella.core.units import MOST_BYTES, as_bytes, format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("6GiB", 6 << 30),
        ("6g", 6 << 30),
        ("4.5GB", 4_500_000_000),
        (" 800 MiB ", 800 << 20),
        (".5k", 512),
        ("2T", 2 << 40),
        ("1TB", 10**12),
        ("1", 1),
        ("17b", 17),
        (str(MOST_BYTES), MOST_BYTES),
    ],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes
    assert as_bytes(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "lots", "-5GiB", "5 apples", "1e9", "0", "0.4", "5EiB", "1.2.3GiB", "٣GiB", "nan"]
)
def test_what_is_no_size_is_refused_and_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"memory size"):
        parse_bytes(text)


@given(st.integers(1, MOST_BYTES >> 10))
def test_bytes_without_a_unit_are_taken_to_the_letter_while_a_double_holds_them(n_bytes: int) -> None:
    assert parse_bytes(str(n_bytes)) == n_bytes


def test_sizes_of_callers_are_text_bytes_or_none() -> None:
    assert (as_bytes(7), as_bytes(None)) == (7, None)
    for nothing in (0, -1):
        with pytest.raises(InvalidRequest, match="more than zero bytes"):
            as_bytes(nothing)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (98.4 * 2**20, "98.4 MiB"),
        (274 * 2**20, "274 MiB"),
        (1.07 * 2**30, "1.07 GiB"),
        (3000 * 2**40, "3000 TiB"),
        (-5 * 2**30, "-5.00 GiB"),
    ],
)
def test_sizes_are_shown_in_three_digits(n_bytes: float, text: str) -> None:
    assert format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 10.0), ("10s", 10.0), ("500ms", 0.5), ("2min", 120.0), ("2 m", 120.0), ("1.5H", 5400.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-1s", "5 days"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is no duration; write for example 10s"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00095, "0.95 ms"),
        (0.061, "61 ms"),
        (2.4, "2.4 s"),
        (119.0, "119.0 s"),
        (120.0, "2 min 0 s"),
        (200, "3 min 20 s"),
    ],
)
def test_durations_are_shown_as_people_say_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
