"""Recipes: which shard came out of which work (docs/store-format.md, "Recipes").  A cache; it saves making again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec

from lamella.core.artifacts import ShardRef
from lamella.core.errors import StoreFormatError
from lamella.core.foreign import UNREADABLE
from lamella.core.input_files import read_file
from lamella.store import locks
from lamella.store.documents import read_document, write_document
from lamella.store.files import write_atomically
from lamella.store.layout import RECIPE_FORMAT, Layout, check_sha256


class Recipes:
    """The recipes of a store.  Holds no file open."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def find(self, recipe_id: str) -> ShardRef | None:
        """The shard that a recipe once made, be it there or not; None if there is no such recipe, or it cannot be read.

        Raises:
            StoreFormatError: no SHA-256.
        """
        path = self._layout.recipe(recipe_id)
        with contextlib.suppress(OSError, StoreFormatError, *UNREADABLE):
            document = read_document(read_file(path), RECIPE_FORMAT, path)
            shard = msgspec.convert(document.get("shard"), ShardRef)
            check_sha256(shard.id, f"{path}: shard id")
            return shard
        return None

    def note(self, recipe_id: str, recipe: Mapping[str, Any], shard: ShardRef) -> None:
        """Note which shard a recipe made.

        Raises:
            StorageFailed: the file system refused.
        """
        document = write_document(RECIPE_FORMAT, {"recipe": recipe, "shard": asdict(shard)})
        target = self._layout.recipe(recipe_id)
        with locks.shared_lock(self._layout):  # else a running gc could take it for a recipe of no shard
            write_atomically(self._layout.incoming, target, document, durable=False)  # a cache

    def all(self) -> dict[str, str | None]:
        """Recipe -> id of the shard that it made; None for one that cannot be read."""
        found = {recipe_id: self.find(recipe_id) for recipe_id, _ in self._layout.recipe_files()}
        return {recipe_id: shard.id if shard else None for recipe_id, shard in found.items()}
