"""What owns something and gives it back at the end of a ``with`` block.

class Context(Closing): ...
with Context(model, options) as context: ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """An owner: ``close`` frees what it owns, and so does the end of a ``with`` block, however it is left."""

    @abstractmethod
    def close(self) -> None:
        """Free what is owned; later calls do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
