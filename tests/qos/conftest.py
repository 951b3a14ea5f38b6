"""A store with two variants of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

import lamella
from lamella.batching.settings import EngineSettings
from lamella.qos.profiling.points import Points
from tests.fakes.tiny_model import write_tiny_model

FEW = Points(prompts=(16, 64, 100), sequences=(1, 2, 4), shallow=16, deep=64, mixed=((2, 32),), n_steps=6, repeats=1)


@pytest.fixture(scope="session")
def profiled_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiled")
    model = write_tiny_model(folder / "tiny.gguf", n_layers=3)
    for name in ("int8", "int4"):
        plan = lamella.plan(model, "uniform", precision=name, context=128)
        lamella.build(model, folder / "store", plan, name)
    return folder / "store"


@pytest.fixture
def engine_settings(profiled_store: Path) -> EngineSettings:
    return EngineSettings(store=str(profiled_store), n_ctx=128, n_sequences=4, n_threads=1, layout="mapped")
