from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loadable model with rows long enough for K-quants."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_embd=256, n_ff=512)
