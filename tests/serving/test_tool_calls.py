"""Tool calls are found in text whatever pieces it comes in, and nothing else is."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.serving.tool_calls import BlockReader, Piece, ToolCall, ToolCallReader, WholeReader, parse_call

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
ADD = ToolCall("add", '{"a": 1}')
FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "<tool",
    "_call>",
    '{"name": "f", "arguments": {"x": "a } </tool_call> \\" b"}}',
    '{"name": "f"}',
    '{"name": 1}',
    "{",
    "}",
    '"',
    "\\",
    " ",
    "\n",
    "text",
    "<",
    CALL,
    f" {CALL}",
    f"{CALL}\n",
    f"a\n{CALL}\nb",
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=9).map("".join)


def read(reader: ToolCallReader, pieces: list[str]) -> list[Piece]:
    """What comes out, neighbouring texts joined."""
    out = [piece for text in pieces for piece in reader.feed(text)] + reader.finish()
    joined: list[Piece] = []
    for piece in out:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


@settings(max_examples=300)
@given(texts, st.data())
def test_any_split_of_a_text_gives_the_same(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    for reader in (BlockReader, WholeReader):
        assert read(reader(), pieces) == read(reader(), [text])
    assert read(BlockReader(), list(text)) == read(BlockReader(), [text])


@given(texts)
def test_without_calls_no_character_is_lost_or_added(text: str) -> None:
    pieces = read(BlockReader(), [text])
    if not any(isinstance(piece, ToolCall) for piece in pieces):
        assert "".join(str(piece) for piece in pieces) == text


@given(
    st.dictionaries(st.text(max_size=8), st.one_of(st.text(max_size=20), st.integers(), st.lists(st.text(max_size=5)))),
    st.text(min_size=1, max_size=10),
    st.booleans(),
)
def test_every_call_that_json_can_write_is_read(arguments: dict[str, object], name: str, ascii_only: bool) -> None:
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=ascii_only)
    (found,) = read(BlockReader(), list(f"<tool_call>\n{call}\n</tool_call>"))
    assert isinstance(found, ToolCall)
    assert (found.name, json.loads(found.arguments)) == (name, arguments)


def test_text_around_calls_stays_and_white_space_beside_them_goes() -> None:
    assert read(BlockReader(), [f"First.\n{CALL}\n{CALL}\n Then."]) == ["First.", ADD, ADD, "Then."]


def test_calls_beyond_the_most_are_left_out() -> None:
    text = f"First.\n{CALL}\n{CALL}\n Then."
    assert read(BlockReader(1), list(text)) == ["First.", ADD, "Then."]
    assert read(BlockReader(2), list(text)) == ["First.", ADD, ADD, "Then."]
    assert read(BlockReader(0), list(text)) == ["First.Then."]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>no object</tool_call>",
        '<tool_call>{"name": "f", "arguments": {"a": tru}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}} more</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}}',
        "a <tool_call>",
        "a </tool_call> <tool",
    ],
)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    assert read(BlockReader(), [text]) == [text]


def test_a_good_block_after_a_broken_one_is_found() -> None:
    assert read(BlockReader(), [f"<tool_call>{CALL}"]) == ["<tool_call>", ADD]


def test_only_what_may_become_a_block_is_held_back() -> None:
    reader = BlockReader()
    assert reader.feed("one two <too") == ["one two"]
    assert reader.feed("th") == [" <tooth"]
    assert reader.feed("!") == ["!"]


def test_a_whole_answer_is_one_call_or_text() -> None:
    assert read(WholeReader(), [' {"name": "add", ', '"arguments": {"a": 1}} ']) == [ADD]
    assert read(WholeReader(), ['{"name": "add", "argu']) == ['{"name": "add", "argu']
    assert read(WholeReader(), []) == []


def test_a_call_without_arguments_has_none() -> None:
    assert parse_call('{"name": "now"}') == ToolCall("now", "{}")
