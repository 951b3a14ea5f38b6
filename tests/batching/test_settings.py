"""How many cells an engine's settings come to, and which settings exclude each other."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lamella.batching.settings import CELLS_FOR_EACH, EngineSettings, LayersAt
from lamella.core.errors import InvalidRequest

PLAIN = EngineSettings(store="store", n_ctx=4096, n_sequences=8)
CELLS = max(4096, CELLS_FOR_EACH * 8)


def _but(**changed: Any) -> EngineSettings:
    return msgspec.structs.replace(PLAIN, **changed)


@pytest.mark.parametrize(
    ("settings", "cells", "bounded"),
    [
        (PLAIN, CELLS, 0),  # each sequence has its own where there is plenty
        (_but(n_cells=5000), 5000, 5000),
        (_but(memory_bytes=1 << 30), CELLS, CELLS),
        (_but(memory_bytes=1 << 30, n_cells=5000), 5000, 5000),
        (_but(n_ctx=100_000), 100_000, 0),  # the longest request
        (_but(n_ctx=CELLS_FOR_EACH // 2), CELLS_FOR_EACH // 2 * 8, 0),  # never more than all could fill
        (_but(is_reproducible=True, memory_bytes=1 << 30), CELLS, 0),  # always its own
    ],
)
def test_cells_and_what_bounds_them(settings: EngineSettings, cells: int, bounded: int) -> None:
    assert (settings.cells, settings.bounded_cells) == (cells, bounded)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"device": "CUDA0", "memory_bytes": 1}, "a memory ceiling counts host memory"),
        ({"layers": [LayersAt("", 0, 3)], "memory_bytes": 1}, "a memory ceiling counts host memory"),
        ({"device": "CUDA0", "layers": [LayersAt("", 0, 3)]}, "either one device, or layers on several"),
        ({"is_reproducible": True, "device": "CUDA0"}, "leave --device CUDA0 away"),
        ({"is_reproducible": True, "layers": [LayersAt("", 0, 3)]}, "the CPU of one machine"),
        ({"is_reproducible": True, "layout": "repacked"}, "leave --layout repacked away"),
        ({"is_reproducible": True, "n_cells": 5000}, "8 sequences 4096 KV cells of its own; leave --cells 5000 away"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        _but(**changed).check_possible()


def test_what_goes_together_is_taken() -> None:
    for changed in (
        {},
        {"device": "CUDA0", "n_cells": 5000},
        {"layers": [LayersAt("", 0, 3)], "layout": "repacked"},
        {"memory_bytes": 1, "n_cells": 5000, "layout": "repacked"},
        {"is_reproducible": True, "layout": "mapped", "memory_bytes": 1},
    ):
        _but(**changed).check_possible()
