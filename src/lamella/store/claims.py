"""Who makes a shard: one process at a time, so that builders at work together do nothing twice.

    with store.claims() as claims:
        if claims.take(recipe_id):
            ...                          # make it, remember it
            claims.release(recipe_id)

A claim is a file in ``incoming/``, named by the recipe and locked by its owner; the kernel unlocks it when the owner
dies.
"""

from __future__ import annotations

import contextlib
import os

from lamella.core.closing import Closing
from lamella.store.files import storage_errors, take_over
from lamella.store.layout import Layout


class Claims(Closing):
    """The recipes that this builder is about to follow.  Another thread than the one that took may release."""

    def __init__(self, layout: Layout) -> None:
        """Use ``Store.claims``."""
        self._layout = layout
        self._taken: dict[str, int] = {}

    def take(self, recipe_id: str) -> bool:
        """Claim a recipe; false if another builder has.

        Raises:
            StorageFailed: the file system refused.
        """
        path = self._layout.claim(recipe_id)
        with storage_errors(path, "write"):
            path.parent.mkdir(exist_ok=True)
            fd = take_over(path)
        if fd is None:
            return False
        self._taken[recipe_id] = fd
        return True

    def release(self, recipe_id: str) -> None:
        """Others may follow the recipe now, or find what came of it."""
        fd = self._taken.pop(recipe_id)
        with contextlib.suppress(OSError):  # a dead claim is gc's
            self._layout.claim(recipe_id).unlink(missing_ok=True)
        os.close(fd)

    def close(self) -> None:
        """Release all that are left."""
        for recipe_id in list(self._taken):
            self.release(recipe_id)
