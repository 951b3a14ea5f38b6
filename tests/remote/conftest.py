"""A store with two variants of a tiny model, to be served; servers must not touch it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.llama.gguf import ModelFile, read_model
from lamella.quantize.build import build_variant
from lamella.remote.web import WebOptions
from lamella.store.store import Store
from tests.fakes.plans import make_plan
from tests.fakes.tiny_model import write_tiny_model

HASTY = WebOptions(first_pause_s=0.001, longest_pause_s=0.002, silence_s=5.0)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return read_model(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", n_embd=128, n_ff=256))


@pytest.fixture(scope="session")
def origin(source: ModelFile) -> Store:
    """Variants eight (int8 everywhere) and mixed (layer 1 in int4); not to be written to."""
    store = Store.create(source.paths[0].with_name("origin"), source.spec.identity)
    build_variant(source, make_plan(source.spec, "int8"), store, "eight")
    build_variant(source, make_plan(source.spec, ["int8", "int4", "int8"]), store, "mixed")
    return store


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Where no store is yet."""
    return tmp_path / "local"
