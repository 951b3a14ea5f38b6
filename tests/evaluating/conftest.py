from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lamella import api
from lamella.store.store import Store
from tests.fakes.tiny_model import write_tiny_model

WriteTasks = Callable[[str, Sequence[Mapping[str, Any]]], Path]


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the variants large (Q8_0), middle (Q5_K) and small (Q2_K)."""
    folder = tmp_path_factory.mktemp("evaluate")
    model = write_tiny_model(folder / "tiny.gguf", n_embd=256, n_ff=512)
    for name, precision in (("large", "int8"), ("middle", "int5"), ("small", "int2")):
        api.build(model, folder / "store", api.plan(model, "uniform", precision=precision), name)
    return folder / "store"


@pytest.fixture
def store(store_folder: Path) -> Store:
    return Store.open(store_folder)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for four windows of 32 tokens: a character is a token."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs! " * 2)
    return path


@pytest.fixture
def write_tasks(tmp_path: Path) -> WriteTasks:
    """Write a tasks file of that name."""

    def write(name: str, items: Sequence[Mapping[str, Any]]) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        return path

    return write
