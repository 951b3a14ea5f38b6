"""A folder through which an engine leaves its KV cache to the next one."""

from __future__ import annotations

import tempfile


class LeftCache:
    """At most one folder, which nobody else can read (mode 0700), and which the next engine is told of once.

    What prompts were about can be read off a KV cache: ``drop`` as soon as it was read.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._is_whole = False

    def begin(self) -> str:
        """A new folder; what was left before is gone.

        Raises:
            OSError: the system makes none.
        """
        self.drop()
        self._folder = tempfile.TemporaryDirectory(prefix="lamella-cache-")
        return self._folder.name

    def complete(self) -> None:
        """All has been written: the next engine may have it."""
        self._is_whole = True

    def take(self) -> str:
        """For an engine that starts now; "" where there is nothing, or another engine was told of it before."""
        if not self._is_whole or self._folder is None:
            return ""
        self._is_whole = False
        return self._folder.name

    def drop(self) -> None:
        """Remove what is there."""
        folder, self._folder, self._is_whole = self._folder, None, False
        if folder is not None:
            folder.cleanup()
