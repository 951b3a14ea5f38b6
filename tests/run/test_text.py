"""However bytes are cut into tokens, the text is the same, and nothing of a stop string is shown."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lamella.run.text import TextStream


def _feed(stream: TextStream, data: bytes, cuts: list[int]) -> str:
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    parts = [data[a:b] for a, b in itertools.pairwise(edges)]
    return "".join(stream.feed(p) for p in parts) + stream.finish()


@given(st.text(), st.lists(st.integers(0, 1000)))
def test_any_cutting_gives_the_same_text(text: str, cuts: list[int]) -> None:
    assert _feed(TextStream(), text.encode(), cuts) == text


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30)),
)
def test_the_text_ends_before_the_first_stop_string(text: str, stop: list[str], cuts: list[int]) -> None:
    stream = TextStream(stop)
    shown = _feed(stream, text.encode(), cuts)
    assert text.startswith(shown)
    assert not any(s in shown for s in stop)
    assert stream.stopped == any(s in text for s in stop)
    if not stream.stopped:
        assert shown == text


def test_a_character_cut_in_two_is_shown_when_it_is_whole() -> None:
    stream = TextStream()
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert stream.feed(first) == ""
    assert stream.feed(second) == "é"


def test_what_may_become_a_stop_string_waits() -> None:
    stream = TextStream(["STOP"])
    assert stream.feed(b"go ST") == "go "
    assert stream.feed(b"AY") == "STAY"


def test_a_character_that_never_ends_is_replaced() -> None:
    stream = TextStream()
    assert stream.feed("é".encode()[:1]) + stream.finish() == "�"


def test_after_a_stop_string_nothing_comes() -> None:
    stream = TextStream(["."])
    assert stream.feed(b"one. two") == "one"
    assert stream.feed(b" three") == ""
    assert stream.finish() == ""
