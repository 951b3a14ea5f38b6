"""Tokens that may be drawn, as llama.cpp's samplers take them."""

from __future__ import annotations

import ctypes as ct
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lamella.llama import library
from lamella.llama.logits import Logits

CANDIDATE = np.dtype([("token", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class Candidates:
    """A ``llama_token_data_array`` and the memory that it speaks of.

    Attributes:
        struct: for ``llama_sampler_apply``, which may reorder and drop candidates.
    """

    def __init__(self, tokens: NDArray[np.integer[Any]], logits: Logits) -> None:
        self._data = np.zeros(len(tokens), CANDIDATE)
        self._data["token"], self._data["logit"] = tokens, logits
        llama = library.load().llama
        pointer = self._data.ctypes.data_as(llama.llama_token_data_p)
        self.struct = llama.llama_token_data_array(data=pointer, size=len(tokens), selected=-1, sorted=False)

    @classmethod
    def single(cls, token: int) -> Self:
        return cls(np.array([token], np.int32), np.ones(1, np.float32))

    @property
    def tokens(self) -> NDArray[np.int32]:
        found: NDArray[np.int32] = self._data["token"]
        return found

    @property
    def logits(self) -> Logits:
        found: Logits = self._data["logit"]
        return found

    @property
    def selected(self) -> int:
        """The token that was drawn, by the last of the samplers."""
        return int(self.struct.data[self.struct.selected].id)

    def apply(self, sampler: Any) -> None:
        library.load().llama.llama_sampler_apply(sampler, ct.byref(self.struct))
