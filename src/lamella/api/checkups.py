"""Whether models can run on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamella.api.homes import stores_in
from lamella.doctor import Diagnosis, diagnose, examine


def doctor(cache_folder: Path, model: str | None = None, stores: Sequence[Path] = ()) -> Diagnosis:
    """Look at this machine and say what is wrong with it, and what to do.

    Args:
        cache_folder: where stores of models that were served by name are, and measurements; they are looked into.
        model: whose smallest plan must fit the memory; None: not asked.
        stores: folders of other stores.
    """
    return diagnose(examine(cache_folder, model, [*stores, *stores_in(cache_folder)]))
