from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lamella import api
from lamella.llama.context import ContextOptions
from lamella.llama.sampling import SamplingOptions
from lamella.run.engine import Engine, EngineOptions
from lamella.store.store import Store
from tests.fakes.tiny_model import write_tiny_model

OPTIONS = EngineOptions(ContextOptions(n_ctx=128, n_batch=64, n_threads=1), layout="mapped")
GREEDY = SamplingOptions(temperature=0)
PROMPT = "the quick brown fox jumps over the lazy dog"


def ids_of(engine: Engine, prompt: str | Sequence[int] = PROMPT, n: int = 24) -> list[int]:
    """What an engine writes after a prompt, greedily."""
    return [t.id for t in engine.generate(prompt, max_tokens=n, sampling=GREEDY)]


def mapped_resident(folder: Path) -> int:
    """Resident bytes of all mappings of files under a folder."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            inside = str(folder.resolve()) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the variants large (Q8_0), middle (Q5_K) and small (Q4_K)."""
    folder = tmp_path_factory.mktemp("run")
    model = write_tiny_model(folder / "tiny.gguf", n_embd=256, n_ff=512)
    for name, precision in (("large", "int8"), ("middle", "int5"), ("small", "int4")):
        api.build(model, folder / "store", api.plan(model, "uniform", precision=precision), name)
    return folder / "store"


@pytest.fixture(scope="session")
def tied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As above, of a model whose head is its embedding; large and small differ in every shard, embedding included."""
    folder = tmp_path_factory.mktemp("tied")
    model = write_tiny_model(folder / "tiny.gguf", n_embd=256, n_ff=512, tied=True)
    for name, precision, outside in (("large", "int8", "fp16"), ("small", "int4", "int4")):
        api.build(model, folder / "store", api.plan(model, "uniform", precision=precision, outside=outside), name)
    return folder / "store"


@pytest.fixture
def store(store_folder: Path) -> Store:
    return Store.open(store_folder)


@pytest.fixture
def engine(store: Store) -> Iterator[Engine]:
    with Engine.open(store, "large", OPTIONS) as opened:
        yield opened
