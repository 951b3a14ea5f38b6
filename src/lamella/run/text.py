"""From the bytes of tokens to text that can be shown at once."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns token bytes into text: whole UTF-8 characters only, and nothing of a stop string.

    A token may end inside a character, and a stop string may begin in one token and end in another; what could still
    become either is held back.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """The text that became certain with these bytes.  After a stop string ``stopped`` is set and all is empty."""
        if self.stopped:
            return ""
        if not self._stop:
            return self._decode(data)
        text = self._held + self._decode(data)
        ends = [at for s in self._stop if (at := text.find(s)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        keep = self._longest_beginning_of_a_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and now is plain text."""
        if self.stopped:
            return ""
        text, self._held = self._held + self._decode(b"", True), ""
        return text

    def _longest_beginning_of_a_stop(self, text: str) -> int:
        return max(
            (n for s in self._stop for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n])),
            default=0,
        )
