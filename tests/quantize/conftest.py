"""A tiny real model, written once, and an empty store for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.llama.gguf import ModelFile, read_model
from lamella.store.store import Store
from tests.fakes.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """Three layers whose rows fit K-quants (256, 512)."""
    return read_model(write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_embd=256, n_ff=512))


@pytest.fixture
def source(tmp_path: Path) -> ModelFile:
    """The same as a file of the test's own, to be moved and changed."""
    return read_model(write_tiny_model(tmp_path / "model.gguf", n_embd=256, n_ff=512))


@pytest.fixture
def store(tiny: ModelFile, tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", tiny.spec.identity)
