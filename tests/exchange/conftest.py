"""A tiny real model, and a store with three variants of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella import api
from lamella.store.store import Store
from tests.fakes.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers whose rows fit K-quants (256, 512), in F16."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", n_embd=256, n_ff=512)


@pytest.fixture(scope="session")
def store_folder(model: Path) -> Path:
    """Variants eight (all Q8_0), four (Q4_K; outside Q8_0) and exact (all F16); not to be written to."""
    folder = model.with_name("store")
    for name, precision, outside in (("eight", "int8", "int8"), ("four", "int4", "int8"), ("exact", "fp16", "fp16")):
        api.build(model, folder, api.plan(model, "uniform", precision=precision, outside=outside), name)
    return folder


@pytest.fixture
def store(store_folder: Path) -> Store:
    return Store.open(store_folder)


@pytest.fixture
def own_store(model: Path, tmp_path: Path) -> Store:
    """A store of one's own with the variant eight, to change and to damage."""
    api.build(model, tmp_path / "own", api.plan(model, "uniform", precision="int8"), "eight")
    return Store.open(tmp_path / "own")
