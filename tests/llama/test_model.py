"""Models load or say why not, and their tokens make text."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.core.errors import EngineFailed
from lamella.llama.model import Model
from tests.fakes.tiny_model import write_tiny_model


def test_a_file_that_llama_cpp_refuses_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineFailed, match=r"bad\.gguf"):
        Model.load([path])


def test_texts_of_the_file_are_read_whole_and_whatever_bytes_they_are(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", n_layers=1, name="ü" * 40, chat_template="caf_")
    path.write_bytes(path.read_bytes().replace(b"caf_", b"caf\xe9"))
    with Model.load([path]) as model:
        assert model.name == "ü" * 40
        assert model.chat_template == "caf\ufffd"


@pytest.mark.parametrize(("add_bos", "add_eos"), [(True, False), (True, True), (False, True), (False, False)])
def test_a_text_starts_with_bos_where_the_model_wants_it_and_never_with_eos(
    tmp_path: Path, add_bos: bool, add_eos: bool
) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", n_layers=1, add_bos=add_bos, add_eos=add_eos)
    with Model.load([path]) as model:
        vocabulary = model.vocabulary
        assert vocabulary.start == ((vocabulary.bos,) if add_bos else ())
        ends = [vocabulary.eos] if add_eos else []
        assert vocabulary.tokenize("") == [*vocabulary.start, *ends]  # which is no start of a text
        for text in ("a", "the fox </s>", ""):
            body = vocabulary.tokenize(text, add_special=False)
            assert vocabulary.prompt(text) == [*vocabulary.start, *body]
            assert vocabulary.tokenize(text) == [*vocabulary.start, *body, *ends]


def test_tokens_make_their_text_again(model: Model) -> None:
    vocabulary = model.vocabulary
    text = "hello wörld 🙂"
    assert vocabulary.text(vocabulary.tokenize(text, add_special=False)).strip() == text
