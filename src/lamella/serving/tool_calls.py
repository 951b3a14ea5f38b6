"""Text in, tool calls out: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` in what a model writes.

Text may come in any pieces; what comes out, put together, does not depend on them.  Whatever could still become a
block is held back; white space beside a block belongs to it.  What looks like a block and is none is text.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

import msgspec

OPENING = "<tool_call>"
CLOSING = "</tool_call>"

_STRUCTURE = re.compile(r'["{}]')
_STRING_END = re.compile(r'["\\]')


class ToolCall(NamedTuple):
    """A function's name, and its arguments as the model wrote them: a JSON object."""

    name: str
    arguments: str


Piece = str | ToolCall


class ToolCallReader(Protocol):
    """Finds calls in pieces of text."""

    def feed(self, text: str) -> list[Piece]:
        """What has become certain with more text."""

    def finish(self) -> list[Piece]:
        """The text is over: what was held back."""


class BlockReader:
    """Finds blocks between other text."""

    def __init__(self, most_calls: int | None = None) -> None:
        """Nothing has come.

        Args:
            most_calls: what is called beyond them is left out; None for all.
        """
        self._most_calls, self._n_calls = most_calls, 0
        self._held = ""
        self._block: _Block | None = None
        self._after_block = False

    def feed(self, text: str) -> list[Piece]:
        self._held += text
        return self._read(is_last=False)

    def finish(self) -> list[Piece]:
        return self._read(is_last=True)

    def _read(self, is_last: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while self._held and (self._read_block(pieces, is_last) if self._block else self._read_text(pieces, is_last)):
            pass
        return pieces

    def _read_text(self, pieces: list[Piece], is_last: bool) -> bool:
        """Take text up to a block, or all that cannot begin one; whether there is more to read."""
        start = self._held.find(OPENING)
        if start >= 0:
            self._say(pieces, self._held[:start].rstrip())
            self._held = self._held[len(self._held[:start].rstrip()) :]
            self._block = _Block(self._held.index(OPENING) + len(OPENING))
            return True
        n_certain = len(self._held) if is_last else _certain_length(self._held)
        self._say(pieces, self._held[:n_certain])
        self._held = self._held[n_certain:]
        return False

    def _read_block(self, pieces: list[Piece], is_last: bool) -> bool:
        """Read on in a block; whether it has ended, as a call or as text."""
        assert self._block is not None
        state = self._block.scan(self._held)
        if state == "open" and not is_last:
            return False
        if state == "complete":
            assert self._block.call is not None
            if self._most_calls is None or self._n_calls < self._most_calls:
                pieces.append(self._block.call)
                self._n_calls += 1
            self._held, self._after_block = self._held[self._block.position :], True
        else:
            self._say(pieces, self._held[: self._block.start])
            self._held = self._held[self._block.start :]
        self._block = None
        return True

    def _say(self, pieces: list[Piece], text: str) -> None:
        if self._after_block:
            text = text.lstrip()
        if text:
            pieces.append(text)
            self._after_block = False


class WholeReader:
    """The whole text is one call: nothing is certain before its end."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def feed(self, text: str) -> list[Piece]:
        self._parts.append(text)
        return []

    def finish(self) -> list[Piece]:
        text = "".join(self._parts)
        self._parts.clear()
        piece = parse_call(text) or text
        return [piece] if piece else []


def parse_call(text: str) -> ToolCall | None:
    """The call that a JSON object states, or None.  Without ``arguments`` there are none."""
    try:
        call = msgspec.json.decode(text, type=_CallObject)
        arguments = bytes(call.arguments).decode().strip()
        msgspec.json.decode(arguments, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError):
        return None
    return ToolCall(call.name, arguments) if call.name else None


class _CallObject(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Block:
    """How far a block has been read.

    Attributes:
        start: where the text after ``OPENING`` begins.
        position: up to where it has been read.
        call: what its object says, once that is complete.
    """

    def __init__(self, start: int) -> None:
        self.start = self.position = start
        self.call: ToolCall | None = None
        self._depth, self._in_string = 0, False
        self._object_start: int | None = None

    def scan(self, text: str) -> str:
        """Read what has come: ``open``, ``complete`` or ``broken``."""
        if self._object_start is None and (state := self._find_object(text)):
            return state
        if self.call is None:
            self._scan_object(text)
            if self._depth:
                return "open"
            self.call = parse_call(text[self._object_start : self.position])
            if self.call is None:
                return "broken"
        return self._scan_closing(text)

    def _find_object(self, text: str) -> str | None:
        """Skip white space; what hinders, or None where an object begins."""
        self.position = _skip_space(text, self.position)
        if self.position == len(text):
            return "open"
        if text[self.position] != "{":
            return "broken"
        self._object_start, self._depth = self.position, 1
        self.position += 1
        return None

    def _scan_object(self, text: str) -> None:
        """Go on to the object's end, or to the text's.  Braces in strings do not count."""
        while self._depth and self.position < len(text):
            found = (_STRING_END if self._in_string else _STRUCTURE).search(text, self.position)
            if not found:
                self.position = len(text)
            elif found[0] == "\\":
                self.position = found.end() + 1  # the character after it, which may not have come yet
            else:
                self._step(found[0])
                self.position = found.end()

    def _step(self, character: str) -> None:
        if character == '"':
            self._in_string = not self._in_string
        else:
            self._depth += 1 if character == "{" else -1

    def _scan_closing(self, text: str) -> str:
        at = _skip_space(text, self.position)
        if text.startswith(CLOSING, at):
            self.position = at + len(CLOSING)
            return "complete"
        return "open" if CLOSING.startswith(text[at:]) else "broken"


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _certain_length(text: str) -> int:
    """How much of a text cannot belong to a block that is to come: all but a begun tag and white space before it."""
    for length in range(min(len(OPENING) - 1, len(text)), 0, -1):
        if text.endswith(OPENING[:length]):
            return len(text[:-length].rstrip())
    return len(text.rstrip())
