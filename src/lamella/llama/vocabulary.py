"""Text to tokens and back."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Sequence
from typing import Any

from lamella.core.errors import InvalidRequest
from lamella.llama import library
from lamella.llama.handle import Handle


class Vocabulary:
    """The tokenizer of a model.

    Attributes:
        start: what the model wants at the start of a text: BOS, or nothing; not EOS, which some want at its end.

    Pieces are remembered: between two tokens the weights have pushed everything else out of the processor's caches,
    and each call into C then costs tens of microseconds.  Unlike other handles, it may be used by several threads.

    Raises:
        EngineFailed: from every method, once the model was closed.
    """

    def __init__(self, model: Handle) -> None:
        self._llama = library.load().llama
        self._model = model
        self._address = self._llama.llama_model_get_vocab(model.address)
        self.n_tokens: int = self._llama.llama_vocab_n_tokens(self._address)
        self.bos: int = self._llama.llama_vocab_bos(self._address)
        self.eos: int = self._llama.llama_vocab_eos(self._address)
        wants_bos = self._llama.llama_vocab_get_add_bos(self._address)
        self.start: tuple[int, ...] = (self.bos,) if wants_bos and self.bos >= 0 else ()
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._ends: dict[int, bool] = {}

    @property
    def address(self) -> Any:
        """``llama_vocab``, which belongs to the model."""
        self._model.check_open()
        return self._address

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of ``text``.

        Args:
            add_special: add what the model wants at the start (and end), such as BOS.
            parse_special: recognise control tokens written in the text.

        Raises:
            InvalidRequest: the text cannot be written in UTF-8.
        """
        self._model.check_open()
        data = _utf8(text)
        n = len(data) + 8
        while True:
            tokens = (self._llama.llama_token * n)()
            n = self._llama.llama_tokenize(self._address, data, len(data), tokens, n, add_special, parse_special)
            if n >= 0:
                return list(tokens[:n])
            n = -n  # so many are needed

    def prompt(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Token ids of a text that is to go on: as ``tokenize``, without the EOS that some models want at its end.

        llama.cpp's own ``add_special`` adds that, too: its server then lets a model go on after the end of the text,
        and its command line refuses such models.

        Raises:
            InvalidRequest: the text cannot be written in UTF-8.
        """
        return [*self.start, *self.tokenize(text, add_special=False, parse_special=parse_special)]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token: possibly a part of a UTF-8 character, empty for control tokens."""
        found = self._pieces.get((token, special))
        if found is None:
            found = self._pieces[token, special] = self._read_piece(token, special)
        return found

    def _read_piece(self, token: int, special: bool) -> bytes:
        self._model.check_open()
        buffer = ct.create_string_buffer(64)  # not kept: prompts are read in another thread than tokens are written
        n = self._llama.llama_token_to_piece(self._address, token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = ct.create_string_buffer(-n)
            n = self._llama.llama_token_to_piece(self._address, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]

    def text(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """What the tokens say; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.piece(t, special=special) for t in tokens).decode("utf-8", "replace")

    def ends_generation(self, token: int) -> bool:
        """Whether the model says by it that its answer is over."""
        found = self._ends.get(token)
        if found is None:
            self._model.check_open()
            found = self._ends[token] = bool(self._llama.llama_vocab_is_eog(self._address, token))
        return found


def _utf8(text: str) -> bytes:
    """Python's texts may hold halves of characters: bytes of a command line that are no UTF-8 become such."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the text is not UTF-8 from character {error.start} on") from None
