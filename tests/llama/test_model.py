"""Models load or say why not, and their tokens make text."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.core.errors import EngineFailed
from lamella.llama.model import Model


def test_a_file_that_llama_cpp_refuses_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineFailed, match=r"bad\.gguf"):
        Model.load([path])


def test_tokens_make_their_text_again(model: Model) -> None:
    vocabulary = model.vocabulary
    text = "hello wörld 🙂"
    assert vocabulary.text(vocabulary.tokenize(text, add_special=False)).strip() == text
