"""What nobody needs, removed: the only code that deletes shards for good (docs/store-format.md, "Deleting").

The caller holds the store exclusively, so no builder is between writing a shard and naming it in a variant.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lamella.store.files import has_living_writer, remove_tree, storage_errors
from lamella.store.layout import Layout


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What was removed."""

    n_shards: int
    n_recipes: int
    n_incoming: int
    freed_bytes: int


def collect(layout: Layout, needed: Collection[str], recipe_shards: dict[str, str | None]) -> GarbageReport:
    """Remove shards outside ``needed``, recipes of such shards, and dead writers' files.

    Args:
        needed: ids of the shards of all variants.
        recipe_shards: recipe id -> id of the shard it made; None for a recipe that cannot be read.

    Raises:
        StorageFailed: the file system refused.
    """
    with storage_errors(layout.root, "remove from"):
        shards = [path for shard_id, path in layout.shard_files() if shard_id not in needed]
        recipes = [path for recipe_id, path in layout.recipe_files() if recipe_shards.get(recipe_id) not in needed]
        incoming = list(layout.incoming.iterdir()) if layout.incoming.is_dir() else []
        rubbish = [path for path in incoming if not has_living_writer(path)]
        # recipes go first: a crash in between leaves shards without recipes, not recipes without shards
        freed = sum(remove_tree(path) for path in (*recipes, *shards, *rubbish))
    return GarbageReport(len(shards), len(recipes), len(rubbish), freed)
