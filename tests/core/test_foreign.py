"""Bytes of strangers: whatever decoding them can raise is known."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest
from lamella.core.foreign import UNREADABLE, decode_text


@pytest.mark.parametrize("data", [b"{", b'"\xff"', b"[" * 100_000, b'{"a": 1} {'], ids=["cut", "latin", "deep", "two"])
def test_json_that_is_none_raises_what_is_known(data: bytes) -> None:
    with pytest.raises(UNREADABLE):
        msgspec.json.decode(data)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for decode in (msgspec.json.decode, msgspec.msgpack.decode):
        with contextlib.suppress(*UNREADABLE):
            decode(data)


def test_text_that_is_none_says_where() -> None:
    assert decode_text("Hügel".encode(), "text wiki.txt") == "Hügel"
    with pytest.raises(InvalidRequest, match=r"^text wiki\.txt is not UTF-8: byte 0xfc at offset 1$"):
        decode_text("Hügel".encode("latin-1"), "text wiki.txt")
