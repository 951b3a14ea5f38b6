"""Base of what owns a C object.

Each owner frees its object in ``close()`` (or at the end of a ``with`` block) and may be closed twice.  A context keeps
its model's Python object alive; close contexts before their model.  No handle may be used by two threads at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from lamella.core.closing import Closing
from lamella.core.errors import EngineFailed


class Handle(Closing):
    """A C address with an owner."""

    def __init__(self, address: Any, free: Callable[[Any], object]) -> None:
        self._address = address
        self._free = free

    @property
    def address(self) -> Any:
        """The C object.

        Raises:
            EngineFailed: it was freed; C code would read freed memory.
        """
        self.check_open()
        return self._address

    def check_open(self) -> None:
        """Refuse the use of a closed handle.

        Raises:
            EngineFailed: it was closed.
        """
        if not self._address:
            raise EngineFailed(f"this {type(self).__name__.lower()} was closed")

    def close(self) -> None:
        """Free the C object; later calls do nothing."""
        if self._address:
            address, self._address = self._address, None
            self._free(address)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be shutting down
            self.close()
