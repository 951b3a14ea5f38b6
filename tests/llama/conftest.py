from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.llama.model import Model
from tests.fakes.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loadable model with rows long enough for K-quants."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_embd=256, n_ff=512)


@pytest.fixture(scope="session")
def model(tiny: Path) -> Iterator[Model]:
    with Model.load([tiny]) as loaded:
        yield loaded
